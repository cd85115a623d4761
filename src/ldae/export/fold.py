"""An l-DAE encoder at one time step as a plain ViT: what depends on t alone becomes part of the weights (App. A)."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from ldae.models.modeling_ddae import DDAEPreTrainedModel
from ldae.models.modeling_ldae import LDAEModel
from ldae.models.tokenizer_ldae import unpatchify
from ldae.models.transformer_ldae import LDAELayer


Affine = tuple[torch.Tensor, torch.Tensor]  # weight and bias


@dataclass(frozen=True)
class PlainBlock:
    """
    A pre-norm transformer block. `norm1` and `norm2` are weight and bias of LayerNorms, both `(C,)`; the others are of
    linear maps: `query`, `key`, `value`, `out` `(C, C)`, `fc1` `(M, C)`, `fc2` `(C, M)`.
    """

    norm1: Affine
    query: Affine
    key: Affine
    value: Affine
    out: Affine
    norm2: Affine
    fc1: Affine
    fc2: Affine


@dataclass(frozen=True)
class PlainViT:
    """
    A ViT without class token: a convolution of patches, positions, blocks, a LayerNorm without parameters and the mean
    over tokens. Tensors are float64 where something was folded in, and else the model's own.

    Attributes:
        image_size, patch_size (`int`): In pixels.
        num_attention_heads (`int`).
        hidden_act (`str`): As transformers calls it.
        layer_norm_eps (`float`): Of every LayerNorm.
        patches: Weight `(C, channels, P, P)` and bias `(C,)` of the convolution.
        positions (`torch.Tensor` of shape `(N, C)`): Added to its output.
        blocks: One [`PlainBlock`] for each.
        classifier: Weight `(K, C)` and bias `(K,)` of a linear map of the mean; `None` for an encoder.
    """

    image_size: int
    patch_size: int
    num_attention_heads: int
    hidden_act: str
    layer_norm_eps: float
    patches: Affine
    positions: torch.Tensor
    blocks: tuple[PlainBlock, ...]
    classifier: Affine | None

    @property
    def num_channels(self) -> int:
        """Of the images."""
        return self.patches[0].shape[1]

    @property
    def hidden_size(self) -> int:
        """C, the width of a token."""
        return self.positions.shape[1]

    @property
    def intermediate_size(self) -> int:
        """M, the width inside an MLP."""
        return len(self.blocks[0].fc1[1])

    @property
    def final_norm(self) -> Affine:
        """The last LayerNorm's weight and bias `(C,)`: a one and a zero, where a ViT must have some."""
        return torch.ones(self.hidden_size), torch.zeros(self.hidden_size)


def fold_obstacle(model: PreTrainedModel) -> str | None:
    """
    Why a model is no plain ViT at a fixed t.

    Args:
        model: An l-DAE or a DDAE, with or without classifier.

    Returns:
        `str` or `None`: the reason, as part of a sentence; `None` where it can be folded.
    """
    trunk = _trunk(model)
    if isinstance(trunk, DDAEPreTrainedModel):
        kind = trunk.config.denoiser_type
        return f"its network is a {kind} of diffusers, which no class of theirs computes"
    if trunk.config.latent_tokenizer == "conv_vae":
        return "latent_tokenizer='conv_vae' puts a convolutional network in front of the blocks, which they have not"
    return None


@torch.no_grad()
def fold(model: PreTrainedModel, timestep: int | None = None, image_size: int | None = None) -> PlainViT:
    """
    Fold an l-DAE at one time step and a clean input into a plain ViT: equal outputs in exact arithmetic.

    The tokenizer's projection, its scales, gamma_t and the embedding are one linear map of a patch; adaLN's shift and
    scale are LayerNorm's bias and weight; its gates scale the projections before them. It goes the same way for latent
    and image input, every patch-wise tokenizer, and the null class of a class-conditional model.

    Args:
        model (`LDAEModel`, `LDAEForImageClassification`, or a DDAE of an l-DAE): Is read, not changed.
        timestep (`int`, *optional*): t; by default the configuration's `feature_timestep`.
        image_size (`int`, *optional*): Side of the images in pixels, a multiple of the patch size; by default the
            configuration's. For another one the positions are stretched, as `interpolate_pos_encoding` does.

    Returns:
        [`PlainViT`].

    Raises:
        ValueError: for a model that is no plain ViT (see [`fold_obstacle`]), and a t or a size that is not possible.

    Example:

    ```python
    >>> from ldae import LDAEConfig, LDAEModel
    >>> from ldae.export.fold import fold
    >>> model = LDAEModel(LDAEConfig.from_size("nano", image_size=16, patch_size=4, latent_dim=8))
    >>> vit = fold(model, timestep=10)
    >>> len(vit.blocks), vit.patches[0].shape, vit.positions.shape
    (2, torch.Size([128, 3, 4, 4]), torch.Size([16, 128]))

    ```
    """
    obstacle = fold_obstacle(model)
    if obstacle is not None:
        raise ValueError(f"this model cannot be folded into a plain ViT: {obstacle}.")
    timestep, image_size = check_choices(model, timestep, image_size)
    trunk = _trunk(model)
    config = trunk.config
    t = torch.tensor([timestep], device=trunk.device)
    conditioning = trunk.conditioning(t)  # (1, c)
    depth = config.feature_layer or config.num_hidden_layers
    side = image_size // config.patch_size
    return PlainViT(
        image_size=image_size,
        patch_size=config.patch_size,
        num_attention_heads=config.num_attention_heads,
        hidden_act=config.hidden_act,
        layer_norm_eps=float(config.layer_norm_eps),
        patches=_fold_patches(trunk, t),
        positions=_positions(trunk, side)[0],
        blocks=tuple(_fold_block(layer, conditioning) for layer in trunk.layers[:depth]),
        classifier=_affine(model.classifier) if hasattr(model, "classifier") else None,
    )


def check_choices(model: PreTrainedModel, timestep: int | None, image_size: int | None) -> tuple[int, int]:
    """
    The time step and the image size at which a model is exported: the given ones, or its configuration's.

    Raises:
        ValueError: for one that the model does not have.
    """
    config: Any = model.config
    timestep = config.feature_timestep if timestep is None else timestep
    if not 0 <= timestep < config.num_train_timesteps:
        raise ValueError(
            f"timestep={timestep} is not possible; this model has 0 to {config.num_train_timesteps - 1}, and features "
            f"are read at {config.feature_timestep} by default."
        )
    image_size = config.image_size if image_size is None else image_size
    trunk: Any = model.base_model
    stride = config.patch_size if isinstance(trunk, LDAEModel) else trunk.stride
    if image_size <= 0 or image_size % stride:
        raise ValueError(
            f"image_size={image_size} is not possible; it must be a multiple of {stride} pixels (this model was made "
            f"for {config.image_size})."
        )
    return timestep, image_size


def _trunk(model: PreTrainedModel) -> Any:
    """The l-DAE inside a model, or the DDAE where there is none."""
    trunk: Any = model.base_model
    if isinstance(trunk, DDAEPreTrainedModel) and trunk.config.denoiser_type == "LDAEModel":
        return trunk.denoiser
    return trunk


def _fold_patches(trunk: LDAEModel, t: torch.Tensor) -> Affine:
    """
    All that happens to a patch before positions are added, as a convolution. It is affine, so what it makes of the
    zero patch is the bias, and what it makes of each unit patch beyond that is a column of the weight.
    """
    config = trunk.config
    front = LDAEModel(config, num_layers=0).double()  # a difference of two float32 results would lose digits
    front.load_state_dict({k: v for k, v in trunk.state_dict().items() if not k.startswith("layers.")})
    d, p = config.patch_dim, config.patch_size
    probes = torch.cat([torch.zeros(1, d), torch.eye(d)]).double()  # (D + 1, D)
    images = unpatchify(probes[:, None], p, p, p)  # (D + 1, channels, P, P)
    embedded = front.embeddings.projection(
        front.input_tokens(front.prepare_input(images, None, any_size=True), t.cpu())
    )[:, 0]  # (D + 1, C)
    columns = embedded[1:] - embedded[0]  # (D, C)
    return columns.T.reshape(-1, config.num_channels, p, p), embedded[0]


def _fold_block(layer: Any, conditioning: torch.Tensor) -> PlainBlock:
    """A DiT block whose shifts, scales and gates are fixed."""
    assert isinstance(layer, LDAELayer)
    modulation = (part.double().flatten() for part in layer.modulation(conditioning))  # (C,) each
    shift1, scale1, gate1, shift2, scale2, gate2 = modulation
    attention, mlp = layer.attention, layer.mlp
    return PlainBlock(
        norm1=(1 + scale1, shift1),
        query=_affine(attention.q_proj),
        key=_affine(attention.k_proj),
        value=_affine(attention.v_proj),
        out=_gated(attention.o_proj, gate1),
        norm2=(1 + scale2, shift2),
        fc1=_affine(mlp.fc1),
        fc2=_gated(mlp.fc2, gate2),
    )


def _positions(trunk: LDAEModel, side: int) -> torch.Tensor:
    """Positions `(1, N, C)` of a grid of `side` x `side` patches."""
    embeddings = trunk.embeddings
    return embeddings.position_embeddings if side == embeddings.grid else embeddings.positions(side, side)


def _affine(linear: Any) -> Affine:
    weight = linear.weight
    return weight, weight.new_zeros(len(weight)) if linear.bias is None else linear.bias


def _gated(linear: Any, gate: torch.Tensor) -> Affine:
    weight, bias = _affine(linear)
    return weight.double() * gate[:, None], bias.double() * gate
