"""Exports of a checkpoint, which are loaded back and compared with it before they are moved into place."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ldae.data.image_processor import image_processor_settings
from ldae.export.card import write_card
from ldae.export.fold import fold_obstacle
from ldae.export.graph import require_onnx, run_onnx, run_program, save_onnx, save_program
from ldae.export.native import build_native, run_native, save_native
from ldae.export.source import Source, open_source
from ldae.export.timm_vit import run_timm, save_timm
from ldae.files import open_permissions


EXPORT_FILE = "export.json"
STAGING_PREFIX = ".export-"
# Largest absolute error in float32. The features of an l-DAE come from a LayerNorm. Logits and a DDAE's raw
# activations have no fixed scale, so their error is relative to the largest value, if that is above 1.
TOLERANCE = 1e-4

Run = Callable[[Path, torch.Tensor], dict[str, torch.Tensor]]


@dataclass(frozen=True)
class Target:
    """A format: functions that write it and run its files again, and whether it only holds plain ViTs."""

    write: Callable[[Source, Path], None]
    run: Run
    plain: bool


TARGETS = {
    "transformers": Target(lambda s, folder: save_native(build_native(s.vit, s.id2label), folder), run_native, True),
    "timm": Target(lambda s, folder: save_timm(s.vit, folder, s.id2label), run_timm, True),
    "onnx": Target(lambda s, folder: save_onnx(s.program, folder, s.output_names), run_onnx, False),
    "torch-export": Target(lambda s, folder: save_program(s.program, folder), run_program, False),
}


@dataclass(frozen=True)
class Export:
    """An export that was written.

    Attributes:
        folder (`Path`): The exported folder.
        source ([`Source`]): The checkpoint.
        format (`str`): One of `TARGETS`.
        max_abs_error (`float`): Largest absolute difference between an output and the checkpoint's.
        outputs (`dict`): Shape of each output by name, for a batch of one.
    """

    folder: Path
    source: Source
    format: str
    max_abs_error: float
    outputs: dict[str, tuple[int, ...]]


def export_checkpoint(
    checkpoint: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    *,
    format: str,
    timestep: int | None = None,
    layer: int | str | None = None,
    image_size: int | None = None,
    repo_id: str | None = None,
    license: str | None = None,
) -> Export:
    """Write a checkpoint at a fixed t in another library's format, and check it against the checkpoint.

    Args:
        checkpoint (`str` or `os.PathLike`): Folder or Hub id of an l-DAE or a DDAE, encoder or classifier.
        output_dir (`str` or `os.PathLike`): A new or an empty folder.
        format (`str`): `"transformers"` for a `SiglipVisionModel` (an `IJepaForImageClassification` for a classifier),
            `"timm"` for a `VisionTransformer`, `"onnx"` or `"torch-export"`. The first two only take l-DAEs.
        timestep (`int`, *optional*): The time step t; by default the configuration's `feature_timestep`.
        layer (`int` or `str`, *optional*): The layer that features are read after: a block's number, counted from 1,
            or a tap's name; by default the configuration's.
        image_size (`int`, *optional*): Side of the images in pixels; by default the configuration's.
        repo_id (`str`, *optional*): Hub id for the model card; by default the folder's name.
        license (`str`, *optional*): The weights' licence as the Hub spells it; by default that of the checkpoint's
            card, or else "apache-2.0".

    Returns:
        [`Export`]. The folder holds the weights, an image processor, `export.json` and a model card.

    Raises:
        ValueError: If an option is wrong, the format cannot hold the model, or the outputs differ from the
            checkpoint's by more than 1e-4 (for logits and a DDAE's raw activations, 1e-4 of the largest). Nothing is
            written then.
    """
    if format not in TARGETS:
        raise ValueError(f"format={format!r} is unknown; choose one of {', '.join(TARGETS)}.")
    if format == "onnx":
        require_onnx()
    target, folder = TARGETS[format], Path(output_dir)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"output_dir={str(folder)!r} exists and is not an empty folder; give a new one.")
    source = open_source(checkpoint, timestep=timestep, layer=layer, image_size=image_size)
    obstacle = fold_obstacle(source.model)
    if target.plain and obstacle is not None:
        raise ValueError(
            f"format={format!r} only holds plain ViTs, and this checkpoint cannot be folded into one: {obstacle}. "
            "Choose format='onnx' or 'torch-export', which hold the whole computation."
        )

    staging = None
    try:
        # Beside the nearest existing parent, so that no folder is made before the export is verified.
        parent = next(parent for parent in folder.resolve().parents if parent.is_dir())
        staging = Path(tempfile.mkdtemp(prefix=STAGING_PREFIX, dir=parent))
        target.write(source, staging)
        error, excess, outputs = _verify(source, staging, target.run)
        if not excess <= 1:  # also true for NaN
            raise ValueError(
                f"format={format!r}: the outputs differ by up to {error:.1e} from the checkpoint's, {excess:.1f} "
                "times what rounding explains; nothing was written. The weights are not finite, or too large for two "
                "computations in float32 to agree."
            )
        export = Export(folder=folder, source=source, format=format, max_abs_error=error, outputs=outputs)
        facts = _describe(export)
        save_portable_processor(staging, source.config, source.image_size)
        (staging / EXPORT_FILE).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        write_card(staging, facts, checkpoint, repo_id=repo_id or folder.resolve().name, license=license)
        open_permissions(staging)
        folder.parent.mkdir(parents=True, exist_ok=True)
        os.replace(staging, folder)
    except OSError as problem:
        raise ValueError(f"output_dir={str(folder)!r} cannot be written to ({problem}); give another.") from problem
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
    return export


def save_portable_processor(folder: str | os.PathLike[str], config: Any, image_size: int) -> None:
    """Write a `preprocessor_config.json` for transformers 4 and 5, with a checkpoint's own pixels at `image_size`.

    It names `CLIPImageProcessor`, because the `ViTImageProcessor` of transformers 4 can neither resize to the shortest
    edge nor crop to the centre. It does not scale 16-bit values or composite transparency, so the export's card says
    how to convert such images first.
    """
    settings = image_processor_settings(config) | {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": image_size},
        "crop_size": {"height": image_size, "width": image_size},
    }
    del settings["auto_map"]  # an export carries no code of ours
    Path(folder, "preprocessor_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _describe(export: Export) -> dict[str, Any]:
    """Return the content of `export.json`: the choices of the export and its largest error."""
    source = export.source
    return {
        "format": export.format,
        "source": source.name,
        "model_type": source.config.model_type,
        "timestep": source.timestep,
        "layer": source.layer,
        "image_size": source.image_size,
        "num_channels": source.config.num_channels,
        "dtype": "float32",
        "outputs": {name: list(shape) for name, shape in export.outputs.items()},
        "max_abs_error": export.max_abs_error,
        "id2label": source.id2label,
    }


@torch.no_grad()
def _verify(source: Source, folder: Path, run: Run) -> tuple[float, float, dict[str, tuple[int, ...]]]:
    """Run a folder's files on batches of three images and of one, and compare the outputs with the checkpoint's.

    Returns:
        The largest absolute error, the largest error as a multiple of the allowed one, and the shape of each output.
    """
    generator = torch.Generator().manual_seed(0)
    size, channels = source.image_size, source.config.num_channels
    noise = torch.rand(2, channels, size, size, generator=generator) * 2 - 1
    ramp = torch.linspace(-1, 1, size).expand(1, channels, size, size)  # smooth, like a photograph
    normalized = hasattr(source.model.base_model, "normalize")
    errors, excesses, outputs = [], [], {}
    for images in (torch.cat([noise, ramp]), ramp):
        wanted, found = source.outputs(images), run(folder, images)
        for name, value in wanted.items():
            error = (found[name] - value).abs().max()
            scale = 1.0 if normalized and name != "logits" else value.abs().max().clamp(min=1)
            errors.append(error)
            excesses.append(error / (TOLERANCE * scale))
            outputs[name] = tuple(value.shape)
    # torch's max keeps a NaN, Python's may not.
    return float(torch.stack(errors).max()), float(torch.stack(excesses).max()), outputs
