"""Fine-tuning an encoder as an image classifier: from a checkpoint and a recipe to a finished run folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ldae.backbone import quietly
from ldae.data import Batch, ImageSource, iterate_once, open_probe_images, prepare_images
from ldae.data.mixing import mix_examples
from ldae.data.rand_augment import rand_augment
from ldae.evaluation.features import evaluating
from ldae.evaluation.images import fixed_subset
from ldae.hub.model_card import write_model_card
from ldae.hub.push import HubUploader
from ldae.models.modeling_ddae import DDAEForImageClassification
from ldae.models.modeling_ldae import LDAEForImageClassification
from ldae.reports.finetuning_pictures import draw_finetuning_pictures
from ldae.results import add_result
from ldae.training.blocks import Block, depth_of, encoder_blocks
from ldae.training.checkpoint import Checkpoint
from ldae.training.drop_path import DropPath
from ldae.training.finetuning_recipe import FineTuningRecipe
from ldae.training.layer_decay import parameter_groups
from ldae.training.loop import TrainingRun
from ldae.training.lora import add_lora, merged
from ldae.training.run_folder import RunFolder


CLASSIFIERS: dict[str, Any] = {"ldae": LDAEForImageClassification, "ddae": DDAEForImageClassification}


class FineTuningRun(TrainingRun):
    """
    End-to-end fine-tuning of an encoder with a linear classifier on its mean features, by the protocol of masked
    autoencoders (l-DAE, App. B): clean input, layer-wise learning-rate decay, drop path, MixUp, CutMix, RandAugment, label
    smoothing and averaged weights.

    Args:
        recipe ([`FineTuningRecipe`]): With `training.output_dir`.
    """

    activity = "fine-tuning"
    model: Any
    recipe: FineTuningRecipe
    blocks: list[Block]
    drop_path: DropPath
    test_source: ImageSource

    def __init__(self, recipe: FineTuningRecipe):
        super().__init__(recipe)
        self.scores: dict[str, tuple[float, int]] = {}  # by weights: accuracy, and of how many images
        self.uploader = None
        if self.options.push_to_hub and self.is_main:
            hub = (self.folder.path, self.options.push_to_hub)
            self.uploader = HubUploader(*hub, private=self.options.hub_private)

    def build(self, checkpoint: Checkpoint | None) -> nn.Module:
        fine = self.recipe.finetuning
        if (fine.mixup or fine.cutmix) and self.micro_batch_size % 2:
            raise ValueError(
                f"micro_batch_size={self.micro_batch_size} is odd, and MixUp and CutMix mix pairs; choose an even one, or "
                "give --mixup 0 --cutmix 0."
            )
        with self.accelerator.main_process_first():
            self.source, self.test_source = open_probe_images(self.recipe.data)
        if self.test_source.label_column is None:
            raise ValueError(f"{self.test_source.description} has no label column; name another eval_split.")
        self.examples = self.source
        model = load_classifier(self.recipe)
        self.blocks = encoder_blocks(model)
        self._freeze(model)
        if fine.lora_rank is not None:
            add_lora(model, self.blocks[fine.frozen_blocks :], fine.lora_rank)
        self.drop_path = DropPath(model, self.blocks, fine.drop_path, first=fine.frozen_blocks)
        if self.options.activation_checkpointing:
            model.gradient_checkpointing_enable()
        if self.options.compile:
            model.compile(fullgraph=True)
        return model

    def parameter_groups(self) -> list[dict[str, Any]]:
        layer_decay: Any = self.recipe.finetuning.layer_decay  # the recipe has made a number of it
        rates = {"layer_decay": layer_decay, "weight_decay": self.options.weight_decay}
        return parameter_groups(self._trained(), self.blocks, **rates)

    def loss(self, batch: Batch, positions: torch.Tensor) -> torch.Tensor:
        fine, seed = self.recipe.finetuning, self.options.seed
        if batch.labels is None or bool((batch.labels < 0).any()):
            raise ValueError(f"{self.source.description} has images without a label; fine-tune on others.")
        pixels = self.pixels(batch, positions)  # (b, C, H, W)
        if fine.rand_augment is not None:
            pixels = rand_augment(pixels, batch.positions, seed, magnitude=fine.rand_augment)
        pixels, targets = mix_examples(
            pixels,
            batch.labels.to(self.device, non_blocking=True),
            batch.positions,
            seed,
            num_classes=self.model.num_labels,
            mixup=fine.mixup,
            cutmix=fine.cutmix,
            label_smoothing=fine.label_smoothing,
        )
        self.drop_path.draw(positions, seed)
        # A UNet's own dropout draws from torch's generators: of a batch's place in the run, a resumed run draws the same.
        torch.manual_seed(seed * 2**32 + int(batch.positions[0]))
        logits = self.network(pixels).logits  # (b, K)
        return F.cross_entropy(logits.float(), targets)

    def measure(self, at_end: bool) -> None:
        t = self.options
        every = max(1, t.images // 10) if t.probe_every_images is None else t.probe_every_images
        if every and self.due(every) and not at_end:  # at the end, all images are measured
            subset = fixed_subset(self.test_source, t.probe_eval_examples, t.seed)
            scores = {name: round(value, 4) for name, (value, _) in self._accuracies(subset).items()}
            self.log({"event": "accuracy", "examples": subset.num_examples, **scores})

    def export(self, weights: dict[str, torch.Tensor]) -> None:
        model = self.model
        if self.recipe.finetuning.lora_rank is not None:
            model = merged(model, weights)
            weights = model.state_dict()
        self.folder.export(model, weights, scheduler=False)
        if self.uploader and self.images_seen < self.end:
            self.uploader.push(f"{self.images_seen:,} images seen")

    def conclude_together(self, weights: dict[str, torch.Tensor]) -> None:
        self.scores = self._accuracies(self.test_source)

    def conclude(self, weights: dict[str, torch.Tensor]) -> None:
        self.export(weights)
        for name, (value, count) in self.scores.items():
            add_result(self.folder.path, self._result(name, value, count))
            self.say(f"Accuracy on {self.test_source.description}: {value:.2%} ({name} weights, {count:,} images)")
        draw_finetuning_pictures(self.folder.path)
        write_model_card(self.folder.path, repo_id=self.options.push_to_hub)
        if self.uploader:
            self.uploader.finish("Fine-tuned")
        self.say(f"Finished: {self.folder.path} holds the classifier.")

    def describe(self) -> str:
        fine, counts = self.recipe.finetuning, [p.numel() for p in self.model.parameters()]
        trained = sum(weight.numel() for weight in self._trained().values())
        begin = "untrained" if fine.from_scratch else "with its head" if self.recipe.has_head else "with a new head"
        return (
            f"Model: {sum(counts) / 1e6:.1f} M weights, {trained / 1e6:.1f} M of them train; {len(self.blocks)} blocks, "
            f"{self.model.num_labels} classes; {fine.checkpoint}, {begin}; layer_decay {fine.layer_decay}"
        )

    # -- parts ---------------------------------------------------------------------------------------------------------

    def _freeze(self, model: Any) -> None:
        """Keep the first blocks, and what comes before them, as they are; their dropout too is off."""
        count = self.recipe.finetuning.frozen_blocks
        if count > len(self.blocks):
            raise ValueError(f"frozen_blocks={count} is not possible; the encoder has {len(self.blocks)} blocks.")
        if not count:
            return
        for name, parameter in model.named_parameters():
            if depth_of(name, self.blocks) <= count:
                parameter.requires_grad_(False)
        for name, module in model.named_modules():
            if isinstance(module, nn.Dropout) and depth_of(name, self.blocks) <= count:
                module.p = 0.0

    def _accuracies(self, source: ImageSource) -> dict[str, tuple[float, int]]:
        """Accuracy on a source, and of how many images, with the weights as they train and with their average."""
        scores = {"raw": self._accuracy(source)}
        if self.ema is not None:
            with self._averaged():
                scores["ema"] = self._accuracy(source)
        return scores

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        ema: Any = self.ema
        weights = list(self._trained().values())
        ema.store(weights)
        ema.copy_to(weights)
        try:
            yield
        finally:
            ema.restore(weights)

    def _accuracy(self, source: ImageSource) -> tuple[float, int]:
        """Every process measures its share of the images."""
        c, a = self.model.config, self.accelerator
        counts = torch.zeros(2, dtype=torch.long, device=self.device)  # right, measured
        batches = iterate_once(
            source,
            image_size=c.image_size,
            num_channels=c.num_channels,
            batch_size=256,
            rank=a.process_index,
            world_size=a.num_processes,
            num_workers=self.recipe.data.num_workers,
        )
        with evaluating(self.model), a.autocast():
            for batch in batches:
                if batch.labels is None:
                    continue
                images, labels = batch.images.to(self.device), batch.labels.to(self.device)
                pixels = prepare_images(images, batch.positions, 0, image_size=c.image_size)
                chosen = self.model(pixels).logits.argmax(dim=1)  # (b,)
                counts += torch.stack([(chosen == labels).sum(), (labels >= 0).sum()])
        right, measured = a.reduce(counts, "sum").tolist()
        if not measured:
            raise ValueError(f"{source.description} has no labels; name another eval_split.")
        return right / measured, int(measured)

    def _result(self, weights: str, value: float, count: int) -> dict[str, Any]:
        t, fine = self.options, self.recipe.resolved()["finetuning"]
        budget = {field: getattr(t, field) for field in ("images", "total_batch_size", "base_learning_rate")}
        return {
            "metric": "accuracy",
            "value": value,
            "dataset": self.test_source.name,
            "split": self.test_source.split,
            "protocol": {"name": "fine-tuning", "weights": weights, **budget, **fine},
            "seed": t.seed,
            "checkpoint": ".",
            "n": count,
        }


def load_classifier(recipe: FineTuningRecipe) -> Any:
    """
    The classifier that a run begins with.

    Args:
        recipe ([`FineTuningRecipe`]): Names the checkpoint, and whether encoder and head are taken from it.

    Returns:
        [`LDAEForImageClassification`] or [`DDAEForImageClassification`] in float32. A new head is zero.

    Raises:
        ValueError: where the checkpoint lacks weights of the encoder.
    """
    kind, fine, config = CLASSIFIERS[recipe.model_type], recipe.finetuning, recipe.config
    with quietly():  # about the head; what else is missing is looked at below
        model, info = kind.from_pretrained(
            fine.checkpoint,
            config=config,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=not recipe.has_head,  # a head for other classes is replaced below
        )
    missing = sorted(name for name in info["missing_keys"] if not name.startswith("classifier."))
    if missing:
        raise ValueError(
            f"checkpoint={fine.checkpoint!r} lacks {len(missing)} tensors of the encoder, such as {missing[0]}; it was "
            "saved with fewer blocks. Lower num_hidden_layers."
        )
    if fine.from_scratch:
        trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
        kept = {name: value for name, value in model.state_dict().items() if name not in trained}
        torch.manual_seed(recipe.training.seed)
        model = kind(config)
        model.load_state_dict(kept, strict=False)
    if not recipe.has_head:
        nn.init.zeros_(model.classifier.weight)
        nn.init.zeros_(model.classifier.bias)
    return model


def finetune(recipe: FineTuningRecipe) -> RunFolder:
    """
    Run a recipe to its end: the same call on the same folder resumes, and on a finished run changes nothing.

    Args:
        recipe ([`FineTuningRecipe`]): As [`~ldae.training.finetuning_recipe.load_finetuning_recipe`] gives it.

    Returns:
        [`RunFolder`], finished: a classifier that `AutoModelForImageClassification` and pipelines load.

    Raises:
        ValueError, RunError: as of [`FineTuningRun`].

    Example:

    ```python
    from ldae.training.finetuning import finetune
    from ldae.training.finetuning_recipe import load_finetuning_recipe

    finetune(load_finetuning_recipe("runs/cifar10", overrides={"horizontal_flip": True}, epochs=30))
    ```
    """
    if recipe.training.output_dir is not None:
        folder = RunFolder(recipe.training.output_dir)
        folder.check_recipe(recipe)
        if folder.finished(recipe.training.images):
            print(f"{folder.path} is finished ({recipe.training.images:,} images); nothing to do.")
            return folder
    run = FineTuningRun(recipe)
    run.train()
    return run.folder
