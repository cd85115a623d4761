"""Folding of an l-DAE encoder at one t into a plain ViT: what depends on t goes into the weights (App. A)."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from ldae.models.modeling_ldae import LDAEModel
from ldae.models.tokenizer_ldae import unpatchify


Affine = tuple[torch.Tensor, torch.Tensor]  # weight and bias


@dataclass(frozen=True)
class PlainBlock:
    """A pre-norm transformer block: each weight with its bias, in the order of the computation."""

    norm1: Affine  # (C,), of a LayerNorm
    query: Affine  # (C, C), of a linear map, like the rest
    key: Affine
    value: Affine
    out: Affine
    norm2: Affine  # (C,)
    fc1: Affine  # (M, C)
    fc2: Affine  # (C, M)


@dataclass(frozen=True)
class PlainViT:
    """A ViT without class token, as weights and biases.

    It is a convolution of patches, positions, blocks, a LayerNorm without parameters and the mean over tokens. Folded
    tensors are float64, all others the model's own.
    """

    image_size: int  # side in pixels
    patch_size: int  # side P in pixels
    num_attention_heads: int
    hidden_act: str  # transformers' name
    layer_norm_eps: float  # of every LayerNorm
    patches: Affine  # (C, channels, P, P), of the convolution
    positions: torch.Tensor  # (N, C), added to its output
    blocks: tuple[PlainBlock, ...]
    classifier: Affine | None  # (K, C), a linear map of the mean; none for an encoder

    @property
    def num_channels(self) -> int:
        """Number of channels of the images."""
        return self.patches[0].shape[1]

    @property
    def hidden_size(self) -> int:
        """Width C of a token."""
        return self.positions.shape[1]

    @property
    def intermediate_size(self) -> int:
        """Width M inside an MLP."""
        return len(self.blocks[0].fc1[1])

    @property
    def final_norm(self) -> Affine:
        """Weight 1 and bias 0 of the last LayerNorm, `(C,)`, for ViTs that have these parameters."""
        return torch.ones(self.hidden_size), torch.zeros(self.hidden_size)


def fold_obstacle(model: PreTrainedModel) -> str | None:
    """Say in part of a sentence why a model cannot be folded into a plain ViT; `None` if it can."""
    trunk = _trunk(model)
    if trunk is None:
        return f"its network is a {model.config.denoiser_type} of diffusers"
    if trunk.config.latent_tokenizer == "conv_vae":
        return "latent_tokenizer='conv_vae' puts a convolutional network in front of the blocks"
    return None


@torch.no_grad()
def fold(model: PreTrainedModel, timestep: int | None = None, image_size: int | None = None) -> PlainViT:
    """Fold an l-DAE at one time step and a clean input into a plain ViT, with equal outputs in exact arithmetic.

    The tokenizer's projection, its scales, gamma_t and the embedding are one linear map of a patch; adaLN's shift and
    scale are LayerNorm's bias and weight; its gates scale the projections before them. The same holds for latent and
    image input, every patch-wise tokenizer, and the null class of a class-conditional model.

    Args:
        model (`PreTrainedModel`): An l-DAE, or a DDAE around one, with or without classifier. It is not changed.
        timestep (`int`, *optional*): The time step t; by default the configuration's `feature_timestep`.
        image_size (`int`, *optional*): Side of the images in pixels, a multiple of the patch size; by default the
            configuration's. For another one the positions are stretched, as `interpolate_pos_encoding` does.

    Returns:
        [`PlainViT`].

    Raises:
        ValueError: If the model cannot be folded, or does not take the t or the size.
    """
    obstacle, trunk = fold_obstacle(model), _trunk(model)
    if trunk is None or obstacle is not None:
        raise ValueError(f"this model cannot be folded into a plain ViT: {obstacle}.")
    timestep, image_size = check_choices(model, timestep, image_size)
    config = trunk.config
    t = torch.tensor([timestep], device=trunk.device)
    conditioning = trunk.conditioning(t)  # (1, c)
    depth = config.feature_layer or config.num_hidden_layers
    embeddings, side = trunk.embeddings, image_size // config.patch_size
    stretched = side != embeddings.grid
    positions = embeddings.positions(side, side) if stretched else embeddings.position_embeddings  # (1, N, C)
    return PlainViT(
        image_size=image_size,
        patch_size=config.patch_size,
        num_attention_heads=config.num_attention_heads,
        hidden_act=config.hidden_act,
        layer_norm_eps=float(config.layer_norm_eps),
        patches=_fold_patches(trunk, t),
        positions=positions[0],
        blocks=tuple(_fold_block(layer, conditioning) for layer in trunk.layers[:depth]),
        classifier=_affine(model.classifier) if hasattr(model, "classifier") else None,
    )


def check_choices(model: PreTrainedModel, timestep: int | None, image_size: int | None) -> tuple[int, int]:
    """Fill in and check the time step and the image size of an export; both default to the configuration's.

    Raises:
        ValueError: If the model does not take one of them.
    """
    config: Any = model.config
    timestep = config.feature_timestep if timestep is None else timestep
    if not 0 <= timestep < config.num_train_timesteps:
        raise ValueError(
            f"timestep={timestep} does not exist; choose one of 0 to {config.num_train_timesteps - 1} (the default is "
            f"{config.feature_timestep})."
        )
    image_size = config.image_size if image_size is None else image_size
    stride: Any = model.base_model.stride
    if image_size <= 0 or image_size % stride:
        raise ValueError(
            f"image_size={image_size} must be a multiple of {stride} pixels (the default is {config.image_size})."
        )
    return timestep, image_size


def _trunk(model: PreTrainedModel) -> LDAEModel | None:
    """Return the l-DAE inside a model, if there is one."""
    base: Any = model.base_model
    trunk = getattr(base, "denoiser", base)  # a DDAE's network
    return trunk if isinstance(trunk, LDAEModel) else None


def _fold_patches(trunk: LDAEModel, t: torch.Tensor) -> Affine:
    """Write everything before the positions as one convolution of patches.

    It is affine, so its output for the zero patch is the bias, and the difference that a unit patch makes is a column
    of the weight.
    """
    config = trunk.config
    front = LDAEModel(config, num_layers=0).double()  # a difference of two float32 results would lose digits
    front.load_state_dict({k: v for k, v in trunk.state_dict().items() if not k.startswith("layers.")})
    d, p = config.patch_dim, config.patch_size
    probes = torch.cat([torch.zeros(1, d), torch.eye(d)]).double()  # (D + 1, D)
    images = unpatchify(probes[:, None], p, p, p)  # (D + 1, channels, P, P)
    tokens = front.input_tokens(front.prepare_input(images, None), t.cpu())
    embedded = front.embeddings.projection(tokens)[:, 0]  # (D + 1, C)
    columns = embedded[1:] - embedded[0]  # (D, C)
    return columns.T.reshape(-1, config.num_channels, p, p), embedded[0]


def _fold_block(layer: Any, conditioning: torch.Tensor) -> PlainBlock:
    """Fold a DiT block's shifts, scales and gates into its weights."""
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


def _affine(linear: Any) -> Affine:
    weight = linear.weight
    return weight, weight.new_zeros(len(weight)) if linear.bias is None else linear.bias


def _gated(linear: Any, gate: torch.Tensor) -> Affine:
    weight, bias = _affine(linear)
    return weight.double() * gate[:, None], bias.double() * gate
