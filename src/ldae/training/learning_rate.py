"""The learning rate as a pure function of images seen."""

import math

from ldae.sections import TrainingConfig


def learning_rate(images_seen: int, options: TrainingConfig) -> float:
    """Return the learning rate: linear warm-up, then a half-cycle cosine to 0 at the end of the budget (App. A).

    Args:
        images_seen (`int`): Images seen before the step.
        options ([`TrainingConfig`]): The peak is `base_learning_rate * total_batch_size / 256`.

    Example:
    ```python
    >>> from ldae.training.learning_rate import learning_rate
    >>> from ldae.sections import TrainingConfig
    >>> options = TrainingConfig(images=1000, warmup_images=100, total_batch_size=512, base_learning_rate=1e-4)
    >>> [round(learning_rate(seen, options), 6) for seen in (0, 50, 100, 550, 1000)]
    [0.0, 0.0001, 0.0002, 0.0001, 0.0]

    ```
    """
    peak = options.base_learning_rate * options.total_batch_size / 256
    if images_seen < options.warmup_images:
        return peak * images_seen / options.warmup_images
    progress = (images_seen - options.warmup_images) / max(1, options.images - options.warmup_images)
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
