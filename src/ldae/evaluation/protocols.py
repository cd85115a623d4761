"""Linear probing of a model on a data set, from images to accuracies, by one of two named protocols."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

from ldae.data import ImageSource, prepare_images

from .features import Features, Layer, Prepare, extract_features
from .images import ImageSet
from .linear_probe import LinearProbes, ProbeReport, ProbeSettings, score_probes, train_linear_probes
from .metrics import mean_and_stderr
from .ridge import split_holdout


PROTOCOLS = ("paper", "cached")
HOLDOUT = 0.1  # share of the training images that chooses among probes
SPLIT_SEED = 0  # of that share: the same images choose in every run


@dataclass(frozen=True)
class Protocol:
    """
    How a model is probed (App. A).

    Args:
        name (`str`, defaults to `"paper"`): `"paper"`: features are computed anew in each epoch, from images under
            random resized crop and flip. `"cached"`: they are computed once, of the centre crop and its mirror image, of
            which each epoch takes one at random; it costs one or two passes over the images instead of one an epoch.
        layers (`tuple`, *optional*): Blocks, counted from 1, or a DDAE's taps by name; by default the model's own choice.
        timesteps (`tuple[int, ...]`, *optional*): Time steps; by default the model's own choice.
        noisy (`bool`, defaults to `False`): Whether inputs are corrupted at t, in training and in the test.
        crop_scale (`tuple[float, float]`, defaults to `(0.08, 1.0)`): Share of the area that random crops keep, as in
            MAE's probe, which the paper refers to.
        horizontal_flip (`bool`, defaults to `True`): Whether images are mirrored; not for digits or letters.
        settings ([`ProbeSettings`]): How the probes train.
    """

    name: str = "paper"
    layers: tuple[Layer, ...] | None = None
    timesteps: tuple[int, ...] | None = None
    noisy: bool = False
    crop_scale: tuple[float, float] = (0.08, 1.0)
    horizontal_flip: bool = True
    settings: ProbeSettings = field(default_factory=ProbeSettings)

    def __post_init__(self) -> None:
        if self.name not in PROTOCOLS:
            raise ValueError(f"protocol={self.name!r} is unknown; choose one of {', '.join(PROTOCOLS)}.")
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(
                f"crop_scale={self.crop_scale} is not possible; give two numbers with 0 < low <= high <= 1."
            )


@dataclass(frozen=True)
class LinearProbeResult:
    """
    What [`run_linear_probe`] found.

    `columns` are the (layer, timestep) of the F feature sets; `report` has every probe's accuracy and the choice;
    `num_train`, `num_test` count images; `holdout` is the share that chose, 0 where there was nothing to choose.
    """

    protocol: Protocol
    columns: list[tuple[Layer | None, int | None]]
    probes: LinearProbes
    report: ProbeReport
    num_train: int
    num_test: int
    holdout: float

    def score(self, feature_index: int) -> tuple[float, float | None]:
        """Mean and standard error over seeds of a feature set's test accuracy, at its chosen learning rate."""
        rate = self.report.lr_index[feature_index]
        return mean_and_stderr(self.report.test_accuracy[:, feature_index, rate].tolist())

    def held_out(self, feature_index: int) -> float | None:
        """Mean over seeds of a feature set's held-out accuracy at that rate; `None` where nothing was held out."""
        if self.report.choice_accuracy is None:
            return None
        rate = self.report.lr_index[feature_index]
        return float(self.report.choice_accuracy[:, feature_index, rate].mean())

    def folded(self, feature_index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The first seed's probe of a feature set, at that rate, as a linear layer: `(weight (K, C), bias (K,))`."""
        return self.probes.folded(0, feature_index, self.report.lr_index[feature_index])

    def describe(self, feature_index: int) -> dict[str, Any]:
        """The protocol of one feature set's score in full, as results.json keeps it."""
        layer, timestep = self.columns[feature_index]
        settings, rate = self.protocol.settings, self.report.lr_index[feature_index]
        augmentation = ["random_resized_crop"] if self.protocol.name == "paper" else []
        augmentation += ["horizontal_flip"] if self.protocol.horizontal_flip else []
        return {
            "name": "linear",
            "preset": self.protocol.name,
            "layer": layer,
            "timestep": timestep,
            "input": "noisy" if self.protocol.noisy else "clean",
            "pooling": "mean of tokens, LayerNorm without affine",
            "batch_norm": "without affine",
            "optimizer": "AdamW",
            "weight_decay": 0.0,
            "learning_rate": settings.learning_rates(self.num_train)[rate],
            "learning_rates_tried": settings.learning_rates(self.num_train),
            "schedule": "cosine",
            "batch_size": settings.batch_size_for(self.num_train),
            "epochs": settings.epochs,
            "augmentation": augmentation,
            "crop_scale": list(self.protocol.crop_scale) if self.protocol.name == "paper" else None,
            "train_images": self.num_train,
            "holdout": self.holdout,
        }


def run_linear_probe(
    model: PreTrainedModel,
    train_source: ImageSource,
    test_source: ImageSource,
    protocol: Protocol,
    *,
    decode_size: int | None = None,
    batch_size: int = 256,
    num_workers: int = 0,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    on_epoch: Callable[[int], None] | None = None,
) -> LinearProbeResult:
    """
    Train linear probes of every chosen block and time step together, choose among them, score them on the test set.

    Where there is more than one probe to a seed, a tenth of the training images is held out; it chooses the learning
    rate of each feature set and the best set. The test set chooses nothing.

    Args:
        model (`PreTrainedModel`): What is probed; see [`~ldae.evaluation.features.extract_features`].
        train_source (`ImageSource`): Training images; their features are held in memory, n x F x C x 4 bytes.
        test_source (`ImageSource`): Test images, scored on their centre crop.
        protocol ([`Protocol`]): How.
        decode_size (`int`, *optional*, in pixels): Side of the images that random crops are cut from; by default the
            model's image size.
        batch_size (`int`, defaults to 256): Images of a forward.
        num_workers (`int`, defaults to 0): Worker processes that decode.
        device (`torch.device` or `str`, *optional*): Where to compute; by default where the model is.
        dtype (`torch.dtype`, *optional*): Autocast of the features to it; by default none.
        on_epoch (`Callable[[int], None]`, *optional*): Called with the number of epochs done, for progress.

    Returns:
        [`LinearProbeResult`].

    Raises:
        ValueError: where labels are missing, or a block or time step does not exist.
    """
    device = torch.device(device) if device is not None else next(model.parameters()).device
    image_size, num_channels = model.config.image_size, model.config.num_channels
    for source in (train_source, test_source):
        if source.label_column is None:
            raise ValueError(f"{source.description} has no label column, and a probe needs one.")

    def images(source: ImageSource, size: int) -> ImageSet:
        return ImageSet(
            source, image_size=size, num_channels=num_channels, batch_size=batch_size, num_workers=num_workers
        )

    extract = partial(
        extract_features,
        model,
        layers=protocol.layers,
        timesteps=protocol.timesteps,
        noisy=protocol.noisy,
        device=device,
        dtype=dtype,
    )
    centred = images(train_source, image_size)
    train = extract(centred.batches())
    labels = train.classes
    settings = protocol.settings

    choosing = len(train.columns) * len(settings.lr_multipliers) > 1
    fitted = torch.arange(len(labels))
    held = fitted[:0]
    if choosing:
        fitted, held = split_holdout(len(labels), HOLDOUT, SPLIT_SEED)
    mask = torch.zeros(len(labels), dtype=torch.bool).index_fill_(0, fitted, True)

    if protocol.name == "cached":
        epoch_features = _cached(extract, centred, train, mask, protocol, image_size)
    else:
        crops = centred if decode_size in (None, image_size) else images(train_source, decode_size)
        epoch_features = _augmented(extract, crops, mask, protocol, image_size)
    test = extract(images(test_source, image_size).batches())
    num_classes = int(max(labels.max(), test.classes.max())) + 1
    if train_source.class_names is not None:
        num_classes = max(num_classes, len(train_source.class_names))
    probes = train_linear_probes(
        epoch_features,
        labels[fitted],
        num_classes=num_classes,
        settings=settings,
        device=device,
        on_epoch=on_epoch,
    )
    choice = (train.flat[held], labels[held]) if choosing else None
    report = score_probes(probes, choice, test.flat, test.classes)
    return LinearProbeResult(
        protocol, train.columns, probes, report, len(fitted), len(test.classes), HOLDOUT if choosing else 0.0
    )


def _augmented(
    extract: Callable[..., Features], images: ImageSet, mask: torch.Tensor, protocol: Protocol, image_size: int
) -> Callable[[int], torch.Tensor]:
    """Features under augmentation, computed anew for each epoch."""
    prepare = _augmentation(protocol, image_size)

    def epoch_features(epoch: int) -> torch.Tensor:
        # Other positions draw other crops, flips and noise, also than the passes over the plain images.
        batches = images.batches(mask, skip_positions=(epoch + 1) * len(mask))
        return extract(batches, prepare=prepare).flat

    return epoch_features


def _augmentation(protocol: Protocol, image_size: int) -> Prepare:
    def prepare(images: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return prepare_images(
            images,
            positions,
            SPLIT_SEED,
            image_size=image_size,
            random_resized_crop=True,
            crop_scale=protocol.crop_scale,
            horizontal_flip=protocol.horizontal_flip,
        )

    return prepare


def _cached(
    extract: Callable[..., Features],
    images: ImageSet,
    train: Features,
    mask: torch.Tensor,
    protocol: Protocol,
    image_size: int,
) -> Callable[[int], torch.Tensor]:
    """Features computed once, of images and their mirror images, of which each epoch takes one at random."""
    plain = train.flat[mask]  # (n, F, C)
    if not protocol.horizontal_flip:
        return lambda epoch: plain

    def mirrored(pixels: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return prepare_images(pixels, positions, SPLIT_SEED, image_size=image_size).flip(-1)

    flipped = extract(images.batches(mask), prepare=mirrored).flat

    def epoch_features(epoch: int) -> torch.Tensor:
        heads = torch.rand(len(plain), generator=torch.Generator().manual_seed(epoch)) < 0.5
        return torch.where(heads[:, None, None], plain, flipped)

    return epoch_features
