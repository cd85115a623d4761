"""Features of a denoiser: chosen layers at chosen time steps, pooled to vectors or kept as tokens and maps."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple

from .randomness_ldae import keyed_noise


POOLS = ("mean", "none", "map")


class FeatureExtractionMixin:
    """Features of a model by layer and time step, for models that can be read at several layers in one forward.

    Attributes:
        config: With `feature_timestep`, `num_train_timesteps`, `image_size` and `num_channels`.
        feature_layers (`dict`): From a layer to the shape of one image's activation: `(N, C)` tokens or a map
            `(C, h, w)`.
        stride (`int`): Number of pixels that height and width of images must be multiples of.
        pooling (`str`): How activations become one vector.
        paper_probe (`dict`): How the paper's linear probes are trained.
        fixed_prefixes (`tuple[str, ...]`): Beginnings of the names of tensors that training does not change.
        default_layer: The layer that features are read after by default.
        search_layers (`list`): The layers that a search for the best features looks at.
        build_options (`dict`): Arguments that build a model of the same size.
    """

    config: Any
    feature_layers: dict[Any, tuple[int, ...]]
    stride: int
    pooling: str
    paper_probe: dict[str, Any]
    fixed_prefixes: tuple[str, ...]

    @property
    def default_layer(self) -> Any:
        raise NotImplementedError

    @property
    def search_layers(self) -> list[Any]:
        raise NotImplementedError

    @property
    def build_options(self) -> dict[str, Any]:
        raise NotImplementedError

    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Encode images `(B, C, H, W)` as the network's clean input."""
        raise NotImplementedError

    def prepare_input(self, pixel_values: torch.Tensor, noise: torch.Tensor | None) -> torch.Tensor:
        """Compute what the time steps share from images `(B, C, H, W)`: by default the clean input."""
        return self.encode(pixel_values)

    def noise_shape(self, pixel_values: torch.Tensor) -> tuple[int, ...]:
        """Return the shape of the noise of one of the images `(B, C, H, W)`."""
        raise NotImplementedError

    def activations(
        self,
        clean: torch.Tensor,
        layers: Sequence[Any],
        timesteps: torch.Tensor,
        noise: torch.Tensor | None,
        read: Callable[[torch.Tensor], torch.Tensor],
        size: tuple[int, int],
    ) -> dict[Any, torch.Tensor]:
        """Run the network once, up to the last of the layers, and return what `read` keeps of each one's activation.

        Args:
            clean (`torch.Tensor`): What [`~FeatureExtractionMixin.prepare_input`] gave.
            layers (`Sequence`): Some of `feature_layers`.
            timesteps (`torch.LongTensor` of shape `(1,)`): The shared time step.
            noise (`torch.Tensor`, *optional*): The noise eps; a clean input without it.
            read (`Callable`): From an activation to what is kept of it.
            size (`tuple[int, int]`): Height and width of the images, in pixels.
        """
        raise NotImplementedError

    @property
    def default_timestep(self) -> int:
        """The time step that features are read at by default."""
        return self.config.feature_timestep

    @property
    def num_train_timesteps(self) -> int:
        """T, the number of time steps."""
        return self.config.num_train_timesteps

    def features(
        self,
        pixel_values: torch.Tensor,
        layers: Sequence[Any] | None = None,
        timesteps: Sequence[int] | None = None,
        noise: torch.Tensor | None = None,
        pool: str = "mean",
        interpolate_pos_encoding: bool = False,
    ) -> dict[Any, torch.Tensor]:
        """Compute features at several layers and time steps, in one forward for each time step.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(B, C, H, W)`): Images in [-1, 1].
            layers (`Sequence`, *optional*): Some of `feature_layers`; by default `default_layer`.
            timesteps (`Sequence[int]`, *optional*): Time steps; by default `config.feature_timestep`.
            noise (`torch.FloatTensor`, *optional*): The noise eps, the same at every time step; by default the input
                stays clean. [`~FeatureExtractionMixin.draw_noise`] draws it.
            pool (`str`, defaults to `"mean"`): `"mean"` over tokens or space, `"map"` for maps also of tokens, or
                `"none"` for activations in their own shape.
            interpolate_pos_encoding (`bool`, defaults to `False`): Whether images of any size are taken.

        Returns:
            `dict[layer, torch.Tensor]`: for each of `layers` a tensor `(T, B, C)`, in the order of `timesteps`; with
            `pool="map"` `(T, B, C, h, w)`; with `pool="none"` `(T, B, C, h, w)` or `(T, B, N, C)`.

        Raises:
            ValueError: If a layer or a time step does not exist, images do not fit, or `pool` is unknown.
        """
        layers = [self.default_layer] if layers is None else list(layers)
        steps = [self.default_timestep] if timesteps is None else list(timesteps)
        check_choices(self.feature_layers, self.num_train_timesteps, layers, steps)
        if pool not in POOLS:
            raise ValueError(f"pool={pool!r} is unknown; choose one of {', '.join(POOLS)}.")
        self.check_images(pixel_values, interpolate_pos_encoding)
        clean = self.prepare_input(pixel_values, noise)
        height, width = pixel_values.shape[2:]

        def read(activation: torch.Tensor) -> torch.Tensor:
            if pool == "mean":
                return tokens_of(activation).mean(dim=1)
            return map_of(activation, height, width) if pool == "map" else activation

        found = []
        for step in steps:
            timestep = self.shared_timestep(pixel_values, step)
            found.append(self.activations(clean, layers, timestep, noise, read, (height, width)))
        return {layer: torch.stack([at_t[layer] for at_t in found]) for layer in layers}

    def draw_noise(self, pixel_values: torch.Tensor, positions: torch.Tensor, seed: int) -> torch.Tensor:
        """Draw the noise eps of images, a pure function of `seed` and each image's position.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(B, C, H, W)`): The images.
            positions (`torch.LongTensor` of shape `(B,)`): Their positions.
            seed (`int`): Seed of the noise.

        Returns:
            `torch.FloatTensor` of the shape of the network's latents or images.
        """
        return keyed_noise(seed, positions, self.noise_shape(pixel_values))

    def shared_timestep(self, pixel_values: torch.Tensor, t: int | None = None) -> torch.Tensor:
        """Return one time step for all images, `(1,)`, by default `config.feature_timestep`."""
        t = self.config.feature_timestep if t is None else t
        return torch.full((1,), t, dtype=torch.long, device=pixel_values.device)

    def check_images(self, pixel_values: torch.Tensor, any_size: bool | None = False) -> None:
        """Check that images are `(B, C, H, W)`, and of the configuration's size or of `any_size` that is a multiple.

        Raises:
            ValueError: If the shape does not fit, with the shape and the remedy.
        """
        config, multiple = self.config, self.stride
        if pixel_values.ndim != 4:
            hint = "; for one image, give pixel_values[None]" if pixel_values.ndim == 3 else ""
            raise ValueError(
                f"pixel_values has shape {tuple(pixel_values.shape)}; it must be (batch_size, num_channels, height, "
                f"width){hint}."
            )
        channels, height, width = pixel_values.shape[1:]
        if channels != config.num_channels:
            raise ValueError(
                f"pixel_values has {channels} channels; the model was made for num_channels={config.num_channels}."
            )
        if not any_size and (height, width) != (config.image_size, config.image_size):
            raise ValueError(
                f"pixel_values is {height}x{width}; the model was made for image_size={config.image_size}. Resize the "
                f"images, or pass interpolate_pos_encoding=True for any multiple of {multiple}."
            )
        if height % multiple or width % multiple:
            raise ValueError(f"pixel_values is {height}x{width}; both must be multiples of {multiple}.")


class ImageClassificationMixin:
    """The forward of a model with an encoder, `base_model`, and a linear `classifier` of its pooled features."""

    base_model: Any
    classifier: Any
    config: Any
    loss_function: Any

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        timesteps: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ImageClassifierOutput:
        r"""Classify images.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(B, C, H, W)`): Images in [-1, 1].
            labels (`torch.LongTensor` of shape `(B,)`, *optional*): Classes, for the loss.
            timesteps (`torch.LongTensor` of shape `(B,)`, *optional*): Time step of each image; by default
                `config.feature_timestep` for all.
            noise (`torch.FloatTensor`, *optional*): The noise eps to corrupt the network's input with at `timesteps`,
                as [`~FeatureExtractionMixin.draw_noise`] draws it; by default the input stays clean.
            interpolate_pos_encoding (`bool`, *optional*): Whether images of any size are taken.

        Returns:
            `ImageClassifierOutput` with `logits` `(B, num_labels)` and perhaps `loss`.
        """
        outputs: BaseModelOutputWithPooling = self.base_model(
            pixel_values, timesteps, noise, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs
        )
        logits = self.classifier(outputs.pooler_output)  # (B, num_labels)
        loss = None if labels is None else self.loss_function(labels, logits, self.config, **kwargs)
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


def check_choices(
    feature_layers: dict[Any, tuple[int, ...]],
    num_train_timesteps: int,
    layers: Sequence[Any],
    timesteps: Sequence[Any],
) -> None:
    """Refuse layers and time steps of which one does not exist, one is given twice, or none is given."""
    known, last = list(feature_layers), num_train_timesteps - 1
    names = ", ".join(map(str, known)) if isinstance(known[0], str) else f"the blocks {known[0]} to {known[-1]}"
    for name, chosen, possible, words in (
        ("layers", layers, known, names),
        ("timesteps", timesteps, range(last + 1), f"the numbers from 0 to {last}"),
    ):
        if not chosen or len(set(chosen)) < len(chosen) or not set(chosen) <= set(possible):
            raise ValueError(f"{name}={list(chosen)} must be one or more of {words}, each once.")


def tokens_of(activation: torch.Tensor) -> torch.Tensor:
    """Flatten a map `(B, C, H, W)` to tokens `(B, H * W, C)`; tokens stay as they are."""
    return activation.flatten(2).transpose(1, 2) if activation.ndim == 4 else activation


def map_of(activation: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Arrange tokens `(B, N, C)` of images of `height` x `width`, row by row, as a map `(B, C, h, w)`; a map stays."""
    if activation.ndim == 4:
        return activation
    rows = round((activation.shape[1] * height / width) ** 0.5)
    return activation.transpose(1, 2).unflatten(2, (rows, -1))
