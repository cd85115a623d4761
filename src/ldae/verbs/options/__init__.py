"""Options of every verb, by group. A verb `name` runs `ldae.verbs.name.run(options)`."""

from .measure import (
    AlignmentOptions,
    CheckpointSweepOptions,
    CompareOptions,
    GridSearchOptions,
    KnnOptions,
    LinearProbeOptions,
    NoiseClassificationOptions,
)
from .share import CardOptions, ExportOptions, PushToHubOptions, RecipesOptions
from .train import DeconstructOptions, FinetuneOptions, PretrainOptions, TrainTokenizerOptions
from .use import DemoOptions, ExtractFeaturesOptions, GenerateOptions, SearchOptions


GROUPS: dict[str, dict[str, type]] = {
    "train": {
        "train_tokenizer": TrainTokenizerOptions,
        "pretrain": PretrainOptions,
        "finetune": FinetuneOptions,
        "deconstruct": DeconstructOptions,
    },
    "measure": {
        "linear_probe": LinearProbeOptions,
        "grid_search": GridSearchOptions,
        "knn": KnnOptions,
        "compare": CompareOptions,
        "alignment": AlignmentOptions,
        "noise_classification": NoiseClassificationOptions,
        "checkpoint_sweep": CheckpointSweepOptions,
    },
    "use": {
        "extract_features": ExtractFeaturesOptions,
        "search": SearchOptions,
        "generate": GenerateOptions,
        "demo": DemoOptions,
    },
    "share": {
        "export": ExportOptions,
        "card": CardOptions,
        "push_to_hub": PushToHubOptions,
        "recipes": RecipesOptions,
    },
}
