"""Alignment and uniformity (Wang & Isola 2020, arXiv 2005.10242) of features, by block and noise level."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.nn import functional as F

from ldae.shared_work import on_main

from .encoder import Encoder, Layer, as_encoder
from .features import extract_features
from .images import ImageSet


@dataclass(frozen=True)
class SphereScore:
    """Alignment and uniformity of n images at one block and one time step; lower is better for both."""

    layer: Layer
    timestep: int
    alignment: float
    uniformity: float
    n: int


def alignment(x: torch.Tensor, y: torch.Tensor) -> float:
    """Compute the mean of ||f(x) - f(y)||^2 over positive pairs, with f on the unit sphere.

    Args:
        x (`torch.Tensor` of shape `(n, C)`): Features of one view of the images, here a noising.
        y (`torch.Tensor` of shape `(n, C)`): Features of another view of the same images.

    Returns:
        `float`, from 0 (the same directions) to 4 (opposite ones); unrelated features have 2.

    Raises:
        ValueError: If the shapes differ, or there are no pairs.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> alignment(x, 3 * x), alignment(x, x.flip(1))
        (0.0, 2.0)
    """
    if x.ndim != 2 or x.shape != y.shape or not len(x):
        raise ValueError(f"x and y must be (n, C), both the same, with n of 1 or more; got {x.shape} and {y.shape}.")
    difference = F.normalize(x.float(), dim=1) - F.normalize(y.float(), dim=1)
    return difference.square().sum(dim=1).double().mean().item()


def uniformity(x: torch.Tensor, chunk_size: int = 2048) -> float:
    """Compute the log of the mean of exp(-2 ||f(x) - f(y)||^2) over all pairs of different images.

    f lies on the unit sphere. The result is exact: every pair of the n images counts once, not only those within a
    batch.

    Args:
        x (`torch.Tensor` of shape `(n, C)`): Features, one row an image.
        chunk_size (`int`, defaults to 2048): Distances are computed `chunk_size` x `chunk_size` at a time.

    Returns:
        `float`, from -8 to 0: 0 where all features have one direction, towards -4 where they are spread evenly over
        a sphere of many dimensions.

    Raises:
        ValueError: If there are fewer than two images, or `chunk_size` is less than 1.

    Example:
        >>> round(uniformity(torch.eye(64)), 4)
        -4.0
    """
    n = len(x)
    if x.ndim != 2 or n < 2:
        raise ValueError(f"x must be (n, C) with n of 2 or more, for there to be pairs; got {tuple(x.shape)}.")
    if chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size} must be 1 or more.")
    chunks = F.normalize(x.float(), dim=1).split(chunk_size)
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    for index, rows in enumerate(chunks):
        for other, columns in enumerate(chunks[index:]):
            # On the sphere ||a - b||^2 = 2 - 2 a.b, which rounding must not make negative.
            potential = (4 * (rows @ columns.T) - 4).clamp(max=0).exp()  # (b, b')
            total += (potential.triu(1) if other == 0 else potential).sum(dtype=torch.float64)
    return math.log(total.item() / (n * (n - 1) / 2))


def default_timesteps(encoder: Encoder) -> tuple[int, ...]:
    """Return the default time steps of alignment and uniformity: the model's own, and 5 to 80 % of the schedule.

    Example:
        >>> from ldae import LDAEConfig, LDAEModel
        >>> from ldae.evaluation.encoder import as_encoder
        >>> config = LDAEConfig.from_size("nano", image_size=16, patch_size=4, latent_dim=8)
        >>> default_timesteps(as_encoder(LDAEModel(config)))
        (10, 50, 100, 200, 400, 800)
    """
    steps = {int(share * encoder.num_train_timesteps) for share in (0.05, 0.1, 0.2, 0.4, 0.8)}
    return tuple(sorted(steps | {encoder.default_timestep or 0}))


def measure_alignment(
    model: Any,
    images: ImageSet,
    *,
    layers: Sequence[Layer],
    timesteps: Sequence[int],
    seeds: tuple[int, int] = (0, 1),
    centred: bool = False,
    chunk_size: int = 2048,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> list[SphereScore]:
    """Measure alignment and uniformity of a model's pooled features at several blocks and time steps.

    The two views of an image are two noisings of it at t; uniformity is measured on the first view. Time steps are
    measured one after the other, so that 2 x n x L x C features are held at a time.

    Args:
        model (`PreTrainedModel`): An l-DAE or a DDAE, also one for pre-training.
        images ([`~ldae.evaluation.images.ImageSet`]): Read twice for each time step; labels are not used.
        layers (`Sequence[int]` or `Sequence[str]`): Blocks, counted from 1, or a DDAE's taps by name.
        timesteps (`Sequence[int]`): Time steps.
        seeds (`tuple[int, int]`, defaults to `(0, 1)`): Seeds of the two views' noise.
        centred (`bool`, defaults to `False`): Whether to subtract the mean feature of the first view first, as a
            probe's BatchNorm does; neither paper does. Without it, a mean that all features share narrows both
            measures.
        chunk_size (`int`, defaults to 2048): See [`uniformity`].
        device (`torch.device` or `str`, *optional*): Where to compute; by default where the model is.
        dtype (`torch.dtype`, *optional*): Autocast dtype for the features; by default no autocast.

    Returns:
        `list[SphereScore]`: block by block, and for each of them time step by time step.

    Raises:
        ValueError: If the seeds are equal, a block or time step does not exist, or there are too few images.
    """
    if seeds[0] == seeds[1]:
        raise ValueError(f"seeds={seeds} must be two different numbers, for two noisings of an image.")
    encoder = as_encoder(model)
    device = torch.device(device) if device is not None else encoder.device

    def score(t: int, first: torch.Tensor, second: torch.Tensor) -> list[SphereScore]:
        if len(first) < 2:
            raise ValueError(
                f"{images.source.description} has {len(first)} image, and uniformity needs pairs; name another split "
                "(eval_split)."
            )
        scores = []
        for index, layer in enumerate(layers):
            x, y = first[:, index].to(device), second[:, index].to(device)
            if centred:
                shared = x.mean(dim=0)
                x, y = x - shared, y - shared
            scores.append(SphereScore(layer, t, alignment(x, y), uniformity(x, chunk_size), len(x)))
        return scores

    found = []
    reading: dict[str, Any] = {"layers": layers, "noisy": True, "device": device, "dtype": dtype}
    for t in timesteps:
        first, second = (
            extract_features(encoder, images.batches(), timesteps=[t], seed=seed, **reading).flat for seed in seeds
        )  # (n, L, C) each
        found.append(on_main(partial(score, t, first, second)))
    return on_main(lambda: [at_t for of_layer in zip(*found, strict=True) for at_t in of_layer])
