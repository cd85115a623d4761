"""Distances between two sets of images: FID and KID, streamed, over any number of processes."""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import gather, pad_across_processes
from torch import nn
from torchmetrics import Metric
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from ldae.data import Batch
from ldae.processes import join_processes

from .extractor import FeatureExtractor


KID_SUBSETS = 100
KID_SUBSET_SIZE = 1000


@dataclass(frozen=True)
class ImageDistances:
    """FID and KID from [`image_distances`], and the numbers of images that they compare.

    `fid` and `kid` are `None` unless they were asked for; `kid` is the mean and `kid_std` the standard deviation over
    random subsets of `kid_subset_size` images.
    """

    num_generated: int
    num_reference: int
    fid: float | None = None
    kid: float | None = None
    kid_std: float | None = None
    kid_subset_size: int | None = None


@dataclass(frozen=True)
class ReferenceFeatures:
    """Statistics of reference images for FID and KID, read once for many comparisons; see [`read_reference`]."""

    metric: Metric  # FrechetInceptionDistance with this process's sums
    kept: tuple[torch.Tensor, torch.Tensor] | None  # its features (n, F) and their positions (n,), if KID needs them
    count: int  # images of all processes


def read_reference(batches: Iterable[Batch], extractor: FeatureExtractor, *, kid: bool = True) -> ReferenceFeatures:
    """Read reference images for [`image_distances`].

    Args:
        batches (`Iterable[Batch]`): uint8 images, this process's share.
        extractor ([`FeatureExtractor`]): The network whose features are compared.
        kid (`bool`, defaults to `True`): Whether KID will be measured, which needs the features themselves.

    Raises:
        ValueError: If there are fewer than two images.
    """
    join_processes()  # `gather` needs the process group
    # torchmetrics' sums are in float64, which Apple's GPUs do not have, and NCCL reduces on the GPU alone.
    device = extractor.device if extractor.device.type == "cuda" else torch.device("cpu")
    metric = FrechetInceptionDistance(feature=_identity(extractor.num_features)).to(device)
    kept, count = _read(batches, extractor, metric, "reference", kid)
    return ReferenceFeatures(metric, kept if kid else None, count)


def image_distances(
    generated: Iterable[Batch],
    reference: Iterable[Batch] | ReferenceFeatures,
    extractor: FeatureExtractor,
    *,
    fid: bool = True,
    kid: bool = True,
) -> ImageDistances:
    """Measure FID and KID of generated images against reference ones, by torchmetrics.

    FID is that of Heusel et al. 2017 (arXiv 1706.08500), KID that of Binkowski et al. 2018 (arXiv 1801.01401). In a
    job of several processes, each calls this with its share of both sets, and all get the same scores. Images are read
    once and not kept: FID keeps sums, KID the features.

    Args:
        generated (`Iterable[Batch]`): uint8 images; positions number them over all processes.
        reference (`Iterable[Batch]` or [`ReferenceFeatures`]): Reference images, or the result of [`read_reference`]
            if several sets are compared with them.
        extractor ([`FeatureExtractor`]): The network whose features are compared. FID is only comparable at the same
            extractor and number of images; with fewer than F images its covariance is singular, and the value far from
            that of many images.
        fid (`bool`, defaults to `True`): Whether to measure FID.
        kid (`bool`, defaults to `True`): Whether to measure KID.

    Returns:
        [`ImageDistances`].

    Raises:
        ValueError: If there are fewer than two images of either kind.
    """
    if not isinstance(reference, ReferenceFeatures):
        reference = read_reference(reference, extractor, kid=kid)
    if kid and reference.kept is None:
        raise ValueError("the reference was read with kid=False, which keeps no features; read it with kid=True.")
    metric = reference.metric.clone()
    kept, count = _read(generated, extractor, metric, "generated", kid)
    measured: dict[str, Any] = {}
    if fid:
        measured["fid"] = metric.compute().item()
    if kid and reference.kept is not None:
        mean, std, size = kernel_distance(_in_order(*reference.kept), _in_order(*kept))
        measured |= {"kid": mean, "kid_std": std, "kid_subset_size": size}
    return ImageDistances(count, reference.count, **measured)


def kernel_distance(
    reference: torch.Tensor, generated: torch.Tensor, subsets: int = KID_SUBSETS, subset_size: int = KID_SUBSET_SIZE
) -> tuple[float, float, int]:
    """Compute KID: the mean over random subsets of the unbiased squared MMD with the kernel (x.y / F + 1)^3.

    Args:
        reference (`torch.Tensor` of shape `(n, F)`): Features of the reference images.
        generated (`torch.Tensor` of shape `(n, F)`): Features of the generated images.
        subsets (`int`, defaults to 100): Number of random subsets, the same for the same numbers of images.
        subset_size (`int`, defaults to 1000): Images of each kind in a subset; fewer if one kind has fewer.

    Returns:
        Mean and standard deviation over subsets, and the size of the subsets.
    """
    subset_size = min(subset_size, len(reference), len(generated))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Metric `Kernel Inception Distance` will save all")
        metric = KernelInceptionDistance(
            feature=_identity(reference.shape[1]),
            subsets=subsets,
            subset_size=subset_size,
            sync_on_compute=False,  # the features of all processes are here already
        )
    metric.update(reference.double(), real=True)
    metric.update(generated.double(), real=False)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # draws the subsets
        mean, std = metric.compute()
    return mean.item(), std.item(), subset_size


def _identity(num_features: int) -> nn.Module:
    """Stand in for torchmetrics' network: its metrics receive features, which are computed once for all of them."""
    module: Any = nn.Identity()
    module.num_features = num_features
    return module


def _read(
    batches: Iterable[Batch], extractor: FeatureExtractor, metric: Metric, kind: str, keep: bool
) -> tuple[tuple[torch.Tensor, torch.Tensor], int]:
    """Add features to the metric's sums; return those to keep with their positions, and the number of images."""
    device = metric.device
    features = [torch.zeros(0, extractor.num_features, device=device)]
    positions = [torch.zeros(0, dtype=torch.int64, device=device)]
    count = torch.zeros(1, dtype=torch.int64, device=device)
    metric.update(features[0].double(), real=kind == "reference")  # also where this process has no share
    for batch in batches:
        extracted = extractor(batch.images).to(device)  # (b, F)
        metric.update(extracted.double(), real=kind == "reference")
        count += len(extracted)
        if keep:
            features.append(extracted)
            positions.append(batch.positions.to(device))
    total = int(gather(count).sum())
    if total < 2:
        raise ValueError(f"there is {total} {kind} image; FID and KID need 2 or more.")
    return (torch.cat(features), torch.cat(positions)), total


def _in_order(features: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Gather the features `(n, F)` of all processes in the order of their images."""
    features = gather(pad_across_processes(features))
    positions = gather(pad_across_processes(positions, pad_index=-1))
    order = positions.argsort(stable=True)
    return features[order][positions[order] >= 0]
