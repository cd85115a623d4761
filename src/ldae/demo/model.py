"""What the page shows of one checkpoint, without the page: an image in, pictures out."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from transformers import AutoConfig, AutoModel

import ldae  # noqa: F401 - registers the models with transformers
from ldae.data import DataConfig, ImageSource, UnreadableImageError, decode_image, iterate_once, open_images
from ldae.demo.neighbours import Neighbours
from ldae.evaluation.encoder import Layer
from ldae.evaluation.generation import Sampling, generate_images
from ldae.models.taps_ddae import block_ends
from ldae.pipelines.loading import open_pipeline
from ldae.pipelines.run_folder import RunFolderPipeline
from ldae.reports.patch_pca import patch_pca_images
from ldae.reports.samples import sample_grid
from ldae.reports.tile_grid import tile_grid


Report = Callable[[float, str], None]  # of a share of the work, 0 to 1, and what is done now
LEAST_SIDE = (
    256  # of a shown picture, in pixels: smaller ones are enlarged by a whole factor, so that pixels stay pixels
)
GRID_LAYERS, GRID_SIDE = 8, 96
SEARCHED_IMAGES = 5000


def silent(share: float, activity: str) -> None:
    """A [`Report`] to nobody."""


@dataclass(frozen=True)
class Denoised:
    """Three pictures of one image, clean, noisy and denoised, and a line that says what was done."""

    clean: PIL.Image.Image
    noisy: PIL.Image.Image
    denoised: PIL.Image.Image
    caption: str


@dataclass
class Exhibit:
    """
    One checkpoint and what can be shown of it.

    Images are arrays `(C, S, S)` in uint8 at the model's size, as [`~Exhibit.read`] makes them of files.

    Args:
        name (`str`): What the page calls the checkpoint.
        model (`PreTrainedModel`): An l-DAE or a DDAE, of which features are read.
        pipeline ([`~ldae.pipelines.run_folder.RunFolderPipeline`], *optional*): What denoises and generates; `None` for a
            checkpoint that holds an encoder alone.
        source ([`~ldae.data.ImageSource`], *optional*): The images that neighbours are looked for in.

    Example:

    ```python
    >>> import numpy as np
    >>> from ldae import LDAEConfig, LDAEForPreTraining, LDAEPipeline
    >>> from ldae.demo.exhibit import Exhibit
    >>> from ldae.schedulers.build import build_scheduler
    >>> model = LDAEForPreTraining(LDAEConfig.from_size("nano", image_size=16, patch_size=4, latent_dim=8)).eval()
    >>> exhibit = Exhibit("mine", model, LDAEPipeline(model, build_scheduler(model.config)))
    >>> shown = exhibit.denoise(np.zeros((3, 16, 16), np.uint8), timestep=500)
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
    def is_ddae(self) -> bool:
        """Whether it is a DDAE, with taps in place of numbered blocks."""
        return self.config.model_type == "ddae"

    @property
    def encoder(self) -> Any:
        """What features are read from: of a DDAE that can be trained on, the DDAE in it."""
        return self.model.base_model

    @property
    def layers(self) -> list[Layer]:
        """Blocks of an l-DAE that are there, counted from 1; of a DDAE one tap for each block of the paper's."""
        if not self.is_ddae:
            return self.encoder.search_layers
        taps = list(self.encoder.feature_layers)
        return [tap for tap in taps if tap in block_ends(taps) or tap == self.config.feature_layer]

    @property
    def default_layer(self) -> Layer:
        """Where features are read by default."""
        if self.is_ddae:
            return str(self.config.feature_layer)
        return self.config.feature_layer or self.config.num_hidden_layers

    @property
    def description(self) -> str:
        """The model in a sentence or two."""
        c, size = self.config, sum(weight.numel() for weight in self.model.parameters())
        device = next(self.model.parameters()).device
        if self.is_ddae:
            kind = f"DDAE: a {c.denoiser_type}, features {c.hidden_size} wide at {c.feature_layer}, t = {c.feature_timestep}"
        else:
            kind = (
                f"l-DAE: {c.num_hidden_layers} encoder and {c.decoder_num_hidden_layers} decoder blocks of width "
                f"{c.hidden_size}, patches of {c.patch_size}x{c.patch_size} as {c.latent_dim} latents, features at block "
                f"{self.default_layer}, t = {c.feature_timestep}"
            )
        return f"{kind}. {size / 1e6:.1f} M weights; it sees images at {c.image_size}x{c.image_size}, and runs on {device}."

    def read(self, path: str | Path) -> tuple[np.ndarray, str]:
        """
        An image file as the model sees it.

        Args:
            path (`str` or `Path`): The file.

        Returns:
            The image `(C, S, S)` in uint8, and what was done to it in words.

        Raises:
            ValueError: saying what the file is not, where it is no image or a damaged one.
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
        """The first images of the chosen set, `(C, S, S)`; none where there is no set."""
        if self.source is None:
            return []
        c = self.config
        batch = next(
            iterate_once(
                self.source, image_size=c.image_size, num_channels=c.num_channels, batch_size=count, limit=count
            )
        )
        return list(batch.images.numpy())

    def denoise(self, image: np.ndarray, timestep: int, seed: int = 0, class_label: int | None = None) -> Denoised:
        """
        Add noise to an image and take it away by one prediction (Fig. 8).

        Args:
            image (`np.ndarray` of shape `(C, S, S)`): As of [`~Exhibit.read`].
            timestep (`int`): t, from 0 to T - 1.
            seed (`int`, defaults to 0): Of the noise, which is the same at all t.
            class_label (`int`, *optional*): Of a class-conditional model; the null class by default.

        Returns:
            [`Denoised`].

        Raises:
            ValueError: for a time step that does not exist, or a checkpoint that is an encoder alone.
        """
        pipeline: Any = self._require_pipeline()
        labels = {} if class_label is None else {"class_labels": class_label}
        generator = torch.Generator().manual_seed(seed)
        clean = torch.from_numpy(image)[None].float() / 255  # (1, C, S, S)
        output = pipeline.denoise(clean, timestep, generator=generator, output_type="pt", **labels)
        noisy, denoised = output.noisy_images.cpu(), output.images.cpu()
        corruption = self.encoder.corruption if self.is_ddae else self.model.ldae.corruption
        gamma, sigma = corruption.gammas[timestep].item(), corruption.sigmas[timestep].item()
        caption = (
            f"t = {timestep}: signal γ = {gamma:.2f}, noise σ = {sigma:.2f}. "
            f"PSNR against the clean image: noisy {psnr(noisy, clean):.1f} dB, denoised {psnr(denoised, clean):.1f} dB."
        )
        return Denoised(enlarge(clean[0]), enlarge(noisy[0]), enlarge(denoised[0]), caption)

    def patch_colours(
        self, image: np.ndarray, layer: Layer | None = None, timestep: int | None = None
    ) -> PIL.Image.Image:
        """
        The three main directions of an image's patch features as red, green and blue, one colour for each patch.

        Args:
            image (`np.ndarray` of shape `(C, S, S)`): As of [`~Exhibit.read`].
            layer, timestep: As of [`~ldae.reports.patch_pca.patch_pca_images`].

        Raises:
            ValueError: for a layer or time step that does not exist.
        """
        return enlarge(self._colours(image, layer, timestep), self.config.image_size)

    def feature_grid(self, image: np.ndarray, report: Report = silent) -> PIL.Image.Image:
        """
        Patch features of several layers, a row each, at several time steps, a column each, as colours.

        Args:
            image (`np.ndarray` of shape `(C, S, S)`): As of [`~Exhibit.read`].
            report ([`Report`], *optional*): Is told of each row.
        """
        layers, timesteps = self.grid_layers(), self.grid_timesteps()
        rows = []
        for index, layer in enumerate(layers):
            name = str(layer) if self.is_ddae else f"block {layer}"
            report(index / len(layers), f"Features of {name} ({index + 1} of {len(layers)} layers)")
            tiles = [resize(self._colours(image, layer, t), GRID_SIDE) for t in timesteps]
            rows.append((f"{name} (default)" if layer == self.default_layer else name, tiles))
        return tile_grid(rows, [f"t = {t}" for t in timesteps])

    def grid_layers(self) -> list[Layer]:
        """Layers of [`~Exhibit.feature_grid`]: all, or eight from the first to the last, and the default one."""
        layers, chosen = self.layers, np.linspace(0, len(self.layers) - 1, GRID_LAYERS).round()
        return [
            layer
            for i, layer in enumerate(layers)
            if len(layers) <= GRID_LAYERS or i in chosen or layer == self.default_layer
        ]

    def grid_timesteps(self) -> list[int]:
        """Time steps of [`~Exhibit.feature_grid`]: the default one and four from the clean end to half of T."""
        steps = self.config.num_train_timesteps
        return sorted({self.config.feature_timestep, 0, steps // 20, steps // 5, steps // 2})

    def neighbours(
        self, image: np.ndarray, count: int = 8, report: Report = silent
    ) -> list[tuple[PIL.Image.Image, str]]:
        """
        The images of the chosen set whose features are the most similar, with similarity and class as captions.

        The set's features are computed at the first call, which takes a while, and kept.

        Args:
            image (`np.ndarray` of shape `(C, S, S)`): As of [`~Exhibit.read`].
            count (`int`, defaults to 8): How many, at most.
            report ([`Report`], *optional*): Is told of the progress.

        Raises:
            ValueError: where no set was chosen.
        """
        if self.source is None:
            raise ValueError("no set of images was chosen to look for neighbours in; give --dataset.")
        if self._neighbours is None:
            self._neighbours = Neighbours.of(self.encoder, self.source, limit=SEARCHED_IMAGES, report=report)
        return self._neighbours.nearest(image, count)

    @property
    def num_searched(self) -> int:
        """How many images neighbours are looked for in; 0 before the first search."""
        return 0 if self._neighbours is None else len(self._neighbours.captions)

    @property
    def default_steps(self) -> int:
        """Steps of a chain of the pipeline, where nothing else is said."""
        if getattr(self.config, "noise_schedule", None) == "constant":
            return 1
        return min(50, self.config.num_train_timesteps)

    def samples(
        self, count: int, steps: int, seed: int = 0, class_label: int | None = None, report: Report = silent
    ) -> PIL.Image.Image:
        """
        Generated images side by side.

        Args:
            count (`int`): How many.
            steps (`int`): Of the chain.
            seed (`int`, defaults to 0): Each image is a function of it and of its number.
            class_label (`int`, *optional*): Of a class-conditional model; all classes in turn by default.
            report ([`Report`], *optional*): Is told of the progress.

        Raises:
            ValueError: where the pipeline refuses these, or the checkpoint is an encoder alone.
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
        """What to expect of samples, by the noise schedule."""
        if getattr(self.config, "noise_schedule", None) in ("linear_sigma", "constant"):
            return (
                f"The noise schedule of this model ({self.config.noise_schedule}) never hides the image, so it did not "
                "learn to begin with noise alone: expect fragments. What it did learn is to denoise."
            )
        return "From noise alone, by the weights that features are read from."

    def _colours(self, image: np.ndarray, layer: Layer | None, timestep: int | None) -> torch.Tensor:
        """`(3, h, w)` in [0, 1]."""
        pixels = torch.from_numpy(image)[None].float() / 127.5 - 1  # (1, C, S, S)
        device = next(self.model.parameters()).device
        return patch_pca_images(self.model, pixels.to(device), layer, timestep)[0]

    def _require_pipeline(self) -> RunFolderPipeline:
        if self.pipeline is None:
            raise ValueError(f"{self.name} holds an encoder alone, which neither denoises nor generates.")
        return self.pipeline


def open_exhibit(
    checkpoint: str, data: DataConfig | None = None, device: str | None = None, name: str | None = None
) -> Exhibit:
    """
    Load a checkpoint to be shown.

    Args:
        checkpoint (`str`): A run's folder, any folder that `save_pretrained` wrote, or a Hub id.
        data ([`~ldae.data.DataConfig`], *optional*): The images that neighbours are looked for in.
        device (`str`, *optional*): Where to compute; by default cuda where there is one.
        name (`str`, *optional*): What the page calls it; by default the folder's name or the Hub id.

    Returns:
        [`Exhibit`]; its `pipeline` is `None` where the checkpoint holds an encoder alone.

    Raises:
        ValueError: where it cannot be loaded, or is neither an l-DAE nor a DDAE.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        config = AutoConfig.from_pretrained(checkpoint)
        if config.model_type not in ("ldae", "ddae"):
            raise ValueError(
                f"checkpoint={checkpoint!r} is a model of type {config.model_type!r}; the page shows l-DAE and DDAE models."
            )
        pipeline = None
        if any("PreTraining" in architecture for architecture in config.architectures or []):
            pipeline = open_pipeline(checkpoint).to(device)
            pipeline.set_progress_bar_config(disable=True)
            model = pipeline.model.eval()
        else:
            model = AutoModel.from_pretrained(checkpoint).to(device).eval()
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"checkpoint={checkpoint!r} cannot be loaded: {error}") from error
    name = name or (Path(checkpoint).resolve().name if Path(checkpoint).is_dir() else checkpoint)
    return Exhibit(name, model, pipeline, None if data is None else open_images(data))


def psnr(image: torch.Tensor, clean: torch.Tensor) -> float:
    """Peak signal-to-noise ratio in dB of images in [0, 1]."""
    return -10 * torch.log10((image - clean).square().mean().clamp(min=1e-10)).item()


def enlarge(image: torch.Tensor, side: int | None = None) -> PIL.Image.Image:
    """
    A picture of `(C, h, w)` in [0, 1], by a whole factor at least 256 pixels wide.

    Args:
        image (`torch.Tensor` of shape `(C, h, w)`): With one or three channels.
        side (`int`, *optional*): As large as an image of that side would be, for maps that lie over it.
    """
    side = side or image.shape[-1]
    return resize(image, side * max(1, -(-LEAST_SIDE // side)))


def picture_of(image: np.ndarray) -> PIL.Image.Image:
    """An image `(C, S, S)` in uint8, enlarged as others are."""
    return enlarge(torch.from_numpy(image).float() / 255)


def resize(image: torch.Tensor, side: int) -> PIL.Image.Image:
    """A picture of `(C, h, w)` in [0, 1], `side` pixels wide, its pixels as squares."""
    values = (image.clamp(0, 1) * 255).round().to(torch.uint8).expand(3, -1, -1).permute(1, 2, 0).numpy()  # (h, w, 3)
    return PIL.Image.fromarray(np.ascontiguousarray(values)).resize((side, side), PIL.Image.Resampling.NEAREST)
