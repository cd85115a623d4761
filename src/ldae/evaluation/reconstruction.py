"""Reconstruction by a latent tokenizer: MSE, PSNR and SSIM over one pass."""

from collections.abc import Iterable

import torch
from torchmetrics import MeanSquaredError, MetricCollection
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

from ldae.data import Batch
from ldae.evaluation.encoder import evaluating
from ldae.evaluation.features import centre_crop
from ldae.models.tokenizer_ldae import ConvVAETokenizer, PatchTokenizer


SMALLEST_SIDE = 6  # SSIM's window of 11 pixels is mirrored at the border by 5


def reconstruction_quality(
    tokenizer: PatchTokenizer | ConvVAETokenizer,
    batches: Iterable[Batch],
    image_size: int,
    device: torch.device | str | None = None,
    all_processes: bool = False,
) -> dict[str, float]:
    """Measure MSE, PSNR and SSIM of images that were encoded and decoded, in constant memory.

    Reconstructions are clamped to [-1, 1], the range of pixels. Structural similarity is that of Wang et al. 2004 with
    a Gaussian window of 11 pixels (standard deviation 1.5), which takes in the image mirrored at its border.

    Args:
        tokenizer ([`~ldae.PatchPCA`] or any other latent tokenizer): Put in evaluation mode meanwhile.
        batches (`Iterable[Batch]`): uint8 images, as [`~ldae.data.iterate_once`] yields them.
        image_size (`int`, in pixels): The images are cropped to it at their centre.
        device (`torch.device` or `str`, *optional*): Where to compute; by default where the tokenizer is.
        all_processes (`bool`, defaults to `False`): Whether every process of `torch.distributed` calls this with its
            share of the images, and gets the numbers of all images; otherwise they are this process's alone.

    Returns:
        `dict[str, float]`: `mse`, the mean squared error of a pixel value in [-1, 1]; `psnr`, in dB, 10 log10(2^2 /
        mse) for that mean over all images and a peak of 2, infinite where the error is zero; `ssim`, the mean over
        images, at most 1.

    Raises:
        ValueError: If there are no images, or they are under 6 pixels.

    Example:
    ```python
    >>> from ldae import fit_patch_pca
    >>> from ldae.data import DataConfig, iterate_once, open_images, prepare_images
    >>> source = open_images(DataConfig("digits"), "test")
    >>> batches = list(iterate_once(source, image_size=16, batch_size=100))
    >>> pixels = [prepare_images(batch.images, batch.positions, 0, image_size=16) for batch in batches]
    >>> for latent_dim in (1, 4):
    ...     pca = fit_patch_pca(pixels, patch_size=4, latent_dim=latent_dim)
    ...     quality = reconstruction_quality(pca, batches, image_size=16)
    ...     print({name: round(value, 2) for name, value in quality.items()})
    {'mse': 0.16, 'psnr': 14.08, 'ssim': 0.5}
    {'mse': 0.01, 'psnr': 27.25, 'ssim': 0.97}

    ```
    """
    if image_size < SMALLEST_SIDE:
        raise ValueError(f"image_size={image_size} is too small for SSIM; give at least {SMALLEST_SIDE} pixels.")
    if device is not None:
        tokenizer.to(device)
    device = tokenizer.mean.device
    metrics = MetricCollection(
        {
            "mse": MeanSquaredError(sync_on_compute=all_processes),
            "psnr": PeakSignalNoiseRatio(data_range=2.0, sync_on_compute=all_processes),
            "ssim": StructuralSimilarityIndexMeasure(data_range=2.0, sync_on_compute=all_processes),
        },
        compute_groups=False,
    ).to(device)
    prepare = centre_crop(image_size)
    with evaluating(tokenizer):
        for batch in batches:
            pixels = prepare(batch.images.to(device), batch.positions.to(device))  # (b, C, S, S)
            decoded = tokenizer.decode_images(tokenizer.encode_images(pixels), image_size, image_size)
            metrics.update(decoded.clamp(-1, 1).contiguous(), pixels.contiguous())
    if metrics["mse"].update_count == 0 and not all_processes:  # there, other processes may have some
        raise ValueError("there are no images to reconstruct: the data set, or the split, is empty.")
    return {name: value.item() for name, value in metrics.compute().items()}
