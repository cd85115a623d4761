"""A small supervised ResNet of a data set: a perceptual network and feature extractor that needs no download."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from transformers import ResNetConfig, ResNetForImageClassification

from ldae.data import Batch
from ldae.errors import RunError
from ldae.sections import ResNetClassifierConfig, TokenizerConfig, TrainingConfig
from ldae.training.checkpoint import Checkpoint
from ldae.training.loop import train
from ldae.training.recipe import Recipe
from ldae.training.run_folder import RunFolder
from ldae.training.task import Task


SETTINGS_FILE = "classifier.json"  # what the folder's recipe.yaml does not hold


class ResNetTask(Task):
    """Supervised training of a ResNet on the images of a recipe.

    Args:
        recipe ([`Recipe`]): Data, image size and budget.
        classifier ([`ResNetClassifierConfig`]): The network.
    """

    activity = "classifier"
    product = "the classifier"

    def __init__(self, recipe: Recipe, classifier: ResNetClassifierConfig):
        super().__init__(recipe)
        self.classifier = classifier

    def build(self, checkpoint: Checkpoint | None) -> ResNetForImageClassification:
        """Build the network for the classes of the images."""
        c, names = self.classifier, self.source.class_names
        if self.source.label_column is None or names is None:
            raise ValueError(
                f"{self.source.description} has no named classes, and a classifier needs them; name its label_column, "
                "or give a trained network as perceptual_model and extractor."
            )
        if self.accelerator.is_main_process:
            settings = Path(str(self.options.output_dir)) / SETTINGS_FILE
            settings.write_text(json.dumps(dataclasses.asdict(c)))
        return ResNetForImageClassification(
            ResNetConfig(
                num_channels=self.config.num_channels,
                embedding_size=c.embedding_size,
                hidden_sizes=c.hidden_sizes,
                depths=c.depths,
                layer_type="basic",
                id2label=dict(enumerate(names)),
                label2id={name: index for index, name in enumerate(names)},
            )
        )

    def loss(self, batch: Batch, positions: torch.Tensor) -> torch.Tensor:
        """Compare the logits with the labels."""
        labels = self.labels(batch, positions)
        logits = self.network(self.pixels(batch, positions)).logits  # (b, K)
        return F.cross_entropy(logits.float(), labels)

    def finish(self, folder: RunFolder, weights: dict[str, torch.Tensor]) -> None:
        """Write the classifier."""
        if self.accelerator.is_main_process:
            folder.export(self.module, weights, processor_config=self.config, scheduler=False, code=False)


def train_resnet_classifier(recipe: Recipe, classifier: ResNetClassifierConfig, output_dir: str | Path) -> Path:
    """Train a small supervised ResNet on the images of a recipe. The same call resumes.

    Args:
        recipe ([`Recipe`]): Data, image size, precision and seed.
        classifier ([`ResNetClassifierConfig`]): The network and its budget.
        output_dir (`str` or `Path`): Its folder.

    Returns:
        The folder, which `AutoModel` and `AutoModelForImageClassification` load.

    Raises:
        ValueError: If the images have no classes.
        RunError: If the folder holds another classifier.
    """
    config, folder = recipe.model_config(), RunFolder(output_dir)
    settings, described = folder.path / SETTINGS_FILE, dataclasses.asdict(classifier)
    if settings.is_file() and folder.holds_weights() and json.loads(settings.read_text()) != described:
        raise RunError(f"output_dir={str(output_dir)!r} holds another classifier; give another folder.")
    t = recipe.training
    training = classifier_training(classifier, output_dir, mixed_precision=t.mixed_precision, seed=t.seed)
    data = dataclasses.replace(
        recipe.data, random_resized_crop=False, decode_size=None, horizontal_flip=classifier.horizontal_flip
    )
    size = {"image_size": config.image_size, "patch_size": config.patch_size, "num_channels": config.num_channels}
    model = {**size, "latent_dim": min(config.latent_dim, config.patch_dim)}
    own = Recipe(model=model, data=data, tokenizer=TokenizerConfig(), training=training)
    train(ResNetTask(own, classifier), training, folder)
    return folder.path


def classifier_training(settings: Any, output_dir: str | Path | None, **fields: Any) -> TrainingConfig:
    """Return the `training:` section of a classifier's recipe: AdamW with a half-cycle cosine.

    `settings` has `images`, `total_batch_size`, `learning_rate` (not per 256 images) and `weight_decay`.
    """
    return TrainingConfig(
        output_dir=None if output_dir is None else str(output_dir),
        images=settings.images,
        total_batch_size=settings.total_batch_size,
        base_learning_rate=settings.learning_rate * 256 / settings.total_batch_size,
        weight_decay=settings.weight_decay,
        adam_betas=(0.9, 0.999),
        log_every_images=max(1, settings.images // 20),
        keep_checkpoints=1,
        probe_every_images=0,
        **fields,
    )
