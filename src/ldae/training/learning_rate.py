"""The learning rate as a pure function of images seen."""

import math


def learning_rate(
    images_seen: int, *, images: int, warmup_images: int, total_batch_size: int, base_learning_rate: float
) -> float:
    """Return the learning rate: linear warm-up, then a half-cycle cosine to 0 at the end of the budget (App. A).

    Args:
        images_seen (`int`): Images seen before the step.
        images (`int`): The budget.
        warmup_images (`int`): Length of the warm-up.
        total_batch_size (`int`): Images in a step.
        base_learning_rate (`float`): Peak rate for 256 images; the peak is this times `total_batch_size / 256`.

    Returns:
        `float`.

    Example:
    ```python
    >>> from ldae.training.learning_rate import learning_rate
    >>> rule = dict(images=1000, warmup_images=100, total_batch_size=512, base_learning_rate=1e-4)
    >>> [round(learning_rate(seen, **rule), 6) for seen in (0, 50, 100, 550, 1000)]
    [0.0, 0.0001, 0.0002, 0.0001, 0.0]

    ```
    """
    peak = base_learning_rate * total_batch_size / 256
    if images_seen < warmup_images:
        return peak * images_seen / warmup_images
    progress = (images_seen - warmup_images) / max(1, images - warmup_images)
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
