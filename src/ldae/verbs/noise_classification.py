"""`ldae noise_classification CHECKPOINT`: accuracy by noise level, of frozen features and of trained networks."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageClassification

from ldae.checkpoints import open_model
from ldae.evaluation.encoder import name_layer
from ldae.evaluation.images import count_images
from ldae.evaluation.linear_probe import ProbeSettings
from ldae.evaluation.metrics import mean_and_stderr
from ldae.evaluation.noise_classification import (
    default_noise_levels,
    noise_to_signal,
    noisy_accuracy,
    probe_noise_levels,
)
from ldae.evaluation.protocol import HOLDOUT
from ldae.reports.curves import noise_curves
from ldae.shared_work import gather_objects, is_main
from ldae.training.classifiers import (
    NoiseClassifierConfig,
    rehearse_noise_classifier,
    train_noise_classifier,
)
from ldae.training.progress import describe_seconds
from ldae.verbs.inputs import ProbeInputs, open_inputs, table
from ldae.verbs.options.measure import NoiseClassificationOptions


HEAD_KEYS = ("learning_rate", "learning_rates_tried", "weight_decay", "optimizer")
HEADS, UNTRAINED, SCRATCH, FINETUNED = (
    "heads on frozen features",
    "heads on the untrained network",
    "trained from scratch",
    "fine-tuned",
)


def noise_classification(options: NoiseClassificationOptions) -> int:
    """Run `ldae noise_classification`."""
    inputs = open_inputs(options, noisy=True)
    timesteps = options.timesteps or default_noise_levels(inputs.encoder.num_train_timesteps)
    layers = inputs.layers or ()
    if len(layers) != 1:
        raise ValueError(f"layers={','.join(map(str, layers))} must be one block here, such as {layers[0]}.")
    comparison = _Comparison(inputs, options, layers[0], tuple(timesteps))
    if options.dry_run:
        comparison.rehearse()
    else:
        comparison.run()
    return 0


class _Comparison:
    """Heads and networks of one checkpoint, and their curves."""

    def __init__(
        self, inputs: ProbeInputs, options: NoiseClassificationOptions, layer: Any, timesteps: tuple[int, ...]
    ) -> None:
        self.inputs, self.options, self.layer, self.timesteps = inputs, options, layer, timesteps
        flip = options.horizontal_flip
        self.horizontal_flip = inputs.data.horizontal_flip if flip is None else flip
        self.data = dataclasses.replace(inputs.data, horizontal_flip=self.horizontal_flip)
        self.settings = ProbeSettings(
            epochs=1,
            batch_size=options.batch_size,
            base_lr=256 / options.batch_size,  # so that a multiplier is the rate itself
            lr_multipliers=tuple(options.head_learning_rates),
            seeds=tuple(options.seeds),
        )
        self.train, self.test = inputs.image_sets(options.forward_batch_size)
        self.levels = noise_to_signal(inputs.encoder, timesteps)
        self.curves: dict[str, list[tuple[float, float | None]]] = {}

    def rehearse(self) -> None:
        """Take the first steps of each network, and print what all of them take."""
        self._look_at_labels()
        starts = (False, True) if self.options.finetune else (False,)
        rehearsals = [rehearse_noise_classifier(self._classifier(start, 0), self.data) for start in starts]
        seconds = len(self.settings.seeds) * sum(rehearsal.seconds for rehearsal in rehearsals)
        print(f"The networks of all seeds train for about {describe_seconds(seconds)}; heads come on top.")

    def run(self) -> None:
        """Measure all, print the table, draw the picture."""
        inputs, options = self.inputs, self.options
        place = f"after {name_layer(self.layer)} at {len(self.timesteps)} noise levels"
        inputs.show_header(f"Noise-conditional classification {place}")
        self._look_at_labels()
        self.num_test = count_images(self.test.batches())
        fitted = self.num_train - round(HOLDOUT * self.num_train)
        epochs = max(1, round(options.images / fitted))
        self.settings = dataclasses.replace(self.settings, epochs=epochs)
        self._heads(HEADS, inputs.encoder, inputs.checkpoint_name)
        self._heads(UNTRAINED, inputs.encoder.untrained(0), "untrained")
        self._networks(SCRATCH, pretrained=False)
        if options.finetune:
            self._networks(FINETUNED, pretrained=True)
        if is_main():
            self._show()

    def _look_at_labels(self) -> None:
        """Count the images and name the classes."""
        shares = gather_objects([batch.labels for batch in self.train.batches() if batch.labels is not None])
        labels = torch.cat([part for share in shares for part in share])
        self.num_train = len(labels)
        self.names = tuple(self.inputs.train_source.class_names or map(str, range(1 + int(labels.max()))))

    def _classifier(self, pretrained: bool, seed: int) -> NoiseClassifierConfig:
        """Return a network and its training."""
        options = self.options
        return NoiseClassifierConfig(
            checkpoint=self.inputs.checkpoint,
            layer=self.layer,
            class_names=self.names,
            pretrained=pretrained,
            images=options.images,
            total_batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            mixed_precision=options.mixed_precision,
            seed=seed,
        )

    def _heads(self, name: str, model: Any, checkpoint: str) -> None:
        options = self.options
        heads = probe_noise_levels(
            model,
            self.train,
            self.test,
            layer=self.layer,
            timesteps=self.timesteps,
            settings=self.settings,
            draws=options.draws,
            horizontal_flip=self.horizontal_flip,
            device=self.inputs.device,
            dtype=self.inputs.dtype,
        )
        if not is_main():
            return
        details = {
            "classifier": "a linear head for each level, on frozen features through BatchNorm",
            "noisings": options.draws,
            "epochs": self.settings.epochs,
            "images": self.settings.epochs * heads.num_train,
            "train_images": heads.num_train,
            "holdout": HOLDOUT,
        }
        levels = range(len(self.timesteps))
        described = [heads.describe(index) for index in levels]
        own = [{key: found[key] for key in HEAD_KEYS} for found in described]
        self._record(name, checkpoint, [heads.seed_scores(index) for index in levels], details, own)

    def _networks(self, name: str, pretrained: bool) -> None:
        """Train the network for each seed in a run's folder of its own, and score it at each level."""
        inputs, options = self.inputs, self.options
        kind = "finetuned" if pretrained else "scratch"
        place = Path("noise_classification") / f"{kind}-{self.layer}-{options.images}-images"
        scores = []
        for seed in self.settings.seeds:
            classifier = self._classifier(pretrained, seed)
            folder = train_noise_classifier(classifier, self.data, inputs.output_dir / place / f"seed-{seed}")
            model = open_model(AutoModelForImageClassification, folder)
            scores.append(noisy_accuracy(model, self.test, self.timesteps, device=inputs.device, dtype=inputs.dtype))
        details = {
            "classifier": f"the network up to the block, BatchNorm and a linear layer, {name}, one for all levels",
            "time_steps": "uniform over all in training",
            "images": options.images,
            "train_images": self.num_train,
            "holdout": 0.0,
            "learning_rate": options.learning_rate,
            "weight_decay": classifier.weight_decay,
            "optimizer": "AdamW",
        }
        if not is_main():
            return
        by_level = [list(level) for level in zip(*scores, strict=True)]
        self._record(name, place.as_posix(), by_level, details, [{}] * len(self.timesteps))

    def _record(
        self,
        name: str,
        checkpoint: str,
        scores: list[list[float]],
        details: dict[str, Any],
        own: list[dict[str, Any]],
    ) -> None:
        """Keep a curve, `scores` of each level's seeds, print it, and add it to results.json."""
        self.curves[name] = [mean_and_stderr(level) for level in scores]
        found = []
        for t, level, (mean, stderr), extra in zip(self.timesteps, self.levels, self.curves[name], own, strict=True):
            protocol = {
                "name": "noise_classification",
                "kind": name,
                "layer": self.layer,
                "timestep": t,
                "noise_to_signal": level,
                "input": "noisy, one noising of each test image",
                **details,
                **extra,
                "schedule": "cosine",
                "batch_size": self.options.batch_size,
                "augmentation": ["horizontal_flip"] if self.horizontal_flip else [],
            }
            about = {"seeds": self.settings.seeds, "stderr": stderr, "checkpoint": checkpoint, "n": self.num_test}
            found.append(self.inputs.result(mean, protocol, **about))
        shown = [f"{mean:.2%} at t = {t}" for t, (mean, _) in zip(self.timesteps, self.curves[name], strict=True)]
        print(f"{name}: {', '.join(shown)}", flush=True)
        self.inputs.record(*found)

    def _show(self) -> None:
        rows = [["t", "noise/signal", *self.curves]]
        for index, (t, level) in enumerate(zip(self.timesteps, self.levels, strict=True)):
            shown = []
            for curve in self.curves.values():
                mean, stderr = curve[index]
                shown.append(f"{mean:.2%}" if stderr is None else f"{mean:.2%} +- {stderr:.2%}")
            rows.append([str(t), f"{level:.3g}", *shown])
        print(table(rows))
        print(
            f"Test accuracy; {self.options.images:,} images seen by each network, and as many by each level's head, "
            f"in whole epochs ({self.settings.epochs}). Each level's learning rate was chosen by a held-out tenth of "
            "the training images; the networks' was given."
        )
        figure = noise_curves(self.curves, self.timesteps, self.levels, 1 / len(self.names))
        self.inputs.draw("Picture", noise_classification=figure)
