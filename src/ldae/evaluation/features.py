"""Features of images: the mean over tokens of chosen blocks at chosen time steps, through a parameter-free LayerNorm."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from ldae.data import Batch, prepare_images
from ldae.models.corruption_ldae import draw_noise
from ldae.models.modeling_ldae import LDAEForPreTraining, LDAEModel


Prepare = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Features:
    """
    Features of n images for L blocks and T time steps.

    `values` is float32 `(n, L, T, C)` on the CPU; `labels` is int64 `(n,)`, or `None` where the data has none. `layers`
    counts blocks from 1; `layers` and `timesteps` are `(None,)` for a model that has no such choice.
    """

    values: torch.Tensor
    labels: torch.Tensor | None
    layers: tuple[int | None, ...]
    timesteps: tuple[int | None, ...]

    @property
    def columns(self) -> list[tuple[int | None, int | None]]:
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
    layers: Sequence[int] | None = None,
    timesteps: Sequence[int] | None = None,
    noisy: bool = False,
    seed: int = 0,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    prepare: Prepare | None = None,
) -> Features:
    """
    Features of every image of one pass over the data, without gradients.

    A feature is the mean over tokens of the raw output of a block, through a LayerNorm without affine parameters
    (App. A): `pooler_output` where the block is the encoder's last. Models other than l-DAE give their `pooler_output`,
    or the mean over tokens of `last_hidden_state` where they have none.

    Args:
        model (`PreTrainedModel`): [`LDAEModel`], [`LDAEForPreTraining`] (blocks of the decoder can be read too) or any
            model of `AutoModel`. It is put in evaluation mode meanwhile.
        batches (`Iterable[Batch]`): uint8 images, as [`~ldae.data.iterate_once`] yields them.
        layers (`Sequence[int]`, *optional*): Blocks, counted from 1; by default `config.feature_layer`, or else the
            last of the encoder.
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
    module: torch.nn.Module = model
    if device is not None:
        module.to(device)
    device = next(module.parameters()).device
    layers, timesteps = _choices(model, layers, timesteps, noisy)
    prepare = prepare or centre_crop(model.config.image_size)
    values: list[torch.Tensor] = []
    labels: list[torch.Tensor] = []
    with evaluating(model), torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
        for batch in batches:
            positions = batch.positions.to(device)
            pixels = prepare(batch.images.to(device), positions)  # (b, C, S, S)
            if layers is not None and timesteps is not None:
                noise = draw_noise(trunk_of(model).config, positions, seed) if noisy else None
                pooled = _pool_blocks(model, pixels, layers, timesteps, noise)  # (b, L, T, C)
            else:
                pooled = pool_tokens(model, pixels)[:, None, None]  # (b, 1, 1, C)
            values.append(pooled.float().cpu())
            if batch.labels is not None:
                labels.append(batch.labels.cpu())
    if not values:
        raise ValueError("there are no images to compute features of: the data set, or the split, is empty.")
    return Features(
        values=torch.cat(values),
        labels=torch.cat(labels) if labels else None,
        layers=tuple(layers) if layers is not None else (None,),
        timesteps=tuple(timesteps) if timesteps is not None else (None,),
    )


def centre_crop(image_size: int) -> Prepare:
    """How test images are prepared: the centre, at the model's size, in [-1, 1]."""
    return lambda images, positions: prepare_images(images, positions, 0, image_size=image_size)


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
    outputs = model(pixel_values=pixels)
    pooled = getattr(outputs, "pooler_output", None) if use_pooler else None
    if pooled is None:
        pooled = outputs.last_hidden_state
    # Convolutional networks pool to (b, C, 1, 1) or give a map (b, C, H, W); transformers give tokens (b, N, C).
    return pooled.flatten(2).mean(dim=2) if pooled.ndim == 4 else pooled.mean(dim=1) if pooled.ndim == 3 else pooled


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


def _choices(
    model: PreTrainedModel, layers: Sequence[int] | None, timesteps: Sequence[int] | None, noisy: bool
) -> tuple[Sequence[int] | None, Sequence[int] | None]:
    if not isinstance(model, LDAEForPreTraining | LDAEModel):
        if layers is not None or timesteps is not None or noisy:
            raise ValueError(
                f"layers, timesteps and noisy are choices of l-DAE models; a {type(model).__name__} has none of them."
            )
        return None, None
    config, depth = model.config, len(trunk_of(model).layers)
    layers = [config.feature_layer or config.num_hidden_layers] if layers is None else list(layers)
    timesteps = [config.feature_timestep] if timesteps is None else list(timesteps)
    for name, chosen, low, high in (
        ("layers", layers, 1, depth),
        ("timesteps", timesteps, 0, config.num_train_timesteps - 1),
    ):
        wrong = [value for value in chosen if not low <= value <= high]
        if wrong or not chosen or len(set(chosen)) < len(chosen):
            raise ValueError(f"{name}={chosen} is not possible; give different numbers from {low} to {high}.")
    return layers, timesteps


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
        features = [
            F.layer_norm(hidden[layer].float(), hidden[layer].shape[-1:], eps=config.layer_norm_eps).mean(dim=1)
            for layer in layers
        ]
        pooled.append(torch.stack(features, dim=1))  # (b, L, C)
    return torch.stack(pooled, dim=2)
