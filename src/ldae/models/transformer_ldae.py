"""The denoiser's blocks: a ViT whose LayerNorms are modulated by t (adaLN-Zero of DiT; App. A)."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_ldae import LDAEConfig
from .tokenizer_ldae import Float32Buffers


def sincos_positions(dim: int, height: int, width: int, trained_grid: int) -> torch.Tensor:
    """Compute fixed sine-cosine positions `(1, height * width, dim)`, half of the channels for column and row each.

    On a grid of another size than `trained_grid`, the patches along a side of a training image, the coordinates are
    stretched to the trained range (by patch centres), as resizing a learnt table would.
    """
    # The device is named because from_pretrained builds models with "meta" as default.
    omega = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64, device="cpu") / (dim // 4))

    def axis(length: int) -> torch.Tensor:
        centres = torch.arange(length, dtype=torch.float64, device="cpu") + 0.5
        angles = torch.outer(centres * (trained_grid / length) - 0.5, omega)  # (length, dim / 4)
        return torch.cat([angles.sin(), angles.cos()], dim=1)  # (length, dim / 2)

    column = axis(width)[None].expand(height, -1, -1)
    row = axis(height)[:, None].expand(-1, width, -1)
    return torch.cat([column, row], dim=2).reshape(1, height * width, dim).float()


class LDAEEmbeddings(Float32Buffers):
    """The embedding of patches as tokens: a linear map and fixed positions."""

    position_embeddings: torch.Tensor

    def __init__(self, config: LDAEConfig):
        super().__init__()
        self.hidden_size = config.hidden_size
        self.grid = config.image_size // config.patch_size
        self.projection = nn.Linear(config.input_dim, config.hidden_size)
        self.register_buffers(persistent=False)

    def initial_buffers(self) -> dict[str, torch.Tensor]:
        return {"position_embeddings": self.positions(self.grid, self.grid)}

    def positions(self, height: int, width: int) -> torch.Tensor:
        return sincos_positions(self.hidden_size, height, width, self.grid)  # (1, N, C)

    def forward(self, tokens: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Map tokens `(B, N, input_dim)` of a grid of `height` x `width` patches to hidden states `(B, N, C)`."""
        if (height, width) == (self.grid, self.grid):
            positions = self.position_embeddings
        else:
            positions = self.positions(height, width)
        hidden = self.projection(tokens.to(self.projection.weight.dtype))  # (B, N, C)
        return hidden + positions.to(hidden)


class LDAEConditioning(nn.Module):
    """The conditioning of the blocks: an MLP of t, at a quarter of DiT's width, and perhaps a class (App. A)."""

    frequency_dim = 256

    def __init__(self, config: LDAEConfig):
        super().__init__()
        size: Any = config.conditioning_size  # the configuration fills it in
        self.fc1 = nn.Linear(self.frequency_dim, size)
        self.fc2 = nn.Linear(size, size)
        self.class_embedding = None
        if config.num_class_embeds is not None:  # the last row is the null class
            self.class_embedding = nn.Embedding(config.num_class_embeds + 1, size)

    def forward(self, timesteps: torch.Tensor, class_labels: torch.Tensor | None = None) -> torch.Tensor:
        """Embed time steps `(B,)` or a shared `(1,)`, and classes `(B,)`, by default the null class.

        The result, `(B, c)` or `(1, c)`, has passed the SiLU that every block would begin with.
        """
        half = self.frequency_dim // 2
        # The 128 frequencies fall from 1 to exactly 1e-4, because the exponent is divided by half - 1 as in diffusers'
        # DiT; the original DiT divides by half. Diffusers' order of operations too: t times the rounding of a
        # frequency is visible at t near 1000.
        exponents = -math.log(10000) * torch.arange(half, dtype=torch.float32, device=timesteps.device) / (half - 1)
        angles = timesteps.float()[:, None] * exponents.exp()  # (B, 128)
        frequencies = torch.cat([angles.cos(), angles.sin()], dim=1).to(self.fc1.weight.dtype)
        conditioning = self.fc2(F.silu(self.fc1(frequencies)))
        if self.class_embedding is not None:
            if class_labels is None:
                class_labels = torch.full_like(timesteps, self.class_embedding.num_embeddings - 1)
            conditioning = conditioning + self.class_embedding(class_labels)
        return F.silu(conditioning)


class LDAEModulation(nn.Linear):
    """adaLN-Zero: shifts, scales and gates, which start at zero, so that a block starts as the identity."""

    def __init__(self, config: LDAEConfig, count: int):
        size: Any = config.conditioning_size
        super().__init__(size, count * config.hidden_size)
        self.count = count

    def forward(self, conditioning: torch.Tensor) -> tuple[torch.Tensor, ...]:  # type: ignore[override]
        """Map conditioning `(B, c)` to `count` tensors `(B, 1, C)`."""
        return super().forward(conditioning)[:, None].chunk(self.count, dim=2)


def scale_and_add(base: torch.Tensor, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Compute base + scale * x, `(B, N, C)`, with a scale `(B, 1, C)`, or `(1, 1, C)` if t is shared."""
    scale = scale.to(x.dtype)
    if scale.shape[0] == 1:
        return torch.addcmul(base, scale, x)
    return (x * scale).add_(base)  # two calls, but autograd takes twice as long for addcmul


class LDAELayerNorm(nn.Module):
    """A LayerNorm whose affine part comes from the conditioning."""

    def __init__(self, config: LDAEConfig):
        super().__init__()
        self.size, self.eps = (config.hidden_size,), config.layer_norm_eps

    def forward(self, hidden: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Normalise `(B, N, C)` with shift and scale `(B, 1, C)`, or in one call with `(1, 1, C)`, if t is shared."""
        shift, weight = shift.to(hidden.dtype), 1 + scale.to(hidden.dtype)
        if shift.shape[0] == 1:
            return F.layer_norm(hidden, self.size, weight.reshape(-1), shift.reshape(-1), self.eps)
        ones = hidden.new_ones(self.size)  # torch's CPU kernel is twice as fast with a weight as with none
        return scale_and_add(shift, F.layer_norm(hidden, self.size, ones, eps=self.eps), weight)


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,  # (B, heads, N, head_dim)
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    scaling: float,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    scores = query @ key.transpose(-2, -1) * scaling  # (B, heads, N, N)
    weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    return (weights @ value).transpose(1, 2).contiguous(), weights  # (B, N, heads, head_dim)


class LDAEAttention(nn.Module):
    """Self-attention by transformers' attention interface (eager, sdpa, flash_attention_2, ...)."""

    def __init__(self, config: LDAEConfig):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden: torch.Tensor, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        shape = hidden.shape[:-1]  # (B, N)
        query, key, value = (
            proj(hidden).view(*shape, -1, self.head_dim).transpose(1, 2)  # (B, heads, N, head_dim)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        out, weights = attend(self, query, key, value, None, dropout=0.0, scaling=self.scaling, **kwargs)
        return self.o_proj(out.reshape(*shape, -1)), weights


class LDAEMLP(nn.Module):
    def __init__(self, config: LDAEConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.act = ACT2FN[config.hidden_act]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.act(self.fc1(hidden)))


class LDAELayer(GradientCheckpointingLayer):
    """A DiT block: attention and MLP, each between a modulated LayerNorm and a gate."""

    def __init__(self, config: LDAEConfig):
        super().__init__()
        self.modulation = LDAEModulation(config, 6)
        self.norm1 = LDAELayerNorm(config)
        self.attention = LDAEAttention(config)
        self.norm2 = LDAELayerNorm(config)
        self.mlp = LDAEMLP(config)

    def forward(self, hidden: torch.Tensor, conditioning: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Map hidden states `(B, N, C)` and conditioning `(B, c)`, or `(1, c)` if t is shared, to hidden states."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(conditioning)  # (B, 1, C) each
        attended, _ = self.attention(self.norm1(hidden, shift1, scale1), **kwargs)
        hidden = scale_and_add(hidden, attended.to(hidden.dtype), gate1)
        fed = self.mlp(self.norm2(hidden, shift2, scale2))
        return scale_and_add(hidden, fed.to(hidden.dtype), gate2)


class LDAEHead(nn.Module):
    """DiT's last layer: a modulated LayerNorm and a linear map to the predicted tokens, which start at zero."""

    def __init__(self, config: LDAEConfig):
        super().__init__()
        self.modulation = LDAEModulation(config, 2)
        self.norm = LDAELayerNorm(config)
        self.projection = LDAEHeadProjection(config.hidden_size, config.output_dim)

    def forward(self, hidden: torch.Tensor, conditioning: torch.Tensor) -> torch.Tensor:
        """Map hidden states `(B, N, C)` of the last block to the prediction `(B, N, output_dim)`."""
        shift, scale = self.modulation(conditioning)
        return self.projection(self.norm(hidden, shift, scale))


class LDAEHeadProjection(nn.Linear):
    """The last linear map, as a class of its own so that its initial weights can be zero."""
