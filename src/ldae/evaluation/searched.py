"""Converged probes at two points of a grid of blocks and time steps: the one a search chooses, and the paper's."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ldae.data import ImageSource

from .encoder import Layer
from .feature_store import FEATURE_MEMORY, FeatureStore, Rows, pieces_of
from .grid_protocols import LogisticGridResult, RidgeGridResult
from .logistic import fit_logistic_grid
from .probe_features import Reading, compute_features
from .protocol import Protocol
from .ridge_grid import fit_ridge_grid


@dataclass(frozen=True)
class SearchedResult:
    """
    Probes of a grid of blocks and time steps.

    Args:
        ridge ([`~ldae.evaluation.grid_protocols.RidgeGridResult`]): Ridge probes of all cells, which choose one of
            them.
        logistic ([`~ldae.evaluation.grid_protocols.LogisticGridResult`]): Converged probes of the chosen cell and of
            the given ones.
        searched (`int`): Index of the chosen cell in `logistic`.
        given (`tuple[int, ...]`): Indices of the given cells in `logistic`.
    """

    ridge: RidgeGridResult
    logistic: LogisticGridResult
    searched: int
    given: tuple[int, ...]

    def describe(self, index: int, point: str) -> dict[str, Any]:
        """Describe the protocol of one converged probe, with how its point was chosen."""
        search = {
            "search": "ridge on held-out training images",
            "searched_layers": list(dict.fromkeys(layer for layer, _ in self.ridge.columns)),
            "searched_timesteps": list(dict.fromkeys(timestep for _, timestep in self.ridge.columns)),
        }
        return {**self.logistic.describe(index), "point": point, **(search if point == "searched" else {})}


def run_searched_probes(
    model: Any,
    train_source: ImageSource,
    test_source: ImageSource,
    protocol: Protocol,
    *,
    given: Sequence[tuple[Layer, int]],
    **reading: Any,
) -> SearchedResult:
    """
    Search a grid of blocks and time steps by ridge probes, and fit converged probes at the point found and at given
    ones.

    Features of all cells are computed once. The held-out tenth of the training images chooses the cell, by the
    accuracy of closed-form ridge probes, and the penalties; the test set chooses nothing.

    Args:
        model, train_source, test_source, **reading: As of [`~ldae.evaluation.protocols.run_linear_probe`].
        protocol ([`~ldae.evaluation.protocol.Protocol`]): Of name "cached", with the blocks and time steps of the
            grid.
        given (`Sequence[tuple]`): Cells (layer, timestep) of the grid that are probed, too.

    Returns:
        [`SearchedResult`].

    Raises:
        ValueError: If a given cell is not in the grid, or as in
            [`~ldae.evaluation.grid_protocols.run_logistic_grid`].
    """
    if protocol.name != "cached":
        raise ValueError(f"protocol={protocol.name!r} must be cached in a search of blocks and time steps.")
    found = compute_features(
        model, train_source, test_source, protocol, Reading(**reading), choosing=lambda num_sets: True
    )
    missing = [cell for cell in given if cell not in found.columns]
    if missing:
        raise ValueError(f"given={missing} must be cells of the grid; add them to its layers and timesteps.")
    parts = ((found.every_view, found.every_label), (found.held, found.held_labels), (found.test, found.test_labels))
    counts = (len(found.fitted_labels) + len(found.held_labels), len(found.test_labels))
    ridge = RidgeGridResult(protocol, found.columns, fit_ridge_grid(*parts, num_classes=found.num_classes), *counts)
    cells = list(dict.fromkeys([found.columns[ridge.best], *given]))
    chosen = torch.tensor([found.columns.index(cell) for cell in cells])
    memory = reading.get("memory", FEATURE_MEMORY)
    fitted, held, test = ((_select(features, chosen, memory), labels) for features, labels in parts)
    probes = fit_logistic_grid(
        fitted,
        held,
        test,
        num_classes=found.num_classes,
        names=[f"layer {layer}, t = {timestep}" for layer, timestep in cells],
    )
    logistic = LogisticGridResult(protocol, cells, probes, *counts)
    return SearchedResult(ridge, logistic, 0, tuple(cells.index(cell) for cell in given))


def _select(rows: Rows, columns: torch.Tensor, memory: int) -> Rows:
    """Copy some feature sets of all rows into a store of their own."""
    store = FeatureStore(memory)
    for piece in pieces_of(rows, copies=2):
        store.append(piece[:, columns.to(piece.device)])
    return Rows(store, torch.arange(len(store)))
