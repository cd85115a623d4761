"""Features that probes train on and are scored on, computed once or anew in each epoch, and kept in stores."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ldae.data import ImageSource, prepare_images
from ldae.data.augment import RandomCrop

from .encoder import Layer, as_encoder
from .feature_store import FEATURE_MEMORY, FeatureStore, Rows
from .features import Features, Prepare, StoredFeatures, collect_features, iterate_features
from .images import ImageSet
from .ridge import HOLDOUT, split_holdout


SPLIT_SEED = 0  # of that share: the same images choose in every run


@dataclass(frozen=True)
class Reading:
    """Settings of reading images and of computing and keeping features; only `dtype` changes results.

    Args:
        decode_size (`int`, *optional*, in pixels): Side of the centre crops that random resized crops are cut from; by
            default they are cut from the whole images, which are then decoded anew in each epoch.
        batch_size (`int`, defaults to 256): Images of a forward.
        num_workers (`int`, defaults to 0): Worker processes that decode.
        device (`torch.device` or `str`, *optional*): Where to compute; by default where the model is.
        dtype (`torch.dtype`, *optional*): Autocast of the features to it; by default none.
        memory (`int`, defaults to 4 GiB): Bytes that the features of the training images, those of the test images and
            the decoded images of either may each take in memory. Beyond it features are in a temporary file, and
            images are decoded anew for each pass.
    """

    decode_size: int | None = None
    batch_size: int = 256
    num_workers: int = 0
    device: torch.device | str | None = None
    dtype: torch.dtype | None = None
    memory: int = FEATURE_MEMORY

    def __post_init__(self) -> None:
        if self.memory < 0:
            raise ValueError(f"memory={self.memory} must be a number of bytes, 0 or more.")


@dataclass(frozen=True)
class ProbeFeatures:
    """Features of the F (layer, timestep) pairs `columns`, and classes.

    `fitted` gives those that probes train on, of an epoch, and `fitted_labels` their classes; `every_view` are the
    same images without a choice: each image, and with flips each mirror image, with `every_label`. `held` and
    `held_labels` choose among probes (empty where nothing is to be chosen), `test` and `test_labels` score them.
    """

    columns: list[tuple[Layer | None, int | None]]
    num_classes: int
    fitted: Callable[[int], Rows]
    fitted_labels: torch.Tensor
    every_view: Rows
    every_label: torch.Tensor
    held: Rows
    held_labels: torch.Tensor
    test: Rows
    test_labels: torch.Tensor


def compute_features(
    model: Any,
    train_source: ImageSource | StoredFeatures,
    test_source: ImageSource | StoredFeatures,
    protocol: Any,
    reading: Reading,
    *,
    choosing: Callable[[int], bool],
) -> ProbeFeatures:
    """Compute what probes need.

    Args:
        model (`PreTrainedModel`): Whose features.
        train_source, test_source (`ImageSource` or `StoredFeatures`): Images with labels, or their features.
        protocol ([`~ldae.evaluation.protocol.Protocol`]): Which features, of which views of the images.
        reading ([`Reading`]): How.
        choosing (`Callable[[int], bool]`): From the number of feature sets to whether images are held out.

    Raises:
        ValueError: If labels are missing, or a block or time step does not exist.
    """
    encoder = as_encoder(model)
    image_size, num_channels = encoder.image_size, encoder.num_channels
    for source in (train_source, test_source):
        if source.label_column is None:
            raise ValueError(f"{source.description} has no label column, and a probe needs one.")
        if isinstance(source, StoredFeatures) and (protocol.name != "cached" or protocol.horizontal_flip):
            raise ValueError(
                f"protocol={protocol.name!r} with horizontal_flip={protocol.horizontal_flip} needs images, and "
                f"{source.description} hold features of plain ones; add --protocol cached --horizontal_flip false."
            )

    def images(source: Any, size: int, crop: RandomCrop | None = None) -> Any:
        if isinstance(source, StoredFeatures):
            return source
        return ImageSet(
            source,
            image_size=size,
            num_channels=num_channels,
            batch_size=reading.batch_size,
            num_workers=reading.num_workers,
            memory=reading.memory,
            crop=crop,
        )

    extract = partial(
        iterate_features,
        encoder,
        layers=protocol.layers,
        timesteps=protocol.timesteps,
        noisy=protocol.noisy,
        device=reading.device,
        dtype=reading.dtype,
    )
    centred = images(train_source, image_size)
    store = FeatureStore(reading.memory)
    whole = collect_features(extract(centred.batches()), store, labelled=True)
    columns, labels, n = whole.columns, whole.classes, len(whole.positions)
    fitted, held = torch.arange(n), torch.arange(0)
    if choosing(len(columns)):
        fitted, held = split_holdout(n, HOLDOUT, SPLIT_SEED)
    mask = whole.mask(fitted)

    every = fitted
    if protocol.name == "cached":
        if protocol.horizontal_flip:
            # The mirror image of the i-th fitted image is row n + i.
            mirrored = _prepare(image_size, mirror=True)
            collect_features(extract(centred.batches(mask), prepare=mirrored), store)
            every = torch.cat([fitted, torch.arange(n, n + len(fitted))])
        epoch_rows = partial(_cached_rows, store, fitted, n, protocol.horizontal_flip)
    else:
        crops, decode_size = centred, reading.decode_size
        if protocol.crop == "resized":
            if decode_size is None:
                crops = images(train_source, image_size, RandomCrop(SPLIT_SEED, protocol.crop_scale))
            elif decode_size != image_size:
                crops = images(train_source, decode_size)
        epoch_rows = partial(_augmented_rows, extract, crops, mask, n, protocol, image_size, reading.memory)
    test = FeatureStore(reading.memory)
    test_labels = collect_features(extract(images(test_source, image_size).batches()), test, labelled=True).classes
    num_classes = int(max(labels.max(), test_labels.max())) + 1
    if train_source.class_names is not None:
        num_classes = max(num_classes, len(train_source.class_names))
    return ProbeFeatures(
        columns=columns,
        num_classes=num_classes,
        fitted=epoch_rows,
        fitted_labels=labels[fitted],
        every_view=Rows(store, every),
        every_label=labels[fitted].repeat(len(every) // len(fitted)),
        held=Rows(store, held),
        held_labels=labels[held],
        test=Rows(test, torch.arange(len(test_labels))),
        test_labels=test_labels,
    )


def _cached_rows(store: FeatureStore, fitted: torch.Tensor, n: int, flip: bool, epoch: int) -> Rows:
    """Features computed once, of images and their mirror images, of which each epoch takes one at random."""
    if not flip:
        return Rows(store, fitted)
    heads = torch.rand(len(fitted), generator=torch.Generator().manual_seed(epoch)) < 0.5
    return Rows(store, torch.where(heads, fitted, n + torch.arange(len(fitted))))


def _augmented_rows(
    extract: Callable[..., Iterator[Features]],
    images: ImageSet,
    mask: torch.Tensor,
    n: int,
    protocol: Any,
    image_size: int,
    memory: int,
    epoch: int,
) -> Rows:
    """Features under augmentation, computed anew for each epoch."""
    if images.crop is not None:
        prepare = _prepare(image_size, flip=protocol.horizontal_flip)
    elif protocol.crop == "resized":
        prepare = _prepare(
            image_size, random_resized_crop=True, crop_scale=protocol.crop_scale, flip=protocol.horizontal_flip
        )
    else:
        prepare = _prepare(image_size, crop_padding=protocol.crop_padding, flip=protocol.horizontal_flip)
    store = FeatureStore(memory)
    # Other positions draw other crops, flips and noise, also than the passes over the plain images.
    pieces = extract(images.batches(mask, skip_positions=(epoch + 1) * n), prepare=prepare)
    return Rows(store, torch.arange(len(collect_features(pieces, store).positions)))


def _prepare(image_size: int, *, mirror: bool = False, flip: bool = False, **crop: Any) -> Prepare:
    def prepare(images: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        pixels = prepare_images(images, positions, SPLIT_SEED, image_size=image_size, horizontal_flip=flip, **crop)
        return pixels.flip(-1) if mirror else pixels

    return prepare
