"""
Features and what they are worth: linear, ridge and kNN probes, their protocols, and what to compare them with.

In a notebook, [`Evaluation`] is a data set on which encoders are measured, ours and other people's:

    from ldae.evaluation import Evaluation
    digits = Evaluation("digits")
    digits.compare("runs/quickstart", "path/to/dinov2")

What it is made of is here too, each name in a module of its own that is loaded when the name is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from .encoder import (
        DenoiserEncoder,
        Encoder,
        LatentEncoder,
        PixelEncoder,
        PooledEncoder,
        as_encoder,
        open_encoder,
    )
    from .evaluate import Evaluation
    from .features import Features, extract_features, feature_map, iterate_features
    from .grid_protocols import run_logistic_grid, run_ridge_grid
    from .knn import knn_accuracy, knn_predict
    from .linear_probe import ProbeSettings, train_linear_probes
    from .protocols import Protocol, run_linear_probe
    from .retrieval import retrieval_map
    from .ridge import few_shot_ridge, fit_ridge, ridge_accuracy
    from .score_table import ScoreTable
    from .untrained import untrained_like

_LAZY = {
    "DenoiserEncoder": "encoder",
    "Encoder": "encoder",
    "Evaluation": "evaluate",
    "Features": "features",
    "LatentEncoder": "encoder",
    "PixelEncoder": "encoder",
    "PooledEncoder": "encoder",
    "ProbeSettings": "linear_probe",
    "Protocol": "protocols",
    "ScoreTable": "score_table",
    "as_encoder": "encoder",
    "extract_features": "features",
    "feature_map": "features",
    "few_shot_ridge": "ridge",
    "fit_ridge": "ridge",
    "iterate_features": "features",
    "knn_accuracy": "knn",
    "knn_predict": "knn",
    "open_encoder": "encoder",
    "retrieval_map": "retrieval",
    "ridge_accuracy": "ridge",
    "run_linear_probe": "protocols",
    "run_logistic_grid": "grid_protocols",
    "run_ridge_grid": "grid_protocols",
    "train_linear_probes": "linear_probe",
    "untrained_like": "untrained",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])


__all__ = [
    "DenoiserEncoder",
    "Encoder",
    "Evaluation",
    "Features",
    "LatentEncoder",
    "PixelEncoder",
    "PooledEncoder",
    "ProbeSettings",
    "Protocol",
    "ScoreTable",
    "as_encoder",
    "extract_features",
    "feature_map",
    "few_shot_ridge",
    "fit_ridge",
    "iterate_features",
    "knn_accuracy",
    "knn_predict",
    "open_encoder",
    "retrieval_map",
    "ridge_accuracy",
    "run_linear_probe",
    "run_logistic_grid",
    "run_ridge_grid",
    "train_linear_probes",
    "untrained_like",
]
