"""Supervised classifiers: a small ResNet that serves as perceptual network, and encoders trained on noised images."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel, ResNetConfig, ResNetForImageClassification

import ldae  # noqa: F401 - registers the models with transformers
from ldae.data import Batch, DataConfig, ImageSource, open_probe_images
from ldae.errors import RunError
from ldae.evaluation.classifier import open_as_classifier
from ldae.evaluation.encoder import Layer
from ldae.evaluation.linear_probe import BN_EPS, fold_batch_norm
from ldae.evaluation.untrained import untrained_like
from ldae.files import hash_tensors, write_whole
from ldae.models.randomness_ldae import TIMESTEPS, keyed_uniform
from ldae.sections import ResNetClassifierConfig, TokenizerConfig
from ldae.training.checkpoint import Checkpoint
from ldae.training.estimate import Estimate, Rehearsal, rehearse
from ldae.training.loop import Callback, Run, train
from ldae.training.recipe import Recipe, model_fields, side_training
from ldae.training.run_folder import RunFolder
from ldae.training.task import Task


SETTINGS_FILE = "classifier.json"  # what the folder's recipe.yaml does not hold
BETAS = (0.9, 0.999)  # of AdamW


class ResNetTask(Task):
    """Supervised training of a ResNet on the images of a recipe."""

    activity = "classifier"
    product = "the classifier"
    remedy = "Lower learning_rate, or set mixed_precision=no"

    def __init__(self, recipe: Recipe, classifier: ResNetClassifierConfig):
        super().__init__(recipe)
        self.classifier = classifier

    def open_source(self) -> ImageSource:
        """Open the training images, whose classes have names."""
        source = super().open_source()
        if source.class_names is None or source.label_column is None:
            raise ValueError(
                f"{source.description} has no named classes, and a classifier needs them; name its label_column, or "
                "give a trained network as perceptual_model and extractor."
            )
        self.num_classes = len(source.class_names)
        return self.checked(source)

    def build(self, checkpoint: Checkpoint | None) -> ResNetForImageClassification:
        """Build the network for the classes of the images."""
        c, names = self.classifier, self.source.class_names or []
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
        output_dir (`str` or `Path`): Its folder, which is returned; `AutoModelForImageClassification` loads it.

    Raises:
        ValueError: If the images have no classes.
        RunError: If the folder holds another classifier.
    """
    config, t = recipe.model_config(), recipe.training
    budget = classifier.images, classifier.total_batch_size, classifier.learning_rate
    fields: dict[str, Any] = {"weight_decay": classifier.weight_decay, "mixed_precision": t.mixed_precision}
    training = side_training(output_dir, *budget, adam_betas=BETAS, seed=t.seed, **fields)
    data = dataclasses.replace(
        recipe.data, random_resized_crop=False, decode_size=None, horizontal_flip=classifier.horizontal_flip
    )
    size = {"image_size": config.image_size, "patch_size": config.patch_size, "num_channels": config.num_channels}
    model = {**size, "latent_dim": min(config.latent_dim, config.patch_dim)}
    own = Recipe(model=model, data=data, tokenizer=TokenizerConfig(), training=training)
    return _train(ResNetTask(own, classifier), dataclasses.asdict(classifier))


class KeepSettings(Callback):
    """A note, in the folder, of what its recipe.yaml does not say."""

    def __init__(self, settings: dict[str, Any]):
        self.settings = settings

    def start(self, run: Run) -> None:
        """Write the settings."""
        if run.is_main:
            write_whole(run.folder.path / SETTINGS_FILE, json.dumps(self.settings))


def _train(task: Task, settings: dict[str, Any], *callbacks: Callback) -> Path:
    """Train a classifier in the folder of its recipe, and refuse a folder that holds one with other settings."""
    folder = RunFolder.from_recipe(task.recipe)
    file = folder.path / SETTINGS_FILE
    if file.is_file() and folder.holds_weights() and json.loads(file.read_text()) != settings:
        raise RunError(f"output_dir={str(folder.path)!r} holds another classifier; give another folder.")
    train(task, task.options, folder, [KeepSettings(settings), *callbacks])
    return folder.path


@dataclass(frozen=True)
class NoiseClassifierConfig:
    """A classifier of noised images that is told t, and its training by AdamW with a half-cycle cosine."""

    checkpoint: str  # folder or Hub id of the l-DAE or DDAE that gives the network
    layer: Layer  # block after which the network is cut, counted from 1, or a DDAE's tap by name
    class_names: tuple[str, ...]
    pretrained: bool = False  # fine-tune the checkpoint's weights in place of new ones
    images: int = 50_000  # budget in images seen, each noised at one t
    total_batch_size: int = 64
    learning_rate: float = 1e-3  # peak, not per 256 images; a twentieth of the budget warms up
    weight_decay: float = 0.05
    mixed_precision: Literal["no", "bf16"] = "no"
    seed: int = 0


class NormalizedClassifier(nn.Module):
    """A plain classifier with a BatchNorm without affine parameters before its linear layer, as in linear probes.

    Without it, the mean that pooled features share would slow the layer down. It is folded into the layer in the end.
    """

    def __init__(self, plain: Any):
        super().__init__()
        self.plain = plain
        self.norm = nn.BatchNorm1d(plain.config.hidden_size, eps=BN_EPS, affine=False)

    def forward(self, pixel_values: torch.Tensor, timesteps: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Return the logits `(B, K)` of images `(B, C, S, S)` noised at `timesteps` `(B,)`."""
        pooled = self.plain.base_model(pixel_values, timesteps, noise).pooler_output  # (B, C)
        return self.plain.classifier(self.norm(pooled.float()).to(pooled.dtype))


def fold(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Fold the BatchNorm of a [`NormalizedClassifier`] into its plain classifier, which has the same logits."""
    plain = {name.removeprefix("plain."): w for name, w in weights.items() if name.startswith("plain.")}
    statistics = weights["norm.running_mean"], weights["norm.running_var"]
    weight, bias = fold_batch_norm(plain["classifier.weight"], plain["classifier.bias"], *statistics)
    dtype = plain["classifier.weight"].dtype
    return {**plain, "classifier.weight": weight.to(dtype), "classifier.bias": bias.to(dtype)}


class NoiseClassifierTask(Task):
    """Supervised training on images noised at random time steps.

    t is uniform over all time steps (of EDM over the levels of its sampling schedule). Both t and the noise depend on
    the seed and an example's position in the run only.
    """

    activity = "noise classifier"
    product = "the classifier"
    remedy = "Lower learning_rate, or set mixed_precision=no"

    def __init__(self, recipe: Recipe, classifier: NoiseClassifierConfig):
        super().__init__(recipe)
        self.classifier, self.num_classes = classifier, len(classifier.class_names)

    def open_source(self) -> ImageSource:
        """Open the training images, without those that classifiers are scored on."""
        return self.checked(open_probe_images(self.recipe.data)[0])

    def build(self, checkpoint: Checkpoint | None) -> NormalizedClassifier:
        """Build the classifier, with a BatchNorm that is folded away in the end."""
        return NormalizedClassifier(build_noise_classifier(self.classifier))

    def loss(self, batch: Batch, positions: torch.Tensor) -> torch.Tensor:
        """Noise the batch, and compare the logits with the labels."""
        labels, pixels, seed = self.labels(batch, positions), self.pixels(batch, positions), self.options.seed
        u = keyed_uniform(seed, TIMESTEPS, positions, 1)[:, 0]
        timesteps = (u * self.module.plain.config.num_train_timesteps).long()  # (b,)
        noise = self.module.plain.base_model.draw_noise(pixels, positions, seed)
        logits = self.network(pixels, timesteps, noise)  # (b, K)
        return F.cross_entropy(logits.float(), labels)

    def finish(self, folder: RunFolder, weights: dict[str, torch.Tensor]) -> None:
        """Write the classifier, its BatchNorm folded into the linear layer."""
        if self.accelerator.is_main_process:
            folder.export(self.module.plain, fold(weights), scheduler=False, code=False)


def build_noise_classifier(classifier: NoiseClassifierConfig) -> PreTrainedModel:
    """Build the untrained classifier: the checkpoint's network, cut after the block, and a linear layer.

    A tokenizer or autoencoder in front of the network keeps the checkpoint's weights in either case.
    """
    model = open_as_classifier(classifier.checkpoint, classifier.layer, classifier.class_names)
    return model if classifier.pretrained else untrained_like(model, classifier.seed, random_gates=False)


def train_noise_classifier(classifier: NoiseClassifierConfig, data: DataConfig, output_dir: str | Path) -> Path:
    """Train a noise-conditional classifier. The same call resumes, and changes nothing once it is finished.

    Args:
        classifier ([`NoiseClassifierConfig`]): The network and its budget.
        data ([`~ldae.data.DataConfig`]): The images; `horizontal_flip` is the only augmentation used.
        output_dir (`str` or `Path`): The run's folder, which is returned; `AutoModelForImageClassification` loads it.

    Raises:
        ValueError: If an image has no label.
        RunError: If the folder holds another classifier, one that began with other weights, or one that an earlier
            version trained on the images that it is scored on.
    """
    task = NoiseClassifierTask(noise_classifier_recipe(classifier, data, output_dir), classifier)
    folder = RunFolder(output_dir)
    of_earlier_version = folder.holds_weights() and not (folder.path / SETTINGS_FILE).is_file()
    if of_earlier_version and open_probe_images(data)[0].split != data.split:  # rows of one split are held out
        raise RunError(
            f"output_dir={str(folder.path)!r} holds a classifier of an earlier version, which was also trained on the "
            "images that it is scored on; remove the folder to train it anew."
        )
    model = build_noise_classifier(classifier).base_model
    prefixes = "" if classifier.pretrained else getattr(model, "fixed_prefixes", ())
    given = {name: tensor for name, tensor in model.state_dict().items() if name.startswith(prefixes)}
    settings = {"pretrained": classifier.pretrained, "weights": hash_tensors(None, given)}
    return _train(task, settings, Estimate())


def rehearse_noise_classifier(classifier: NoiseClassifierConfig, data: DataConfig) -> Rehearsal:
    """Take the first steps of [`train_noise_classifier`] and print what the whole takes, without writing anything."""
    return rehearse(NoiseClassifierTask(noise_classifier_recipe(classifier, data, None), classifier))


def noise_classifier_recipe(
    classifier: NoiseClassifierConfig, data: DataConfig, output_dir: str | Path | None
) -> Recipe:
    """Return the recipe of a classifier's training; arguments are those of [`train_noise_classifier`]."""
    c, config = classifier, build_noise_classifier(classifier).config
    fields = {name: getattr(config, name) for name in model_fields(config.model_type)}
    return Recipe(
        model={"model_type": config.model_type, **fields},
        data=dataclasses.replace(data, random_resized_crop=False, decode_size=None),
        tokenizer=TokenizerConfig(),
        training=side_training(
            output_dir,
            c.images,
            c.total_batch_size,
            c.learning_rate,
            warmup_images=c.images // 20,
            weight_decay=c.weight_decay,
            adam_betas=BETAS,
            mixed_precision=c.mixed_precision,
            seed=c.seed,
        ),
    )
