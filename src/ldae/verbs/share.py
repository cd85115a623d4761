"""The verbs that share a checkpoint: exports for other libraries, the model card, and the upload to the Hub.

Each takes its options and returns the exit status.
"""

from ldae.errors import one_line
from ldae.export.checkpoint import EXPORT_FILE, export_checkpoint
from ldae.export.timm_vit import timm_is_installed
from ldae.hub.model_card import write_model_card
from ldae.hub.push import push_to_hub as push
from ldae.verbs.options.share import CardOptions, ExportOptions, PushToHubOptions


CARD_OUTCOMES = {
    "written": "README.md was written",
    "metadata": "README.md was written by hand: its metadata block was brought up to date, its text stays",
    "kept": "README.md was written or edited by hand and stays as it is; --update_metadata true updates its metadata",
}


def export(options: ExportOptions) -> int:
    """Run `ldae export`."""
    made = export_checkpoint(
        options.checkpoint,
        options.output_dir,
        format=options.format,
        timestep=options.timestep,
        layer=options.layer,
        image_size=options.image_size,
        repo_id=options.repo_id,
        license=options.license,
    )
    source = made.source
    shapes = ", ".join(f"{name} (batch, {', '.join(map(str, s[1:]))})" for name, s in made.outputs.items())
    how = f"run by {'onnxruntime' if options.format == 'onnx' else options.format}"
    if options.format == "timm" and not timm_is_installed():
        how = "timm is not installed: run by its formulas"
    print(
        f"{source.name}: block {source.layer}, t = {source.timestep}, {source.image_size} x {source.image_size} pixels"
    )
    print(f"Max abs error: {made.max_abs_error:.1e} (float32, against the checkpoint; {how})")
    print(f"Wrote {made.folder} ({options.format}; {shapes}; {EXPORT_FILE}, and a model card with code that runs)")
    return 0


def card(options: CardOptions) -> int:
    """Run `ldae card`."""
    outcome = write_model_card(
        options.checkpoint,
        repo_id=options.repo_id,
        license=options.license,
        update_metadata=options.update_metadata,
    )
    print(f"{options.checkpoint}: {CARD_OUTCOMES[outcome]}")
    return 0


def push_to_hub(options: PushToHubOptions) -> int:
    """Run `ldae push_to_hub`.

    Raises:
        ValueError: If the Hub refuses the folder or is not reached.
    """
    try:
        url = push(
            options.checkpoint,
            options.repo_id,
            private=options.private,
            revision=options.revision,
            tag=options.tag,
            token=options.token,
            with_code=options.with_code,
            commit_message=options.commit_message,
        )
    except OSError as error:  # the Hub's refusals, the network, the login
        raise ValueError(
            f"repo_id={options.repo_id!r} was not pushed: {one_line(error).rstrip('.')}. Repeat the command; what is "
            "on the Hub already is not sent again."
        ) from error
    print(f"Pushed to {url}")
    return 0
