"""Initial weights of DDAE's networks: torch's own by default, or those of a rule that a module carries."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import initialization as init


@torch.no_grad()
def initialize(module: nn.Module) -> None:
    """Draw the initial weights of one module, by its rule or by torch, and restore its computed buffers."""
    rule: Any = getattr(module, "initial_rule", None)
    draw: Any = getattr(module, "reset_parameters", None)
    if rule is not None:
        rule(module)
    elif draw is not None:
        draw()
    for name, value in getattr(module, "computed_buffers", {}).items():
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
    the
    last layer starts at zero (adaLN-Zero), as does the last layer itself. Unlike theirs, the embedding of time starts
    by Xavier too: 0.02 makes it vanish in a narrow network, whose gates then hardly open, all the more as each block
    of diffusers' class has its own.
    """
    set_rule(xavier, dit.pos_embed.proj, *(module for module in dit.modules() if isinstance(module, nn.Linear)))
    for block in dit.transformer_blocks:
        set_rule(small_normal, block.norm1.emb.class_embedder.embedding_table)
        set_rule(zeros, block.norm1.linear)
    set_rule(zeros, dit.proj_out_1, dit.proj_out_2)
