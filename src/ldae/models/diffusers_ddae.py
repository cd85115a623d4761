"""Networks of diffusers inside a transformers model: construction, initial weights, and additions to their inputs."""

import difflib
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init

from .features_ldae import tokens_of
from .tokenizer_ldae import Float32Buffers


AUGMENTATION_LABELS = 9  # flips (2), scale, rotation (2), anisotropy (2), translation (2)


def diffusers_class(name: str) -> Any:
    """Import a class of diffusers, or raise a `ValueError` where diffusers is not installed."""
    try:
        import diffusers
    except ImportError as error:
        raise ValueError(f"a {name} comes from diffusers, which is not installed; pip install diffusers.") from error
    return getattr(diffusers, name)


def field_names(diffusers_type: Any) -> list[str]:
    """Return the names of the fields of a diffusers class's configuration: what its constructor takes."""
    return list(inspect.signature(diffusers_type.__init__).parameters)[1:]


def require_fields(diffusers_type: Any, fields: dict[str, Any], name: str) -> None:
    """Refuse fields that a class of diffusers does not have, which it would ignore; name the most similar one."""
    known = field_names(diffusers_type)
    for key in fields:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}."
            raise ValueError(f"{name} has {key!r}, which {diffusers_type.__name__} does not have; {hint}")


def build_network(diffusers_type: Any, fields: dict[str, Any], name: str) -> nn.Module:
    """Build a network of diffusers, without initial weights, which are drawn by [`initialize`] or loaded.

    transformers builds a model on the meta device before it loads its weights. Tensors that a network computes in its
    constructor, such as a table of positions, would be lost there. So the network is built on the CPU, and every
    module keeps such tensors aside, from which [`initialize`] restores them. Without initial weights that costs next
    to nothing: memory that is not written to is not taken.

    Args:
        diffusers_type (`type`): Class of diffusers.
        fields (`dict`): Fields of its configuration; unknown ones raise a `ValueError`.
        name (`str`): The name of these fields in errors.
    """
    require_fields(diffusers_type, fields, name)
    device, dtype = torch.get_default_device(), torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"), init.no_init_weights():
            network = diffusers_type(**fields)
    finally:
        torch.set_default_dtype(dtype)
    nn.Module.to(network, dtype=dtype)  # diffusers' own `to` would warn
    for module in network.modules():
        module.computed_buffers = {key: value for key, value in module._buffers.items() if value is not None}
    return nn.Module.to(network, device=device)


@torch.no_grad()
def initialize(module: nn.Module) -> None:
    """Draw the initial weights of one module, by its rule or by torch, and restore its computed buffers."""
    rule: Any = getattr(module, "initial_rule", None)
    draw: Any = getattr(module, "reset_parameters", None)
    if rule is not None:
        rule(module)
    elif draw is not None:
        draw()
    computed: Any = getattr(module, "computed_buffers", {})
    buffers = module.initial_buffers() if isinstance(module, Float32Buffers) else computed
    for name, value in buffers.items():
        init.copy_(getattr(module, name), value)


def set_rule(rule: Callable[[Any], None], *modules: Any) -> None:
    """Make modules start from a rule: [`zeros`], [`xavier`] or [`small_normal`]."""
    for module in modules:
        module.initial_rule = rule  # transformers initializes only modules that hold weights themselves


def zeros(layer: Any) -> None:
    """Set weights and biases to 0."""
    init.zeros_(layer.weight)
    if getattr(layer, "bias", None) is not None:
        init.zeros_(layer.bias)


def xavier(layer: Any) -> None:
    """Draw Xavier's uniform weights, for a convolution as for the linear layer of its patches; set biases to 0."""
    zeros(layer)
    bound = (6 / (layer.weight[0].numel() + len(layer.weight))) ** 0.5
    init.uniform_(layer.weight, -bound, bound)


def small_normal(layer: Any) -> None:
    """Draw normal weights with a standard deviation of 0.02, for an embedding."""
    init.normal_(layer.weight, std=0.02)


def set_dit_rules(dit: Any) -> None:
    """Make a DiT start as in Peebles & Xie (2023, arXiv 2212.09748); diffusers' class leaves its weights to torch.

    Linear layers start by Xavier and classes with a standard deviation of 0.02. The modulation of each block and of
    the last layer starts at zero (adaLN-Zero), as does the last layer itself. Unlike theirs, the embedding of time
    starts by Xavier too: 0.02 makes it vanish in a narrow network, whose gates then hardly open, all the more as each
    block of diffusers' class has its own.
    """
    set_rule(xavier, dit.pos_embed.proj, *(module for module in dit.modules() if isinstance(module, nn.Linear)))
    for block in dit.transformer_blocks:
        set_rule(small_normal, block.norm1.emb.class_embedder.embedding_table)
        set_rule(zeros, block.norm1.linear)
    set_rule(zeros, dit.proj_out_1, dit.proj_out_2)


class SelfConditioning(nn.Module):
    """Self-conditioning (DDAE++, Xiang et al. 2025, arXiv 2505.10999).

    A small MLP of the mean of a middle layer's features is added to the time embedding that the later blocks see. Its
    last layer starts at zero, so that the network starts as it would without.

    Args:
        layer (`str`): The tap whose features are used.
        width (`int`): Their width C.
        embedding_width (`int`): Width E of the time embedding.
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
