"""`ldae card FOLDER`: write a run's model card, or bring the metadata of one written by hand up to date."""

import argparse

from ldae.hub.model_card import write_model_card


OUTCOMES = {
    "written": "README.md was written",
    "metadata": "README.md was written by hand: its metadata block was brought up to date, its text stays",
    "kept": "README.md was written or edited by hand and stays as it is; --update_metadata true updates its metadata",
}


def main(arguments: list[str]) -> int:
    """Run the verb; the exit status is 0."""
    parser = argparse.ArgumentParser("ldae card", description="Write a run's model card from its files.")
    parser.add_argument("checkpoint", help="a run's folder")
    parser.add_argument("--repo_id", help="the Hub id that the card names (default: the folder's name)")
    parser.add_argument("--license", help="the weights' licence as the Hub spells it (default: apache-2.0)")
    parser.add_argument("--update_metadata", choices=("true", "false"), default="false")
    options = parser.parse_args(arguments)
    outcome = write_model_card(
        options.checkpoint,
        repo_id=options.repo_id,
        license=options.license,
        update_metadata=options.update_metadata == "true",
    )
    print(f"{options.checkpoint}: {OUTCOMES[outcome]}")
    return 0
