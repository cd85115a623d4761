"""Encoders: one small interface for everything that is measured, from denoisers to raw pixels."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

import ldae  # noqa: F401 - registers the models with transformers
from ldae.checkpoints import image_side
from ldae.models.features_ldae import check_choices

from .untrained import untrained_like


Layer = int | str  # a block's number, counted from 1, or a tap's name


class Encoder(ABC):
    """Images in, features out.

    A subclass sets the attributes and writes [`~Encoder.features`]; one with time steps also writes
    [`~Encoder.draw_noise`]. An encoder without a choice of layers and time steps keeps the defaults, where both are
    `None`.

    Attributes:
        name (`str`): Name in tables and messages.
        image_size (`int`): Side of its images, in pixels.
        num_channels (`int`): Channels of its images.
        feature_layers (`dict`): From a layer to the shape of one image's activation there.
        default_layer (`int` or `str`, *optional*): The layer that is read by default.
        default_timestep (`int`, *optional*): The time step that is read by default.
        num_train_timesteps (`int`): Number of time steps, 0 without any.
        pooling (`str`): How activations become one vector, for results.
        paper_probe (`dict`): Crop and Adam's settings of the linear probe in the encoder's paper.
        module (`torch.nn.Module`, *optional*): The network, for its device and mode.
    """

    name: str = "encoder"
    image_size: int
    num_channels: int = 3
    feature_layers: dict[Any, tuple[int, ...]] = {None: ()}
    default_layer: Layer | None = None
    default_timestep: int | None = None
    num_train_timesteps: int = 0
    pooling: str = "mean"
    paper_probe: dict[str, Any] = {"crop": "resized"}
    module: Any = None

    @abstractmethod
    def features(
        self,
        pixel_values: torch.Tensor,
        layers: Sequence[Any] | None = None,
        timesteps: Sequence[Any] | None = None,
        noise: torch.Tensor | None = None,
        pool: str = "mean",
    ) -> dict[Any, torch.Tensor]:
        """Compute features of images.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(B, C, S, S)`): Images in [-1, 1].
            layers (`Sequence`, *optional*): Some of `feature_layers`; by default `default_layer`.
            timesteps (`Sequence`, *optional*): Time steps; by default `default_timestep`.
            noise (`torch.Tensor`, *optional*): As [`~Encoder.draw_noise`] gives it; by default the input stays clean.
            pool (`str`, defaults to `"mean"`): `"mean"` for vectors `(T, B, C)`, `"map"` for maps `(T, B, C, h, w)`,
                or `"none"` for activations in their own shape.

        Returns:
            `dict`: for each of `layers` a tensor whose first two dimensions are `len(timesteps)` and B.
        """

    def draw_noise(self, pixel_values: torch.Tensor, positions: torch.Tensor, seed: int) -> torch.Tensor:
        """Draw the noise of images as a pure function of the seed and each image's position."""
        raise NotImplementedError(f"{self.name} adds no noise to its input.")

    def untrained(self, seed: int, *, random_gates: bool = True) -> "Encoder":
        """Return the same network with weights drawn afresh; see [`~ldae.evaluation.untrained.untrained_like`]."""
        raise NotImplementedError(f"{self.name} has no weights that could be drawn afresh.")

    @property
    def has_choices(self) -> bool:
        """`True` if layers and time steps can be chosen, and noise added."""
        return self.default_layer is not None

    @property
    def search_layers(self) -> list[Any]:
        """The layers that a search for the best features looks at."""
        return list(self.feature_layers)

    @property
    def search_timesteps(self) -> tuple[Any, ...]:
        """The time steps that a search for the best features looks at."""
        return tuple(range(0, self.num_train_timesteps, max(1, self.num_train_timesteps // 8)))

    @property
    def paper_point(self) -> tuple[Any, Any]:
        """The layer and the time step that a search is compared with."""
        return self.default_layer, self.default_timestep

    def choices(
        self, layers: Sequence[Any] | None, timesteps: Sequence[Any] | None, noisy: bool = False
    ) -> tuple[list[Any], list[Any]]:
        """Fill in the default layer and time step, and check that the given ones exist.

        Raises:
            ValueError: If one does not exist, or the encoder has no such choices.
        """
        if not self.has_choices:
            chosen = [value for values in (layers, timesteps) for value in values or () if value is not None]
            if chosen or noisy:
                raise ValueError(
                    f"layers, timesteps and noisy are choices of l-DAE and DDAE models; a {self.name} has none of "
                    "them."
                )
            return [None], [None]
        layers = [self.default_layer] if layers is None else list(layers)
        timesteps = [self.default_timestep] if timesteps is None else list(timesteps)
        check_choices(self.feature_layers, self.num_train_timesteps, layers, timesteps)
        return layers, timesteps

    @property
    def device(self) -> torch.device:
        """Device on which features are computed."""
        return torch.device("cpu") if self.module is None else next(self.module.parameters()).device

    def to(self, device: torch.device | str) -> "Encoder":
        """Move the network to a device."""
        if self.module is not None:
            self.module.to(device)
        return self

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Compute in evaluation mode and without gradients; every module gets its own mode back."""
        with evaluating(self.module) if self.module is not None else torch.no_grad():
            yield


class DenoiserEncoder(Encoder):
    """An l-DAE, a DDAE, or any other model with `features` and `feature_layers`.

    Args:
        model (`PreTrainedModel`): The encoder itself, or a model for pre-training or classification around it.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.source: Any = model
        self.module = model.base_model
        self.name = type(model).__name__
        self.config: Any = model.config
        self.image_size, self.num_channels = model.config.image_size, model.config.num_channels
        encoder: Any = self.module
        self.num_train_timesteps, self.pooling = encoder.num_train_timesteps, encoder.pooling
        self.default_layer, self.default_timestep = encoder.default_layer, encoder.default_timestep
        self.feature_layers, self.paper_probe = encoder.feature_layers, encoder.paper_probe

    @property
    def search_layers(self) -> list[Any]:
        """The layers that the model names."""
        return self.module.search_layers

    @property
    def search_timesteps(self) -> tuple[Any, ...]:
        """The time steps that the configuration names."""
        return self.config.search_timesteps

    @property
    def paper_point(self) -> tuple[Any, Any]:
        """The paper's layer and time step."""
        return self.config.paper_point

    def features(
        self,
        pixel_values: torch.Tensor,
        layers: Sequence[Any] | None = None,
        timesteps: Sequence[Any] | None = None,
        noise: torch.Tensor | None = None,
        pool: str = "mean",
    ) -> dict[Any, torch.Tensor]:
        """Compute the model's features in float32; for maps, images may have any size that its cells divide."""
        any_size = pool != "mean"
        found = self.module.features(pixel_values, layers, timesteps, noise, pool, interpolate_pos_encoding=any_size)
        return {layer: values.float() for layer, values in found.items()}

    def draw_noise(self, pixel_values: torch.Tensor, positions: torch.Tensor, seed: int) -> torch.Tensor:
        """Draw the model's own noise."""
        return self.module.draw_noise(pixel_values, positions, seed)

    def untrained(self, seed: int, *, random_gates: bool = True) -> "DenoiserEncoder":
        """Return the same network, gates included, with weights drawn afresh."""
        return DenoiserEncoder(untrained_like(self.source, seed, random_gates=random_gates))


class FixedEncoder(Encoder):
    """An encoder without a choice of layers and time steps. A subclass writes [`~FixedEncoder.read`]."""

    @abstractmethod
    def read(self, pixel_values: torch.Tensor, pooled: bool) -> torch.Tensor:
        """Compute vectors `(B, F)`, or if not `pooled` activations in their own shape."""

    def features(
        self,
        pixel_values: torch.Tensor,
        layers: Sequence[Any] | None = None,
        timesteps: Sequence[Any] | None = None,
        noise: torch.Tensor | None = None,
        pool: str = "mean",
    ) -> dict[Any, torch.Tensor]:
        """Compute the vectors of images, or with another `pool` than `"mean"` their activations as they are."""
        return {None: self.read(pixel_values, pool == "mean")[None]}


class PooledEncoder(FixedEncoder):
    """Another vision model of `AutoModel`.

    Features are the `pooler_output` where the checkpoint holds its weights (or it has none), else the mean over tokens
    or places of `last_hidden_state`; `pooling` says which. A masked autoencoder sees all patches in their order.

    Args:
        model (`PreTrainedModel`): A vision model.
        processor (*optional*): Its image processor, whose `image_mean`, `image_std` and size are used. Without one the
            model takes pixels in [-1, 1].
        use_pooler (`bool`, defaults to `True`): Whether `pooler_output` may be taken.
    """

    def __init__(self, model: PreTrainedModel, processor: Any = None, use_pooler: bool = True) -> None:
        self.module = model
        self.config: Any = model.config
        self.name, self.processor, self.use_pooler = type(model).__name__, processor, use_pooler
        self.num_channels = getattr(model.config, "num_channels", 3)
        self.image_size = image_side(model.config, processor)
        if hasattr(model.config, "mask_ratio"):
            model.config.mask_ratio = 0.0
        takes_noise = "noise" in inspect.signature(model.forward).parameters
        self._orders_patches = takes_noise and hasattr(model.config, "mask_ratio")
        self.pooling = "mean over tokens or places"

    def read(self, pixel_values: torch.Tensor, pooled: bool) -> torch.Tensor:
        """Compute the pooled output, or the last hidden state."""
        pixels = self._normalize(pixel_values)
        options = {}
        if self._orders_patches:  # what a masked autoencoder sorts its patches by, and would draw
            patches = (pixels.shape[-1] // self.config.patch_size) ** 2
            options["noise"] = torch.arange(patches, device=pixels.device, dtype=pixels.dtype).expand(len(pixels), -1)
        outputs: Any = self.module(pixel_values=pixels, **options)
        if not pooled:
            return outputs.last_hidden_state
        own = self.use_pooler and getattr(outputs, "pooler_output", None) is not None
        self.pooling = "the model's own" if own else "mean over tokens or places"
        return pool_outputs(outputs, self.use_pooler)

    def untrained(self, seed: int, *, random_gates: bool = True) -> "PooledEncoder":
        """Return the same network with weights drawn afresh."""
        return PooledEncoder(untrained_like(self.module, seed), self.processor, self.use_pooler)

    def _normalize(self, pixel_values: torch.Tensor) -> torch.Tensor:
        if self.processor is None:
            return pixel_values
        normalizes = getattr(self.processor, "do_normalize", True)
        statistics = []
        for name, default in (("mean", 0.0), ("std", 1.0)):
            values = getattr(self.processor, f"image_{name}", None) if normalizes else None
            values = values if values is not None else [default] * self.num_channels
            statistics.append(torch.tensor(values, dtype=torch.float32, device=pixel_values.device).view(-1, 1, 1))
        mean, std = statistics
        return ((pixel_values + 1) / 2 - mean) / std


class PixelEncoder(FixedEncoder):
    """Raw pixels in [-1, 1], flattened: what a probe can do without an encoder.

    Args:
        image_size (`int`): Side of the images, in pixels.
        num_channels (`int`, defaults to 3): Channels of the images.
    """

    name = "raw pixels"
    pooling = "none: pixels in [-1, 1]"

    def __init__(self, image_size: int, num_channels: int = 3) -> None:
        self.image_size, self.num_channels = image_size, num_channels
        self.feature_layers = {None: (num_channels * image_size**2,)}

    def read(self, pixel_values: torch.Tensor, pooled: bool) -> torch.Tensor:
        """Give the pixels, flattened or as they are."""
        return pixel_values.flatten(1) if pooled else pixel_values


class JoinedEncoder(FixedEncoder):
    """Several layers and time steps of an encoder as one: the pooled features of all of them, one after the other.

    Layers of one time step cost a single forward. Their features differ, and a linear probe of several together is
    often several points better than that of the best one.

    Args:
        encoder ([`Encoder`] or `PreTrainedModel`): An l-DAE or a DDAE.
        layers (`Sequence`): Some of its `feature_layers`.
        timesteps (`Sequence[int]`, *optional*): Time steps; by default its own.

    Raises:
        ValueError: If a layer or time step does not exist, or the encoder has no choice of them.

    Example:
        >>> from ldae import LDAEConfig, LDAEModel
        >>> from ldae.evaluation import JoinedEncoder
        >>> model = LDAEModel(LDAEConfig.from_size("nano", image_size=16, patch_size=4, latent_dim=8))
        >>> joined = JoinedEncoder(model, layers=[1, 2], timesteps=[10, 160])
        >>> joined.features(torch.zeros(5, 3, 16, 16))[None].shape
        torch.Size([1, 5, 512])
    """

    def __init__(self, encoder: Any, layers: Sequence[Any], timesteps: Sequence[int] | None = None) -> None:
        self.encoder = as_encoder(encoder)
        self.cells = self.encoder.choices(layers, timesteps)
        if not self.encoder.has_choices:
            raise ValueError(f"only layers of l-DAE and DDAE models are joined; a {self.encoder.name} has no choice.")
        self.module, self.config = self.encoder.module, getattr(self.encoder, "config", None)
        self.image_size, self.num_channels = self.encoder.image_size, self.encoder.num_channels
        self.paper_probe = self.encoder.paper_probe
        names, steps = (", ".join(map(str, chosen)) for chosen in self.cells)
        self.name = f"{self.encoder.name}, layers {names} at t = {steps} joined"
        self.pooling = f"{self.encoder.pooling}; layers {names} at t = {steps} joined"

    def read(self, pixel_values: torch.Tensor, pooled: bool) -> torch.Tensor:
        """Compute the joined features; only pooled ones can be joined."""
        if not pooled:
            raise ValueError(f"{self.name}: only pooled features are joined; read the layers one by one.")
        found = self.encoder.features(pixel_values, *self.cells)
        return torch.cat([at_t for layer in found.values() for at_t in layer], dim=1)  # (B, sum of widths)

    def untrained(self, seed: int, *, random_gates: bool = True) -> "JoinedEncoder":
        """Return the same network with weights drawn afresh, read at the same layers and time steps."""
        return JoinedEncoder(self.encoder.untrained(seed, random_gates=random_gates), *self.cells)


class LatentEncoder(FixedEncoder):
    """The latents that an l-DAE is trained to denoise, averaged over tokens: its features before any block.

    Args:
        model (`LDAEModel` or a model around one): The model whose tokenizer is used.
    """

    pooling = "mean of tokens"

    def __init__(self, model: PreTrainedModel) -> None:
        self.module = model.base_model
        config: Any = model.config
        self.name = "mean PCA coefficients" if config.latent_tokenizer == "pca" else "mean latents"
        self.image_size, self.num_channels = config.image_size, config.num_channels
        self.feature_layers = {None: (config.num_patches, config.latent_dim)}

    def read(self, pixel_values: torch.Tensor, pooled: bool) -> torch.Tensor:
        """Compute the clean latents, averaged over tokens or not."""
        latents = self.module.encode(pixel_values)  # (B, N, d)
        return latents.mean(dim=1) if pooled else latents


def name_layer(layer: Layer) -> str:
    """Return a layer as text: `block 3` of an l-DAE, a DDAE's tap by its name."""
    return f"block {layer}" if isinstance(layer, int) else layer


def as_encoder(model: Any) -> Encoder:
    """Wrap a model of transformers as an [`Encoder`]; an encoder is returned unchanged."""
    if isinstance(model, Encoder):
        return model
    return DenoiserEncoder(model) if hasattr(model.base_model, "feature_layers") else PooledEncoder(model)


def baselines_of(encoder: Encoder) -> list[Encoder]:
    """Return what an encoder must beat: the same network untrained, an l-DAE's mean latents, and raw pixels."""
    found = [encoder.untrained(0)]
    found[0].name = "untrained encoder"
    if getattr(getattr(encoder, "config", None), "latent_tokenizer", None) is not None:
        found.append(LatentEncoder(encoder.module))
    return [*found, PixelEncoder(encoder.image_size, encoder.num_channels)]


def pool_outputs(outputs: Any, use_pooler: bool = True) -> torch.Tensor:
    """Pool the outputs of a transformer or a convolutional network to one vector an image, `(B, F)`."""
    pooled = getattr(outputs, "pooler_output", None) if use_pooler else None
    if pooled is None:
        pooled = outputs.last_hidden_state
    # Convolutional networks pool to (B, C, 1, 1) or give a map (B, C, H, W); transformers give tokens (B, N, C).
    return pooled.flatten(2).mean(dim=2) if pooled.ndim == 4 else pooled.mean(dim=1) if pooled.ndim == 3 else pooled


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode without gradients; every module gets its own mode back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
