"""Additions to a network's time embedding: its own features (DDAE++) and augmentation labels."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .features_ldae import tokens_of
from .initialization_ddae import set_rule, zeros


AUGMENTATION_LABELS = 9  # flips (2), scale, rotation (2), anisotropy (2), translation (2)


class SelfConditioning(nn.Module):
    """Self-conditioning (DDAE++, Xiang et al. 2025, arXiv 2505.10999).

    A small MLP of the mean of a middle layer's features is added to the time embedding that the later blocks see. Its
    last layer starts at zero, so that the network starts as it would without.

    Args:
        layer (`str`): The tap whose features are used.
        width (`int`): Their width C.
        embedding_width (`int`): Width E of the time embedding.

    Example:
        >>> module = SelfConditioning("mid_block.resnets.1", 16, 32)
        >>> module(torch.zeros(2, 16, 8, 8)).shape
        torch.Size([2, 32])
    """

    def __init__(self, layer: str, width: int, embedding_width: int):
        super().__init__()
        self.layer = layer
        self.norm = nn.LayerNorm(width)
        self.hidden = nn.Linear(width, embedding_width)
        self.output = nn.Linear(embedding_width, embedding_width)
        set_rule(zeros, self.output)

    def forward(self, activation: torch.Tensor) -> torch.Tensor:
        """Turn a map `(B, C, H, W)` or tokens `(B, N, C)` into an addition to the time embedding, `(B, E)`."""
        pooled = tokens_of(activation).mean(dim=1)  # (B, C)
        return self.output(F.silu(self.hidden(self.norm(pooled))))


class ConditionedEmbedding(nn.Module):
    """The embedding of time and class in a block of a DiT, with an addition.

    It replaces diffusers' embedding, with the same weights under the same names. The addition comes with the time
    steps, as a pair, because a block of diffusers passes nothing else through to its embedding.

    Args:
        embedding (`nn.Module`): The `CombinedTimestepLabelEmbeddings` to replace.
    """

    def __init__(self, embedding: Any):
        super().__init__()
        self.time_proj = embedding.time_proj
        self.timestep_embedder = embedding.timestep_embedder
        self.class_embedder = embedding.class_embedder

    def forward(
        self,
        timestep: torch.Tensor | tuple[torch.Tensor, torch.Tensor],
        class_labels: torch.Tensor,
        hidden_dtype: torch.dtype | None = None,
    ) -> torch.Tensor:
        """Embed time steps `(B,)`, or a pair of them and an addition `(B, E)`, and classes `(B,)`, as `(B, E)`."""
        timesteps, added = timestep if isinstance(timestep, tuple) else (timestep, None)
        embedded = self.timestep_embedder(self.time_proj(timesteps).to(hidden_dtype)) + self.class_embedder(
            class_labels
        )
        return embedded if added is None else embedded + added


def run_unet(
    unet: Any,
    xt: torch.Tensor,
    timesteps: torch.Tensor,
    added: torch.Tensor | None,
    self_conditioning: SelfConditioning | None,
) -> torch.Tensor:
    """Run a `UNet2DModel` of diffusers with further conditioning.

    Args:
        unet (`UNet2DModel`): The network, whole or cut, without classes.
        xt (`torch.Tensor` of shape `(B, c, h, w)`): Noisy maps.
        timesteps (`torch.Tensor` of shape `(B,)`).
        added (`torch.Tensor` of shape `(B, E)`, *optional*): Added to the time embedding that all blocks see.
        self_conditioning ([`SelfConditioning`], *optional*): Conditions the up path on the middle block.

    Returns:
        `torch.Tensor` of shape `(B, C, H, W)`: the last layer's output.
    """
    embedding = unet.time_embedding(unet.time_proj(timesteps).to(unet.dtype))  # (B, E)
    if added is not None:
        embedding = embedding + added
    hidden = unet.conv_in(2 * xt - 1 if unet.config.center_input_sample else xt)
    skips = [hidden]
    for block in unet.down_blocks:
        hidden, outputs = block(hidden_states=hidden, temb=embedding)
        skips += outputs
    if unet.mid_block is not None:
        hidden = unet.mid_block(hidden, embedding)
    if self_conditioning is not None:
        embedding = embedding + self_conditioning(hidden)
    for block in unet.up_blocks:
        count = len(block.resnets)
        hidden = block(hidden, tuple(skips[-count:]), embedding)
        del skips[-count:]
    return unet.conv_out(unet.conv_act(unet.conv_norm_out(hidden)))


def run_dit(
    dit: Any,
    xt: torch.Tensor,
    timesteps: torch.Tensor,
    class_labels: torch.Tensor,
    added: torch.Tensor | None = None,
    self_conditioning: SelfConditioning | None = None,
) -> tuple[torch.Tensor, Any]:
    """Run the blocks of a `DiTTransformer2DModel` of diffusers with further conditioning.

    Args:
        dit (`DiTTransformer2DModel`): The network, whole or cut. With further conditioning its blocks need a
            [`ConditionedEmbedding`].
        xt (`torch.Tensor` of shape `(B, c, h, w)`): Noisy maps.
        timesteps (`torch.Tensor` of shape `(B,)`).
        class_labels (`torch.LongTensor` of shape `(B,)`).
        added (`torch.Tensor` of shape `(B, E)`, *optional*): Added to the embedding that all blocks see.
        self_conditioning ([`SelfConditioning`], *optional*): Conditions the blocks after its tap.

    Returns:
        Tokens `(B, N, C)` after the last block, and the time steps, with additions, for the layer after it.
    """
    hidden = dit.pos_embed(xt)  # (B, N, C)
    given: Any = timesteps if added is None else (timesteps, added)
    for index, block in enumerate(dit.transformer_blocks):
        if torch.is_grad_enabled() and dit.gradient_checkpointing:
            inputs = (None, None, None, given, None, class_labels)
            hidden = dit._gradient_checkpointing_func(block, hidden, *inputs)
        else:
            hidden = block(hidden, timestep=given, class_labels=class_labels)
        if self_conditioning is not None and self_conditioning.layer == f"transformer_blocks.{index}":
            own = self_conditioning(hidden)
            given = (timesteps, own if added is None else added + own)
    return hidden, given


def fold_dit(dit: Any, hidden: torch.Tensor, given: Any, class_labels: torch.Tensor) -> torch.Tensor:
    """Run the last layer of a DiT on the outputs of [`run_dit`]; return square maps `(B, c, h, w)`."""
    embedding = dit.transformer_blocks[0].norm1.emb(given, class_labels, hidden_dtype=hidden.dtype)  # (B, E)
    shift, scale = dit.proj_out_1(F.silu(embedding)).chunk(2, dim=1)
    patches = dit.proj_out_2(dit.norm_out(hidden) * (1 + scale[:, None]) + shift[:, None])  # (B, N, P * P * c)
    side, p = int(hidden.shape[1] ** 0.5), dit.patch_size
    patches = patches.unflatten(1, (side, side)).unflatten(3, (p, p, -1))  # (B, side, side, P, P, c)
    return patches.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
