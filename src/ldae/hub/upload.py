"""Upload of a folder's files to the Hub in one commit, without overwriting cards that people wrote.

This module imports only huggingface_hub, and is also run as a script in a separate process: a transfer that hangs can
then be ended without harm to the training that started it (`ldae.hub.push.HubUploader`).
"""

import hashlib
import json
import os
import re
import shutil
import sys
import threading
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import EntryNotFoundError


CARD_FILE = "README.md"
_SEAL = re.compile(r"\n?<!-- ldae wrote this card; sha256 of the text above: ([0-9a-f]{64}) -->\s*$")


def seal_card(card: str) -> str:
    """Append an HTML comment with the hash of a whole card, which shows later whether the card was edited."""
    body = _SEAL.sub("", card).rstrip() + "\n"
    return f"{body}\n<!-- ldae wrote this card; sha256 of the text above: {_digest(body)} -->\n"


def is_sealed_card(card: str) -> bool:
    """Tell whether this library wrote a card and nobody edited it: it ends with a seal of the text before.

    Line ends do not count.

    Example:
        >>> card = seal_card("# A model")
        >>> is_sealed_card(card), is_sealed_card(card.replace("A model", "My model")), is_sealed_card("# A model")
        (True, False, False)
    """
    card = card.replace("\r\n", "\n")
    found = _SEAL.search(card)
    return found is not None and _digest(card[: found.start()]) == found[1]


def _digest(text: str) -> str:
    return hashlib.sha256(text.rstrip().encode()).hexdigest()


def upload_files(
    folder: str,
    files: list[str],
    repo_id: str,
    *,
    private: bool,
    commit_message: str,
    revision: str | None = None,
    tag: str | None = None,
    token: str | None = None,
    repo_type: str = "model",
) -> str:
    """Upload files of a folder in one commit, and create the repository and the branch if they do not exist.

    A card that this library wrote does not replace one on the Hub that was written or edited by hand. `files` are
    paths relative to the folder, with forward slashes, and their paths on the Hub; `repo_type` is "model", "dataset"
    or "space"; the other arguments are those of [`ldae.hub.push.push_to_hub`].

    Returns:
        `str`: The address of the repository, or of the tag or the branch in it.

    Raises:
        ValueError: If the tag exists; nothing is sent then.
        huggingface_hub.errors.HfHubHTTPError: If the Hub refuses, after the client's own retries.
        ConnectionError: If the Hub cannot be reached.
    """
    api = HfApi(token=token, library_name="ldae")
    try:
        repo = api.create_repo(repo_id, private=private, exist_ok=True, repo_type=repo_type)
        refs = None if tag is None else api.list_repo_refs(repo.repo_id, repo_type=repo_type)
        if refs is not None and tag in (known := [ref.name for ref in refs.tags]):
            raise ValueError(
                f"tag={tag!r} is taken: {repo.repo_id} has {', '.join(known)}. A release is never moved; choose "
                "another name."
            )
        if revision is not None:
            api.create_branch(repo.repo_id, branch=revision, exist_ok=True, repo_type=repo_type)
        if CARD_FILE in files and is_sealed_card((Path(folder) / CARD_FILE).read_text(encoding="utf-8")):
            try:
                published = Path(api.hf_hub_download(repo.repo_id, CARD_FILE, revision=revision, repo_type=repo_type))
            except EntryNotFoundError:
                published = None
            if published is not None and not is_sealed_card(published.read_text(encoding="utf-8")):
                print(f"The card of {repo.repo_id} was written or edited by hand, and is kept.", file=sys.stderr)
                files = [path for path in files if path != CARD_FILE]
        operations = [CommitOperationAdd(path_in_repo=path, path_or_fileobj=Path(folder) / path) for path in files]
        commit = api.create_commit(
            repo.repo_id, operations, commit_message=commit_message, revision=revision, repo_type=repo_type
        )
        if tag is not None:
            api.create_tag(repo.repo_id, tag=tag, tag_message=commit_message, revision=commit.oid, repo_type=repo_type)
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in ("httpx", "httpx2"):  # huggingface_hub 1 and 2
            raise
        raise ConnectionError(f"the Hub cannot be reached ({type(error).__name__}: {error})") from error
    place = tag or revision
    return str(repo) if place is None else f"{repo}/tree/{place}"


def main() -> None:
    """Upload with the arguments of `upload_files` and a time-out, read as JSON from the standard input.

    After the time-out the process ends itself and deletes the folder, a snapshot that was made for it, even if the
    process that started it is gone.
    """
    job = json.load(sys.stdin)
    settings, timeout_s = job["settings"], job["timeout_s"]

    def give_up() -> None:
        shutil.rmtree(settings["folder"], ignore_errors=True)
        print(f"The Hub did not finish within {timeout_s:g} s.", file=sys.stderr, flush=True)
        os._exit(1)  # nothing else ends threads that wait for the Hub

    timer = threading.Timer(timeout_s, give_up)
    timer.daemon = True
    timer.start()
    try:
        upload_files(**settings)
    except Exception as error:  # one line for the training's log
        sys.exit(f"{type(error).__name__}: {str(error).strip().splitlines()[0]}")
    finally:
        shutil.rmtree(settings["folder"], ignore_errors=True)


if __name__ == "__main__":
    main()
