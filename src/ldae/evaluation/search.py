"""Find where features are best, on held-out training images: every searched layer at time steps over the schedule."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ldae.data import Batch, ImageSource
from ldae.results import Result
from ldae.shared_work import on_main

from .encoder import as_encoder
from .feature_store import FEATURE_MEMORY, FeatureStore, Rows, pieces_of
from .features import Features, extract_features
from .probe_features import HOLDOUT, SPLIT_SEED, ProbeFeatures, Reading, compute_features
from .probing import ProbeResult, fit_probes, probe_features
from .protocol import Protocol
from .ridge import few_shot_ridge, split_holdout


@dataclass(frozen=True)
class FeatureSearch:
    """Result of [`search_features`].

    Args:
        columns (`list[tuple]`): (layer, timestep) of the F cells.
        held_out (`torch.Tensor` of shape `(F,)`): Accuracies on held-out training images, which choose.
        paper (`int`): Index of the paper's point.
        train (`Features`): Features of the training images at every cell.
        test (`Features`, *optional*): Features of the test images.
        probes ([`~ldae.evaluation.grid_probes.GridProbes`], *optional*): Ridge probes of the cells, with test
            accuracies; `None` in a search with few labels.
    """

    columns: list[tuple[Any, Any]]
    held_out: torch.Tensor
    paper: int
    train: Features
    test: Any = None
    probes: Any = None

    @property
    def chosen(self) -> int:
        """Index of the cell with the best held-out accuracy; of equal ones that of the least held-out loss."""
        return int(self.held_out.argmax()) if self.probes is None else self.probes.best

    @property
    def layer(self) -> Any:
        """Layer of the chosen cell."""
        return self.columns[self.chosen][0]

    @property
    def timestep(self) -> Any:
        """Time step of the chosen cell."""
        return self.columns[self.chosen][1]

    @property
    def accuracy(self) -> float:
        """Held-out accuracy of the chosen cell."""
        return float(self.held_out[self.chosen])

    def describe(self, index: int) -> dict[str, Any]:
        """Describe the protocol of a cell's score."""
        layer, timestep = self.columns[index]
        return {
            "name": "ridge",
            "layer": layer,
            "timestep": timestep,
            "input": "clean",
            "pooling": "mean",
            "penalty": float(self.probes.penalty[index]),
            "train_images": len(self.train.classes),
            "holdout": HOLDOUT,
            "search": "blocks x time steps",
        }


def search_features(
    model: Any,
    train: Sequence[Batch],
    test: Sequence[Batch] | None = None,
    *,
    timesteps: Sequence[int] | None = None,
    shots: int | None = None,
    draws: int = 20,
    **extraction: Any,
) -> FeatureSearch:
    """Score every searched layer at every searched time step by ridge probes.

    A search with all labels saturates on easy data: on the digits nearly every block reaches 97 %, while 5 labels a
    class tell blocks apart by twenty points. So a search for a few labels sees as few as the probe will.

    Args:
        model ([`~ldae.evaluation.encoder.Encoder`] or `PreTrainedModel`): What is searched; of a model for
            pre-training the decoder's blocks, too.
        train (`Sequence[Batch]`): uint8 images with labels. A tenth is held out: it chooses each cell's penalty and,
            by [`~FeatureSearch.chosen`], the cell.
        test (`Sequence[Batch]`, *optional*): Images that score each probe and choose nothing; by default none, and the
            test accuracies mean nothing.
        timesteps (`Sequence[int]`, *optional*): By default the encoder's `search_timesteps`.
        shots (`int`, *optional*): Labels of each class that a probe sees; by default all.
        draws (`int`, defaults to 20): How often `shots` labels are drawn; every cell sees the same draws.
        **extraction: `device` and `dtype`, as of [`~ldae.evaluation.features.extract_features`].

    Returns:
        [`FeatureSearch`].

    Raises:
        ValueError: If labels are missing, or there are too few images.
    """
    encoder: Any = as_encoder(model)
    point = encoder.paper_point
    steps = tuple(sorted({*(timesteps or encoder.search_timesteps), point[1]}))

    def features(batches: Sequence[Batch]) -> Features:
        return extract_features(encoder, batches, layers=encoder.search_layers, timesteps=steps, **extraction)

    fitted = features(train)
    scored = None if test is None else features(test)
    place: dict[str, Any] = {"paper": fitted.columns.index(point), "train": fitted, "test": scored}
    labels = fitted.classes
    kept, held = split_holdout(len(labels), HOLDOUT, SPLIT_SEED)
    if shots is not None:
        cells = fitted.flat.unbind(dim=1)  # (n, C) each
        data = ((cell[kept], labels[kept], cell[held], labels[held]) for cell in cells)
        means = [torch.tensor(few_shot_ridge(*each, shots=shots, draws=draws)).double().mean() for each in data]
        return FeatureSearch(fitted.columns, torch.stack(means), **place)
    if scored is not None:
        probes = probe_features("ridge", fitted, scored)
    else:
        choice = (fitted.flat[held], labels[held])
        probes = fit_probes(
            "ridge", (fitted.flat[kept], labels[kept]), choice, choice, num_classes=int(labels.max()) + 1
        )
    return FeatureSearch(fitted.columns, probes.held_out, **place, probes=probes)


@dataclass(frozen=True)
class SearchedResult:
    """Result of [`run_searched_probes`].

    Args:
        search ([`~ldae.evaluation.probing.ProbeResult`]): Ridge probes of all cells, which choose one of them.
        found ([`~ldae.evaluation.probing.ProbeResult`]): Converged probes of the chosen cell, which is the first, and
            of the given ones.
    """

    search: ProbeResult
    found: ProbeResult

    def result(self, cell: tuple[Any, Any] | None = None, **about: Any) -> Result:
        """Make the result of a given cell (point "paper"), or of the chosen one (point "searched")."""
        if cell is not None:
            return self.found.result(self.found.columns.index(cell), {"point": "paper"}, **about)
        searched = {
            "point": "searched",
            "search": "ridge on held-out training images",
            "searched_layers": list(dict.fromkeys(layer for layer, _ in self.search.columns)),
            "searched_timesteps": list(dict.fromkeys(timestep for _, timestep in self.search.columns)),
        }
        return self.found.result(0, searched, **about)


def run_searched_probes(
    model: Any,
    train_source: ImageSource,
    test_source: ImageSource,
    protocol: Protocol,
    *,
    given: Sequence[tuple[Any, Any]],
    **reading: Any,
) -> SearchedResult:
    """Search layers and time steps by ridge probes, and fit converged probes at the cell found and at given ones.

    Features of all cells are computed once. The held-out tenth of the training images chooses the cell, by the
    accuracy of closed-form ridge probes, and the penalties; the test set chooses nothing.

    Args:
        model, train_source, test_source, **reading: As of [`~ldae.evaluation.probing.run_probe`].
        protocol ([`~ldae.evaluation.protocol.Protocol`]): Of name "cached", with the layers and time steps of the
            grid.
        given (`Sequence[tuple]`): Cells (layer, timestep) of the grid that are probed, too.

    Returns:
        [`SearchedResult`].

    Raises:
        ValueError: If a given cell is not in the grid, or as in [`~ldae.evaluation.probing.run_probe`].
    """
    if protocol.name != "cached":
        raise ValueError(f"protocol={protocol.name!r} must be cached in a search of blocks and time steps.")
    read, encoder = Reading(**reading), as_encoder(model)
    found = compute_features(encoder, train_source, test_source, protocol, read, choosing=lambda num_sets: True)
    missing = [cell for cell in given if cell not in found.columns]
    if missing:
        raise ValueError(f"given={missing} must be cells of the grid; add them to its layers and timesteps.")
    parts = ((found.every_view, found.every_label), (found.held, found.held_labels), (found.test, found.test_labels))
    return on_main(
        lambda: _probe_searched(encoder, protocol, found, parts, given, reading.get("memory", FEATURE_MEMORY))
    )


def _probe_searched(
    encoder: Any, protocol: Protocol, found: ProbeFeatures, parts: Any, given: Sequence[tuple[Any, Any]], memory: int
) -> SearchedResult:
    counts = (len(found.fitted_labels) + len(found.held_labels), len(found.test_labels), HOLDOUT, encoder.pooling)
    search = ProbeResult(protocol, found.columns, fit_probes("ridge", *parts, num_classes=found.num_classes), *counts)
    cells = list(dict.fromkeys([found.columns[search.best], *given]))
    chosen = torch.tensor([found.columns.index(cell) for cell in cells])
    logistic = fit_probes(
        "logistic",
        *((_select(features, chosen, memory), labels) for features, labels in parts),
        num_classes=found.num_classes,
        names=[f"layer {layer}, t = {timestep}" for layer, timestep in cells],
    )
    return SearchedResult(search, ProbeResult(protocol, cells, logistic, *counts))


def _select(rows: Any, columns: torch.Tensor, memory: int) -> Rows:
    """Copy some feature sets of all rows into a store of their own."""
    store = FeatureStore(memory)
    for piece in pieces_of(rows, copies=2):
        store.append(piece[:, columns.to(piece.device)])
    return Rows(store, torch.arange(len(store)))
