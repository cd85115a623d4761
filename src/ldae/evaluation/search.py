"""Find the layer and time step with the best features, and write the choice into a checkpoint's config.json."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ldae.checkpoints import open_config
from ldae.data import Batch, ImageSource
from ldae.files import write_whole
from ldae.results import Result
from ldae.shared_work import add_up, is_main, main_only

from .criteria import score_cells
from .encoder import Layer, as_encoder
from .feature_store import FeatureStore, Rows, pieces_of
from .features import Features, extract_features
from .logistic import fit_logistic_grid
from .probing import ProbeResult
from .protocol import HOLDOUT, Protocol, compute_features, split_holdout
from .ridge import few_shot_ridge, fit_ridge_grid


@dataclass(frozen=True)
class FeatureSearch:
    """Result of [`search_features`].

    Args:
        columns (`list[tuple]`): (layer, timestep) of the F cells.
        held_out (`torch.Tensor` of shape `(F,)`): Accuracies on held-out training images, which choose.
        paper (`int`): Index of the paper's point.
        pooling (`str`): How the encoder pools its features.
        train (`Features`): Features of the training images at every cell.
        test (`Features`, *optional*): Features of the test images.
        probes ([`~ldae.evaluation.grid_probes.GridProbes`], *optional*): Ridge probes of the cells, with test
            accuracies; `None` in a search with few labels.
    """

    columns: list[tuple[Any, Any]]
    held_out: torch.Tensor
    paper: int
    pooling: str
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
            "pooling": self.pooling,
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
    class tell blocks apart by twenty points.

    Args:
        model ([`~ldae.evaluation.encoder.Encoder`] or `PreTrainedModel`): The encoder; in a model for pre-training,
            the decoder's blocks are searched too.
        train (`Sequence[Batch]`): uint8 images with labels. A tenth is held out: it chooses each cell's penalty and,
            by [`~FeatureSearch.chosen`], the cell.
        test (`Sequence[Batch]`, *optional*): Images that score each probe and choose nothing. Without them, the
            held-out images stand in for them, and `probes.test` is not a test accuracy.
        timesteps (`Sequence[int]`, *optional*): By default the encoder's `search_timesteps`.
        shots (`int`, *optional*): Labels of each class that a probe sees; by default all.
        draws (`int`, defaults to 20): How often `shots` labels are drawn; every cell sees the same draws.
        **extraction: `device` and `dtype` of [`~ldae.evaluation.features.extract_features`].

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

    trained = features(train)
    tested = None if test is None else features(test)
    about: dict[str, Any] = {"paper": trained.columns.index(point), "pooling": encoder.pooling}
    about |= {"train": trained, "test": tested}
    x, labels = trained.flat, trained.classes
    kept, held = split_holdout(len(labels))
    fitted, choice = (x[kept], labels[kept]), (x[held], labels[held])
    if shots is not None:
        means = [
            torch.tensor(few_shot_ridge(cell, fitted[1], held_cell, choice[1], shots=shots, draws=draws))
            .double()
            .mean()
            for cell, held_cell in zip(fitted[0].unbind(dim=1), choice[0].unbind(dim=1), strict=True)  # (n, C) each
        ]
        return FeatureSearch(trained.columns, torch.stack(means), **about)
    scored = choice if tested is None else (tested.flat, tested.classes)
    num_classes = int(torch.maximum(labels.max(), scored[1].max())) + 1
    probes = fit_ridge_grid(fitted, choice, scored, num_classes=num_classes)
    return FeatureSearch(trained.columns, probes.held_out, **about, probes=probes)


@dataclass(frozen=True)
class SearchedResult:
    """Result of [`run_searched_probes`]: ridge probes of all cells, and converged ones of some.

    `search` chose a cell; `found` are the converged probes of this cell, the first, and of the given ones.
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
    """Search layers and time steps by ridge probes, and fit converged probes at the chosen cell and at given ones.

    Features of all cells are computed once. The held-out tenth of the training images chooses the penalties and, by
    the accuracy of closed-form ridge probes, the cell; the test set chooses nothing.

    `protocol` is a cached one with the layers and time steps of the grid, and `given` are cells (layer, timestep) of
    it that are probed as well. The other arguments are those of [`~ldae.evaluation.probing.run_probe`].

    Raises:
        ValueError: If a given cell is not in the grid, and as in [`~ldae.evaluation.probing.run_probe`].
    """
    if protocol.name != "cached":
        raise ValueError(f"protocol={protocol.name!r} must be cached in a search of blocks and time steps.")
    encoder = as_encoder(model)
    grid = compute_features(encoder, train_source, test_source, protocol, hold_out=True, divided=True, **reading)
    missing = [cell for cell in given if cell not in grid.columns]
    if missing:
        raise ValueError(f"given={missing} must be cells of the grid; add them to its layers and timesteps.")
    parts = (grid.fitted, grid.held, grid.test)
    fitting: dict[str, Any] = {"num_classes": grid.num_classes, "reduce": add_up}
    about = (grid.num_train, grid.num_test, HOLDOUT, encoder.pooling)
    search = ProbeResult(protocol, grid.columns, fit_ridge_grid(*parts, **fitting), *about)
    cells = list(dict.fromkeys([grid.columns[search.best], *given]))
    chosen = torch.tensor([grid.columns.index(cell) for cell in cells])
    logistic = fit_logistic_grid(
        *((_select(features, chosen), labels) for features, labels in parts),
        names=[f"layer {layer}, t = {timestep}" for layer, timestep in cells],
        **fitting,
    )
    return main_only(SearchedResult(search, ProbeResult(protocol, cells, logistic, *about)))


def _select(rows: Any, columns: torch.Tensor) -> Rows:
    """Copy some feature sets of all rows into a store of their own, with the same memory."""
    store = FeatureStore(rows.store.memory)
    store.append(rows[torch.arange(0)][:, columns])  # for the shape, if this process has no row
    for piece in pieces_of(rows, copies=2):
        store.append(piece[:, columns.to(piece.device)])
    return Rows(store, torch.arange(len(store)))


@dataclass(frozen=True)
class GridScore:
    """One block at one time step: held-out accuracy, which chooses (then `tie_break`), and test accuracy."""

    layer: Layer
    timestep: int
    noisy: bool
    held_out: float
    test: float
    stderr: float | None
    tie_break: float = 0.0


def grid_scores(results: Sequence[ProbeResult]) -> list[GridScore]:
    """Collect the scores of every block and time step of one grid, with clean inputs, noisy ones, or both.

    Raises:
        ValueError: If nothing was held out, so that nothing can choose.
    """
    scores = []
    for result in results:
        for index, (layer, timestep) in enumerate(result.columns):
            held_out = result.probes.held_out_score(index)
            if held_out is None:
                raise ValueError("a grid needs more than one block, time step or learning rate to choose among.")
            if layer is None or timestep is None:
                raise ValueError("a grid search is for l-DAE and DDAE models: others have no time step to choose.")
            test, stderr = result.probes.score(index)
            tie_break = result.probes.tie_break(index)
            scores.append(GridScore(layer, timestep, result.protocol.noisy, held_out, test, stderr, tie_break))
    return scores


def best_score(scores: list[GridScore], *, clean_only: bool = False) -> GridScore:
    """Return the best score by held-out accuracy; `clean_only` leaves noisy inputs out."""
    return max((s for s in scores if not (clean_only and s.noisy)), key=lambda s: (s.held_out, s.tie_break))


def search_by_criterion(
    model: Any,
    batches: Sequence[Batch],
    criterion: str,
    *,
    layers: Sequence[Layer] | None = None,
    timesteps: Sequence[int] | None = None,
    **extraction: Any,
) -> list[GridScore]:
    """Score every layer at every time step by a criterion that needs no labels.

    Args:
        model ([`~ldae.evaluation.encoder.Encoder`] or `PreTrainedModel`): The encoder.
        batches (`Sequence[Batch]`): uint8 images, at most `MOST_IMAGES`.
        criterion (`str`): One of `CRITERIA`.
        layers (`Sequence`, *optional*): Layers; by default the encoder's `search_layers`.
        timesteps (`Sequence[int]`, *optional*): Time steps; by default its `search_timesteps`.
        **extraction: `device` and `dtype` of [`~ldae.evaluation.features.extract_features`].

    Returns:
        `list[GridScore]`: Scores with the criterion in place of both accuracies; empty outside the main process.

    Raises:
        ValueError: For an unknown criterion, or features that are not finite.
    """
    encoder: Any = as_encoder(model)
    layers, timesteps = layers or encoder.search_layers, timesteps or encoder.search_timesteps
    cells = score_cells(encoder, batches, [criterion], layers=layers, timesteps=timesteps, **extraction)
    if not is_main():
        return []
    return [
        GridScore(layer, timestep, False, value, value, None)
        for layer, values in zip(layers, cells[criterion].tolist(), strict=True)
        for timestep, value in zip(timesteps, values, strict=True)
    ]


def write_choice(folder: str | os.PathLike[str], layer: Layer, timestep: int) -> None:
    """Make a block and a time step the default of a checkpoint, for `AutoModel` and pipelines.

    `config.json` is replaced whole or not at all; the weights stay as they are.

    Args:
        folder (`str` or path): The checkpoint's folder, with config.json.
        layer (`int` or `str`): An l-DAE's block, counted from 1, after which its encoder is cut from then on; or a
            DDAE's tap by name.
        timestep (`int`): The time step.

    Example:
        >>> import tempfile
        >>> from ldae import LDAEConfig
        >>> folder = tempfile.mkdtemp()
        >>> LDAEConfig.from_size("nano", image_size=16, patch_size=4, latent_dim=8).save_pretrained(folder)
        >>> write_choice(folder, 3, 40)
        >>> config = LDAEConfig.from_pretrained(folder)
        >>> config.num_hidden_layers, config.decoder_num_hidden_layers, config.feature_timestep
        (3, 1, 40)
    """
    path = Path(folder) / "config.json"
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    before = open_config(folder)
    # Through the configuration, which re-cuts an l-DAE's stack and checks the rest; only what changes is written.
    cut = open_config(folder, **before.cut_fields(layer), feature_timestep=timestep).to_dict()
    config |= {name: value for name, value in cut.items() if value != before.to_dict().get(name)}
    write_whole(path, json.dumps(config, indent=2, sort_keys=True) + "\n")
