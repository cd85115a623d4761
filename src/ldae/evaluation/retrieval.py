"""Retrieval: does an image find those of its class among others, by its features alone?"""

import torch
from torch.nn import functional as F


def retrieval_map(
    gallery: torch.Tensor,
    gallery_labels: torch.Tensor,
    queries: torch.Tensor,
    query_labels: torch.Tensor,
    *,
    chunk_size: int = 256,
) -> float:
    """Mean average precision of finding a query's class in a gallery, ranked by cosine similarity.

    The average precision of one query is the mean, over all gallery images of its class, of the share of its class
    among those that rank as high; of equally similar ones the earlier ranks higher. Queries whose class the gallery
    lacks do not count.

    Args:
        gallery (`torch.Tensor` of shape `(n, C)`), gallery_labels (`torch.LongTensor` of shape `(n,)`).
        queries (`torch.Tensor` of shape `(m, C)`), query_labels (`torch.LongTensor` of shape `(m,)`).
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
    normalised = F.normalize(gallery.float(), dim=1)
    labels = gallery_labels.to(normalised.device)
    ranks = torch.arange(1, len(labels) + 1, device=normalised.device)
    total, counted = 0.0, 0
    for chunk, classes in zip(queries.split(chunk_size), query_labels.split(chunk_size), strict=True):
        similarity = F.normalize(chunk.to(normalised), dim=1) @ normalised.T  # (b, n)
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
