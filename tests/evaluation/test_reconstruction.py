"""Reconstruction quality against its formulas, of every kind of tokenizer, alone and over processes."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from scipy.ndimage import gaussian_filter

from ldae import LDAEConfig, PatchPCA, fit_patch_pca
from ldae.data import Batch
from ldae.evaluation.reconstruction import reconstruction_quality
from ldae.models.tokenizer_ldae import build_tokenizer


SIDE = 16
TINY_VAE = {"block_out_channels": [8, 16], "layers_per_block": 1, "latent_channels": 2, "norm_num_groups": 4}
LATENT = {"input_space": "latent", "prediction_target": "noise", "loss_weighting": "uniform"}


def draw_batches(sizes: tuple[int, ...] = (5, 5, 3), side: int = SIDE) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(sum(sizes), 3, side // 4, side // 4, generator=generator)
    images = torch.nn.functional.interpolate(coarse, size=side, mode="bilinear")
    noisy = 2 * images - 0.5 + 0.2 * torch.rand(images.shape, generator=generator)  # some black, some white
    images = (255 * noisy.clamp(0, 1)).to(torch.uint8)
    parts = images.split(sizes)
    return [Batch(part, torch.arange(len(part)), None) for part in parts]


def pixels_of(batches: list[Batch]) -> torch.Tensor:
    return torch.cat([batch.images for batch in batches]) / 127.5 - 1


def make_pca(latent_dim: int = 6) -> PatchPCA:
    return fit_patch_pca(pixels_of(draw_batches()), patch_size=4, latent_dim=latent_dim)


def ssim(first: np.ndarray, second: np.ndarray) -> float:
    """Mean structural similarity of images (B, C, H, W) of range 2, by scipy's filter."""

    def blur(images: np.ndarray) -> np.ndarray:
        return gaussian_filter(images, sigma=(0, 0, 1.5, 1.5), mode="mirror", truncate=3.5)

    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    mean_1, mean_2 = blur(first), blur(second)
    variance_1, variance_2 = blur(first**2) - mean_1**2, blur(second**2) - mean_2**2
    covariance = blur(first * second) - mean_1 * mean_2
    top = (2 * mean_1 * mean_2 + c1) * (2 * covariance + c2)
    return float((top / ((mean_1**2 + mean_2**2 + c1) * (variance_1 + variance_2 + c2))).mean())


def test_the_numbers_are_those_of_their_formulas() -> None:
    pca, batches = make_pca(), draw_batches()
    pixels = pixels_of(batches)
    decoded = pca.decode_images(pca.encode_images(pixels), SIDE, SIDE)
    assert decoded.abs().max() > 1  # so that the clamp shows
    decoded = decoded.clamp(-1, 1)
    mse = (decoded - pixels).double().square().mean().item()
    found = reconstruction_quality(pca, batches, SIDE)
    assert found == {
        "mse": pytest.approx(mse, rel=1e-5),
        "psnr": pytest.approx(10 * math.log10(4 / mse), rel=1e-5),
        "ssim": pytest.approx(ssim(pixels.double().numpy(), decoded.double().numpy()), rel=1e-4),
    }
    assert 0.3 < found["ssim"] < 0.99


def test_the_batches_do_not_matter() -> None:
    pca = make_pca()
    whole, parts = draw_batches((13,)), draw_batches((1, 4, 8))
    assert reconstruction_quality(pca, parts, SIDE) == pytest.approx(
        reconstruction_quality(pca, whole, SIDE), rel=1e-5
    )


def test_a_perfect_tokenizer_has_no_error() -> None:
    class Identity(PatchPCA):
        def basis(self) -> torch.Tensor:
            return torch.eye(48)

    perfect = reconstruction_quality(Identity(4, 3, 48), draw_batches(), SIDE)
    assert perfect == {"mse": 0.0, "psnr": math.inf, "ssim": pytest.approx(1)}


@pytest.mark.parametrize("kind", ["pca", "ae", "pixel", "conv_vae"])
def test_every_tokenizer_is_measured(kind: str) -> None:
    extra = {"conv_vae": {"latent_dim": 8, "conv_vae_config": TINY_VAE}, "pixel": {"latent_dim": 12}}
    fields = {"image_size": SIDE, "patch_size": 4, "latent_dim": 8, **LATENT, **extra.get(kind, {})}
    tokenizer = build_tokenizer(LDAEConfig.from_size("nano", latent_tokenizer=kind, **fields)).train()
    found = reconstruction_quality(tokenizer, draw_batches(), SIDE, device="cpu")
    assert set(found) == {"mse", "psnr", "ssim"} and all(math.isfinite(value) for value in found.values())
    assert tokenizer.training


def test_larger_images_are_cropped_at_their_centre() -> None:
    pca, large = make_pca(), draw_batches(side=20)
    cropped = [Batch(batch.images[..., 2:-2, 2:-2], batch.positions, None) for batch in large]
    assert reconstruction_quality(pca, large, SIDE) == reconstruction_quality(pca, cropped, SIDE)


def test_nothing_to_measure_is_an_error() -> None:
    with pytest.raises(ValueError, match="there are no images to reconstruct"):
        reconstruction_quality(make_pca(), [], SIDE)
    with pytest.raises(ValueError, match="image_size=4 is too small for SSIM; give at least 6"):
        reconstruction_quality(make_pca(), draw_batches(side=4), 4)


def _one_process(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    shares = [draw_batches()[:2], draw_batches()[2:]]
    together = reconstruction_quality(make_pca(), shares[rank], SIDE, all_processes=True)
    alone = reconstruction_quality(make_pca(), shares[rank], SIDE)
    torch.save((together, alone), folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_processes_measure_their_shares_together_or_alone(tmp_path: Path) -> None:
    mp.start_processes(_one_process, args=(tmp_path,), nprocs=2, start_method="fork")
    expected = reconstruction_quality(make_pca(), draw_batches(), SIDE)
    shares = [draw_batches()[:2], draw_batches()[2:]]
    for rank in range(2):
        together, alone = torch.load(tmp_path / f"{rank}.pt")
        assert together == pytest.approx(expected, rel=1e-5)
        assert alone == pytest.approx(reconstruction_quality(make_pca(), shares[rank], SIDE), rel=1e-5)
