"""`ldae push_to_hub FOLDER --repo_id NAME`: upload a run's folder."""

import sys

from ldae.hub.push import push_to_hub
from ldae.verbs.options.share import PushToHubOptions


def run(options: PushToHubOptions) -> int:
    """Run the verb; the exit status is 0 once the folder is on the Hub, 2 if the Hub refused it or was not reached."""
    try:
        url = push_to_hub(
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
        print(f"ldae push_to_hub: {error}", file=sys.stderr)
        return 2
    print(f"Pushed to {url}")
    return 0
