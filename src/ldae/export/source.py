"""What is exported: a checkpoint at one block, one time step and one image size."""

import os
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, PreTrainedConfig, PreTrainedModel

from ldae.export.fold import PlainViT, check_choices, fold, fold_obstacle
from ldae.export.graph import FixedStep, PlainEncoder, trace
from ldae.models.configuration_ddae import DDAEConfig
from ldae.models.configuration_ldae import LDAEConfig


MODEL_TYPES = (LDAEConfig.model_type, DDAEConfig.model_type)


@dataclass(frozen=True)
class Source:
    """
    A loaded checkpoint and the choices of an export.

    Attributes:
        name (`str`): The Hub id, or the folder's name without the folders around it.
        model: An l-DAE or a DDAE, with or without classifier, in float32 and evaluation mode.
        timestep (`int`): t.
        image_size (`int`): Side of the images, in pixels.
    """

    name: str
    model: PreTrainedModel
    timestep: int
    image_size: int

    @property
    def config(self) -> Any:
        """The checkpoint's."""
        return self.model.config

    @property
    def layer(self) -> int | str:
        """The block that features are read after: an l-DAE's by its number from 1, a DDAE's tap by its name."""
        if isinstance(self.config, DDAEConfig):
            return str(self.config.feature_layer)
        return self.config.feature_layer or self.config.num_hidden_layers

    @property
    def id2label(self) -> dict[int, str] | None:
        """Names of a classifier's classes; `None` for an encoder."""
        return dict(self.config.id2label) if hasattr(self.model, "classifier") else None

    @cached_property
    def vit(self) -> PlainViT:
        """
        The plain ViT that it is.

        Raises:
            ValueError: where it is none.
        """
        return fold(self.model, self.timestep, self.image_size)

    @cached_property
    def program(self) -> torch.export.ExportedProgram:
        """The computation as a graph: of the plain ViT, or of the whole model where it is none."""
        module = FixedStep(self.model, self.timestep) if fold_obstacle(self.model) else PlainEncoder(self.vit)
        return trace(module, self.config.num_channels, self.image_size)

    @torch.no_grad()
    def outputs(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        """What the checkpoint itself gives for images."""
        return FixedStep(self.model, self.timestep)(pixel_values)


def open_source(
    checkpoint: str | os.PathLike[str],
    *,
    timestep: int | None = None,
    layer: int | str | None = None,
    image_size: int | None = None,
) -> Source:
    """
    Load a checkpoint for an export.

    Args:
        checkpoint (`str` or `os.PathLike`): Folder or Hub id of an l-DAE or a DDAE; a classifier is taken as one.
        timestep (`int`, *optional*): t; by default the configuration's `feature_timestep`.
        layer (`int` or `str`, *optional*): The block after which features are read: of an l-DAE its number from 1, of
            a DDAE the tap's name; by default the configuration's.
        image_size (`int`, *optional*): Side of the images in pixels; by default the configuration's.

    Returns:
        [`Source`].

    Raises:
        ValueError: naming the option, its value and the remedy.
    """
    try:
        model_type = PreTrainedConfig.get_config_dict(checkpoint)[0].get("model_type")
        if model_type not in MODEL_TYPES:
            raise ValueError(
                f"checkpoint={str(checkpoint)!r} has model_type={model_type!r} in its config.json; export takes 'ldae' and "
                "'ddae', and turns them into what other libraries read."
            )
        config: Any = AutoConfig.from_pretrained(checkpoint)
    except OSError as error:
        raise ValueError(f"checkpoint={str(checkpoint)!r} cannot be loaded: {error}") from error
    is_classifier = any("ForImageClassification" in name for name in config.architectures or [])
    if is_classifier and layer is not None:
        raise ValueError(
            f"layer={layer!r} is not possible: the checkpoint is a classifier, whose linear layer belongs to its "
            "block; export the pre-trained folder, or probe that block first (ldae linear_probe --layers)."
        )
    kind: Any = AutoModelForImageClassification if is_classifier else AutoModel
    model = kind.from_pretrained(checkpoint, dtype=torch.float32, **_cut(config, layer)).eval()
    untrained = [name for name, buffer in model.named_buffers() if name.endswith("fitted") and not buffer]
    if untrained:
        raise ValueError(
            f"checkpoint={str(checkpoint)!r} has {untrained[0]}=False: its latent tokenizer was never fitted, so the "
            "model means nothing; fit it with fit_patch_pca or `ldae train_tokenizer`, and train it first."
        )
    timestep, image_size = check_choices(model, timestep, image_size)
    name = os.path.basename(os.path.abspath(checkpoint)) if os.path.isdir(checkpoint) else str(checkpoint)
    return Source(name=name, model=model, timestep=timestep, image_size=image_size)


def _cut(config: Any, layer: int | str | None) -> dict[str, Any]:
    """How `from_pretrained` is told which block is read."""
    if layer is None:
        return {}
    if isinstance(config, DDAEConfig):
        return {"feature_layer": str(layer)}
    depth = config.total_num_hidden_layers
    if not str(layer).isdecimal() or not 1 <= int(layer) <= depth:
        raise ValueError(f"layer={layer!r} is not possible; this model has blocks 1 to {depth}.")
    return {"num_hidden_layers": int(layer), "feature_layer": None}
