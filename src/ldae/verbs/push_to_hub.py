"""`ldae push_to_hub FOLDER --repo_id NAME`: upload a run's folder."""

import argparse
import sys

from ldae.hub.push import push_to_hub


def main(arguments: list[str]) -> int:
    """Run the verb; the exit status is 0 once the folder is on the Hub, 2 where the Hub refused or was not there."""
    parser = argparse.ArgumentParser("ldae push_to_hub", description="Upload a run's folder to the Hugging Face Hub.")
    parser.add_argument("checkpoint", help="a run's folder, or any folder that save_pretrained wrote")
    parser.add_argument("--repo_id", required=True, help='"namespace/name", or "name" in your own namespace')
    parser.add_argument("--private", choices=("true", "false"), default="false", help="for a new repository")
    parser.add_argument("--revision", help="branch, created where it is missing (default: main)")
    parser.add_argument("--tag", help="name of a release for what is pushed, such as v1.0 (default: none)")
    parser.add_argument("--token", help="write token (default: the one that is logged in)")
    parser.add_argument("--with_code", choices=("true", "false"), default="true", help="add the model's code")
    parser.add_argument("--commit_message", help="title of the commit")
    options = parser.parse_args(arguments)
    try:
        url = push_to_hub(
            options.checkpoint,
            options.repo_id,
            private=options.private == "true",
            revision=options.revision,
            tag=options.tag,
            token=options.token,
            with_code=options.with_code == "true",
            commit_message=options.commit_message,
        )
    except OSError as error:  # the Hub's refusals, the network, the login
        print(f"ldae push_to_hub: {error}", file=sys.stderr)
        return 2
    print(f"Pushed to {url}")
    return 0
