"""A checkpoint behind the demo's page: it turns an image into pictures, and knows nothing of the page."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from transformers import AutoModel

from ldae.checkpoints import loading, open_config, open_model
from ldae.data import DataConfig, ImageSource, UnreadableImageError, decode_image, iterate_once, open_images
from ldae.demo.neighbours import Neighbours
from ldae.evaluation.encoder import Layer, name_layer
from ldae.evaluation.generation import Sampling, generate_images
from ldae.hub.families import Family, family_of
from ldae.pipelines.loading import RunFolderPipeline, open_pipeline
from ldae.places import place_name
from ldae.reports.image_grids import sample_grid, tile_grid, to_picture
from ldae.reports.patch_pca import patch_pca_images


Report = Callable[[float, str], None]  # called with the share of the work that is done, 0 to 1, and the current step
LEAST_SIDE = 256  # pixels; smaller pictures are enlarged by a whole factor, so that their pixels stay squares
GRID_LAYERS, GRID_SIDE = 8, 96
SEARCHED_IMAGES = 5000
WRONG_FAMILY = "The page shows l-DAE and DDAE models."


def silent(share: float, activity: str) -> None:
    """Ignore the progress."""


@dataclass(frozen=True)
class Denoised:
    """Clean, noisy and denoised pictures of one image, with a caption."""

    clean: PIL.Image.Image
    noisy: PIL.Image.Image
    denoised: PIL.Image.Image
    caption: str


@dataclass
class DemoModel:
    """A checkpoint and the pictures that can be drawn with it.

    Images are arrays `(C, S, S)` in uint8 at the model's size, as [`~DemoModel.read`] makes them from files.

    Args:
        name (`str`): Title of the page.
        model (`PreTrainedModel`): An l-DAE or a DDAE to read features from.
        pipeline ([`~ldae.pipelines.loading.RunFolderPipeline`], *optional*): The pipeline that denoises and generates;
            `None` if the checkpoint is only an encoder.
        source ([`~ldae.data.ImageSource`], *optional*): Images to search for neighbours.

    Example:
        ```python
        >>> import numpy as np
        >>> from ldae import LDAEConfig, LDAEForPreTraining
        >>> from ldae.demo.model import DemoModel
        >>> from ldae.pipelines.loading import build_pipeline
        >>> model = LDAEForPreTraining(LDAEConfig.from_size("nano", image_size=16, patch_size=4, latent_dim=8)).eval()
        >>> demo = DemoModel("mine", model, build_pipeline(model))
        >>> shown = demo.denoise(np.zeros((3, 16, 16), np.uint8), timestep=500)
        >>> shown.noisy.size, shown.denoised.size
        ((256, 256), (256, 256))

        ```
    """

    name: str
    model: Any
    pipeline: RunFolderPipeline | None = None
    source: ImageSource | None = None
    _neighbours: Neighbours | None = field(default=None, init=False, repr=False)

    @property
    def config(self) -> Any:
        """The model's configuration."""
        return self.model.config

    @property
    def layers(self) -> list[Layer]:
        """The layers that features can be read after."""
        return self.model.base_model.search_layers

    @property
    def default_layer(self) -> Layer:
        """The layer that features are read after by default."""
        return self.model.base_model.default_layer

    @property
    def family(self) -> Family:
        """The family of the model."""
        return family_of(self.config.model_type, self.name, WRONG_FAMILY)

    @property
    def description(self) -> str:
        """The model in two sentences."""
        c, parameters = self.config, list(self.model.parameters())
        return (
            f"{self.family.name}: {self.family.summary(c)}, features read at {name_layer(self.default_layer)}, "
            f"t = {c.feature_timestep}. {sum(p.numel() for p in parameters) / 1e6:.1f} M weights; it sees images at "
            f"{c.image_size}x{c.image_size}, and runs on {parameters[0].device}."
        )

    def adopt(self, newer: "DemoModel") -> None:
        """Take the weights of a newer export of the same run; features to search are then computed anew."""
        self.model, self.pipeline, self._neighbours = newer.model, newer.pipeline, None

    def read(self, path: str | Path) -> tuple[np.ndarray, str]:
        """Read an image file at the model's size, and say how it was changed.

        Raises:
            ValueError: If the file is no image, or a damaged one.
        """
        size = self.config.image_size
        try:
            pixels, notes = decode_image({"path": str(path)}, self.config.num_channels, size)
        except UnreadableImageError as error:
            raise ValueError(
                f"This file cannot be shown: {error.reason}. Choose a picture, such as a PNG, JPEG or WebP file."
            ) from error
        changes = "".join(f", {note}" for note in notes)
        return pixels, f"The picture was resized to {size}x{size} and cropped to its centre{changes}."

    def examples(self, count: int = 8) -> list[np.ndarray]:
        """Return the first readable images of the source, `(C, S, S)`; an empty list without a source."""
        if self.source is None:
            return []
        size = {"image_size": self.config.image_size, "num_channels": self.config.num_channels}
        batch = next(iterate_once(self.source, batch_size=count, **size))
        return list(batch.images.numpy())

    def denoise(self, image: np.ndarray, timestep: int, seed: int = 0, class_label: int | None = None) -> Denoised:
        """Add noise to an image and remove it by one prediction (Fig. 8).

        Args:
            image (`np.ndarray` of shape `(C, S, S)`): The image, in uint8.
            timestep (`int`): The time step t, from 0 to T - 1.
            seed (`int`, defaults to 0): Seed of the noise, which is the same at all t.
            class_label (`int`, *optional*): Class for a class-conditional model; the null class by default.

        Raises:
            ValueError: If the time step does not exist, or the checkpoint is only an encoder.
        """
        pipeline: Any = self._require_pipeline()
        labels = {} if class_label is None else {"class_labels": class_label}
        generator = torch.Generator().manual_seed(seed)
        clean = torch.from_numpy(image)[None].float() / 255  # (1, C, S, S)
        output = pipeline.denoise(clean, timestep, generator=generator, output_type="pt", **labels)
        noisy, denoised = output.noisy_images.cpu(), output.images.cpu()
        gamma, sigma = pipeline.noise_scales(timestep)
        caption = (
            f"t = {timestep}: signal γ = {gamma:.2f}, noise σ = {sigma:.2f}. PSNR against the clean image: noisy "
            f"{psnr(noisy, clean):.1f} dB, denoised {psnr(denoised, clean):.1f} dB."
        )
        return Denoised(enlarge(clean[0]), enlarge(noisy[0]), enlarge(denoised[0]), caption)

    def patch_colours(
        self, image: np.ndarray, layer: Layer | None = None, timestep: int | None = None
    ) -> PIL.Image.Image:
        """Draw the three principal components of an image's patch features as red, green and blue.

        Args:
            image (`np.ndarray` of shape `(C, S, S)`): The image, in uint8.
            layer (`int` or `str`, *optional*): By default the model's own.
            timestep (`int`, *optional*): By default the model's own.

        Raises:
            ValueError: If the layer or the time step does not exist.
        """
        return enlarge(self._colours(image, layer, timestep), self.config.image_size)

    def feature_grid(self, image: np.ndarray, report: Report = silent) -> PIL.Image.Image:
        """Draw patch features as colours, with a row for each layer and a column for each time step.

        Args:
            image (`np.ndarray` of shape `(C, S, S)`): The image, in uint8.
            report ([`Report`], *optional*): Called before each row.
        """
        layers, timesteps = self.grid_layers(), self.grid_timesteps()
        rows = []
        for index, layer in enumerate(layers):
            name = name_layer(layer)
            report(index / len(layers), f"Features of {name} ({index + 1} of {len(layers)} layers)")
            tiles = [resize(self._colours(image, layer, t), GRID_SIDE) for t in timesteps]
            rows.append((f"{name} (default)" if layer == self.default_layer else name, tiles))
        return tile_grid(rows, [f"t = {t}" for t in timesteps])

    def grid_layers(self) -> list[Layer]:
        """Choose the layers of [`~DemoModel.feature_grid`]: eight from first to last, and the default one."""
        layers, chosen = self.layers, np.linspace(0, len(self.layers) - 1, GRID_LAYERS).round()
        return [
            layer
            for i, layer in enumerate(layers)
            if len(layers) <= GRID_LAYERS or i in chosen or layer == self.default_layer
        ]

    def grid_timesteps(self) -> list[int]:
        """Choose the time steps of [`~DemoModel.feature_grid`]: the default one and four up to T / 2."""
        steps = self.config.num_train_timesteps
        return sorted({self.config.feature_timestep, 0, steps // 20, steps // 5, steps // 2})

    def search(self, report: Report = silent) -> Neighbours:
        """Return the images of the source as neighbours to find; their features are computed at the first call.

        Args:
            report ([`Report`], *optional*): Called with the progress of that.

        Raises:
            ValueError: If there is no source.
        """
        if self.source is None:
            raise ValueError("there are no images to search for neighbours; choose some with --dataset.")
        if self._neighbours is None:
            self._neighbours = Neighbours.compute(self.model, self.source, limit=SEARCHED_IMAGES, report=report)
        return self._neighbours

    @property
    def num_searched(self) -> int:
        """Number of images that are searched for neighbours; 0 before the first search."""
        return 0 if self._neighbours is None else len(self._neighbours.captions)

    @property
    def default_steps(self) -> int:
        """Default number of sampling steps: that of the pipeline's own sampler."""
        return self._require_pipeline().steps_by_default(None)

    def samples(
        self, count: int, steps: int, seed: int = 0, class_label: int | None = None, report: Report = silent
    ) -> PIL.Image.Image:
        """Generate images, and draw them side by side.

        Args:
            count (`int`): Number of images.
            steps (`int`): Number of sampling steps.
            seed (`int`, defaults to 0): Seed; each image depends on it and on its own number.
            class_label (`int`, *optional*): Class for a class-conditional model; all classes in turn by default.
            report ([`Report`], *optional*): Called with the progress.

        Raises:
            ValueError: If the pipeline refuses an argument, or the checkpoint is only an encoder.
        """
        classes = None if class_label is None else (class_label,)
        sampling = Sampling(steps=steps, seed=seed, classes=classes, batch_size=4)
        images: list[torch.Tensor] = []
        report(0, f"Generating {count} images in {steps} steps")
        for batch in generate_images(self._require_pipeline(), count, sampling):
            images.append(batch.images)
            done = sum(map(len, images))
            report(done / count, f"{done} of {count} images generated")
        return sample_grid(torch.cat(images))

    @property
    def sampling_note(self) -> str:
        """Say what to expect of samples, given the noise schedule."""
        if getattr(self.config, "noise_schedule", None) in ("linear_sigma", "constant"):
            return (
                f"The noise schedule of this model ({self.config.noise_schedule}) never hides the image completely, "
                "so it did not learn to start from noise: expect fragments. It did learn to denoise."
            )
        return "Generated from noise, with the weights that features are read from."

    def _colours(self, image: np.ndarray, layer: Layer | None, timestep: int | None) -> torch.Tensor:
        """Compute the colours of an image's patches, `(3, h, w)` in [0, 1]."""
        pixels = torch.from_numpy(image)[None].float() / 127.5 - 1  # (1, C, S, S)
        return patch_pca_images(self.model, pixels.to(self.model.device), layer, timestep)[0]

    def _require_pipeline(self) -> RunFolderPipeline:
        if self.pipeline is None:
            raise ValueError(f"{self.name} is only an encoder, which can neither denoise nor generate.")
        return self.pipeline


def open_demo_model(
    checkpoint: str, data: DataConfig | None = None, device: str | None = None, name: str | None = None
) -> DemoModel:
    """Load a checkpoint for the page.

    Args:
        checkpoint (`str`): A run's folder, any folder that `save_pretrained` wrote, or a Hub id.
        data ([`~ldae.data.DataConfig`], *optional*): Images to search for neighbours.
        device (`str`, *optional*): Device to compute on; by default cuda if there is one.
        name (`str`, *optional*): Title of the page; by default the folder's name or the Hub id.

    Raises:
        ValueError: If it cannot be loaded, or is neither an l-DAE nor a DDAE.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    config = open_config(checkpoint)
    family_of(config.model_type, f"checkpoint={checkpoint!r}", WRONG_FAMILY)
    pipeline = None
    if any("PreTraining" in architecture for architecture in config.architectures or []):
        with loading(checkpoint):
            pipeline = open_pipeline(checkpoint).to(device)
        pipeline.set_progress_bar_config(disable=True)
        model = pipeline.model.eval()
    else:
        model = open_model(AutoModel, checkpoint).to(device).eval()
    return DemoModel(name or place_name(checkpoint), model, pipeline, None if data is None else open_images(data))


def psnr(image: torch.Tensor, clean: torch.Tensor) -> float:
    """Compute the peak signal-to-noise ratio in dB of images in [0, 1]."""
    return -10 * torch.log10((image - clean).square().mean().clamp(min=1e-10)).item()


def enlarge(image: torch.Tensor, side: int | None = None) -> PIL.Image.Image:
    """Make a picture at least 256 pixels wide of values `(C, h, w)` in [0, 1], enlarged by a whole factor.

    A map takes the `side` of the image under it.
    """
    side = side or image.shape[-1]
    return resize(image, side * max(1, -(-LEAST_SIDE // side)))


def picture_of(image: np.ndarray) -> PIL.Image.Image:
    """Make an enlarged picture of an image `(C, S, S)` in uint8."""
    return enlarge(torch.from_numpy(image).float() / 255)


def resize(image: torch.Tensor, side: int) -> PIL.Image.Image:
    """Make a picture `side` pixels wide of values `(C, h, w)` in [0, 1], with square pixels."""
    return to_picture((image.clamp(0, 1) * 255).round().to(torch.uint8), side)
