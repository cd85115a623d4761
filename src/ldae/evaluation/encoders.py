"""Encoders by name, ours and other people's, such that every probe takes them alike."""

import inspect
import os
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

import ldae  # noqa: F401 - registers the models with transformers
from ldae.backbone import load_backbone

from .features import pool_outputs


class PooledBackbone(torch.nn.Module):
    """
    Another model of `AutoModel` as probes take encoders: images in [-1, 1] in, one vector an image out.

    Images come at the model's own size and are normalised as its image processor does. A masked autoencoder sees all
    patches, in their order. Features are the model's `pooler_output` where the checkpoint holds its weights (or it has
    none), else the mean over tokens or places of `last_hidden_state`; `pooling` says which.

    Args:
        model (`PreTrainedModel`): A vision model.
        processor: Its image processor, whose `image_mean`, `image_std` and size are used.
        use_pooler (`bool`, defaults to `True`): Whether `pooler_output` may be taken.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, model: PreTrainedModel, processor: Any, use_pooler: bool = True) -> None:
        super().__init__()
        self.model, self.processor, self.use_pooler = model, processor, use_pooler
        channels = getattr(model.config, "num_channels", 3)
        self.config = SimpleNamespace(
            model_type=model.config.model_type, num_channels=channels, image_size=_image_size(model.config, processor)
        )
        normalises = getattr(processor, "do_normalize", True)
        for name, default in (("mean", 0.0), ("std", 1.0)):
            values = getattr(processor, f"image_{name}", None) if normalises else None
            values = torch.tensor(values if values is not None else [default] * channels, dtype=torch.float32)
            self.register_buffer(name, values.view(-1, 1, 1), persistent=False)
        if hasattr(model.config, "mask_ratio"):
            model.config.mask_ratio = 0.0
        self._orders_patches = "noise" in inspect.signature(model.forward).parameters and hasattr(
            model.config, "mask_ratio"
        )
        self.pooling = "mean over tokens or places"

    def forward(self, pixel_values: torch.Tensor) -> BaseModelOutputWithPooling:
        """Pixels `(b, C, S, S)` in [-1, 1] to `pooler_output` `(b, F)`."""
        pixels = ((pixel_values + 1) / 2 - self.mean) / self.std
        options = {}
        if self._orders_patches:  # what a masked autoencoder sorts its patches by, and would draw
            patches = (pixels.shape[-1] // self.model.config.patch_size) ** 2
            options["noise"] = torch.arange(patches, device=pixels.device, dtype=pixels.dtype).expand(len(pixels), -1)
        outputs: Any = self.model(pixel_values=pixels, **options)
        own = self.use_pooler and getattr(outputs, "pooler_output", None) is not None
        self.pooling = "the model's own" if own else "mean over tokens or places"
        return BaseModelOutputWithPooling(pooler_output=pool_outputs(outputs, self.use_pooler))

    def untrained(self, seed: int) -> "PooledBackbone":
        """The same network with weights drawn afresh; the global random state is left as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            fresh: PreTrainedModel = type(self.model)(self.model.config)
        parameter = next(self.model.parameters())
        torch.nn.Module.to(fresh, parameter.device, parameter.dtype)
        return PooledBackbone(fresh.eval(), self.processor, self.use_pooler).to(parameter.device).eval()


def load_encoder(
    checkpoint: str | os.PathLike[str], device: torch.device | str | None = None
) -> PreTrainedModel | PooledBackbone:
    """
    An encoder in evaluation mode.

    Args:
        checkpoint (`str` or path): Folder or Hub id: an l-DAE or a DDAE, or any vision model of `AutoModel`, which needs its
            image processor beside it.
        device (`torch.device` or `str`, *optional*): Where to; by default where there is a GPU, there, else the CPU.

    Returns:
        [`LDAEModel`] or [`DDAEModel`], or a [`PooledBackbone`] around the model.

    Raises:
        ValueError: where it cannot be loaded, or has weights missing.
    """
    name = os.fspath(checkpoint)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        kind = AutoConfig.from_pretrained(name).model_type
    except OSError as error:
        raise ValueError(f"checkpoint={name!r} cannot be loaded: {error}") from error
    if kind in ("ldae", "ddae"):
        return AutoModel.from_pretrained(name).to(device).eval()
    return PooledBackbone(*load_backbone(name, "checkpoint")).to(device).eval()


def _image_size(config: Any, processor: Any) -> int:
    """Side of a model's images in pixels: its configuration's, or else its processor's."""
    for size in (
        getattr(config, "image_size", None),
        getattr(processor, "crop_size", None) if getattr(processor, "do_center_crop", False) else None,
        getattr(processor, "size", None),
    ):
        if size is None:
            continue
        if isinstance(size, int):
            return size
        sides = list(size) if isinstance(size, list | tuple) else [v for _, v in dict(size).items() if v is not None]
        if sides and all(side == sides[0] for side in sides):
            return int(sides[0])
    raise ValueError(f"the side of the images of a {config.model_type} is not known from its image processor.")
