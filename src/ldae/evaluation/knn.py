"""Nearest neighbours of features, without training: weighted kNN classification, and retrieval."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.nn import functional as F

from ldae.data import Batch
from ldae.results import Result
from ldae.shared_work import on_main

from .encoder import as_encoder
from .features import StoredFeatures, extract_features
from .grid_probes import Moments
from .metrics import accuracy


ROUNDING = 1e-9  # share of the largest variance below which a component's variance is rounding


def fit_whitening(features: torch.Tensor, components: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Fit a projection on the first principal components of features, each scaled to variance 1.

    Mean features of a denoiser share a large mean and vary mostly along a few directions, which then decide every
    cosine. After whitening, all components count alike. FAISS calls the same projection `PCAW`.

    Args:
        features (`torch.Tensor` of shape `(n, C)`): Features to fit to, such as those of the training images.
        components (`int`): Number of components that are kept; fewer where the features vary along fewer directions.

    Returns:
        `Callable`: From features `(m, C)` to float32 `(m, components)`.

    Raises:
        ValueError: If `components` is less than 1, or the features are all the same.

    Example:
        >>> features = torch.tensor([[9.0, 0.1], [9.0, -0.1], [11.0, 0.1], [11.0, -0.1]])
        >>> fit_whitening(features, components=2)(torch.tensor([[11.0, 0.1], [10.0, 0.0]])).abs().round(decimals=3)
        tensor([[1., 1.],
                [0., 0.]])
    """
    if components < 1:
        raise ValueError(f"whiten={components} must be at least 1, the number of principal components to keep.")
    moments = Moments(1, features.shape[1], num_classes=1)
    moments.add(slice(None), features[:, None], torch.zeros(len(features), dtype=torch.long))
    variances, directions = torch.linalg.eigh(moments.covariance[0])  # rising
    count = min(components, int((variances > ROUNDING * variances[-1]).sum()))
    if count == 0:
        raise ValueError(f"whiten={components} has no components to keep: all {len(features)} features are the same.")
    scaled = directions[:, -count:] * variances[-count:].rsqrt()
    mean, projection = (values.to(features.device, torch.float32) for values in (moments.mean[0], scaled))
    return lambda x: (x.to(mean) - mean) @ projection


def fit_directions(features: torch.Tensor, whiten: int | None = None) -> Callable[[torch.Tensor], torch.Tensor]:
    """Fit the map from features to what cosines are computed of: vectors of length 1, perhaps whitened before.

    Args:
        features (`torch.Tensor` of shape `(n, C)`): Features to fit the whitening to.
        whiten (`int`, *optional*): Components to whiten to, by [`fit_whitening`].

    Returns:
        `Callable`: From features `(m, C)` to float32 `(m, c)`, on the device of `features`.
    """
    whitening = (
        fit_whitening(features, whiten) if whiten is not None else lambda x: x.to(features.device, torch.float32)
    )
    return lambda x: F.normalize(whitening(x), dim=1)


def knn_predict(
    train_features: torch.Tensor,
    train_labels: torch.Tensor,
    features: torch.Tensor,
    *,
    k: int = 20,
    temperature: float = 0.07,
    whiten: int | None = None,
    chunk_size: int = 1024,
) -> torch.Tensor:
    """Predict the class with the largest sum of exp(cosine similarity / temperature) among the k nearest examples.

    This is the weighted kNN usual for self-supervised encoders (Wu et al. 2018; DINO), with the k that does best there
    on ImageNet. Of classes with equal votes the lowest index wins.

    Args:
        train_features (`torch.Tensor` of shape `(n, C)`): Features of the training examples; they are normalised here.
        train_labels (`torch.LongTensor` of shape `(n,)`): Their classes.
        features (`torch.Tensor` of shape `(m, C)`): Features to classify.
        k (`int`, defaults to 20): Number of neighbours that vote.
        temperature (`float`, defaults to 0.07): Temperature of the votes.
        whiten (`int`, *optional*): Components to whiten features to first, by [`fit_whitening`] of the training ones.
        chunk_size (`int`, defaults to 1024): Rows of `features` compared at a time; bounds memory to chunk_size x n.

    Returns:
        `torch.LongTensor` of shape `(m,)`.

    Raises:
        ValueError: If k is not between 1 and n, or the temperature is not positive.

    Example:
        >>> train = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
        >>> knn_predict(train, torch.tensor([4, 4, 7]), torch.tensor([[1.0, 0.2], [0.1, 1.0]]), k=1)
        tensor([4, 7])
    """
    if not 1 <= k <= len(train_features):
        raise ValueError(f"k={k} must be from 1 to {len(train_features)}, the number of training examples.")
    if temperature <= 0:
        raise ValueError(f"temperature={temperature} must be positive.")
    directions = fit_directions(train_features, whiten)
    train = directions(train_features)  # (n, C)
    labels = train_labels.to(train.device)
    num_classes = int(labels.max()) + 1
    predictions = []
    for chunk in features.split(chunk_size):
        similarity = directions(chunk) @ train.T  # (b, n)
        nearest, index = similarity.topk(k, dim=1)  # (b, k)
        # Votes relative to the nearest neighbour's, which is first: none overflows, and this one never underflows.
        weights = ((nearest - nearest[:, :1]) / temperature).exp()
        votes = weights.new_zeros(len(chunk), num_classes).scatter_add_(1, labels[index], weights)  # (b, K)
        predictions.append(votes.argmax(dim=1))
    return torch.cat(predictions)


def knn_accuracy(
    train_features: torch.Tensor,
    train_labels: torch.Tensor,
    test_features: torch.Tensor,
    test_labels: torch.Tensor,
    *,
    k: int = 20,
    temperature: float = 0.07,
    whiten: int | None = None,
) -> float:
    """Compute the top-1 accuracy of [`knn_predict`] on a test set with the true classes `(m,)`."""
    predictions = knn_predict(train_features, train_labels, test_features, k=k, temperature=temperature, whiten=whiten)
    return accuracy(predictions, test_labels)


def retrieval_map(
    gallery: torch.Tensor,
    gallery_labels: torch.Tensor,
    queries: torch.Tensor,
    query_labels: torch.Tensor,
    *,
    whiten: int | None = None,
    chunk_size: int = 256,
) -> float:
    """Compute the mean average precision of finding a query's class in a gallery, ranked by cosine similarity.

    The average precision of one query is the mean, over all gallery images of its class, of the share of its class
    among those that rank as high (of equally similar ones the earlier). Queries whose class the gallery lacks do not
    count.

    Args:
        gallery (`torch.Tensor` of shape `(n, C)`): Features to search.
        gallery_labels (`torch.LongTensor` of shape `(n,)`): Their classes.
        queries (`torch.Tensor` of shape `(m, C)`): Features that search.
        query_labels (`torch.LongTensor` of shape `(m,)`): Their classes.
        whiten (`int`, *optional*): Components to whiten features to first, by [`fit_whitening`] of the gallery.
        chunk_size (`int`, defaults to 256): Queries ranked at a time; bounds memory to chunk_size x n.

    Returns:
        `float` between 0 and 1; features that say nothing give about the share of a class.

    Raises:
        ValueError: If the gallery is empty, or has no image of any query's class.

    Example:
        >>> gallery = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
        >>> round(retrieval_map(gallery, torch.tensor([0, 1, 0]), torch.tensor([[1.0, 0.05]]), torch.tensor([0])), 3)
        0.833
    """
    if len(gallery) == 0 or len(queries) == 0:
        raise ValueError(
            f"a gallery of {len(gallery)} and {len(queries)} queries: retrieval needs at least one of both."
        )
    directions = fit_directions(gallery, whiten)
    normalised = directions(gallery)
    labels = gallery_labels.to(normalised.device)
    ranks = torch.arange(1, len(labels) + 1, device=normalised.device)
    total, counted = 0.0, 0
    for chunk, classes in zip(queries.split(chunk_size), query_labels.split(chunk_size), strict=True):
        similarity = directions(chunk) @ normalised.T  # (b, n)
        order = similarity.argsort(dim=1, descending=True, stable=True)
        relevant = labels[order] == classes.to(labels)[:, None]  # (b, n), by rank
        found = relevant.sum(dim=1)
        precision = relevant.cumsum(dim=1) / ranks
        average = (precision * relevant).sum(dim=1).double() / found.clamp(min=1)
        total += float(average[found > 0].sum())
        counted += int((found > 0).sum())
    if counted == 0:
        raise ValueError("no query's class is in the gallery, so that nothing can be found.")
    return total / counted


def similarity(whiten: int | None) -> dict[str, Any]:
    """Return the entries of a result's protocol that say how features were compared."""
    return {"similarity": "cosine"} | ({} if whiten is None else {"whiten": whiten})


def run_knn(
    model: Any,
    train_batches: Iterable[Batch] | StoredFeatures,
    test_batches: Iterable[Batch] | StoredFeatures,
    about: dict[str, Any],
    *,
    k: int = 20,
    temperature: float = 0.07,
    whiten: int | None = None,
    noisy: bool = False,
    device: torch.device | str | None = None,
    **reading: Any,
) -> list[Result]:
    """Measure weighted kNN at every chosen layer and time step; nothing is trained and nothing chosen.

    Args:
        model ([`~ldae.evaluation.encoder.Encoder`] or `PreTrainedModel`): The encoder.
        train_batches (`Iterable[Batch]` or `StoredFeatures`): Training images with labels, as
            [`~ldae.data.iterate_once`] yields them, or features that were computed before.
        test_batches (`Iterable[Batch]` or `StoredFeatures`): Test images with labels, or their features.
        about (`dict`): `dataset`, `split` and `checkpoint` of the results.
        k (`int`, defaults to 20): Number of neighbours that vote.
        temperature (`float`, defaults to 0.07): Temperature of the votes.
        whiten (`int`, *optional*): See [`knn_predict`].
        noisy (`bool`, defaults to `False`): Corrupt the input at t.
        device (`torch.device` or `str`, *optional*): Device to compute on; by default the model's.
        **reading: `layers`, `timesteps` and `dtype` of [`~ldae.evaluation.features.extract_features`].

    Returns:
        `list[Result]`: a test accuracy for each layer and time step.

    Raises:
        ValueError: If labels are missing, or a layer, a time step or k does not exist.
    """
    encoder = as_encoder(model)
    train, test = (
        extract_features(encoder, batches, noisy=noisy, device=device, **reading)
        for batches in (train_batches, test_batches)
    )

    def score() -> list[Result]:
        results = []
        for index, (layer, timestep) in enumerate(train.columns):
            x = train.flat[:, index].to(device or encoder.device)
            data = (x, train.classes, test.flat[:, index], test.classes)
            value = knn_accuracy(*data, k=k, temperature=temperature, whiten=whiten)
            protocol = {
                "name": "knn",
                "k": k,
                "temperature": temperature,
                **similarity(whiten),
                "layer": layer,
                "timestep": timestep,
                "input": "noisy" if noisy else "clean",
                "pooling": encoder.pooling,
                "train_images": len(train.classes),
            }
            results.append(Result("accuracy", value, protocol=protocol, n=len(test.classes), **about))
        return results

    return on_main(score)
