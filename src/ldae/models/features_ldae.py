"""Features of a denoiser: chosen layers at chosen time steps, pooled to vectors or kept as tokens and maps."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from .randomness_ldae import NOISE, keyed_normal


POOLS = ("mean", "none", "map")


class FeatureExtractionMixin:
    """
    Features of a model by layer and time step, for models that can be read at several layers in one forward.

    A subclass has a `config` with `feature_timestep` and `num_train_timesteps`, and lists its layers in
    `feature_layers`, from a layer to the shape of one image's activation: `(N, C)` tokens or a map `(C, h, w)`. Its
    `pooling` describes how activations become one vector, `paper_probe` how the paper's linear probes are trained,
    `fixed_prefixes` name the tensors that its training does not change, and `build_options` are the arguments that
    build a model of the same size.
    """

    config: Any
    feature_layers: dict[Any, tuple[int, ...]]
    pooling: str
    paper_probe: dict[str, Any]
    fixed_prefixes: tuple[str, ...]

    @property
    def build_options(self) -> dict[str, Any]:
        """Arguments that build a model of the same size."""
        return {}

    @property
    def default_layer(self) -> Any:
        """The layer that features are read after by default."""
        raise NotImplementedError

    @property
    def search_layers(self) -> list[Any]:
        """The layers that a search for the best features looks at."""
        raise NotImplementedError

    def prepare_input(self, pixel_values: torch.Tensor, noise: torch.Tensor | None, any_size: bool) -> torch.Tensor:
        """Check images `(B, C, H, W)` and compute what the time steps share: the network's clean input."""
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
        """
        Run the network once, up to the last of the layers, and read each layer's activation.

        Args:
            clean (`torch.Tensor`): What [`~FeatureExtractionMixin.prepare_input`] gave.
            layers (`Sequence`): Some of `feature_layers`.
            timesteps (`torch.LongTensor` of shape `(1,)`): The shared time step.
            noise (`torch.Tensor`, *optional*): The noise eps; a clean input without it.
            read (`Callable`): From an activation to what is kept of it.
            size (`tuple[int, int]`): Height and width of the images, in pixels.

        Returns:
            `dict`: by layer, what `read` gave.
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
        """
        Compute features at several layers and time steps, in one forward for each time step.

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
        clean = self.prepare_input(pixel_values, noise, interpolate_pos_encoding)
        height, width = pixel_values.shape[2:]

        def read(activation: torch.Tensor) -> torch.Tensor:
            if pool == "mean":
                return tokens_of(activation).mean(dim=1)
            return map_of(activation, height, width) if pool == "map" else activation

        found = []
        for step in steps:
            shared_t = torch.full((1,), step, dtype=torch.long, device=pixel_values.device)
            found.append(self.activations(clean, layers, shared_t, noise, read, (height, width)))
        return {layer: torch.stack([at_t[layer] for at_t in found]) for layer in layers}

    def draw_noise(self, pixel_values: torch.Tensor, positions: torch.Tensor, seed: int) -> torch.Tensor:
        """
        Draw the noise eps of images, a pure function of `seed` and each image's position.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(B, C, H, W)`): The images.
            positions (`torch.LongTensor` of shape `(B,)`): Their positions.
            seed (`int`): Seed of the noise.

        Returns:
            `torch.FloatTensor` of the shape of the network's latents or images.
        """
        shape = self.noise_shape(pixel_values)
        count = int(torch.Size(shape).numel())
        return keyed_normal(seed, NOISE, positions, count).view(-1, *shape)

    def noise_shape(self, pixel_values: torch.Tensor) -> tuple[int, ...]:
        """Return the shape of one image's noise."""
        raise NotImplementedError


def check_images(pixel_values: torch.Tensor, config: Any, multiple: int, any_size: bool) -> None:
    """
    Check the shape of a batch of images.

    Args:
        pixel_values (`torch.Tensor`): The images, to be of shape `(B, C, H, W)`.
        config: Configuration with `num_channels` and `image_size`.
        multiple (`int`): Number of pixels that height and width must be multiples of.
        any_size (`bool`): Take images of any such size, and not only of `config.image_size`.

    Raises:
        ValueError: If the shape does not fit, with the shape and the remedy.
    """
    if pixel_values.ndim != 4:
        hint = "; for one image, give pixel_values[None]" if pixel_values.ndim == 3 else ""
        raise ValueError(
            f"pixel_values has shape {tuple(pixel_values.shape)}; it must be (batch_size, num_channels, height, width)"
            f"{hint}."
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


def check_choices(
    feature_layers: dict[Any, tuple[int, ...]],
    num_train_timesteps: int,
    layers: Sequence[Any],
    timesteps: Sequence[Any],
) -> None:
    """
    Check that layers and time steps exist.

    Raises:
        ValueError: If one does not exist, one is given twice, or none is given.
    """
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
