"""Features of images: the mean over tokens of chosen blocks at chosen time steps, through a parameter-free LayerNorm."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from ldae.data import Batch, prepare_images
from ldae.models.corruption_ldae import draw_noise
from ldae.models.modeling_ddae import DDAEModel
from ldae.models.modeling_ldae import LDAEForPreTraining, LDAEModel
from ldae.models.pretraining_ddae import DDAEForPreTraining
from ldae.models.randomness_ldae import NOISE, keyed_normal


Layer = int | str  # a block's number, counted from 1, of an l-DAE; a tap's name of a DDAE
Prepare = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Features:
    """
    Features of n images for L blocks and T time steps.

    `values` is float32 `(n, L, T, C)` on the CPU; `labels` is int64 `(n,)`, or `None` where the data has none. `layers`
    counts an l-DAE's blocks from 1 and names a DDAE's taps; `layers` and `timesteps` are `(None,)` for a model that has no
    such choice. Where taps differ in width, C is the largest and the others are filled up with zeros, which no probe
    sees: they have no variance.
    """

    values: torch.Tensor
    labels: torch.Tensor | None
    layers: tuple[Layer | None, ...]
    timesteps: tuple[int | None, ...]

    @property
    def columns(self) -> list[tuple[Layer | None, int | None]]:
        """The (layer, timestep) of each of the F = L * T feature sets, in the order of [`~Features.flat`]."""
        return [(layer, timestep) for layer in self.layers for timestep in self.timesteps]

    @property
    def flat(self) -> torch.Tensor:
        """`values` as `(n, F, C)`."""
        return self.values.flatten(1, 2)

    @property
    def classes(self) -> torch.Tensor:
        """
        `labels`, where a probe needs them.

        Raises:
            ValueError: where the data has none, or some rows have none.
        """
        if self.labels is None:
            raise ValueError("the images have no labels, and a probe needs them; name their column with label_column.")
        missing = int((self.labels < 0).sum())
        if missing:
            raise ValueError(
                f"{missing} of {len(self.labels)} images have no label (-1), as in the test splits of some data sets; "
                "probe another split (eval_split)."
            )
        return self.labels


def extract_features(
    model: PreTrainedModel,
    batches: Iterable[Batch],
    *,
    layers: Sequence[Layer] | None = None,
    timesteps: Sequence[int] | None = None,
    noisy: bool = False,
    seed: int = 0,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    prepare: Prepare | None = None,
) -> Features:
    """
    Features of every image of one pass over the data, without gradients.

    A feature is the mean over tokens (App. A) of the raw output of a block, after a LayerNorm without affine parameters,
    which is our addition: `pooler_output` where the block is the encoder's last. Models other than l-DAE give their
    `pooler_output`, or the mean over tokens of `last_hidden_state` where they have none.

    Args:
        model (`PreTrainedModel`): [`LDAEModel`], [`LDAEForPreTraining`] (blocks of the decoder can be read too) or any
            model of `AutoModel`. It is put in evaluation mode meanwhile.
        batches (`Iterable[Batch]`): uint8 images, as [`~ldae.data.iterate_once`] yields them.
        layers (`Sequence[int]` or, of a [`DDAEModel`], `Sequence[str]`, *optional*): Blocks, counted from 1, or taps by
            name; by default `config.feature_layer`, or else the last of the encoder.
        timesteps (`Sequence[int]`, *optional*): Time steps t; by default `config.feature_timestep`.
        noisy (`bool`, defaults to `False`): Whether the input is corrupted at t (App. A's second row), with noise that
            depends on `seed` and each image's position alone and is the same at every t.
        seed (`int`, defaults to 0): Seed of that noise.
        device (`torch.device` or `str`, *optional*): Where to compute; by default where the model is.
        dtype (`torch.dtype`, *optional*): Autocast to it, such as `torch.bfloat16`; by default no autocast.
        prepare (`Callable`, *optional*): From uint8 images `(b, C, R, R)` and positions `(b,)` to pixels; by default a
            centre crop at the model's `image_size`.

    Returns:
        [`Features`].

    Raises:
        ValueError: where a layer or time step does not exist, or there are no images.
    """
    options: dict[str, Any] = {"layers": layers, "timesteps": timesteps, "noisy": noisy, "seed": seed}
    pieces = list(iterate_features(model, batches, **options, device=device, dtype=dtype, prepare=prepare))
    if not pieces:
        raise ValueError("there are no images to compute features of: the data set, or the split, is empty.")
    labels = [piece.labels for piece in pieces if piece.labels is not None]
    return replace(
        pieces[0],
        values=torch.cat([piece.values for piece in pieces]),
        labels=torch.cat(labels) if labels else None,
    )


def iterate_features(
    model: PreTrainedModel,
    batches: Iterable[Batch],
    *,
    layers: Sequence[Layer] | None = None,
    timesteps: Sequence[int] | None = None,
    noisy: bool = False,
    seed: int = 0,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    prepare: Prepare | None = None,
) -> Iterator[Features]:
    """
    As [`extract_features`], a batch at a time: what is done with them says how much memory they take.

    Yields:
        [`Features`] of each batch.

    Raises:
        ValueError: where a layer or time step does not exist.
    """
    module: torch.nn.Module = model
    if device is not None:
        module.to(device)
    device = next(module.parameters()).device
    chosen: tuple[Any, Any] = feature_choices(model, layers, timesteps, noisy)
    prepare = prepare or centre_crop(model.config.image_size)
    for batch in batches:
        with evaluating(model), torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            positions = batch.positions.to(device)
            pixels = prepare(batch.images.to(device), positions)  # (b, C, S, S)
            if chosen[0] is None:
                pooled = pool_tokens(model, pixels)[:, None, None]  # (b, 1, 1, C)
            else:
                noise = draw_input_noise(model, pixels, positions, seed) if noisy else None
                pooled = pool_features(model, pixels, *chosen, noise)  # (b, L, T, C)
        labels = None if batch.labels is None else batch.labels.cpu()
        yield Features(pooled.float().cpu(), labels, tuple(chosen[0] or [None]), tuple(chosen[1] or [None]))


def pooling_of(layer: Layer | None) -> str:
    """How the features of a block of an l-DAE, of a tap of a DDAE or of another model (`None`) are pooled, for results."""
    if layer is None:
        return "the model's own, or mean of tokens"
    return "mean of tokens, LayerNorm without affine" if isinstance(layer, int) else "mean over space or tokens"


def centre_crop(image_size: int) -> Prepare:
    """How test images are prepared: the centre, at the model's size, in [-1, 1]."""
    return lambda images, positions: prepare_images(images, positions, 0, image_size=image_size)


def encoder_of(model: Any) -> Any:
    """What features are read of: the [`DDAEModel`] inside a [`DDAEForPreTraining`], any other model as it is."""
    return model.ddae if isinstance(model, DDAEForPreTraining) else model


def trunk_of(model: PreTrainedModel) -> LDAEModel:
    """
    The encoder inside a model: all blocks of a [`LDAEForPreTraining`], or an [`LDAEModel`] itself.

    Raises:
        ValueError: for any other model.
    """
    if isinstance(model, LDAEForPreTraining):
        return model.ldae
    if isinstance(model, LDAEModel):
        return model
    raise ValueError(f"a {type(model).__name__} is not possible here; give an LDAEModel or an LDAEForPreTraining.")


def pool_tokens(model: PreTrainedModel, pixels: torch.Tensor, *, use_pooler: bool = True) -> torch.Tensor:
    """
    One vector an image from any model of `AutoModel`.

    Args:
        model (`PreTrainedModel`): A transformer or a convolutional network.
        pixels (`torch.Tensor` of shape `(b, C, S, S)`): As the model takes them.
        use_pooler (`bool`, defaults to `True`): Whether `pooler_output` is taken where there is one, else the mean over
            tokens, or places, of `last_hidden_state`.

    Returns:
        `torch.Tensor` of shape `(b, F)`.
    """
    return pool_outputs(model(pixel_values=pixels), use_pooler)


def pool_outputs(outputs: Any, use_pooler: bool = True) -> torch.Tensor:
    """One vector an image `(b, F)` from what a model gave, as of [`pool_tokens`]."""
    pooled = getattr(outputs, "pooler_output", None) if use_pooler else None
    if pooled is None:
        pooled = outputs.last_hidden_state
    # Convolutional networks pool to (b, C, 1, 1) or give a map (b, C, H, W); transformers give tokens (b, N, C).
    return pooled.flatten(2).mean(dim=2) if pooled.ndim == 4 else pooled.mean(dim=1) if pooled.ndim == 3 else pooled


def draw_input_noise(model: PreTrainedModel, pixels: torch.Tensor, positions: torch.Tensor, seed: int) -> torch.Tensor:
    """
    The noise eps of images, as an encoder takes it: a pure function of the seed and each image's position.

    Args:
        model (`PreTrainedModel`): An l-DAE or a DDAE.
        pixels (`torch.Tensor` of shape `(b, C, S, S)`): The images.
        positions (`torch.LongTensor` of shape `(b,)`): Their positions.
        seed (`int`): Seed of the noise.

    Returns:
        `torch.FloatTensor` of shape `(b, N, d)`, of a DDAE of what its network sees, such as `(b, C, S, S)`.
    """
    if not isinstance(model, DDAEModel):
        return draw_noise(trunk_of(model).config, positions, seed)
    if model.config.denoiser_type == "LDAEModel":
        return draw_noise(model.denoiser.config, positions, seed)
    x0 = model.encode(pixels)
    return keyed_normal(seed, NOISE, positions, x0[0].numel()).view(x0.shape)


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """The model in evaluation mode and without gradients, and every module back in its own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def feature_choices(
    model: PreTrainedModel, layers: Sequence[Layer] | None, timesteps: Sequence[int] | None, noisy: bool
) -> tuple[Any, Any]:
    """
    The layers and time steps that are meant, the model's own by default; `None` for a model without such choices.

    Raises:
        ValueError: where one does not exist, or is asked of a model without such choices.
    """
    if not isinstance(model, LDAEForPreTraining | LDAEModel | DDAEModel):
        if layers is not None or timesteps is not None or noisy:
            raise ValueError(
                f"layers, timesteps and noisy are choices of l-DAE and DDAE models; a {type(model).__name__} has none of "
                "them."
            )
        return None, None
    config: Any = model.config
    if isinstance(model, DDAEModel):
        default, last = config.feature_layer, model.num_train_timesteps - 1
        known: Sequence[Layer] = list(model.feature_layers)
        allowed = ", ".join(map(str, known))
    else:
        default, last = config.feature_layer or config.num_hidden_layers, config.num_train_timesteps - 1
        known = range(1, len(trunk_of(model).layers) + 1)
        allowed = f"numbers from 1 to {len(known)}"
    layers = [default] if layers is None else list(layers)
    timesteps = [config.feature_timestep] if timesteps is None else list(timesteps)
    for name, chosen, possible, words in (
        ("layers", layers, known, allowed),
        ("timesteps", timesteps, range(last + 1), f"numbers from 0 to {last}"),
    ):
        if not chosen or len(set(chosen)) < len(chosen) or not set(chosen) <= set(possible):
            raise ValueError(f"{name}={chosen} is not possible; give different ones of {words}.")
    return layers, timesteps


def pool_features(
    model: PreTrainedModel,
    pixels: torch.Tensor,
    layers: Sequence[Any],
    timesteps: Sequence[int],
    noise: torch.Tensor | None = None,
) -> torch.Tensor:
    """Pooled features `(b, L, T, C)` of pixels `(b, C, S, S)`, of an l-DAE or a DDAE; narrower taps end in zeros."""
    if isinstance(model, DDAEModel):
        return _pool_taps(model, pixels, list(layers), list(timesteps), noise)
    return _pool_blocks(model, pixels, layers, timesteps, noise)


def _pool_taps(
    model: DDAEModel, pixels: torch.Tensor, layers: list[str], timesteps: list[int], noise: torch.Tensor | None
) -> torch.Tensor:
    """Pooled features `(b, L, T, C)` of pixels `(b, C, S, S)`, narrower taps filled up with zeros."""
    found = model.features(pixels, layers, timesteps, noise)  # (T, b, c) of each tap
    width = max(tap.shape[-1] for tap in found.values())
    taps = [F.pad(found[name].float(), (0, width - found[name].shape[-1])) for name in layers]  # (T, b, C)
    return torch.stack(taps).permute(2, 0, 1, 3)


def _pool_blocks(
    model: PreTrainedModel,
    pixels: torch.Tensor,
    layers: Sequence[int],
    timesteps: Sequence[int],
    noise: torch.Tensor | None,
) -> torch.Tensor:
    """Pooled features `(b, L, T, C)` of pixels `(b, C, S, S)`."""
    trunk, config = trunk_of(model), model.config
    default = config.feature_layer or config.num_hidden_layers
    pooled = []
    for t in timesteps:
        shared_t = torch.tensor([t], device=pixels.device)
        if list(layers) == [default]:  # what the model pools itself, without running deeper blocks
            pooled.append(trunk(pixels, shared_t, noise).pooler_output[:, None])  # (b, 1, C)
            continue
        hidden = trunk(pixels, shared_t, noise, output_hidden_states=list(layers)).hidden_states
        features = [trunk.normalize(hidden[layer].float()).mean(dim=1) for layer in layers]
        pooled.append(torch.stack(features, dim=1))  # (b, L, C)
    return torch.stack(pooled, dim=2)
