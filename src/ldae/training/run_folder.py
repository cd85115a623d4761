"""A run's folder: its files, its log, the recipe that it belongs to, and its checkpoints as models."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from transformers import AutoModelForPreTraining

import ldae  # noqa: F401 - registers the models with transformers
from ldae.checkpoints import loading, open_config, refuse_non_finite
from ldae.data.image_processor import save_image_processor
from ldae.errors import RunError
from ldae.files import FolderClaim, move_into, write_whole
from ldae.hub.remote_code import save_with_code
from ldae.options import read_yaml
from ldae.places import check_outside
from ldae.results import METRICS_FILE, read_metrics, reassign_results
from ldae.shared_work import gather_objects
from ldae.tokenizers.files import TOKENIZER_FILE
from ldae.training.checkpoint import INCOMPLETE_PREFIX, complete_checkpoints, exported_weights
from ldae.training.recipe import Recipe, differences


EXPORT_PREFIX = ".export-"  # of a folder in which a model is written before its files are moved


class RunFolder:
    """The folder of a run, which [`~RunFolder.held`] creates."""

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.pictures = self.path / "pictures"
        self.metrics = self.path / METRICS_FILE
        self.recipe = self.path / "recipe.yaml"
        self.claim = FolderClaim(self.path)

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> "RunFolder":
        """Return the folder that a recipe names; raise `ValueError` if it names none, or one within the data."""
        if recipe.training.output_dir is None:
            raise ValueError("output_dir is missing; give the run's folder (--output_dir runs/NAME).")
        check_outside(recipe.data.dataset, recipe.training.output_dir)
        return cls(recipe.training.output_dir)

    def check_recipe(self, recipe: Recipe) -> None:
        """Refuse a recipe that differs from the folder's in anything that a trained number depends on.

        The folder's recipe counts from its first checkpoint: a start that failed earlier leaves nothing to protect.

        Raises:
            RunError: If the folder holds a run of such a recipe.
        """
        if not (self.recipe.is_file() and self.holds_weights()):
            return
        changed = differences(recipe.resolved(), read_yaml(self.recipe), self.path)
        if changed:
            raise RunError(
                f"output_dir={str(self.path)!r} holds a run of another recipe ({'; '.join(changed)}). Give another "
                "output_dir, or the recipe.yaml of this one as --config."
            )

    def holds_weights(self) -> bool:
        """Return whether anything was trained here: a checkpoint, a model or a latent tokenizer."""
        return bool(complete_checkpoints(self.checkpoints)) or any(
            (self.path / name).is_file() for name in ("model.safetensors", TOKENIZER_FILE)
        )

    @contextmanager
    def held(self, recipe: Recipe, accelerator: Accelerator) -> Iterator[None]:
        """Hold the folder for a run of a recipe. The main process prepares it; the others wait for the outcome.

        Raises:
            RunError: If another run holds the folder, or it cannot be written to; `SystemExit` in other processes.
        """
        error: RunError | None = None
        if accelerator.is_main_process:
            try:
                self.prepare(recipe)
            except RunError as raised:
                self.claim.release()
                error = raised
        (failed,) = broadcast_object_list([error is not None])
        if error is not None:
            raise error
        if failed:
            raise SystemExit(2)
        try:
            yield
        finally:
            if accelerator.is_main_process:
                self.claim.release()

    def prepare(self, recipe: Recipe) -> None:
        """Claim the folder, remove what a killed run left half-written, and write the recipe; see [`held`]."""
        try:
            if not self.claim.take():
                raise RunError(
                    f"output_dir={str(self.path)!r} is in use by {self.claim.holder() or 'another process'}, which "
                    "trains there. Wait for it or stop it, or give another output_dir."
                )
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self.pictures.mkdir(exist_ok=True)
            for left in (*self.path.glob(f"{EXPORT_PREFIX}*"), *self.checkpoints.glob(f"{INCOMPLETE_PREFIX}*")):
                shutil.rmtree(left)
            write_whole(self.recipe, yaml.safe_dump(recipe.resolved(), sort_keys=False))
        except (FileExistsError, NotADirectoryError) as error:
            raise RunError(f"output_dir={str(self.path)!r} is a file or lies in one; give a folder.") from error
        except OSError as error:
            raise RunError(
                f"output_dir={str(self.path)!r} cannot be written to ({error}); give a folder that can."
            ) from error

    def finished(self, images: int) -> bool:
        """Return whether a run of at least that budget has finished here."""
        records = self.records()
        return bool(records) and records[-1].get("event") == "finished" and records[-1]["images"] >= images

    def records(self) -> list[dict[str, Any]]:
        """Read the lines of metrics.jsonl, except for damaged ones."""
        return read_metrics(self.path)

    def forget_after(self, images: int, at_end: bool) -> None:
        """Remove the lines of metrics.jsonl that a run will write again from that many images on.

        If the run had come to its end and now goes on, the results of its model are kept as those of a checkpoint.
        """
        records = self.records()
        trained = [record["images"] for record in records if record.get("event") == "trained"]
        if trained and not at_end:
            reassign_results(self.path, ".", f"checkpoints/images-{trained[-1]:012d}")
        kept = [r for r in records if r["images"] <= images and r.get("event") not in ("trained", "finished")]
        if self.metrics.is_file():
            write_whole(self.metrics, "".join(json.dumps(record) + "\n" for record in kept))

    def log(self, record: dict[str, Any]) -> None:
        """Append a line to metrics.jsonl; `record['images']` is the number of images seen."""
        with self.metrics.open("a") as file:
            file.write(json.dumps(record) + "\n")

    def export(
        self,
        model: Any,
        weights: dict[str, torch.Tensor],
        *,
        processor_config: Any = None,
        scheduler: bool = True,
        code: bool = True,
    ) -> None:
        """Write a model into the folder as `from_pretrained` reads it, each file whole or not at all.

        Args:
            model (`PreTrainedModel`): The model.
            weights (`dict[str, torch.Tensor]`): Its weights and buffers by name.
            processor_config: Gives the image processor's `image_size` and `num_channels`; by default the model's.
            scheduler (`bool`): Whether to write a denoiser's noise schedule for diffusers.
            code (`bool`): Whether to write the code for `trust_remote_code`.

        Raises:
            RunError: If it cannot be written.
        """
        from ldae.schedulers.scheduling_ldae import build_scheduler

        staging = Path(tempfile.mkdtemp(prefix=EXPORT_PREFIX, dir=self.path))
        try:
            model.save_pretrained(staging, state_dict=weights)
            if code:
                save_with_code(staging)
            save_image_processor(staging, processor_config or model.config)
            if scheduler:
                build_scheduler(model.config).save_pretrained(staging / "scheduler")
            move_into(staging, self.path)
        except (OSError, SafetensorError) as error:
            raise RunError(
                f"output_dir={str(self.path)!r}: the model could not be written ({error}). The checkpoints in "
                f"{self.checkpoints} are intact. Make room, then run the same command to resume."
            ) from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def checkpoint_models(folder: str | os.PathLike[str], *, raw: bool = False) -> Iterator[tuple[int, Any]]:
    """Open the checkpoints of a pre-training run as models, oldest first, one at a time.

    The last one of a finished run is the model in its folder. All are configured by the folder's config.json, with the
    block and time step that a grid search chose. One that a run in progress removes before its turn is left out.

    Args:
        folder (`str` or path): The run's folder, with config.json and `checkpoints/`.
        raw (`bool`, defaults to `False`): Whether to read the trained weights even if the run averages them.

    Returns:
        `Iterator[tuple[int, PreTrainedModel]]`: Images seen, and the model on the CPU in evaluation mode.

    Raises:
        ValueError: If the folder holds no run or no checkpoints, or all were removed before their turn.
    """
    run = RunFolder(folder)
    checkpoints = gather_objects(complete_checkpoints(run.checkpoints))[0]  # those that the main process finds
    if not checkpoints:
        raise ValueError(
            f"checkpoint={str(folder)!r} holds no checkpoints/images-*; give the folder of a pre-training run "
            "on this machine, one made with --keep_checkpoints 10 for ten of them."
        )
    if not (run.path / "config.json").is_file():
        raise ValueError(f"checkpoint={str(folder)!r} has no config.json; start its run again, which writes it.")
    return _open(checkpoints, open_config(run.path), raw)


def _open(checkpoints: list[Path], config: Any, raw: bool) -> Iterator[tuple[int, Any]]:
    opened = 0
    for path in checkpoints:
        if not all(gather_objects(path.is_dir())):  # of all processes, which must agree
            continue
        opened += 1
        model = AutoModelForPreTraining.from_config(config)
        with loading(path):
            model.load_state_dict(exported_weights(path, raw))
        refuse_non_finite(model, f"checkpoint={str(path)!r}")
        yield int(path.name.removeprefix("images-")), model.eval()
    if not opened:
        raise ValueError(
            f"checkpoint={str(checkpoints[0].parent.parent)!r} has none of its checkpoints left: its run removed them "
            "meanwhile. Repeat the command, or keep more of them with --keep_checkpoints."
        )
