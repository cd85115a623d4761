"""What a denoiser is told beside the time step, added to its time embedding: its own features (DDAE++), augmentation labels."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .diffusers_ddae import small_normal, start_with, xavier, zeros
from .features_ldae import tokens_of


AUGMENTATION_LABELS = 9  # flips (2), scale, rotation (2), anisotropy (2), translation (2)


class SelfConditioning(nn.Module):
    """
    Self-conditioning (DDAE++, Xiang et al. 2025, arXiv 2505.10999): the mean of a middle layer's features, through a small
    MLP, is added to the time embedding that the later blocks see. The last layer starts at zero: at first the network is
    what it would be without.

    Args:
        layer (`str`): The tap whose features are taken.
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
        start_with(zeros, self.output)

    def forward(self, activation: torch.Tensor) -> torch.Tensor:
        """From a map `(B, C, H, W)` or tokens `(B, N, C)` to what is added to the time embedding, `(B, E)`."""
        pooled = tokens_of(activation).mean(dim=1)  # (B, C)
        return self.output(F.silu(self.hidden(self.norm(pooled))))


class ConditionedEmbedding(nn.Module):
    """
    Takes the place of the embedding of time and class in a block of a DiT, with the same weights under the same names. What
    is to be added comes beside the time steps, as a pair: a block of diffusers hands these on as they are, and nothing else.

    Args:
        embedding (`nn.Module`): The `CombinedTimestepLabelEmbeddings` that it takes the place of.
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
        """Time steps `(B,)`, alone or with a tensor `(B, E)`, and classes `(B,)` to their embedding `(B, E)`."""
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
    """
    The forward of a `UNet2DModel` of diffusers, which can be told more than its own.

    Args:
        unet (`UNet2DModel`): Whole or cut, without classes.
        xt (`torch.Tensor` of shape `(B, c, h, w)`): Noisy maps.
        timesteps (`torch.Tensor` of shape `(B,)`).
        added (`torch.Tensor` of shape `(B, E)`, *optional*): To the time embedding that all blocks see.
        self_conditioning ([`SelfConditioning`], *optional*): Of the middle block, for the up path.

    Returns:
        `torch.Tensor` of shape `(B, C, H, W)`: what the last layer gives.
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
    """
    The blocks of a `DiTTransformer2DModel` of diffusers, which can be told more than its own.

    Args:
        dit (`DiTTransformer2DModel`): Whole or cut; its blocks have a [`ConditionedEmbedding`] where there is more to tell.
        xt (`torch.Tensor` of shape `(B, c, h, w)`): Noisy maps.
        timesteps (`torch.Tensor` of shape `(B,)`).
        class_labels (`torch.LongTensor` of shape `(B,)`).
        added (`torch.Tensor` of shape `(B, E)`, *optional*): To the embedding that all blocks see.
        self_conditioning ([`SelfConditioning`], *optional*): Of one block, for those after it.

    Returns:
        Tokens `(B, N, C)` after the last block, and the time steps as the next one would be given them.
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
    """The last layer of a DiT: from what [`run_dit`] gives to maps `(B, c, h, w)`, which are square."""
    embedding = dit.transformer_blocks[0].norm1.emb(given, class_labels, hidden_dtype=hidden.dtype)  # (B, E)
    shift, scale = dit.proj_out_1(F.silu(embedding)).chunk(2, dim=1)
    patches = dit.proj_out_2(dit.norm_out(hidden) * (1 + scale[:, None]) + shift[:, None])  # (B, N, P * P * c)
    side, p = int(hidden.shape[1] ** 0.5), dit.patch_size
    patches = patches.unflatten(1, (side, side)).unflatten(3, (p, p, -1))  # (B, side, side, P, P, c)
    return patches.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def start_dit(dit: Any) -> None:
    """
    Have the weights of a DiT that is to be trained start as those of Peebles & Xie (2023, arXiv 2212.09748), where diffusers'
    class leaves them to torch: linear layers by Xavier, classes with a standard deviation of 0.02, and zeros where each block
    and the last layer are modulated (adaLN-Zero), and in the last layer itself. Unlike theirs the embedding of time is by
    Xavier too: 0.02 makes it vanish in a narrow network, whose gates then hardly open, all the more as each block of
    diffusers' class has its own.
    """
    start_with(xavier, dit.pos_embed.proj, *(module for module in dit.modules() if isinstance(module, nn.Linear)))
    for block in dit.transformer_blocks:
        start_with(small_normal, block.norm1.emb.class_embedder.embedding_table)
        start_with(zeros, block.norm1.linear)
    start_with(zeros, dit.proj_out_1, dit.proj_out_2)
