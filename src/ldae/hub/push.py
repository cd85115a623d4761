"""Upload of a run's folder to the Hub: once (`push_to_hub`), or at each save of a training (`HubUploader`)."""

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
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from ldae.checkpoints import loading
from ldae.hub import upload
from ldae.hub.model_card import write_model_card
from ldae.hub.remote_code import save_with_code


logger = logging.getLogger(__name__)

DEFAULT_MESSAGE = "Upload the model"
SNAPSHOT_PREFIX = ".push-"

# The files of a run's folder to share: no optimiser state in checkpoints/, no pickles, no temporary files.
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
    """List the files of a run's folder to upload, as sorted relative paths."""
    found = {path for pattern in PUBLISHED for path in Path(folder).glob(pattern) if path.is_file()}
    return sorted(path.relative_to(folder).as_posix() for path in found if not path.name.startswith("."))


def check_publishable(folder: str | os.PathLike[str]) -> None:
    """Check that others can use a folder.

    Raises:
        ValueError: If it has no config.json, no weights in safetensors, only some or damaged ones, or a latent
            tokenizer that was never fitted.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} has no config.json; give a run's folder, or one that save_pretrained wrote.")
    weights = sorted(folder.glob("model*.safetensors"))
    if not weights:
        raise ValueError(f"{folder} has no model.safetensors; save the model with save_pretrained first.")
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    if index.is_file():
        with loading(folder):
            named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        if lacking := sorted(named - {path.name for path in weights}):
            raise ValueError(f"{folder} lacks {', '.join(lacking)}, which {index.name} names; save the model again.")
    for path in weights:
        with loading(folder), safe_open(path, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a dict)
                if name.rsplit(".", 1)[-1] == "fitted" and not bool(tensors.get_tensor(name)):
                    raise ValueError(
                        f"{path} has {name}=False: its latent tokenizer was never fitted, so the model is useless. "
                        "Fit it with fit_patch_pca or `ldae train_tokenizer`, and train the model, before pushing."
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
    """Upload a run's folder: config, processor, scheduler, weights, code, card, recipe, metrics, results and pictures.

    Missing code files (`save_with_code`) and a missing card (`write_model_card`) are added to the folder first. A card
    that was written or edited by hand is kept, here and on the Hub. Unchanged files are not sent again.

    Args:
        folder (`str` or path): A run's folder, or any folder that `save_pretrained` wrote.
        repo_id (`str`): "namespace/name", or "name" in your own namespace; created if it does not exist.
        private (`bool`, defaults to `False`): Whether a new repository is private.
        revision (`str`, *optional*): The branch, created if it does not exist; by default "main".
        tag (`str`, *optional*): Name of a release, such as "v1.0", for the commit: ``from_pretrained(...,
            revision="v1.0")`` then always loads these files. An existing tag is never moved.
        token (`str`, *optional*): A write token; by default the one of ``hf auth login`` or ``HF_TOKEN``.
        with_code (`bool`, defaults to `True`): Whether to add the model's code, which ``trust_remote_code=True`` runs
            where ldae is not installed.
        commit_message (`str`, *optional*): Title of the commit; by default "Upload the model".

    Returns:
        `str`: the address of the repository, or of the tag or the branch in it.

    Raises:
        ValueError: If the folder has no config.json or weights, its tokenizer was never fitted, or the tag exists.
        huggingface_hub.errors.HfHubHTTPError: If the Hub refuses, after the client's own retries.
        ConnectionError: If the Hub cannot be reached.
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


def _complete(folder: str | os.PathLike[str], repo_id: str, with_code: bool = True) -> None:
    """Add the code and the card to a folder that can be shared."""
    check_publishable(folder)
    if with_code:
        save_with_code(folder)
    write_model_card(folder, repo_id=repo_id)


class HubUploader:
    """Uploader of a run's folder during training, which no failure of the Hub can stop.

    Each push takes a snapshot of the folder (hard links to the weights, copies of the rest) and gives it to a separate
    process with a time-out. A Hub that refuses, answers 500 or hangs costs a warning, and the next save tries again.
    Use it in the main process only. Weights must be replaced by renaming, never rewritten in place.

    Args:
        folder, repo_id, private: As for [`push_to_hub`].
        timeout_s (`float`, defaults to 900): Seconds after which one push is given up.

    Raises:
        huggingface_hub.errors.HFValidationError: If `repo_id` is not a valid name on the Hub.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        repo_id: str,
        *,
        private: bool = False,
        timeout_s: float = 900.0,
    ) -> None:
        validate_repo_id(repo_id)
        self.folder, self.repo_id, self.private, self.timeout_s = Path(folder), repo_id, private, timeout_s
        self._process: subprocess.Popen[str] | None = None
        self._watcher: threading.Thread | None = None
        self._behind = False  # whether the last push that ended failed
        self._abandoned = False
        for stale in self.folder.glob(f"{SNAPSHOT_PREFIX}*"):  # left by a process that was killed
            shutil.rmtree(stale, ignore_errors=True)

    def push(self, commit_message: str = DEFAULT_MESSAGE) -> None:
        """Start to push the folder's present state, and return. If a push is still under way, do nothing."""
        if self._watcher is not None and self._watcher.is_alive():
            logger.info(
                "An earlier push to %s is still under way; the next push will include this save.", self.repo_id
            )
            return
        try:
            snapshot = self._snapshot()
            files = published_files(snapshot)
        except Exception as error:  # such as a full disk; sharing must never end a training
            self._warn(f"{type(error).__name__}: {error}")
            return
        settings = {
            "folder": str(snapshot),
            "files": files,
            "repo_id": self.repo_id,
            "private": self.private,
            "commit_message": commit_message,
        }
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
        """Push the finished folder: end a push of an earlier save, then try once more and wait.

        Returns:
            `bool`: Whether the Hub has the folder's present state. If not, a warning names the command to push later.
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
            words = ["ldae", "push_to_hub", str(self.folder), "--repo_id", self.repo_id]
            command = shlex.join([*words, "--private", "true"] if self.private else words)
            logger.warning("The run is complete, but not on the Hub. To push it later: %s", command)
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
            _complete(snapshot, self.repo_id)
        except BaseException:
            shutil.rmtree(snapshot, ignore_errors=True)
            raise
        return snapshot

    def _watch(self, process: subprocess.Popen[str], job: str, snapshot: Path) -> None:
        _, errors = process.communicate(job)
        shutil.rmtree(snapshot, ignore_errors=True)  # the process does so itself, unless it was killed
        if process.returncode == 0:
            self._behind = False
            logger.info("Pushed to %s. %s", self.repo_id, errors.strip())  # for example that the card there was kept
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
