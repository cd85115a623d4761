"""Named protocols of probes, and the features that they probe."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from ldae.data import ImageSource, prepare_images
from ldae.data.augment import RandomCrop

from .encoder import Layer, as_encoder
from .feature_store import FEATURE_MEMORY, FeatureStore, Rows
from .features import Features, Prepare, StoredFeatures, collect_features, collect_share, iterate_features
from .grid_probes import Part
from .images import ImageSet
from .linear_probe import ProbeSettings


PROTOCOLS = ("paper", "cached")
CROPS = ("resized", "padded")
HOLDOUT = 0.1  # share of the training images that chooses among probes, in all of them
SPLIT_SEED = 0  # of that split: the same images choose in every run


@dataclass(frozen=True)
class Protocol:
    """Protocol of a probe, by default that of l-DAE's paper (App. A).

    Args:
        name (`str`, defaults to `"paper"`): `"paper"`: features are computed anew in each epoch, from images under
            random crop and flip. `"cached"`: they are computed once, of the centre crop and its mirror image, of
            which each epoch takes one at random; it costs one or two passes over the images instead of one an epoch.
        layers (`tuple`, *optional*): Blocks, counted from 1, or a DDAE's taps by name; by default the model's own
            choice.
        timesteps (`tuple[int, ...]`, *optional*): Time steps; by default the model's own choice.
        noisy (`bool`, defaults to `False`): Whether inputs are corrupted at t, in training and in the test.
        crop (`str`, defaults to `"resized"`): `"resized"`: random resized crops, as in MAE's probe, which l-DAE's
            paper refers to. `"padded"`: crops of the image with a black edge, as DDAE's paper has it.
        crop_scale (`tuple[float, float]`, defaults to `(0.08, 1.0)`): Share of the area that random resized crops
            keep.
        crop_padding (`int`, defaults to 4, in pixels): Width of that edge.
        horizontal_flip (`bool`, defaults to `True`): Whether images are mirrored; not for digits or letters.
        settings ([`ProbeSettings`]): How the probes train.
    """

    name: str = "paper"
    layers: tuple[Layer, ...] | None = None
    timesteps: tuple[int, ...] | None = None
    noisy: bool = False
    crop: str = "resized"
    crop_scale: tuple[float, float] = (0.08, 1.0)
    crop_padding: int = 4
    horizontal_flip: bool = True
    settings: ProbeSettings = field(default_factory=ProbeSettings)

    def __post_init__(self) -> None:
        if self.name not in PROTOCOLS:
            raise ValueError(f"protocol={self.name!r} is unknown; choose one of {', '.join(PROTOCOLS)}.")
        if self.crop not in CROPS:
            raise ValueError(f"crop={self.crop!r} is unknown; choose one of {', '.join(CROPS)}.")
        if self.crop_padding < 1:
            raise ValueError(f"crop_padding={self.crop_padding} must be 1 pixel or more.")
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop_scale={self.crop_scale} must be two numbers with 0 < low <= high <= 1.")

    @property
    def augmentation(self) -> list[str]:
        """Names of the augmentations of training images."""
        crop = {"resized": "random_resized_crop", "padded": "random_crop"}[self.crop]
        return [crop] * (self.name == "paper") + ["horizontal_flip"] * self.horizontal_flip

    def describe_crops(self) -> dict[str, Any]:
        """Describe the sizes of random crops."""
        padding = {"crop_padding": self.crop_padding} if "random_crop" in self.augmentation else {}
        return {"crop_scale": list(self.crop_scale) if "random_resized_crop" in self.augmentation else None, **padding}

    def describe_features(self, layer: Layer | None, timestep: int | None, pooling: str) -> dict[str, Any]:
        """Describe which features of a model are probed, as results.json keeps it."""
        return {
            "preset": self.name,
            "layer": layer,
            "timestep": timestep,
            "input": "noisy" if self.noisy else "clean",
            "pooling": pooling,
        }


def split_holdout(n: int, seed: int = SPLIT_SEED) -> tuple[torch.Tensor, torch.Tensor]:
    """Split n training examples at random into those that are fitted and the tenth that chooses.

    Returns:
        `(fitted, held)`, sorted indices.

    Raises:
        ValueError: If one of the two would be empty.

    Example:
        >>> fitted, held = split_holdout(20)
        >>> len(fitted), len(held)
        (18, 2)
    """
    num_held = round(HOLDOUT * n)
    if not 0 < num_held < n:
        raise ValueError(f"holdout={HOLDOUT} of {n} examples leaves one part empty; give more training images.")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return order[num_held:].sort().values, order[:num_held].sort().values


@dataclass(frozen=True)
class ProbeFeatures:
    """Features of the F (layer, timestep) pairs `columns`, with classes.

    `epoch` gives what Adam's probes train on in an epoch, features `(n, F, C)` of images with the classes
    `epoch_labels`. `fitted` are the same images without a choice: each image, and with flips each mirror image.
    `held` choose among probes (empty where nothing is to be chosen), `test` score them. The numbers of training and
    test images are those of all processes.
    """

    columns: list[tuple[Layer | None, int | None]]
    num_classes: int
    num_train: int
    num_test: int
    epoch: Callable[[int], Rows]
    epoch_labels: torch.Tensor
    fitted: Part
    held: Part
    test: Part


def compute_features(
    model: Any,
    train_source: ImageSource | StoredFeatures,
    test_source: ImageSource | StoredFeatures,
    protocol: Protocol,
    *,
    hold_out: bool,
    divided: bool = False,
    decode_size: int | None = None,
    batch_size: int = 256,
    num_workers: int = 0,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    memory: int = FEATURE_MEMORY,
) -> ProbeFeatures:
    """Compute the features that probes need, once or anew in each epoch.

    Args:
        model ([`~ldae.evaluation.encoder.Encoder`] or `PreTrainedModel`): The encoder.
        train_source (`ImageSource` or `StoredFeatures`): Training images with labels, or their features.
        test_source (`ImageSource` or `StoredFeatures`): Test images with labels, or their features.
        protocol ([`Protocol`]): Which features, from which views of the images.
        hold_out (`bool`): Whether a tenth of the training images is held out.
        divided (`bool`, defaults to `False`): Whether each process that shares the work keeps the features of its own
            images, for probes that are fitted by all of them; by default the main process gets all. Only for the
            protocol "cached".
        decode_size (`int`, *optional*, in pixels): Side of the centre crops that random resized crops are cut from; by
            default they are cut from the whole images, which are then decoded anew in each epoch.
        batch_size (`int`, defaults to 256): Images of a forward.
        num_workers (`int`, defaults to 0): Worker processes that decode.
        device (`torch.device` or `str`, *optional*): Where to compute; by default where the model is.
        dtype (`torch.dtype`, *optional*): Autocast dtype for the features; by default no autocast.
        memory (`int`, defaults to 4 GiB): Bytes that the features of the training images, those of the test images and
            the decoded images of either may each take in memory. Beyond it features are in a temporary file, and
            images are decoded anew for each pass.

    Raises:
        ValueError: If labels are missing, or a block or time step does not exist.
    """
    if memory < 0:
        raise ValueError(f"memory={memory} must be a number of bytes, 0 or more.")
    for source in (train_source, test_source):
        if source.label_column is None:
            raise ValueError(f"{source.description} has no label column, and a probe needs one.")
        if isinstance(source, StoredFeatures) and (protocol.name != "cached" or protocol.horizontal_flip):
            raise ValueError(
                f"protocol={protocol.name!r} with horizontal_flip={protocol.horizontal_flip} needs images, and "
                f"{source.description} hold features of plain ones; add --protocol cached --horizontal_flip false."
            )
    encoder = as_encoder(model)
    size = encoder.image_size

    def images(source: Any, image_size: int = size, crop: RandomCrop | None = None) -> Any:
        if isinstance(source, StoredFeatures):
            return source
        return ImageSet(
            source,
            image_size=image_size,
            num_channels=encoder.num_channels,
            batch_size=batch_size,
            num_workers=num_workers,
            memory=memory,
            crop=crop,
        )

    def collect(batches: Any, store: FeatureStore, prepare: Prepare | None = None) -> tuple[Features, torch.Tensor]:
        """Return all images without their features, and which of them the rows of the store are."""
        places: dict[str, Any] = {"layers": protocol.layers, "timesteps": protocol.timesteps, "noisy": protocol.noisy}
        pieces = iterate_features(encoder, batches, **places, device=device, dtype=dtype, prepare=prepare)
        if divided:
            return collect_share(pieces, store, labelled=True)
        found = collect_features(pieces, store, labelled=True)
        return found, torch.arange(len(found.positions))

    centred, store, test_store = images(train_source), FeatureStore(memory), FeatureStore(memory)
    whole, own = collect(centred.batches(), store)
    labels, n = whole.classes, len(whole.positions)
    in_training = torch.ones(n, dtype=torch.bool)
    if hold_out:
        in_training[split_holdout(n)[1]] = False
    mask = whole.mask(in_training.nonzero().flatten())
    chosen = in_training[own]
    fitted, held = chosen.nonzero().flatten(), (~chosen).nonzero().flatten()  # rows of this process's store
    view = partial(prepare_images, seed=SPLIT_SEED, image_size=size)
    every = fitted
    if protocol.name == "cached":
        if protocol.horizontal_flip:
            collect(centred.batches(mask), store, lambda shown, positions: view(shown, positions).flip(-1))
            every = torch.cat([fitted, len(own) + torch.arange(len(fitted))])  # mirror images come after all images
        mirrored = every[len(every) - len(fitted) :]

        def choose_views(epoch: int) -> Rows:
            """Take each image or its mirror image at random."""
            heads = torch.rand(len(fitted), generator=torch.Generator().manual_seed(epoch)) < 0.5
            return Rows(store, torch.where(heads, fitted, mirrored))

        epoch_rows = choose_views
    else:
        crops, augmentation = centred, dict[str, Any](horizontal_flip=protocol.horizontal_flip)
        if protocol.crop == "padded":
            augmentation["crop_padding"] = protocol.crop_padding
        elif decode_size is None:
            crops = images(train_source, crop=RandomCrop(SPLIT_SEED, protocol.crop_scale))
        else:
            crops = centred if decode_size == size else images(train_source, decode_size)
            augmentation |= {"random_resized_crop": True, "crop_scale": protocol.crop_scale}

        def augment(epoch: int) -> Rows:
            """Compute features of other crops and mirror images."""
            views = FeatureStore(memory)
            # Other positions draw other crops, flips and noise, also than the pass over the plain images.
            batches = crops.batches(mask, skip_positions=(epoch + 1) * n)
            found, _ = collect(batches, views, partial(view, **augmentation))
            return Rows(views, torch.arange(len(found.positions)))

        epoch_rows = augment
    test, own_test = collect(images(test_source).batches(), test_store)
    mine, test_labels = labels[own], test.classes
    return ProbeFeatures(
        columns=whole.columns,
        num_classes=max(int(max(labels.max(), test_labels.max())) + 1, len(train_source.class_names or ())),
        num_train=n,
        num_test=len(test_labels),
        epoch=epoch_rows,
        epoch_labels=mine[fitted],
        fitted=(Rows(store, every), mine[fitted].repeat(2 if len(every) > len(fitted) else 1)),
        held=(Rows(store, held), mine[held]),
        test=(Rows(test_store, torch.arange(len(own_test))), test_labels[own_test]),
    )
