"""Features and what they are worth: linear, ridge and kNN probes, their protocols, and what to compare them with.

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
        JoinedEncoder,
        LatentEncoder,
        PixelEncoder,
        PooledEncoder,
        as_encoder,
    )
    from .evaluate import Evaluation
    from .features import Features, extract_features, feature_map, iterate_features
    from .knn import fit_whitening, knn_accuracy, knn_predict, retrieval_map
    from .linear_probe import ProbeSettings, train_linear_probes
    from .opening import open_encoder
    from .probing import ProbeResult, probe_features, run_probe
    from .protocol import Protocol
    from .ridge import few_shot_ridge, fit_ridge_grid
    from .score_table import ScoreTable
    from .search import FeatureSearch, search_features
    from .untrained import untrained_like

_NAMES = {
    "encoder": "DenoiserEncoder Encoder JoinedEncoder LatentEncoder PixelEncoder PooledEncoder as_encoder",
    "evaluate": "Evaluation",
    "features": "Features extract_features feature_map iterate_features",
    "knn": "fit_whitening knn_accuracy knn_predict retrieval_map",
    "linear_probe": "ProbeSettings train_linear_probes",
    "opening": "open_encoder",
    "probing": "ProbeResult probe_features run_probe",
    "protocol": "Protocol",
    "ridge": "few_shot_ridge fit_ridge_grid",
    "score_table": "ScoreTable",
    "search": "FeatureSearch search_features",
    "untrained": "untrained_like",
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f".{_MODULES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])


__all__ = [
    "DenoiserEncoder",
    "Encoder",
    "Evaluation",
    "FeatureSearch",
    "Features",
    "JoinedEncoder",
    "LatentEncoder",
    "PixelEncoder",
    "PooledEncoder",
    "ProbeResult",
    "ProbeSettings",
    "Protocol",
    "ScoreTable",
    "as_encoder",
    "extract_features",
    "feature_map",
    "few_shot_ridge",
    "fit_ridge_grid",
    "fit_whitening",
    "iterate_features",
    "knn_accuracy",
    "knn_predict",
    "open_encoder",
    "probe_features",
    "retrieval_map",
    "run_probe",
    "search_features",
    "train_linear_probes",
    "untrained_like",
]
