"""`ldae export CHECKPOINT --format F --output_dir DIR`: write a checkpoint at one time step for other libraries."""

from ldae.export.checkpoint import EXPORT_FILE, export_checkpoint
from ldae.export.timm_vit import timm_is_installed
from ldae.verbs.options.share import ExportOptions


def run(options: ExportOptions) -> int:
    """Run the verb; the exit status is 0."""
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
    """Name the library that ran the files again."""
    here = timm_is_installed() or format != "timm"
    return (
        f"run by {'onnxruntime' if format == 'onnx' else format}"
        if here
        else "timm is not installed: run by its formulas"
    )
