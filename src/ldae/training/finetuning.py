"""Fine-tuning of an encoder as an image classifier: from a checkpoint and a recipe to a finished run folder."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForImageClassification

from ldae.checkpoints import open_model
from ldae.data import Batch, ImageSource, iterate_once, open_probe_images, prepare_images
from ldae.data.mixing import mix_examples
from ldae.data.rand_augment import rand_augment
from ldae.data.rows import read_labels
from ldae.evaluation.encoder import evaluating
from ldae.evaluation.images import fixed_subset
from ldae.evaluation.metrics import mean_and_stderr
from ldae.processes import join_processes
from ldae.reports.curves import draw_finetuning_pictures
from ldae.results import Result, add_result, read_results
from ldae.training.blocks import DropPath, add_lora, depth_of, encoder_blocks, merge_lora, parameter_groups
from ldae.training.callbacks import AtEnd, sharing
from ldae.training.checkpoint import Checkpoint
from ldae.training.estimate import Estimate, Rehearsal, rehearse
from ldae.training.finetuning_recipe import FineTuningRecipe, load_finetuning_recipe
from ldae.training.loop import Callback, Run, train
from ldae.training.progress import describe_count
from ldae.training.run_folder import RunFolder
from ldae.training.task import Task, trained_parameters


class FineTuningTask(Task):
    """End-to-end fine-tuning of an encoder with a linear classifier on its mean features.

    The protocol is that of masked autoencoders (l-DAE, App. B): clean input, layer-wise learning-rate decay, drop
    path, MixUp, CutMix, RandAugment, label smoothing and averaged weights.
    """

    activity = "fine-tuning"
    product = "the classifier"
    recipe: FineTuningRecipe
    test_source: ImageSource

    def __init__(self, recipe: FineTuningRecipe):
        super().__init__(recipe)
        self.num_classes = recipe.config.num_labels

    def open_source(self) -> ImageSource:
        """Open the training images and the test images, both with labels."""
        source, test = open_probe_images(self.recipe.data)
        self.test_source = test
        if test.label_column is None or (not test.streaming and max(read_labels(test)) < 0):
            raise ValueError(f"{test.description} has no labels; name another eval_split.")
        return self.checked(source)

    def build(self, checkpoint: Checkpoint | None) -> nn.Module:
        """Load the classifier, freeze its first blocks, and add LoRA factors and drop path."""
        fine = self.recipe.finetuning
        micro_batch_size, _ = self.options.batch_layout(self.accelerator.num_processes)
        if (fine.mixup or fine.cutmix) and micro_batch_size % 2:
            raise ValueError(
                f"micro_batch_size={micro_batch_size} is odd, and MixUp and CutMix mix pairs; choose an even one, or "
                "give --mixup 0 --cutmix 0."
            )
        model = load_classifier(self.recipe)
        self.blocks = encoder_blocks(model)
        self._freeze(model)
        self._add_lora(model)
        self.drop_path = DropPath(model, self.blocks, fine.drop_path, first=fine.frozen_blocks)
        return self.optimized(model)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return groups whose learning rate falls from block to block towards the input."""
        decay: Any = self.recipe.finetuning.layer_decay  # the recipe has made a number of it
        parameters, weight_decay = trained_parameters(self.module), self.options.weight_decay
        return parameter_groups(parameters, self.blocks, layer_decay=decay, weight_decay=weight_decay)

    def loss(self, batch: Batch, positions: torch.Tensor) -> torch.Tensor:
        """Augment and mix the batch, drop paths, and compare with the smoothed labels."""
        fine, seed = self.recipe.finetuning, self.options.seed
        labels = self.labels(batch, positions)
        pixels = self.pixels(batch, positions)  # (b, C, H, W)
        if fine.rand_augment is not None:
            pixels = rand_augment(pixels, batch.positions, seed, magnitude=fine.rand_augment)
        pixels, targets = mix_examples(
            pixels,
            labels,
            batch.positions,
            seed,
            num_classes=self.module.num_labels,
            mixup=fine.mixup,
            cutmix=fine.cutmix,
            label_smoothing=fine.label_smoothing,
        )
        self.drop_path.draw(positions, seed)
        logits = self.network(pixels).logits  # (b, K)
        return F.cross_entropy(logits.float(), targets)

    def export(self, folder: RunFolder, weights: dict[str, torch.Tensor]) -> None:
        """Write the classifier, with plain layers where LoRA factors trained."""
        model = self.module
        if self.recipe.finetuning.lora_rank is not None:
            model = type(self.module)(self.module.config)
            self._add_lora(model)
            model.load_state_dict(weights)
            merge_lora(model)
            weights = model.state_dict()
        folder.export(model, weights, scheduler=False)

    def describe(self) -> str:
        """Describe the size of the model, what of it trains, and where it begins."""
        fine, trained = self.recipe.finetuning, trained_parameters(self.module).values()
        begin = "untrained" if fine.from_scratch else "with its head" if self.recipe.has_head else "with a new head"
        return (
            f"{super().describe()}, {sum(weight.numel() for weight in trained) / 1e6:.1f} M of them train; "
            f"{describe_count(len(self.blocks), 'block')}, {describe_count(self.module.num_labels, 'class')}; "
            f"{fine.checkpoint}, {begin}; layer_decay {fine.layer_decay}"
        )

    def _add_lora(self, model: Any) -> None:
        fine = self.recipe.finetuning
        if fine.lora_rank is not None:
            add_lora(model, self.blocks[fine.frozen_blocks :], fine.lora_rank)

    def _freeze(self, model: Any) -> None:
        """Freeze the first blocks and what comes before them, and switch off their dropout."""
        count = self.recipe.finetuning.frozen_blocks
        if count > len(self.blocks):
            blocks = describe_count(len(self.blocks), "block")
            raise ValueError(f"frozen_blocks={count} exceeds the {blocks} of the encoder; lower it.")
        if not count:
            return
        for name, parameter in model.named_parameters():
            if depth_of(name, self.blocks) <= count:
                parameter.requires_grad_(False)
        for name, module in model.named_modules():
            if isinstance(module, nn.Dropout) and depth_of(name, self.blocks) <= count:
                module.p = 0.0


class MeasureAccuracy(Callback):
    """Accuracy of trained and of averaged weights: on a fixed subset in training, on all test images at the end."""

    def __init__(self, task: FineTuningTask):
        self.task, self.options = task, task.options

    def after_step(self, run: Run) -> None:
        """Log the accuracy on a fixed subset."""
        t = self.options
        every = max(1, t.images // 10) if t.probe_every_images is None else t.probe_every_images
        if every and run.due(every) and not run.at_end:
            subset = fixed_subset(self.task.test_source, t.probe_eval_examples, t.seed)
            scores = {name: round(value, 4) for name, (value, _) in self._accuracies(run, subset).items()}
            run.log({"event": "accuracy", "examples": subset.num_examples, **scores})

    def finish(self, run: Run) -> None:
        """Add the accuracy on all test images to results.json."""
        t, source = self.options, self.task.test_source
        budget = {field: getattr(t, field) for field in ("images", "total_batch_size", "base_learning_rate")}
        for name, (value, count) in self._accuracies(run, source).items():
            protocol = {"name": "fine-tuning", "weights": name, **budget, **self.task.recipe.resolved()["finetuning"]}
            result = Result("accuracy", value, source.name, source.split, protocol, seeds=t.seed, n=count)
            if run.is_main:
                add_result(run.folder.path, result)
            run.say(f"Accuracy on {source.description}: {value:.2%} ({name} weights, {count:,} images)")

    def _accuracies(self, run: Run, source: ImageSource) -> dict[str, tuple[float, int]]:
        """Return accuracy and number of images, by weights."""
        scores = {"raw": self._accuracy(run, source)}
        if run.state.ema is not None:
            with run.state.averaged():
                scores["ema"] = self._accuracy(run, source)
        return scores

    def _accuracy(self, run: Run, source: ImageSource) -> tuple[float, int]:
        """Measure the accuracy on a source; every process takes its share."""
        accelerator, c = run.accelerator, self.task.module.config
        counts = torch.zeros(2, dtype=torch.long, device=run.device)  # correct, measured
        batches = iterate_once(
            source,
            image_size=c.image_size,
            num_channels=c.num_channels,
            batch_size=256,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            num_workers=self.task.recipe.data.num_workers,
        )
        with run.state.whole_module() as model, evaluating(model), accelerator.autocast():
            for batch in batches:
                if batch.labels is None:
                    continue
                images, labels = batch.images.to(run.device), batch.labels.to(run.device)
                pixels = prepare_images(images, batch.positions, 0, image_size=c.image_size)
                chosen = model(pixels).logits.argmax(dim=1)  # (b,)
                counts += torch.stack([(chosen == labels).sum(), (labels >= 0).sum()])
        correct, measured = accelerator.reduce(counts, "sum").tolist()
        if not measured:
            raise ValueError(f"{source.description} has no labels; name another eval_split.")
        return correct / measured, int(measured)


def load_classifier(recipe: FineTuningRecipe) -> Any:
    """Load the classifier that a run begins with, in float32. A new head is zero.

    Raises:
        ValueError: If the checkpoint lacks weights of the encoder.
    """
    fine, config = recipe.finetuning, recipe.config
    model = open_model(
        AutoModelForImageClassification,
        fine.checkpoint,
        new="classifier.",
        config=config,
        dtype=torch.float32,
        ignore_mismatched_sizes=not recipe.has_head,  # a head for other classes is replaced below
    )
    if fine.from_scratch:
        trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
        kept = {name: value for name, value in model.state_dict().items() if name not in trained}
        torch.manual_seed(recipe.training.seed)
        model = type(model)(config)
        model.load_state_dict(kept, strict=False)
    if not recipe.has_head:
        nn.init.zeros_(model.classifier.weight)
        nn.init.zeros_(model.classifier.bias)
    return model


def rehearse_finetuning(recipe: FineTuningRecipe) -> Rehearsal:
    """Take the first steps of [`finetune`] and print what the whole run takes, without writing anything."""
    sharing(recipe.training, "Fine-tuned")  # which checks what it needs
    return rehearse(FineTuningTask(recipe))


def finetune(recipe: FineTuningRecipe) -> RunFolder:
    """Run a recipe to its end. The same call resumes, and changes nothing once the run is finished.

    Args:
        recipe ([`FineTuningRecipe`]): As [`~ldae.training.finetuning_recipe.load_finetuning_recipe`] returns it.

    Returns:
        [`RunFolder`], finished: a classifier that `AutoModelForImageClassification` and pipelines load.

    Raises:
        ValueError, RunError: As of [`~ldae.training.loop.train`].

    Example:
    ```python
    from ldae.training.finetuning import finetune
    from ldae.training.finetuning_recipe import load_finetuning_recipe

    finetune(load_finetuning_recipe("runs/cifar10", overrides={"horizontal_flip": True}, epochs=30))
    ```
    """
    folder, task = RunFolder.from_recipe(recipe), FineTuningTask(recipe)
    pictures = AtEnd(lambda run: draw_finetuning_pictures(run.folder.path))
    callbacks = [Estimate(), MeasureAccuracy(task), pictures, *sharing(recipe.training, "Fine-tuned")]
    train(task, recipe.training, folder, callbacks)
    return folder


def compare_with_scratch(
    checkpoint: str,
    path: str | None = None,
    overrides: dict[str, Any] | None = None,
    *,
    epochs: int | None = None,
    seeds: Sequence[int] = (0, 1, 2),
) -> list[Result]:
    """Fine-tune a checkpoint and train the same network from scratch, with the same images, augmentation and budget.

    The untrained network has no layer-wise decay of the learning rate, with which its first blocks would hardly learn.
    The same call resumes: finished runs are not repeated. Every run is checked before the first one trains.

    Args:
        checkpoint (`str`): Folder or Hub id of the encoder.
        path (`str`, *optional*): YAML file of [`~ldae.training.finetuning_recipe.load_finetuning_recipe`].
        overrides (`dict`, *optional*): Values by field name. `output_dir` is by default
            `CHECKPOINT/finetuning_comparison`.
        epochs (`int`, *optional*): Budget in passes over the training images.
        seeds (`Sequence[int]`, defaults to `(0, 1, 2)`): Seeds; there is a pair of runs for each.

    Returns:
        `list[Result]`: Mean test accuracies over the seeds, by start (`checkpoint`: "finetuned" or "from_scratch") and
        weights (in `protocol`), which are also added to the results.json of the output folder.

    Raises:
        ValueError: As of `load_finetuning_recipe`, for runs from scratch too, or if a run was trained for longer.
    """
    overrides = dict(overrides or {})
    for name in ("seed", "from_scratch"):
        if name in overrides:
            raise ValueError(f"{name}={overrides[name]} does not apply to a comparison, which sets it; leave it out.")
    if len(set(seeds)) != len(seeds):
        raise ValueError(f"seeds={list(seeds)} contains a seed twice; give different ones.")
    folder = overrides.pop("output_dir", None)
    if folder is None and not Path(checkpoint).is_dir():
        raise ValueError(
            f"output_dir is missing, and checkpoint={checkpoint!r} is not a folder that can hold the runs; give one."
        )
    output_dir = Path(checkpoint) / "finetuning_comparison" if folder is None else Path(folder)
    recipes: dict[str, list[FineTuningRecipe]] = {}
    for start in ("finetuned", "from_scratch"):
        for seed in seeds:
            place = str(output_dir / start / f"seed-{seed}")
            own: dict[str, Any] = {"seed": seed, "output_dir": place, "from_scratch": start == "from_scratch"}
            if own["from_scratch"]:
                own["layer_decay"] = None  # the default, which is none from scratch
            recipe = load_finetuning_recipe(checkpoint, path, overrides | own, epochs=epochs)
            images = recipe.training.images
            if RunFolder(place).finished(images) and not _scores(recipe):
                raise ValueError(
                    f"{place} holds a finished run of another budget than images={images}; give that one, or another "
                    "output_dir."
                )
            recipes.setdefault(start, []).append(recipe)
    compared = []
    for start, chosen in recipes.items():
        for recipe in chosen:
            finetune(recipe)
        entries = [entry for recipe in chosen for entry in _scores(recipe)]
        for weights in dict.fromkeys(entry["protocol"]["weights"] for entry in entries):
            found = [entry for entry in entries if entry["protocol"]["weights"] == weights]
            mean, stderr = mean_and_stderr([entry["value"] for entry in found])
            about: dict[str, Any] = {"seeds": seeds, "checkpoint": start, "stderr": stderr}
            result = replace(Result.from_entry(found[0]), value=mean, **about)
            compared.append(result)
            if join_processes().is_main_process:
                add_result(output_dir, result)
    return compared


def _scores(recipe: FineTuningRecipe) -> list[dict[str, Any]]:
    """Read the entries of results.json that a run has for its recipe's budget."""
    return [
        entry
        for entry in read_results(RunFolder.from_recipe(recipe).path)
        if entry["protocol"]["name"] == "fine-tuning" and entry["protocol"]["images"] == recipe.training.images
    ]
