"""A run's budget: the learning rate over it, and warnings if it trains little or nothing."""

import math

from ldae.sections import TrainingConfig
from ldae.training.progress import describe_count


FEW_STEPS = 10


def learning_rate(images_seen: int, options: TrainingConfig) -> float:
    """Return the learning rate: linear warm-up, then a half-cycle cosine to 0 at the end of the budget (App. A).

    Args:
        images_seen (`int`): Images seen before the step.
        options ([`TrainingConfig`]): The peak is `base_learning_rate * total_batch_size / 256`.

    Example:
    ```python
    >>> from ldae.training.budget import learning_rate
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


def budget_warnings(options: TrainingConfig, num_examples: int | None) -> list[str]:
    """List what is odd about a budget, a line each.

    Args:
        options ([`TrainingConfig`]): The budget.
        num_examples (`int`, *optional*): Size of the data set, if it is known.

    Example:
    ```python
    >>> from ldae.training.budget import budget_warnings
    >>> from ldae.sections import TrainingConfig
    >>> budget_warnings(TrainingConfig(images=10_000, total_batch_size=100, warmup_images=1_000), 5_000)
    []

    ```
    """
    steps, images, batch = options.steps, options.images, options.total_batch_size
    warnings = []
    if steps < FEW_STEPS:
        warnings.append(
            f"the budget of {describe_count(images, 'image')} is {describe_count(steps, 'step')} of "
            f"{describe_count(batch, 'image')}, which trains very little; raise the budget or lower the batch size."
        )
    if options.warmup_images >= images:
        warnings.append(
            f"the warm-up of {options.warmup_images:,} images is not shorter than the budget of {images:,}, so the "
            "learning rate never reaches its peak; shorten the warm-up or raise the budget."
        )
    if num_examples is not None and batch > num_examples:
        warnings.append(
            f"the batch of {batch:,} images is larger than the data set of {num_examples:,}, so each step repeats "
            "images; lower the batch size."
        )
    return warnings
