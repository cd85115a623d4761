"""Checkpoints to export, at one layer, one time step and one image size."""

import os
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from transformers import AutoModel, AutoModelForImageClassification, PreTrainedConfig, PreTrainedModel

from ldae.checkpoints import loading, open_config, open_model
from ldae.export.fold import PlainViT, check_choices, fold, fold_obstacle
from ldae.export.graph import FixedStep, PlainEncoder, trace
from ldae.hub.families import Family, family_of
from ldae.places import place_name


@dataclass(frozen=True)
class Source:
    """A loaded checkpoint and the choices of an export.

    Attributes:
        name (`str`): The Hub id, or the folder's own name.
        model (`PreTrainedModel`): An l-DAE or a DDAE, with or without classifier, in float32 and evaluation mode.
        timestep (`int`): The time step t.
        image_size (`int`, in pixels): Side of the images.
    """

    name: str
    model: PreTrainedModel
    timestep: int
    image_size: int

    @property
    def config(self) -> Any:
        """The checkpoint's configuration."""
        return self.model.config

    @property
    def layer(self) -> int | str:
        """The layer that features are read after."""
        encoder: Any = self.model.base_model
        return encoder.default_layer

    @property
    def id2label(self) -> dict[int, str] | None:
        """Names of a classifier's classes; `None` for an encoder."""
        return dict(self.config.id2label) if hasattr(self.model, "classifier") else None

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs."""
        return ("logits",) if self.id2label else ("last_hidden_state", "pooler_output")

    @cached_property
    def vit(self) -> PlainViT:
        """The model as a plain ViT; a ValueError if it cannot be folded into one."""
        return fold(self.model, self.timestep, self.image_size)

    @cached_property
    def program(self) -> torch.export.ExportedProgram:
        """The computation as a graph: of the plain ViT if the model can be folded, or else of the whole model."""
        module = FixedStep(self.model, self.timestep) if fold_obstacle(self.model) else PlainEncoder(self.vit)
        return trace(module, self.config.num_channels, self.image_size)

    @torch.no_grad()
    def outputs(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        """Compute the checkpoint's own outputs."""
        return FixedStep(self.model, self.timestep)(pixel_values)


def open_source(
    checkpoint: str | os.PathLike[str],
    *,
    timestep: int | None = None,
    layer: int | str | None = None,
    image_size: int | None = None,
) -> Source:
    """Load a checkpoint for an export, with the choices of [`~ldae.export.export_checkpoint`].

    Raises:
        ValueError: If the checkpoint cannot be loaded or exported, or does not have a chosen layer, t or size.
    """
    with loading(checkpoint):  # not as a configuration: those of other families may need packages
        model_type = PreTrainedConfig.get_config_dict(checkpoint)[0].get("model_type")
    family = family_of(model_type, f"checkpoint={str(checkpoint)!r}", "Other models cannot be exported.")
    config: Any = open_config(checkpoint)
    is_classifier = any("ForImageClassification" in name for name in config.architectures or [])
    if is_classifier and layer is not None:
        raise ValueError(
            f"layer={layer!r} cannot be chosen: the checkpoint is a classifier, trained on the features of its own "
            "layer. Export the pre-trained folder, or probe that layer first (ldae linear_probe --layers)."
        )
    kind: Any = AutoModelForImageClassification if is_classifier else AutoModel
    model = open_model(kind, checkpoint, dtype=torch.float32, **_cut(family, config, layer)).eval()
    untrained = [name for name, buffer in model.named_buffers() if name.endswith("fitted") and not buffer]
    if untrained:
        raise ValueError(
            f"checkpoint={str(checkpoint)!r} has {untrained[0]}=False: its latent tokenizer was never fitted, so the "
            "model is useless. Fit it with fit_patch_pca or `ldae train_tokenizer`, and train the model, first."
        )
    timestep, image_size = check_choices(model, timestep, image_size)
    return Source(name=place_name(checkpoint), model=model, timestep=timestep, image_size=image_size)


def _cut(family: Family, config: Any, layer: int | str | None) -> dict[str, Any]:
    """Return the arguments of `from_pretrained` that choose a layer."""
    if layer is None:
        return {}
    if family.layer_kind == "tap":
        return config.cut_fields(str(layer))
    depth = config.total_num_hidden_layers
    if not str(layer).isdecimal() or not 1 <= int(layer) <= depth:
        raise ValueError(f"layer={layer!r} does not exist; choose one of the blocks 1 to {depth}.")
    return config.cut_fields(int(layer))
