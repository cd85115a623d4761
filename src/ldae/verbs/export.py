"""`ldae export CHECKPOINT --format F --output_dir DIR`: a checkpoint at one time step, as other libraries read it."""

import argparse

from ldae.export.checkpoint import EXPORT_FILE, TARGETS, export_checkpoint
from ldae.export.timm_vit import timm_is_installed


def main(arguments: list[str]) -> int:
    """Run the verb; the exit status is 0."""
    parser = argparse.ArgumentParser(
        "ldae export",
        description="Write a checkpoint at a fixed time step for other libraries, where nothing of ldae is needed: t, "
        "the latent tokenizer and all that they steer become part of the weights. What was written is loaded back and "
        "compared with the checkpoint; where they differ by more than 1e-4 (of logits and raw activations: of the "
        "largest), nothing is left.",
        allow_abbrev=False,
    )
    parser.add_argument("checkpoint", help="a run's folder, its linear_probe/ for a classifier, or a Hub id")
    parser.add_argument("--format", required=True, choices=TARGETS, help="transformers and timm: of an l-DAE alone")
    parser.add_argument("--output_dir", required=True, help="a new folder")
    parser.add_argument("--timestep", type=int, help="t of the features (default: the config's feature_timestep)")
    parser.add_argument("--layer", help="block of an l-DAE, from 1, or tap of a DDAE (default: the config's)")
    parser.add_argument("--image_size", type=int, help="side of the images in pixels (default: the config's)")
    parser.add_argument("--repo_id", help="the Hub id that the model card names (default: the folder's name)")
    parser.add_argument(
        "--license", help="the weights' licence (default: that of the checkpoint's card, or apache-2.0)"
    )
    options = parser.parse_args(arguments)
    export = export_checkpoint(
        options.checkpoint,
        options.output_dir,
        format=options.format,
        timestep=options.timestep,
        layer=options.layer,
        image_size=options.image_size,
        repo_id=options.repo_id,
        license=options.license,
    )
    source = export.source
    shapes = ", ".join(f"{name} (batch, {', '.join(map(str, s[1:]))})" for name, s in export.outputs.items())
    print(
        f"{source.name}: block {source.layer}, t = {source.timestep}, {source.image_size} x {source.image_size} pixels"
    )
    print(f"Max abs error: {export.max_abs_error:.1e} (float32, against the checkpoint; {_how(options.format)})")
    print(f"Wrote {export.folder} ({options.format}; {shapes}; {EXPORT_FILE}, and a model card with code that runs)")
    return 0


def _how(format: str) -> str:
    """By what the files were run again."""
    here = timm_is_installed() or format != "timm"
    return f"run by {'onnxruntime' if format == 'onnx' else format}" if here else "timm is not here: by its formulas"
