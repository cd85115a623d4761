"""Warnings about a budget that trains little or nothing, before the first step."""

from ldae.sections import TrainingConfig


FEW_STEPS = 10


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
            f"the budget of {images:,} images is {steps} step{'s' if steps > 1 else ''} of {batch:,} images, which "
            "trains very little; raise the budget or lower the batch size."
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
