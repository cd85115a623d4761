"""A supervised backbone small enough for a test, saved as `AutoModel` and `AutoImageProcessor` read it."""

from pathlib import Path

import torch
from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessor


SIZES = {"embedding_size": 4, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic", "num_labels": 3}


def save_backbone(folder: Path, num_channels: int = 3, **processor: object) -> Path:
    torch.manual_seed(0)
    model = ResNetForImageClassification(ResNetConfig(num_channels=num_channels, **SIZES))
    for module in model.modules():  # statistics unlike those of any batch: evaluation mode shows
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.5, 0.5)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
    model.save_pretrained(folder)
    settings = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.25], **processor}
    ViTImageProcessor(do_resize=False, **settings).save_pretrained(folder)
    return folder
