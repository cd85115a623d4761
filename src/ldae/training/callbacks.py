"""Callbacks of pre-training and fine-tuning: online probe, pictures, model card, Hub and trackers."""

import uuid
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from accelerate.tracking import GeneralTracker, get_available_trackers
from accelerate.utils import ProjectConfiguration
from PIL import Image
from transformers import AutoModelForPreTraining

from ldae.checkpoints import open_model
from ldae.data import DataConfig, iterate_once
from ldae.evaluation.criteria import MOST_IMAGES
from ldae.evaluation.encoder import name_layer
from ldae.evaluation.images import count_images, fixed_subset
from ldae.evaluation.online import BATCH_SIZE, SUBSET_SEED, OnlineProbe
from ldae.evaluation.search import FeatureSearch, best_score, search_by_criterion, write_choice
from ldae.hub.model_card import write_model_card
from ldae.hub.push import HubUploader
from ldae.processes import make_accelerator
from ldae.results import Result, add_result
from ldae.sections import TrainingConfig
from ldae.training.loop import Callback, Run


class FeatureProbe(Callback):
    """Probes of a denoiser's features while it trains, and a search for the best ones at the end."""

    def __init__(self, data: DataConfig, options: TrainingConfig):
        self.data, self.options = data, options
        self.probe: OnlineProbe | None = None
        self.opened = False

    def start(self, run: Run) -> None:
        """Decode the subset."""
        if self.options.probe_every_images != 0:
            self._open(run)

    def after_step(self, run: Run) -> None:
        """Log the accuracies of the online probe where they are due."""
        every = self.options.probe_every_images or max(1, self.options.images // 10)
        if self.probe is not None and run.due(every):
            with run.state.whole_module() as module:
                scores = self.probe(_encoder(module))
            run.log({"event": "probe", **scores})

    def finish(self, run: Run) -> None:
        """Search the exported model, and make the best block and time step the defaults in its config.json."""
        if self.options.select_features is False or not run.is_main:
            return
        if run.task.source.label_column is not None:
            self._open(run)
        model = _encoder(open_model(AutoModelForPreTraining, run.folder.path).to(run.device))
        if self.probe is None:
            self._search_without_labels(run, model)
        else:
            self._search(run, self.probe.search(model))

    def _open(self, run: Run) -> None:
        """Open the probe, and say once if there are no labels for it."""
        if not self.opened:
            self.probe, self.opened = OnlineProbe.open(self.data, run.task.module.config, self.options), True

    def _search(self, run: Run, search: FeatureSearch) -> None:
        accuracies = search.probes.held_out.tolist()
        found = [
            self._result("held_out_accuracy", accuracies[index], search.describe(index), search.chosen == index)
            for index in dict.fromkeys((search.chosen, search.paper))
        ]
        add_result(run.folder.path, *found)
        write_choice(run.folder.path, search.layer, search.timestep)
        paper = search.columns[search.paper]
        run.say(
            f"Features are read after {name_layer(search.layer)} at t = {search.timestep}: {search.accuracy:.1%} on "
            f"held-out training images, {accuracies[search.paper]:.1%} after {name_layer(paper[0])} at t = {paper[1]}."
        )

    def _search_without_labels(self, run: Run, model: Any) -> None:
        config = run.task.module.config
        size = {"image_size": config.image_size, "num_channels": config.num_channels, "batch_size": BATCH_SIZE}
        limit = min(self.options.probe_train_examples, MOST_IMAGES)
        images = list(iterate_once(fixed_subset(run.task.source, limit, SUBSET_SEED), **size))
        scores = search_by_criterion(model, images, "rankme")  # in float32, as the rounding of bfloat16 adds to a rank
        best, paper = best_score(scores), model.config.paper_point
        about = {"input": "clean", "train_images": count_images(images)}
        found = []
        for score in scores:
            if score is best or (score.layer, score.timestep) == paper:
                protocol = {"name": "rankme", "layer": score.layer, "timestep": score.timestep, **about}
                found.append(self._result("rankme", score.held_out, protocol, score is best))
        add_result(run.folder.path, *found)
        write_choice(run.folder.path, best.layer, best.timestep)
        run.say(
            f"Features are read after {name_layer(best.layer)} at t = {best.timestep}, where their effective rank is "
            "highest (there are no labels to choose by)."
        )

    def _result(self, metric: str, value: float, protocol: dict[str, Any], chosen: bool) -> Result:
        return Result(metric, value, self.data.dataset, self.data.split, protocol, details={"chosen": chosen})


class AtEnd(Callback):
    """A function that the main process calls with the run at the end, such as one that draws pictures."""

    def __init__(self, function: Callable[[Run], Any]):
        self.function = function

    def finish(self, run: Run) -> None:
        """Call the function."""
        if run.is_main:
            self.function(run)


class PushToHub(Callback):
    """Uploads of the folder at checkpoints and at the end. Whatever the Hub does, training goes on."""

    def __init__(self, repo_id: str, private: bool, message: str):
        self.repo_id, self.private, self.message = repo_id, private, message

    def start(self, run: Run) -> None:
        """Check the name of the repository."""
        self.uploader = HubUploader(run.folder.path, self.repo_id, private=self.private) if run.is_main else None

    def saved(self, run: Run) -> None:
        """Begin to push the exported model."""
        if self.uploader is not None and not run.at_end:
            self.uploader.push(f"{run.images_seen:,} images seen")

    def finish(self, run: Run) -> None:
        """Push the finished folder, and wait for it."""
        if self.uploader is not None:
            self.uploader.finish(self.message)


class Trackers(Callback):
    """Accelerate's trackers: they receive the resolved recipe, every number of the log, and the pictures at the end.

    A resumed run continues the tracker's run: its id lies in the folder, in `logs/run_id`.

    Raises:
        ValueError: If a tracker is unknown or not installed.
    """

    def __init__(self, names: Sequence[str | GeneralTracker]):
        available = [str(name) for name in get_available_trackers()]
        for name in names:
            if isinstance(name, str) and name not in (*available, "all"):
                raise ValueError(
                    f"report_to={name!r} is not available; pip install 'ldae[tracking]' for tensorboard, trackio and "
                    f"wandb, or choose one of those installed: {', '.join(available) or 'none'}."
                )
        self.names = list(names)

    def start(self, run: Run) -> None:
        """Open the trackers, with the resolved recipe as their configuration."""
        logs, run_id = run.folder.path / "logs", None
        if run.is_main:  # the only process in which trackers start
            logs.mkdir(exist_ok=True)
            file = logs / "run_id"
            run_id = file.read_text() if file.is_file() else uuid.uuid4().hex[:8]
            file.write_text(run_id)
        project = ProjectConfiguration(str(run.folder.path), logging_dir=str(logs))
        self.accelerator = make_accelerator(log_with=self.names, project_config=project)
        arguments = {
            "wandb": {"id": run_id, "resume": "allow", "name": run.folder.path.name},
            "trackio": {"name": run_id, "resume": "allow"},
        }
        self.accelerator.init_trackers("ldae", flatten(run.task.recipe.resolved()), arguments)

    def log(self, run: Run, record: dict[str, Any]) -> None:
        """Send the numbers of a record."""
        event = record.get("event", "train")
        numbers = {f"{event}/{key}": value for key, value in record.items() if isinstance(value, int | float)}
        self.accelerator.log(numbers, step=run.images_seen)

    def finish(self, run: Run) -> None:
        """Send the pictures, and close the trackers."""
        pictures = {
            path.stem: np.asarray(Image.open(path).convert("RGB"))[None]  # (1, H, W, C)
            for path in sorted(run.folder.pictures.glob("*.png"))
        }
        for tracker in self.accelerator.trackers:
            if pictures and hasattr(tracker, "log_images"):
                layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                tracker.log_images(pictures, step=run.images_seen, **layout)
            tracker.finish()  # not end_training, which ends the processes' group too


def sharing(options: TrainingConfig, message: str) -> list[Callback]:
    """Return the callbacks that tell others of a finished model: its card, and the Hub and trackers asked for."""
    callbacks: list[Callback] = [AtEnd(lambda run: write_model_card(run.folder.path, repo_id=options.push_to_hub))]
    if options.push_to_hub:
        callbacks.append(PushToHub(options.push_to_hub, options.hub_private, message))
    return callbacks + tracking(options)


def tracking(options: TrainingConfig) -> list[Callback]:
    """Return the trackers that were asked for, as callbacks."""
    return [Trackers(options.report_to)] if options.report_to else []


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn nested options into one level, as trackers want them: lists become text, and what is not set is left out.

    Example:
    ```python
    >>> flatten({"model": {"size": "nano", "conv_vae_config": None}, "training": {"adam_betas": [0.9, 0.95]}})
    {'model.size': 'nano', 'training.adam_betas': '[0.9, 0.95]'}

    ```
    """
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        elif value is not None:
            flat[f"{prefix}{key}"] = str(value) if isinstance(value, list) else value
    return flat


def _encoder(model: Any) -> Any:
    """Return the model whose features are probed."""
    return getattr(model, "ddae", model)
