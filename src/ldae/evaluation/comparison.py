"""A trained encoder beside what it must beat: the same network untrained, pooled PCA coefficients, raw pixels."""

from dataclasses import dataclass

from transformers import PreTrainedModel

from ldae.data import Batch

from .baselines import pca_features, pixel_features, untrained_like
from .features import Features, extract_features
from .knn import knn_accuracy
from .metrics import mean_and_stderr
from .ridge import few_shot_ridge


@dataclass(frozen=True)
class ComparedFeatures:
    """Accuracies of one kind of features: few-shot ridge (mean and standard error over draws) and kNN."""

    name: str
    few_shot: float
    few_shot_stderr: float | None
    knn: float


def feature_sets(
    model: PreTrainedModel, train: list[Batch], test: list[Batch]
) -> dict[str, tuple[Features, Features]]:
    """
    The encoder's features and those it is compared with.

    Args:
        model ([`LDAEForPreTraining`] or [`LDAEModel`]): Trained.
        train, test (`list[Batch]`): uint8 images with labels.

    Returns:
        `dict` from a name to the features of both parts.
    """
    untrained, size = untrained_like(model, seed=0), model.config.image_size
    kinds = {
        "trained encoder": lambda batches: extract_features(model, batches),
        "untrained encoder": lambda batches: extract_features(untrained, batches),
        "mean PCA coefficients": lambda batches: pca_features(model, batches),
        "raw pixels": lambda batches: pixel_features(batches, image_size=size),
    }
    return {name: (extract(train), extract(test)) for name, extract in kinds.items()}


def compare_few_shot(
    model: PreTrainedModel, train: list[Batch], test: list[Batch], *, shots: int = 5, draws: int = 20
) -> list[ComparedFeatures]:
    """
    Few-shot ridge and kNN accuracies of the encoder and what it is compared with; all see the same draws.

    Args:
        model, train, test: As of [`feature_sets`].
        shots (`int`, defaults to 5): Labels of each class that the ridge probe sees.
        draws (`int`, defaults to 20): How often they are drawn.

    Returns:
        `list[ComparedFeatures]`. kNN sees all labels of `train`: the two columns do not compare.
    """
    compared = []
    for name, (fitted, scored) in feature_sets(model, train, test).items():
        data = (fitted.flat[:, 0], fitted.classes, scored.flat[:, 0], scored.classes)
        mean, stderr = mean_and_stderr(few_shot_ridge(*data, shots=shots, draws=draws))
        compared.append(ComparedFeatures(name, mean, stderr, knn_accuracy(*data)))
    return compared
