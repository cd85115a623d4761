"""A small supervised classifier of a data set: a perceptual network and a feature extractor that needs no download."""

import dataclasses
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional as F
from transformers import ResNetConfig, ResNetForImageClassification

from ldae.data import Batch
from ldae.data.image_processor import save_image_processor
from ldae.errors import RunError
from ldae.files import move_into
from ldae.training.checkpoint import Checkpoint
from ldae.training.loop import TrainingRun
from ldae.training.options import TokenizerConfig, TrainingConfig
from ldae.training.recipe import Recipe
from ldae.training.run_folder import EXPORT_PREFIX, RunFolder


@dataclass
class ResNetClassifierConfig:
    """
    A ResNet of transformers and its training, by AdamW with a half-cycle cosine.

    Args:
        images: Budget, in images seen.
        total_batch_size: Images in an optimizer step.
        learning_rate: Its peak, as it stands (not per 256 images).
        weight_decay: Of AdamW.
        hidden_sizes, depths: Widths of the stages and basic blocks in each; a stage but the first halves the map.
        embedding_size: Width of the first convolution, which with its pooling takes a quarter of the side.
        horizontal_flip: Mirror half of the images; not for digits.
    """

    images: int = 50_000
    total_batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    hidden_sizes: list[int] = dataclasses.field(default_factory=lambda: [32, 64, 128])
    depths: list[int] = dataclasses.field(default_factory=lambda: [1, 1, 1])
    embedding_size: int = 32
    horizontal_flip: bool = False


class ClassifierRun(TrainingRun):
    """
    Supervised training of a [`ResNetClassifierConfig`]'s network on the images of a recipe.

    Args:
        recipe ([`Recipe`]): Gives the data, the image size and, under `training`, the budget.
        classifier ([`ResNetClassifierConfig`]): The network.
    """

    activity = "classifier"
    model: ResNetForImageClassification

    def __init__(self, recipe: Recipe, classifier: ResNetClassifierConfig):
        self.classifier = classifier
        super().__init__(recipe)

    def build(self, checkpoint: Checkpoint | None) -> ResNetForImageClassification:
        if self.source.label_column is None or self.source.class_names is None:
            raise ValueError(
                f"{self.source.description} has no named classes, and a classifier needs them; name its label_column, or "
                "give a trained network as perceptual_model and extractor."
            )
        c, names = self.classifier, self.source.class_names
        return ResNetForImageClassification(
            ResNetConfig(
                num_channels=self.recipe.model_config().num_channels,
                embedding_size=c.embedding_size,
                hidden_sizes=c.hidden_sizes,
                depths=c.depths,
                layer_type="basic",
                id2label=dict(enumerate(names)),
                label2id={name: index for index, name in enumerate(names)},
            )
        )

    def loss(self, batch: Batch, positions: torch.Tensor) -> torch.Tensor:
        if batch.labels is None or bool((batch.labels < 0).any()):
            raise ValueError(f"{self.source.description} has images without a label; train the classifier on others.")
        logits = self.network(self.pixels(batch, positions)).logits  # (b, K)
        return F.cross_entropy(logits.float(), batch.labels.to(self.device))

    def conclude(self, weights: dict[str, torch.Tensor]) -> None:
        with tempfile.TemporaryDirectory(prefix=EXPORT_PREFIX, dir=self.folder.path) as staging:
            self.model.save_pretrained(staging, state_dict=weights)
            save_image_processor(staging, self.recipe.model_config())
            move_into(Path(staging), self.folder.path)
        self.say(f"Finished: {self.folder.path} holds the classifier.")


def train_resnet_classifier(recipe: Recipe, classifier: ResNetClassifierConfig, output_dir: str | Path) -> Path:
    """
    Train a small supervised ResNet on a recipe's images; the same call resumes.

    Args:
        recipe ([`Recipe`]): Gives data, image size, precision and seed.
        classifier ([`ResNetClassifierConfig`]): The network and its budget.
        output_dir (`str` or `Path`): Its folder.

    Returns:
        The folder, which `AutoModel` and `AutoModelForImageClassification` load.

    Raises:
        ValueError: where the images have no classes.
        RunError: where the folder holds another classifier.
    """
    own = _classifier_recipe(recipe, classifier, output_dir)
    folder, settings = RunFolder(output_dir), Path(output_dir) / "classifier.json"
    folder.check_recipe(own)
    described = dataclasses.asdict(classifier)
    if settings.is_file() and json.loads(settings.read_text()) != described:
        raise RunError(f"output_dir={str(output_dir)!r} holds another classifier; give another folder.")
    if folder.finished(classifier.images):
        return folder.path
    run = ClassifierRun(own, classifier)
    if run.is_main:
        settings.write_text(json.dumps(described))
    run.train()
    return folder.path


def _classifier_recipe(recipe: Recipe, classifier: ResNetClassifierConfig, output_dir: str | Path) -> Recipe:
    config = recipe.model_config()
    training = TrainingConfig(
        output_dir=str(output_dir),
        images=classifier.images,
        total_batch_size=classifier.total_batch_size,
        base_learning_rate=classifier.learning_rate * 256 / classifier.total_batch_size,
        weight_decay=classifier.weight_decay,
        adam_betas=(0.9, 0.999),
        mixed_precision=recipe.training.mixed_precision,
        seed=recipe.training.seed,
        log_every_images=max(1, classifier.images // 20),
        keep_checkpoints=1,
        probe_every_images=0,
    )
    data = dataclasses.replace(
        recipe.data, random_resized_crop=False, decode_size=None, horizontal_flip=classifier.horizontal_flip
    )
    size = {"image_size": config.image_size, "patch_size": config.patch_size, "num_channels": config.num_channels}
    model = {**size, "latent_dim": min(config.latent_dim, config.patch_dim)}
    return Recipe(model=model, data=data, tokenizer=TokenizerConfig(), training=training)
