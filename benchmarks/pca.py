"""Compare patch PCA with scikit-learn's IncrementalPCA: speed, memory over the number of patches, and exactness.

38,400 patches of D = 768 to d = 32. Target: at least 10x, and an angle to exact float64 PCA below 1e-4. Then our time
and memory are measured with up to 500,000 streamed patches.

    python benchmarks/pca.py [--pairs 7]
"""

import argparse
import re
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from harness import compare

from ldae import fit_patch_pca, patchify


PATCH_SIZE, IMAGE_SIZE, LATENT_DIM = 16, 256, 32
PATCHES_EACH = (IMAGE_SIZE // PATCH_SIZE) ** 2  # 256


def image_batches(patches: int, batch: int = 10) -> Iterator[torch.Tensor]:
    """Yield batches of random images (10, 3, 256, 256). As in natural images, coarse structure is stronger than
    fine, grey than colour, and the two axes differ, so that no two directions have the same variance.
    """
    for index, start in enumerate(range(0, patches // PATCHES_EACH, batch)):
        generator = torch.Generator().manual_seed(index)
        count = min(batch, patches // PATCHES_EACH - start)
        images = torch.zeros(count, 3, IMAGE_SIZE, IMAGE_SIZE)
        for side, strength in ((8, 0.25), (32, 0.12), (128, 0.06), (256, 0.03)):
            for channels, share in ((slice(0, 3), 1.0), (slice(0, 1), 0.5), (slice(2, 3), 0.3)):
                octave = torch.randn(count, 1, side, side * 3 // 4, generator=generator) * strength * share
                images[:, channels] += torch.nn.functional.interpolate(octave, size=IMAGE_SIZE, mode="bilinear")
        yield images.clamp(-1, 1)


def exact_components(patches: torch.Tensor) -> torch.Tensor:
    """Compute the leading right singular vectors (d, D) of the centred patches at once, in float64."""
    centred = patches.double()
    centred -= centred.mean(dim=0)
    return torch.linalg.svd(centred, full_matrices=False)[2][:LATENT_DIM]


def largest_angle(components: torch.Tensor, exact: torch.Tensor) -> float:
    """Compute the largest principal angle between two spans of orthonormal rows, in radians."""
    a = torch.linalg.qr(components.double().T)[0].T  # restores the orthonormality that float32 rounding lost
    return torch.linalg.matrix_norm(exact - (exact @ a.T) @ a, ord=2).clamp(max=1).asin().item()


def against_scikit_learn(pairs: int) -> None:
    from sklearn.decomposition import IncrementalPCA

    images = torch.cat(list(image_batches(38_400)))  # (150, 3, 256, 256)
    patches = patchify(images, PATCH_SIZE).flatten(0, 1)  # (38400, 768)
    rows = patches.numpy()

    def ours() -> torch.Tensor:
        return fit_patch_pca(images, patch_size=PATCH_SIZE, latent_dim=LATENT_DIM).components

    def peer() -> torch.Tensor:
        return torch.from_numpy(IncrementalPCA(n_components=LATENT_DIM).fit(rows).components_)

    exact = exact_components(patches)
    print(
        f"largest angle to exact float64 PCA: ours {largest_angle(ours(), exact):.1e} rad (target under 1e-4), ",
        end="",
    )
    print(f"IncrementalPCA {largest_angle(peer(), exact):.1e} rad", flush=True)
    compare("PCA fit, 38,400 patches, D 768 -> 32, vs IncrementalPCA", ours, peer, pairs=pairs, target=10.0)


def stream(patches: int) -> None:
    """Fit once in this process, and return the time without the generation of images, and the memory."""
    making = 0.0

    def timed() -> Iterator[torch.Tensor]:
        nonlocal making
        batches = image_batches(patches)
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            making += time.perf_counter() - start
            if batch is None:
                return
            yield batch

    before = peak_mib()
    start = time.perf_counter()
    fit_patch_pca(timed(), patch_size=PATCH_SIZE, latent_dim=LATENT_DIM)
    seconds = time.perf_counter() - start - making
    print(
        f"streamed {patches:,} patches: {seconds:.2f} s in the fit ({patches / seconds:,.0f} patches/s), "
        f"peak memory of the process {peak_mib():.0f} MiB, {peak_mib() - before:.0f} over the imports"
    )


def peak_mib() -> float:
    """Return the highest resident memory of this process; ru_maxrss starts at the parent's on Linux, so avoid it."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=7, help="timed pairs; 0 leaves the comparison out")
    parser.add_argument("--stream", type=int, metavar="PATCHES", help="only fit this many in this process")
    arguments = parser.parse_args()
    if arguments.stream:
        stream(arguments.stream)
        return
    if arguments.pairs:
        against_scikit_learn(arguments.pairs)
    for patches in (20_480, 99_840, 500_480):  # multiples of an image's 256; one process each, for its own peak memory
        subprocess.run([sys.executable, __file__, "--stream", str(patches)], check=True)


if __name__ == "__main__":
    main()
