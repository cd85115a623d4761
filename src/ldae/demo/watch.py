"""A run's folder that is watched while it trains: its log in words and curves, and its newest model."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL.Image
from matplotlib.figure import Figure

from ldae.demo.model import DemoModel
from ldae.files import is_claimed
from ldae.options import read_yaml
from ldae.reports.curves import ACCURACIES, accuracy_figure, logged, loss_figure, measured
from ldae.reports.image_grids import tile_grid
from ldae.training.progress import describe_seconds
from ldae.training.run_folder import RunFolder


RECENT = 10  # lines of the log over which the speed is averaged
SHOWN = 2  # images that are denoised


class WatchedRun:
    """A run's folder, and the newest model that it holds.

    Args:
        path (`Path`): The folder.
        load (`Callable`): Loads the folder's model, a [`~ldae.demo.model.DemoModel`].

    Attributes:
        demo ([`~ldae.demo.model.DemoModel`], *optional*): The model, once the folder holds one and
            [`~WatchedRun.load_newest`] was called.
    """

    def __init__(self, path: Path, load: Callable[[], DemoModel]):
        self.folder, self._load = RunFolder(path), load
        self.demo: DemoModel | None = None
        self._loaded: tuple[Any, ...] = ()

    @classmethod
    def find(cls, checkpoint: str, load: Callable[[], DemoModel]) -> "WatchedRun | None":
        """Return the run of a folder with a log, or with a recipe and no model yet; `None` for other checkpoints."""
        run = cls(Path(checkpoint), load)
        begun = run.folder.recipe.is_file() and not run.model_state()
        return run if run.folder.metrics.is_file() or begun else None

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.folder.path.resolve().name

    def log_state(self) -> tuple[Any, ...]:
        """Return what changes when the log does, or when the run starts or stops."""
        found = self.folder.metrics.stat() if self.folder.metrics.is_file() else None
        return (found and (found.st_mtime_ns, found.st_size), is_claimed(self.folder.path))

    def read_log(self) -> tuple[str, Figure | None, Figure | None]:
        """Say in a few sentences where the run stands, and draw its losses and accuracies if there are any."""
        records = self.folder.records()
        steps, accuracies = logged(records), measured(records)
        text = " ".join([self._describe_progress(records), *_describe_last(steps, accuracies)])
        return text, loss_figure(records) if steps else None, accuracy_figure(records) if accuracies else None

    def _describe_progress(self, records: list[dict[str, Any]]) -> str:
        """Say how far the run is, and how long the rest takes."""
        seen = records[-1]["images"] if records else 0
        if records and records[-1].get("event") == "finished":
            trained = next((r for r in records if r.get("event") == "trained"), {})
            cost = f" in {describe_seconds(trained['seconds'])} on {trained['hardware']}" if trained else ""
            return f"**Finished:** {seen:,} images{cost}."
        end = self._budget()
        progress = f"{seen:,} images" if end is None else f"{seen:,} of {end:,} images"
        if not is_claimed(self.folder.path):
            return f"**Stopped** at {progress}. The run's own command resumes it."
        if end is not None and seen >= end:
            return f"**Ending:** all {end:,} images were seen; the last measurements and pictures are being made."
        rates = [r["images_per_second"] for r in logged(records)[-RECENT:] if r.get("images_per_second")]
        if not rates:
            return "**Started:** the first numbers are still to come."
        rate = len(rates) / sum(1 / rate for rate in rates)  # the lines are equally many images apart
        left = "" if end is None else f", about {describe_seconds((end - seen) / rate)} left"
        return f"**Training:** {progress}, {rate:,.1f} images per second{left}."

    def _budget(self) -> int | None:
        """Return the number of images of the whole run, in whole steps; `None` if there is no readable recipe."""
        try:
            options = read_yaml(self.folder.recipe)["training"]
            return -(-options["images"] // options["total_batch_size"]) * options["total_batch_size"]
        except (KeyError, TypeError, ValueError):
            return None

    def model_state(self) -> tuple[Any, ...]:
        """Return what changes when a model is exported; empty before the first one."""
        files = [self.folder.path / "config.json", *sorted(self.folder.path.glob("model*.safetensors"))]
        found = [(file.name, file.stat().st_mtime_ns) for file in files if file.is_file()]
        return tuple(found) if len(found) > 1 else ()

    def load_newest(self) -> bool:
        """Load the model if a newer one was exported, and return whether one was.

        Raises:
            ValueError: If it cannot be loaded; the former one is kept.
        """
        state = self.model_state()
        if not state or state == self._loaded:
            return False
        newest = self._load()
        if self.demo is None:
            self.demo = newest
        else:
            self.demo.adopt(newest)
        self._loaded = state
        return True

    def picture_state(self) -> tuple[Any, ...]:
        """Return what changes when [`~WatchedRun.draw_denoised`] would draw something else."""
        return (self._loaded, self._own_picture())

    def draw_denoised(self) -> tuple[PIL.Image.Image | None, str]:
        """Show images denoised by the newest model, if it can, with a sentence: the run's own picture, or examples."""
        drawn = self._own_picture()
        if drawn is not None:
            with PIL.Image.open(drawn[0]) as picture:
                return picture.convert("RGB"), "Images denoised by the newest model."
        if self.demo is None:
            return None, "No model has been saved yet."
        examples = self.demo.examples(SHOWN) if self.demo.pipeline is not None else []
        if not examples:
            return None, ""
        t = self.demo.config.num_train_timesteps // 4
        rows = [self.demo.denoise(example, t) for example in examples]
        tiles = [(f"example {i + 1}", [d.clean, d.noisy, d.denoised]) for i, d in enumerate(rows)]
        saved = time.strftime("%H:%M", time.localtime(max(when for _, when in self._loaded) / 1e9))
        return tile_grid(tiles, ["clean", self.demo.family.noisy, "denoised"]), (
            f"Two examples at t = {t}, denoised by the model that was saved at {saved}."
        )

    def _own_picture(self) -> tuple[Path, int] | None:
        """Return the run's picture of its newest model, and when it was drawn; `None` without one."""
        path = self.folder.pictures / "denoising.png"
        if not path.is_file():
            return None
        drawn = path.stat().st_mtime_ns
        weights = (when for name, when in self.model_state() if name.endswith(".safetensors"))
        return (path, drawn) if all(drawn >= when for when in weights) else None


def _describe_last(steps: list[dict[str, Any]], accuracies: list[dict[str, Any]]) -> list[str]:
    """Give the newest loss, learning rate and accuracies in words."""
    sentences = []
    if steps:
        rate = f" at a learning rate of {steps[-1]['learning_rate']:.2g}" if "learning_rate" in steps[-1] else ""
        sentences.append(f"Loss {steps[-1]['loss']:.4g}{rate}.")
    if accuracies:
        last = accuracies[-1]
        values = ", ".join(f"{label} {last[key]:.1%}" for key, label in ACCURACIES.items() if key in last)
        sentences.append(f"Accuracies at {last['images']:,} images: {values}.")
    return sentences
