"""Check at the start of a run that processes read different examples."""

import hashlib
from collections.abc import Callable

import torch

from .batch import Batch


def hash_images(images: torch.Tensor) -> torch.Tensor:
    """Hash each image's pixels to 64 bits, equally in all processes.

    Args:
        images (`torch.ByteTensor` of shape `(b, C, R, R)`): Images, or their latents `(b, V, N, d)`.

    Returns:
        `torch.LongTensor` of shape `(b,)` on the CPU.
    """
    pixels = images.cpu().contiguous().numpy()
    digests = [hashlib.blake2b(image.tobytes(), digest_size=8).digest() for image in pixels]
    return torch.tensor([int.from_bytes(digest, "big", signed=True) for digest in digests], dtype=torch.int64)


def check_disjoint(
    first_batch: Batch, gather: Callable[[torch.Tensor], torch.Tensor], *, num_examples: int | None = None
) -> None:
    """Raise an error if two processes share most of their first batch.

    Such a run would train on each image once for every process, and nothing else would show it.

    Args:
        first_batch (`Batch`): This process's first batch; all have the same size.
        gather (`Callable`): Joins a tensor `(b,)` of each process to `(world_size * b,)` in order, like
            `accelerator.gather`. If it takes only tensors on a GPU, it must move them.
        num_examples (`int`, *optional*): Size of the data set, if it is known. A data set smaller than the first
            batches of all processes together is not checked.

    Raises:
        ValueError: If two processes do; the message names them.

    Example:
    ```python
    >>> import torch
    >>> from ldae.data import Batch, check_disjoint
    >>> batch = Batch(torch.arange(48, dtype=torch.uint8).reshape(4, 3, 2, 2), torch.arange(4), None)
    >>> check_disjoint(batch, lambda hashes: torch.cat([hashes, hashes + 1]))
    >>> check_disjoint(batch, lambda hashes: torch.cat([hashes, hashes]))
    Traceback (most recent call last):
    ...
    ValueError: processes 0 and 1 read the same images (4 of 4 in the first batch); the data is not divided...

    ```
    """
    examples = first_batch.images if first_batch.latents is None else first_batch.latents
    hashes = gather(hash_images(examples)).reshape(-1, len(examples)).tolist()
    if num_examples is not None and num_examples < len(hashes) * len(examples):
        return
    for rank, ours in enumerate(hashes):
        for other in range(rank):
            shared = len(set(ours) & set(hashes[other]))
            if shared > len(set(ours)) / 2:
                raise ValueError(
                    f"processes {other} and {rank} read the same images ({shared} of {len(set(ours))} in the first "
                    "batch); the data is not divided over processes. Check rank and world_size, and that nothing else "
                    "in the program divides or replaces the loader."
                )
