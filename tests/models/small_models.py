"""Small models whose blocks compute something: at their zero gates, as they start, they are the identity."""

from typing import TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel

from ldae import LDAEConfig, PatchPCA
from ldae.models.transformer_ldae import LDAEHeadProjection, LDAEModulation


Model = TypeVar("Model", bound=PreTrainedModel)


def small_config(**fields: object) -> LDAEConfig:
    """16 x 16 pixels in patches of 4 (N = 16, D = 48), d = 8, 2 + 1 blocks of width 32."""
    small = {
        "image_size": 16,
        "patch_size": 4,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "decoder_num_hidden_layers": 1,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "latent_dim": 8,
    }
    return LDAEConfig(**(small | fields))


@torch.no_grad()
def open_gates(model: Model) -> Model:
    """Put a model in evaluation mode, and draw its gates, head and PCA buffers at random, the same at every call."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, LDAEModulation | LDAEHeadProjection):
            nn.init.normal_(module.weight, std=0.3, generator=generator)
            nn.init.normal_(module.bias, std=0.3, generator=generator)
    tokenizer = model.base_model.tokenizer
    if not isinstance(tokenizer, PatchPCA):
        return model.eval()
    patch_dim, latent_dim = tokenizer.mean.numel(), tokenizer.latent_dim
    square = torch.randn(patch_dim, patch_dim, generator=generator, dtype=torch.float64)
    tokenizer.components.copy_(torch.linalg.qr(square).Q[:, :latent_dim].T)
    tokenizer.mean.copy_(0.1 * torch.randn(patch_dim, generator=generator))
    tokenizer.explained_variance.copy_(torch.linspace(2, 0.1, latent_dim))
    tokenizer.fitted.fill_(True)
    return model.eval()


def draw_images(batch: int = 3, channels: int = 3, height: int = 16, width: int = 16) -> torch.Tensor:
    return torch.rand(batch, channels, height, width, generator=torch.Generator().manual_seed(2)) * 2 - 1


def draw_corruption(batch: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Time steps from both ends and between, and noise, for [`small_config`]."""
    noise = torch.randn(batch, 16, 8, generator=torch.Generator().manual_seed(3))
    return torch.linspace(0, 999, batch).long(), noise
