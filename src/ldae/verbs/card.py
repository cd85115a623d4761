"""`ldae card FOLDER`: write a run's model card, or bring the metadata of one written by hand up to date."""

from ldae.hub.model_card import write_model_card
from ldae.verbs.options.share import CardOptions


OUTCOMES = {
    "written": "README.md was written",
    "metadata": "README.md was written by hand: its metadata block was brought up to date, its text stays",
    "kept": "README.md was written or edited by hand and stays as it is; --update_metadata true updates its metadata",
}


def run(options: CardOptions) -> int:
    """Run the verb; the exit status is 0."""
    outcome = write_model_card(
        options.checkpoint,
        repo_id=options.repo_id,
        license=options.license,
        update_metadata=options.update_metadata,
    )
    print(f"{options.checkpoint}: {OUTCOMES[outcome]}")
    return 0
