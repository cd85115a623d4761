"""Pushing a run's folder to the Hub: once (`push_to_hub`), or again and again while it trains (`HubUploader`)."""

import json
import logging
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from huggingface_hub.utils import validate_repo_id
from safetensors import safe_open

from ldae.hub import upload
from ldae.hub.model_card import write_model_card
from ldae.hub.remote_code import save_with_code


logger = logging.getLogger(__name__)

DEFAULT_MESSAGE = "Upload the model"
SNAPSHOT_PREFIX = ".push-"

# What of a run's folder is for others; checkpoints/ (optimiser state), pickles and temporary files never are.
PUBLISHED = (
    "config.json",
    "preprocessor_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "*_ldae.py",
    "*_ddae.py",
    "README.md",
    "LICENSE",
    "recipe.yaml",
    "metrics.jsonl",
    "results.json",
    "scheduler/*.json",
    "pictures/*",
)


def published_files(folder: str | os.PathLike[str]) -> list[str]:
    """The files of a run's folder that a push uploads, relative to it, sorted."""
    found = {path for pattern in PUBLISHED for path in Path(folder).glob(pattern) if path.is_file()}
    return sorted(path.relative_to(folder).as_posix() for path in found if not path.name.startswith("."))


def check_publishable(folder: str | os.PathLike[str]) -> None:
    """Refuses a folder that others could not use.

    Raises:
        ValueError: no config.json, no weights in safetensors, or a latent tokenizer that was never fitted.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} has no config.json; give a run's folder, or one that save_pretrained wrote")
    weights = sorted(folder.glob("model*.safetensors"))
    if not weights:
        raise ValueError(f"{folder} has no model.safetensors; save the model with save_pretrained first")
    for path in weights:
        with safe_open(path, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (no dict: it has keys() alone)
                if name.rsplit(".", 1)[-1] == "fitted" and not bool(tensors.get_tensor(name)):
                    raise ValueError(
                        f"{path}: {name}=False, the latent tokenizer was never fitted, so the model means nothing; "
                        "fit it with fit_patch_pca, or with `ldae train_tokenizer`, and train before pushing"
                    )


def push_to_hub(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    tag: str | None = None,
    token: str | None = None,
    with_code: bool = True,
    commit_message: str | None = None,
) -> str:
    """Uploads a run's folder: config, processor, scheduler, weights, code, card, recipe, metrics, results, pictures.

    The folder first gets what it lacks: the code files (`save_with_code`) and a card (`write_model_card`; one written
    or edited by hand stays, here and on the Hub). Unchanged files are not sent again.

    Args:
        folder: a run's folder, or any folder that `save_pretrained` wrote.
        repo_id: "namespace/name", or "name" in one's own namespace; created where it does not exist.
        private: whether a repository that is created here is private. Default False.
        revision: the branch, created where it does not exist. Default None: "main".
        tag: the name of a release, such as "v1.0", that the pushed commit gets: ``from_pretrained(..., revision="v1.0")``
            then always loads these files. A tag that exists is never moved. Default None: no tag.
        token: a write token. Default None: the one that ``hf auth login`` or ``HF_TOKEN`` set.
        with_code: whether the folder gets the model's code, so that ``trust_remote_code=True`` loads it where ldae is
            not installed. Default True.
        commit_message: the commit's title. Default None: "Upload the model".

    Returns:
        The address of the repository, or of the branch in it.

    Raises:
        ValueError: the folder has no config.json or weights, its tokenizer was never fitted, or there is such a tag.
        huggingface_hub.errors.HfHubHTTPError: the Hub refused, after the client's own retries.
        ConnectionError: the Hub cannot be reached.
    """
    _complete(folder, repo_id, with_code)
    return upload.upload_files(
        str(folder),
        published_files(folder),
        repo_id,
        private=private,
        revision=revision,
        tag=tag,
        token=token,
        commit_message=commit_message or DEFAULT_MESSAGE,
    )


def _complete(folder: str | os.PathLike[str], repo_id: str, with_code: bool) -> None:
    check_publishable(folder)
    if with_code:
        save_with_code(folder)
    write_model_card(folder, repo_id=repo_id)


class HubUploader:
    """Pushes a run's folder while it trains. Whatever the Hub does, training goes on.

    Each push takes a snapshot of the folder (hard links to the weights, copies of the rest) and hands it to a process
    of its own, which a time-out ends: a Hub that refuses, answers 500 or hangs costs a warning, and the next save is
    the next try. Use it on the main process only. Weights must be replaced by renaming, never rewritten in place.

    Args:
        folder: the run's folder.
        repo_id, private, revision, token, with_code: as in `push_to_hub`.
        timeout_s: seconds after which one push is given up. Default 900.

    Raises:
        huggingface_hub.errors.HFValidationError: ``repo_id`` is not a name the Hub can have.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        repo_id: str,
        *,
        private: bool = False,
        revision: str | None = None,
        token: str | None = None,
        with_code: bool = True,
        timeout_s: float = 900.0,
    ) -> None:
        validate_repo_id(repo_id)
        self.folder, self.repo_id, self.with_code, self.timeout_s = Path(folder), repo_id, with_code, timeout_s
        self._settings = {"repo_id": repo_id, "private": private, "revision": revision, "token": token}
        self._process: subprocess.Popen[str] | None = None
        self._watcher: threading.Thread | None = None
        self._behind = False  # whether the last push that ended failed
        self._abandoned = False
        for stale in self.folder.glob(f"{SNAPSHOT_PREFIX}*"):  # of a process that was killed
            shutil.rmtree(stale, ignore_errors=True)

    @property
    def command(self) -> str:
        """The command that pushes the folder later, by hand."""
        words = ["ldae", "push_to_hub", str(self.folder), "--repo_id", self.repo_id]
        if self._settings["private"]:
            words += ["--private", "true"]
        if self._settings["revision"] is not None:
            words += ["--revision", str(self._settings["revision"])]
        if not self.with_code:
            words += ["--with_code", "false"]
        return shlex.join(words)

    def push(self, commit_message: str = DEFAULT_MESSAGE) -> None:
        """Starts to push the folder as it is now, and returns; leaves it to the next save while one is under way.

        Args:
            commit_message: the commit's title, such as "12,800 images seen".
        """
        if self._watcher is not None and self._watcher.is_alive():
            logger.info("An earlier push to %s is still under way; this save is left to the next push.", self.repo_id)
            return
        try:
            snapshot = self._snapshot()
            files = published_files(snapshot)
        except Exception as error:  # a full disk, say: sharing must never end a training
            self._warn(f"{type(error).__name__}: {error}")
            return
        settings = {**self._settings, "folder": str(snapshot), "files": files, "commit_message": commit_message}
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", upload.__file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
            )
        except OSError as error:
            shutil.rmtree(snapshot, ignore_errors=True)
            self._warn(str(error))
            return
        job = json.dumps({"timeout_s": self.timeout_s, "settings": settings})
        self._watcher = threading.Thread(target=self._watch, args=(self._process, job, snapshot), daemon=True)
        self._watcher.start()

    def finish(self, commit_message: str = DEFAULT_MESSAGE) -> bool:
        """Pushes the finished folder: gives up a push of an earlier save, then makes one last try and waits for it.

        Args:
            commit_message: the commit's title.

        Returns:
            Whether the Hub has the folder as it is now. Where not, a warning says with which command to push it later.
        """
        if self._process is not None and self._watcher is not None and self._watcher.is_alive():
            self._abandoned = True
            self._process.kill()
            self._watcher.join()
            self._abandoned = False
        self._behind = True
        self.push(commit_message)
        if self._watcher is not None:
            self._watcher.join()
        if self._behind:
            logger.warning("The run is complete, but not on the Hub. To push it later: %s", self.command)
        return not self._behind

    def _snapshot(self) -> Path:
        snapshot = Path(tempfile.mkdtemp(prefix=SNAPSHOT_PREFIX, dir=self.folder))
        try:
            for name in published_files(self.folder):
                target = snapshot / name
                target.parent.mkdir(exist_ok=True)
                if name.endswith(".safetensors"):
                    _link_or_copy(self.folder / name, target)
                else:
                    shutil.copy2(self.folder / name, target)
            _complete(snapshot, self.repo_id, self.with_code)
        except BaseException:
            shutil.rmtree(snapshot, ignore_errors=True)
            raise
        return snapshot

    def _watch(self, process: subprocess.Popen[str], job: str, snapshot: Path) -> None:
        _, errors = process.communicate(job)
        shutil.rmtree(snapshot, ignore_errors=True)  # the process does so itself, unless it was killed
        if process.returncode == 0:
            self._behind = False
            logger.info("Pushed to %s. %s", self.repo_id, errors.strip())  # such as: the card there was kept
        elif not self._abandoned:
            self._warn(errors.strip().splitlines()[-1] if errors.strip() else f"exit status {process.returncode}")

    def _warn(self, problem: str) -> None:
        self._behind = True
        logger.warning("Could not push to %s; the next save tries again. %s", self.repo_id, problem)


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)
