"""Find where a model's features are best, on held-out training images: every block at time steps over the schedule."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ldae.data import Batch

from .encoder import as_encoder
from .features import Features, extract_features
from .grid_search import paper_point, searched_timesteps
from .probe_features import HOLDOUT, SPLIT_SEED
from .ridge import split_holdout
from .ridge_grid import RidgeProbes, fit_ridge_grid


@dataclass(frozen=True)
class FeatureSearch:
    """
    Result of [`search_features`].

    `columns` are the (layer, timestep) of the F cells, `probes` their ridge probes with held-out and test accuracies,
    `paper` is the index of the paper's point, `num_train` counts the training images.
    """

    columns: list[tuple[Any, Any]]
    probes: RidgeProbes
    paper: int
    num_train: int

    @property
    def chosen(self) -> int:
        """Index of the cell with the best held-out accuracy; of equal ones the first."""
        return int(self.probes.held_out.argmax())

    def describe(self, index: int) -> dict[str, Any]:
        """Return the protocol of a cell's score, as results.json keeps it."""
        layer, timestep = self.columns[index]
        return {
            "name": "ridge",
            "layer": layer,
            "timestep": timestep,
            "input": "clean",
            "pooling": "mean",
            "penalty": float(self.probes.penalty[index]),
            "train_images": self.num_train,
            "holdout": HOLDOUT,
            "search": "blocks x time steps",
        }


def search_features(
    model: Any,
    train: Sequence[Batch],
    test: Sequence[Batch] | None = None,
    *,
    timesteps: Sequence[int] | None = None,
    **extraction: Any,
) -> FeatureSearch:
    """
    Fit a ridge probe of every block at every searched time step, in closed form.

    Args:
        model (`PreTrainedModel`): An l-DAE (of a [`LDAEForPreTraining`] all blocks are searched) or a DDAE.
        train (`Sequence[Batch]`): uint8 images with labels. A tenth is held out: it chooses each cell's penalty and,
            by [`~FeatureSearch.chosen`], the cell.
        test (`Sequence[Batch]`, *optional*): Images that score each probe and choose nothing; by default none, and the test
            accuracies mean nothing.
        timesteps (`Sequence[int]`, *optional*): By default [`~ldae.evaluation.grid_search.searched_timesteps`].
        **extraction: `device` and `dtype`, as of [`~ldae.evaluation.features.extract_features`].

    Returns:
        [`FeatureSearch`].

    Raises:
        ValueError: if labels are missing, or there are too few images to hold some out.
    """
    encoder: Any = as_encoder(model)
    point = paper_point(encoder.config)
    steps = tuple(sorted({*(timesteps or searched_timesteps(encoder.config)), point[1]}))

    def features(batches: Sequence[Batch]) -> Features:
        return extract_features(encoder, batches, layers=encoder.search_layers, timesteps=steps, **extraction)

    fitted = features(train)
    labels = fitted.classes
    kept, held = split_holdout(len(labels), HOLDOUT, SPLIT_SEED)
    choice = (fitted.flat[held], labels[held])
    scored = choice
    if test is not None:
        found = features(test)
        scored = (found.flat, found.classes)
    probes = fit_ridge_grid(
        (fitted.flat[kept], labels[kept]),
        choice,
        scored,
        num_classes=int(torch.maximum(labels.max(), scored[1].max())) + 1,
    )
    return FeatureSearch(fitted.columns, probes, fitted.columns.index(point), len(labels))
