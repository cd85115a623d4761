"""Patch-wise PCA (Sec. 4.2) of any number of images: second moments in one pass, then one eigendecomposition."""

import warnings
from collections.abc import Iterable

import torch
import torch.distributed as dist

from ldae.models.tokenizer_ldae import PatchPCA, patchify


class PatchMoments:
    """Count, mean and scatter matrix of patches in float64: all that PCA needs.

    Each chunk of patches is centred on its own mean before it is squared, so nothing cancels. Memory is D x D and one
    chunk, whatever the number of patches.

    Args:
        patch_dim (`int`): D = C * P * P, the number of values in a patch.

    Attributes:
        count (`int`): Patches seen.
        mean (`torch.DoubleTensor` of shape `(D,)`): Mean of the patches.

    Example:
    ```python
    >>> import torch
    >>> from ldae import PatchMoments
    >>> patches = torch.rand(80, 12)
    >>> once, twice = PatchMoments(12).update(patches), PatchMoments(12).update(patches[:50]).update(patches[50:])
    >>> twice.count, torch.allclose(twice.covariance, once.covariance)
    (80, True)

    ```
    """

    def __init__(self, patch_dim: int):
        if patch_dim < 1:
            raise ValueError(f"patch_dim={patch_dim} must be 1 or more.")
        self.patch_dim = patch_dim
        self.count = 0
        self.mean = torch.zeros(patch_dim, dtype=torch.float64)
        self._scatter = torch.zeros(patch_dim, patch_dim, dtype=torch.float64)  # only its upper triangle is kept

    def update(self, patches: torch.Tensor, chunk_size: int = 2048) -> "PatchMoments":
        """Add patches, and return the object itself.

        Args:
            patches (`torch.FloatTensor` of shape `(..., D)`): Patches from [`patchify`], of any floating type. The
                moments move to their device (but stay on the CPU for a device without float64).
            chunk_size (`int`, defaults to 2048): Patches converted to float64 at a time.

        Raises:
            ValueError: If the patches have another size, are integers, or are not finite. Chunks before the one that
                is not finite have been added.
        """
        if patches.ndim < 1 or patches.shape[-1] != self.patch_dim:
            raise ValueError(f"patches has shape {tuple(patches.shape)}; the last size must be D={self.patch_dim}.")
        if not patches.is_floating_point():
            raise ValueError(f"patches is {patches.dtype}; scale pixels to [-1, 1] in a floating type first.")
        self._move_to(patches.device)
        for chunk in patches.reshape(-1, self.patch_dim).split(chunk_size):
            n = chunk.shape[0]
            if n == 0:  # an empty tensor is one empty chunk
                continue
            rows = torch.empty(n + 1, self.patch_dim, dtype=torch.float64, device=self.mean.device)
            rows[:n] = chunk
            mean = rows[:n].T @ rows.new_full((n,), 1 / n)  # (D,), in less time than mean(dim=0)
            if not mean.isfinite().all():
                raise ValueError("patches contains values that are NaN or infinite; find the image and leave it out.")
            rows[:n] -= mean
            shift, total = mean - self.mean, self.count + n
            # Chan, Golub, LeVeque 1983: the square of this row is the update for the shift of the mean.
            rows[n] = (self.count * n / total) ** 0.5 * shift
            self._add_gram(rows)
            self.mean = self.mean + (n / total) * shift
            self.count = total
        return self

    def all_reduce(self) -> "PatchMoments":
        """Merge the moments of all processes of `torch.distributed`'s default group, in place.

        Call it once in every process, after the last update. Without a process group it does nothing.
        """
        if not (dist.is_available() and dist.is_initialized()):
            return self
        if dist.get_backend() == "nccl":
            self._move_to(torch.device("cuda", torch.cuda.current_device()))
        sums = torch.cat([self.mean * self.count, self.mean.new_tensor([self.count])])  # counts stay exact to 2^53
        dist.all_reduce(sums)
        total = int(sums[-1].item())
        if total == 0:
            return self
        mean = sums[:-1] / total
        if self.count:  # scatters about the common mean can be summed
            self._add_gram((self.count**0.5 * (self.mean - mean))[None])
        dist.all_reduce(self._scatter)
        self.count, self.mean = total, mean
        return self

    @property
    def covariance(self) -> torch.Tensor:
        """Covariance `(D, D)` in float64, with n - 1 in the denominator, as in scikit-learn."""
        if self.count < 2:
            raise ValueError(f"count={self.count} patches have no covariance; give at least 2.")
        upper = self._scatter.triu()
        return (upper + upper.triu(1).T) / (self.count - 1)

    @property
    def total_variance(self) -> float:
        """Trace of the covariance; a PCA explains `pca.explained_variance.sum() / total_variance` of it."""
        if self.count < 2:
            raise ValueError(f"count={self.count} patches have no variance; give at least 2.")
        return self._scatter.diagonal().sum().item() / (self.count - 1)

    def _add_gram(self, rows: torch.Tensor) -> None:
        """Add rows^T rows to the upper triangle, in four stripes: five eighths of the work of the whole product."""
        width = max(64, -(-self.patch_dim // 4))
        for i in range(0, self.patch_dim, width):
            self._scatter[i : i + width, i:].addmm_(rows[:, i : i + width].T, rows[:, i:])

    def _move_to(self, device: torch.device) -> None:
        if device.type != "mps":  # which has no float64
            self.mean, self._scatter = self.mean.to(device), self._scatter.to(device)


def fit_patch_pca(
    images: torch.Tensor | Iterable[torch.Tensor],
    *,
    patch_size: int,
    latent_dim: int,
    latent_scaling: str = "none",
    num_channels: int | None = None,
    moments: PatchMoments | None = None,
    chunk_size: int = 2048,
) -> PatchPCA:
    """Fit the patch-wise PCA of images in one pass (Sec. 4.2).

    Args:
        images (`torch.FloatTensor` of shape `(B, C, H, W)`, or an iterable of such batches): Pixels in [-1, 1].
            Batches may differ in B, H and W; H and W are multiples of `patch_size`.
        patch_size (`int`): P, in pixels.
        latent_dim (`int`): d, at most C * P * P.
        latent_scaling (`str`, defaults to `"none"`): As in [`PatchPCA`].
        num_channels (`int`, *optional*): C; by default that of the first batch.
        moments ([`PatchMoments`], *optional*): Moments to add to, which may already hold patches and afterwards give
            the total variance.
        chunk_size (`int`, defaults to 2048): Patches processed at a time.

    Returns:
        [`PatchPCA`] with `fitted` set; see [`pca_from_moments`].

    Raises:
        ValueError: If there are no images, or they have other channels, sizes that are not multiples of the patch,
            integer or non-finite pixels, or no variance; or if `latent_dim` exceeds the size of a patch.

    Example:
    ```python
    >>> import torch
    >>> from ldae import PatchMoments, fit_patch_pca
    >>> moments = PatchMoments(3 * 4 * 4)
    >>> batches = (torch.rand(8, 3, 16, 16) * 2 - 1 for _ in range(4))
    >>> pca = fit_patch_pca(batches, patch_size=4, latent_dim=48, moments=moments)
    >>> moments.count, bool(pca.fitted)
    (512, True)
    >>> share = pca.explained_variance.sum().item() / moments.total_variance
    >>> round(share, 4)
    1.0

    ```
    """
    for batch in [images] if isinstance(images, torch.Tensor) else images:
        if batch.ndim != 4:
            raise ValueError(f"images has shape {tuple(batch.shape)}; give batches of shape (B, C, H, W).")
        channels, height, width = batch.shape[1:]
        num_channels = num_channels or channels
        if channels != num_channels:
            raise ValueError(
                f"images has {channels} channels where num_channels={num_channels}; convert them all to one mode."
            )
        if height % patch_size or width % patch_size:
            raise ValueError(f"images is {height}x{width}; both must be multiples of patch_size={patch_size}.")
        if moments is None:
            PatchPCA(patch_size, channels, latent_dim, latent_scaling)  # refuses a latent_dim that is too large
            moments = PatchMoments(channels * patch_size**2)
        patches_each = (height // patch_size) * (width // patch_size)
        for part in batch.split(max(1, chunk_size // max(1, patches_each))):
            moments.update(patchify(part, patch_size), chunk_size)
    if moments is None or moments.count == 0:
        raise ValueError("images is empty; give at least one image that varies.")
    shape = {"patch_size": patch_size, "num_channels": num_channels or moments.patch_dim // patch_size**2}
    return pca_from_moments(moments, **shape, latent_dim=latent_dim, latent_scaling=latent_scaling)


def pca_from_moments(
    moments: PatchMoments, *, patch_size: int, num_channels: int, latent_dim: int, latent_scaling: str = "none"
) -> PatchPCA:
    """Compute the PCA of the patches that went into the moments, by an eigendecomposition in float64, on the CPU.

    The entry of largest magnitude of each component is positive. Variances have n - 1 in the denominator. Where the
    patches span fewer than `latent_dim` directions (grey images in three channels span at most P * P, n patches n -
    1), the other components are arbitrary orthonormal rows with zero variance, and a warning says so.

    Args:
        moments ([`PatchMoments`]): Moments of all processes.
        patch_size (`int`): P, in pixels.
        num_channels (`int`): C.
        latent_dim (`int`): d, at most C * P * P.
        latent_scaling (`str`, defaults to `"none"`): As in [`PatchPCA`].

    Raises:
        ValueError: If the moments are of another patch size or without variance, or `latent_dim` exceeds the size of a
            patch.
    """
    pca = PatchPCA(patch_size, num_channels, latent_dim, latent_scaling)
    if moments.patch_dim != pca.mean.numel():
        raise ValueError(
            f"moments has patch_dim={moments.patch_dim}; patch_size={patch_size} and num_channels={num_channels} "
            f"make {pca.mean.numel()}."
        )
    # A float32 pixel is off by up to 2^-24 of its size: less variation than that is none.
    mean_square = moments.mean.square().mean().item()
    if moments.count < 2 or moments.total_variance <= moments.patch_dim * 2.0**-46 * mean_square:
        raise ValueError(
            f"the {moments.count} patches of the images are all the same, and PCA needs images that vary. Check that "
            "they are decoded and not cropped to a plain border."
        )
    variances, vectors = torch.linalg.eigh(moments.covariance.cpu())  # rising, (D,) and columns of (D, D)
    variances, components = variances.flip(0), vectors.flip(1).T
    rank = int((variances > moments.patch_dim * torch.finfo(torch.float64).eps * variances[0]).sum())
    if latent_dim > rank:
        warnings.warn(
            f"latent_dim={latent_dim} exceeds the rank of the patches: {moments.count} of them span {rank} directions "
            f"of {moments.patch_dim}. The other {latent_dim - rank} components have no variance; choose latent_dim <= "
            f"{rank}, or give more varied images.",
            stacklevel=2,
        )
    components = components[:latent_dim]
    largest = components.gather(1, components.abs().argmax(dim=1, keepdim=True))  # (d, 1)
    state = {
        "mean": moments.mean,
        "components": components * largest.sign(),
        "explained_variance": torch.where(torch.arange(latent_dim) < rank, variances[:latent_dim], 0.0),
        "fitted": torch.tensor(True),
    }
    pca.load_state_dict(state)  # copies into float32
    return pca
