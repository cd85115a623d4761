"""`ldae push_to_hub FOLDER --repo_id NAME`: upload a run's folder."""

from ldae.errors import one_line
from ldae.hub.push import push_to_hub
from ldae.verbs.options.share import PushToHubOptions


def run(options: PushToHubOptions) -> int:
    """Run the verb; the exit status is 0 once the folder is on the Hub.

    Raises:
        ValueError: If an option is refused, or the Hub refuses the folder or is not reached.
    """
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
        raise ValueError(
            f"repo_id={options.repo_id!r} was not pushed: {one_line(error).rstrip('.')}. Repeat the command; what is "
            "on the Hub already is not sent again."
        ) from error
    print(f"Pushed to {url}")
    return 0
