"""Pooled features of images at chosen layers and time steps, computed in one pass over the data."""

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn import functional as F

from ldae import stopping
from ldae.data import Batch, prepare_images
from ldae.shared_work import failing_together, gather_objects, gather_to_main, is_main, share

from .encoder import Encoder, Layer, as_encoder
from .feature_store import FeatureStore


SENT_BYTES = 64 * 2**20  # of features that are sent to the main process at once
Prepare = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Features:
    """Features of n images for L blocks and T time steps.

    `values` is float32 `(n, L, T, C)` on the CPU, narrower layers padded with zeros, which change no probe. `labels`
    is int64 `(n,)`, or `None` where the data has none; `positions` `(n,)` are the images' rows in the data set.
    `layers` and `timesteps` are `(None,)` for an encoder without such choices.
    """

    values: torch.Tensor
    labels: torch.Tensor | None
    layers: tuple[Layer | None, ...]
    timesteps: tuple[int | None, ...]
    positions: torch.Tensor

    @property
    def columns(self) -> list[tuple[Layer | None, int | None]]:
        """(layer, timestep) of each of the F = L * T feature sets of [`~Features.flat`]."""
        return [(layer, timestep) for layer in self.layers for timestep in self.timesteps]

    @property
    def flat(self) -> torch.Tensor:
        """`values` as `(n, F, C)`."""
        return self.values.flatten(1, 2)

    def mask(self, index: torch.Tensor) -> torch.Tensor:
        """Mark the rows of the data set that hold the images `index`, as a mask for [`ImageSet.batches`]."""
        rows = int(self.positions.max()) + 1
        return torch.zeros(rows, dtype=torch.bool).index_fill_(0, self.positions[index], True)

    @property
    def classes(self) -> torch.Tensor:
        """The labels of all images, for probes.

        Raises:
            ValueError: If the data has none, or some rows have none.
        """
        if self.labels is None:
            raise ValueError("the images have no labels, and a probe needs them; name their column with label_column.")
        missing = int((self.labels < 0).sum())
        if missing:
            raise ValueError(
                f"{missing} of {len(self.labels)} images have no label (-1), as in the test splits of some data sets; "
                "probe another split (eval_split)."
            )
        return self.labels


class StoredFeatures(ABC):
    """Features of one split of a data set that were computed earlier; given in place of images, they are only read.

    Attributes:
        name (`str`): The data set.
        split (`str`): Its split.
        label_column (`str`, *optional*): Column of the labels, if there are any.
        class_names (`list[str]`, *optional*): Names of the classes, if they are known.
    """

    name: str
    split: str
    label_column: str | None
    class_names: list[str] | None

    @property
    @abstractmethod
    def description(self) -> str:
        """Description of the features, for messages."""

    @abstractmethod
    def read(
        self,
        layers: Sequence[Layer | None],
        timesteps: Sequence[int | None],
        *,
        noisy: bool,
        seed: int,
        dtype: torch.dtype | None,
    ) -> Iterator[Features]:
        """Read features a piece at a time, in the order of the images.

        Raises:
            ValueError: If the features at these layers and time steps, or under this noise and precision, are not
                there.
        """

    def batches(self) -> "StoredFeatures":
        """Return this, as what [`iterate_features`] takes in place of batches of images."""
        return self


def extract_features(
    model: Any,
    batches: Iterable[Batch] | StoredFeatures,
    *,
    layers: Sequence[Any] | None = None,
    timesteps: Sequence[Any] | None = None,
    noisy: bool = False,
    seed: int = 0,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    prepare: Prepare | None = None,
) -> Features:
    """Compute features of every image in one pass over the data, without gradients.

    Within [`~ldae.shared_work.sharing_work`], `batches` are this process's share; the main process gets the features
    of all images in their order, and the others get labels and positions only.

    A feature of an l-DAE is the mean over tokens (App. A) of the raw output of a block, after a LayerNorm without
    affine parameters, which is our addition; of a DDAE it is the mean over space or tokens. Other models give their
    `pooler_output`, or the mean over tokens of `last_hidden_state` where they have none.

    Args:
        model ([`~ldae.evaluation.encoder.Encoder`] or `PreTrainedModel`): The encoder, which runs in evaluation mode;
            a model for pre-training also gives its decoder's blocks.
        batches (`Iterable[Batch]` or [`StoredFeatures`]): uint8 images, as [`~ldae.data.iterate_once`] yields them; or
            features that the same encoder computed before.
        layers (`Sequence`, *optional*): Some of the encoder's `feature_layers`; by default its own.
        timesteps (`Sequence[int]`, *optional*): Time steps t; by default the encoder's own.
        noisy (`bool`, defaults to `False`): Whether the input is corrupted at t (App. A's second row), with noise that
            depends only on `seed` and each image's position and is the same at every t.
        seed (`int`, defaults to 0): Seed of that noise.
        device (`torch.device` or `str`, *optional*): Where to compute; by default where the encoder is.
        dtype (`torch.dtype`, *optional*): Autocast dtype, such as `torch.bfloat16`; by default no autocast.
        prepare (`Callable`, *optional*): From uint8 images `(b, C, R, R)` and positions `(b,)` to pixels; by default a
            centre crop at the encoder's `image_size`.

    Returns:
        [`Features`].

    Raises:
        ValueError: If a layer or time step does not exist, or there are no images.
    """
    places: dict[str, Any] = {"layers": layers, "timesteps": timesteps, "noisy": noisy, "seed": seed}
    store = FeatureStore(memory=sys.maxsize)
    whole = collect_features(
        iterate_features(model, batches, **places, device=device, dtype=dtype, prepare=prepare), store
    )
    values = store.whole().view(-1, *whole.values.shape[1:]) if len(store) else whole.values  # (n, L, T, C)
    return replace(whole, values=values)


def iterate_features(
    model: Any,
    batches: Iterable[Batch] | StoredFeatures,
    *,
    layers: Sequence[Any] | None = None,
    timesteps: Sequence[Any] | None = None,
    noisy: bool = False,
    seed: int = 0,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    prepare: Prepare | None = None,
) -> Iterator[Features]:
    """Yield the features of each batch, with the arguments of [`extract_features`].

    Raises:
        ValueError: If a layer or time step does not exist.
    """
    encoder = as_encoder(model)
    if device is not None:
        encoder.to(device)
    device = encoder.device
    chosen_layers, chosen_steps = encoder.choices(layers, timesteps, noisy)
    if isinstance(batches, StoredFeatures):
        if prepare is not None:
            raise ValueError(f"{batches.description} hold features of plain images, not of augmented ones.")
        if is_main():  # there is nothing to compute and to divide
            yield from batches.read(chosen_layers, chosen_steps, noisy=noisy, seed=seed, dtype=dtype)
        return
    prepare = prepare or centre_crop(encoder.image_size)
    for batch in batches:
        stopping.check()
        with encoder.evaluating(), torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            positions = batch.positions.to(device)
            pixels = prepare(batch.images.to(device), positions)  # (b, C, S, S)
            noise = encoder.draw_noise(pixels, positions, seed) if noisy else None
            found = check_finite(encoder.features(pixels, chosen_layers, chosen_steps, noise))  # (T, b, c) of each
        values = stack_layers([found[layer].float() for layer in chosen_layers]).permute(2, 0, 1, 3).cpu()
        labels = None if batch.labels is None else batch.labels.cpu()
        yield Features(values, labels, tuple(chosen_layers), tuple(chosen_steps), batch.positions.cpu())


def collect_share(
    pieces: Iterable[Features], store: FeatureStore, *, labelled: bool = False
) -> tuple[Features, torch.Tensor]:
    """Append the features of this process's share of the images to a store.

    Args:
        pieces (`Iterable[Features]`): Features from [`iterate_features`].
        store ([`~ldae.evaluation.feature_store.FeatureStore`]): Receives rows `(b, L * T, C)`.
        labelled (`bool`, defaults to `False`): Whether every image needs a label.

    Returns:
        [`Features`] of the images of all processes, in their order and without values; and the index of each row of
        the store among them.

    Raises:
        ValueError: If there are no images, or labels are missing.
    """
    rank, world_size = share()
    about: list[Features] = []
    with failing_together():
        for piece in pieces:
            if labelled:
                _ = piece.classes  # refuses missing labels at the first piece without
            store.append(piece.flat)
            about.append(replace(piece, values=piece.values.new_empty(0, *piece.values.shape[1:])))
    shares = gather_objects(about)
    every = [piece for pieces_of_one in shares for piece in pieces_of_one]
    if not every:
        raise ValueError("there are no images to compute features of: the data set, or the split, is empty.")
    if not len(store):
        store.append(every[0].flat)  # no row, whose shape the store then knows
    positions = torch.cat([piece.positions for piece in every])
    labels = torch.cat([piece.labels for piece in every if piece.labels is not None] or [positions[:0]])
    order = positions.argsort(stable=True) if world_size > 1 else torch.arange(len(positions))
    counts = [sum(len(piece.positions) for piece in pieces_of_one) for pieces_of_one in shares]
    mine = order.argsort().split(counts)[rank]
    return replace(every[0], positions=positions[order], labels=labels[order] if len(labels) else None), mine


def collect_features(pieces: Iterable[Features], store: FeatureStore, *, labelled: bool = False) -> Features:
    """Append the features of all images to a store, in the order of the images.

    Within [`~ldae.shared_work.sharing_work`], `pieces` are this process's share, and the main process's store gets
    those of all processes; the other stores stay empty.

    Args:
        pieces (`Iterable[Features]`): Features from [`iterate_features`].
        store ([`~ldae.evaluation.feature_store.FeatureStore`]): Receives rows `(b, L * T, C)`.
        labelled (`bool`, defaults to `False`): Whether every image needs a label.

    Returns:
        [`Features`] of all images without their values, in every process.

    Raises:
        ValueError: If there are no images, or labels are missing.
    """
    rank, world_size = share()
    if world_size == 1:
        return collect_share(pieces, store, labelled=labelled)[0]
    mine = FeatureStore(store.memory)
    whole, index = collect_share(pieces, mine, labelled=labelled)
    count, (num_sets, width) = len(whole.positions), mine.shape[1:]
    owners, places = torch.empty(count, dtype=torch.long), torch.empty(count, dtype=torch.long)
    for process, rows in enumerate(gather_objects(index)):  # which process has an image's row, and where
        owners[rows], places[rows] = process, torch.arange(len(rows))
    for chosen in torch.arange(count).split(max(1, SENT_BYTES // (4 * num_sets * width))):
        sent = gather_to_main(mine[places[chosen[owners[chosen] == rank]]].numpy())
        if is_main():
            rows = torch.empty(len(chosen), num_sets, width)
            for process, values in enumerate(sent):
                rows[owners[chosen] == process] = torch.from_numpy(values)
            store.append(rows)
    return whole


def stack_layers(layers: Sequence[torch.Tensor]) -> torch.Tensor:
    """Stack features of several layers, `(..., C)` each, padding the narrower ones with zeros: `(L, ..., C)`."""
    width = max(values.shape[-1] for values in layers)
    return torch.stack([F.pad(values, (0, width - values.shape[-1])) for values in layers])


def feature_map(
    model: Any, pixels: torch.Tensor, *, layer: Layer | None = None, timestep: int | None = None
) -> torch.Tensor:
    """Compute features of every place of clean images, at one layer and one time step, without gradients.

    Args:
        model ([`~ldae.evaluation.encoder.Encoder`] or `PreTrainedModel`): An l-DAE or a DDAE.
        pixels (`torch.Tensor` of shape `(B, C, H, W)`): Images in [-1, 1], of any size that is a multiple of the patch
            size (of a UNet's coarsest cell).
        layer (`int` or `str`, *optional*): A block, counted from 1, or a DDAE's tap; by default the model's own.
        timestep (`int`, *optional*): By default the model's own.

    Returns:
        `torch.FloatTensor` of shape `(B, F, h, w)`: an l-DAE's through its LayerNorm, a UNet's and a DiT's raw.

    Raises:
        ValueError: If a layer or time step does not exist, the model has none, or images have a wrong size.

    Example:
    ```python
    >>> import torch
    >>> from ldae import LDAEConfig, LDAEModel
    >>> from ldae.evaluation.features import feature_map
    >>> model = LDAEModel(LDAEConfig.from_size("nano", image_size=16, patch_size=4, latent_dim=8))
    >>> feature_map(model, torch.zeros(2, 3, 16, 16), layer=1).shape
    torch.Size([2, 128, 4, 4])

    ```
    """
    encoder: Encoder = as_encoder(model)
    if not encoder.has_choices:
        raise ValueError(f"a {encoder.name} has no feature maps; give an l-DAE or a DDAE.")
    layers, timesteps = ([layer] if layer is not None else None), ([timestep] if timestep is not None else None)
    chosen = encoder.choices(layers, timesteps)
    with encoder.evaluating():
        (found,) = check_finite(encoder.features(pixels, *chosen, pool="map")).values()  # (1, B, F, h, w)
    return found[0]


def centre_crop(image_size: int) -> Prepare:
    """Prepare images for a test: the centre, at the encoder's size, in [-1, 1]."""
    return lambda images, positions: prepare_images(images, positions, 0, image_size=image_size)


def check_finite(features: dict[Any, torch.Tensor]) -> dict[Any, torch.Tensor]:
    """Return features by layer, unless a value is not a finite number.

    Raises:
        ValueError: If one is not: every number measured on it would mean nothing.
    """
    for layer, values in features.items():
        if not bool(values.isfinite().all()):
            where = "" if layer is None else f" after layer={layer}"
            raise ValueError(
                f"features{where} have values that are not finite numbers: the network overflows on these images; "
                "give another layer or checkpoint, or mixed_precision no."
            )
    return features
