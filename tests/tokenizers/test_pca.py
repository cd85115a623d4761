"""Patch PCA: exact, in one pass over chunks and processes, and clear about input that it cannot be fitted on."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from ldae import LDAEConfig, LDAEForPreTraining, PatchMoments, fit_patch_pca, patchify
from ldae.tokenizers.pca import pca_from_moments
from tests.processes import run_on_two


def smooth_images(count: int, channels: int = 3, size: int = 16, seed: int = 0) -> torch.Tensor:
    """Images whose patches have a few strong directions and many weak ones, around a mean that is not zero."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, channels, size // 4, size // 4, generator=generator)
    fine = torch.randn(count, channels, size, size, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=size, mode="bilinear")
    return (0.4 * smooth + 0.05 * fine + 0.3).clamp(-1, 1)


def largest_angle(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest principal angle between the spans of the rows of two orthonormal (d, D), in radians."""
    a, b = a.double(), b.double()
    return torch.linalg.matrix_norm(b - (b @ a.T) @ a, ord=2).clamp(max=1).asin().item()


@pytest.mark.parametrize(("channels", "patch_size"), [(1, 4), (3, 4), (4, 4), (3, 2), (3, 8), (1, 16)])
def test_equals_exact_pca_and_scikit_learn(channels, patch_size):
    images = smooth_images(64 if patch_size < 16 else 400, channels)
    d = min(10, channels * patch_size**2)
    pca = fit_patch_pca(images.split(10), patch_size=patch_size, latent_dim=d, chunk_size=100)
    patches = patchify(images, patch_size).flatten(0, 1).double()

    peer = PCA(n_components=d, svd_solver="full").fit(patches.numpy())
    assert largest_angle(pca.components, torch.from_numpy(peer.components_)) < 1e-4
    np.testing.assert_allclose(pca.explained_variance.numpy(), peer.explained_variance_, rtol=1e-6)
    np.testing.assert_allclose(pca.mean.numpy(), peer.mean_, atol=1e-6)

    centred = patches - patches.mean(dim=0)
    _, singular, rows = torch.linalg.svd(centred, full_matrices=False)
    assert largest_angle(pca.components, rows[:d]) < 1e-4
    torch.testing.assert_close(
        pca.explained_variance.double(), singular[:d] ** 2 / (len(patches) - 1), rtol=1e-6, atol=0.0
    )
    # each row, not only the span, up to sign
    torch.testing.assert_close((pca.components.double() * rows[:d]).sum(dim=1).abs(), torch.ones(d).double())
    assert pca.fitted
    assert pca.components.dtype == pca.mean.dtype == pca.explained_variance.dtype == torch.float32


def test_rows_are_orthonormal_by_falling_variance_with_the_largest_entry_positive():
    pca = fit_patch_pca(smooth_images(64), patch_size=4, latent_dim=20)
    torch.testing.assert_close(pca.components @ pca.components.T, torch.eye(20), atol=1e-6, rtol=0)
    assert (pca.explained_variance.diff() <= 0).all()
    largest = pca.components.gather(1, pca.components.abs().argmax(dim=1, keepdim=True))
    assert (largest > 0).all()


def test_a_large_offset_does_not_cancel():
    patches = torch.randn(500, 12, dtype=torch.float64) * 1e-3 + 1e4
    moments = PatchMoments(12).update(patches, chunk_size=37)
    torch.testing.assert_close(moments.covariance, torch.cov(patches.T), rtol=1e-6, atol=1e-16)


def test_chunks_equal_one_pass():
    patches = patchify(smooth_images(40), 4).flatten(0, 1)
    one_pass, chunked = PatchMoments(48).update(patches), PatchMoments(48).update(patches, chunk_size=7)
    chunked.update(torch.zeros(0, 48)).all_reduce()  # neither changes anything: no patches, no process group
    assert chunked.count == one_pass.count == len(patches)
    torch.testing.assert_close(chunked.mean, one_pass.mean, rtol=0, atol=1e-14)
    torch.testing.assert_close(chunked.covariance, one_pass.covariance, rtol=0, atol=1e-14)


MERGE = """
import os, sys
import torch
import torch.distributed as dist
from ldae.tokenizers.pca import PatchMoments

folder, rank = sys.argv[1], int(os.environ["RANK"])
patches = torch.load(f"{folder}/patches.pt")
dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
for name, cut in (("unequal", 50), ("one has none", len(patches))):
    share = [patches[:cut], patches[cut:]][rank]
    moments = PatchMoments(48).update(share).all_reduce()
    torch.save((moments.count, moments.mean, moments.covariance), f"{folder}/{name} {rank}.moments")
dist.destroy_process_group()
"""


def test_processes_merge_to_one_pass(tmp_path):
    script = tmp_path / "merge.py"
    script.write_text(MERGE)
    torch.save(patchify(smooth_images(12), 4).flatten(0, 1), tmp_path / "patches.pt")
    run_on_two(script, tmp_path, folder=tmp_path)
    one_pass = PatchMoments(48).update(patchify(smooth_images(12), 4))
    files = sorted(tmp_path.glob("*.moments"))
    assert len(files) == 4
    for file in files:
        count, mean, covariance = torch.load(file)
        assert count == one_pass.count
        torch.testing.assert_close(mean, one_pass.mean, rtol=0, atol=1e-14)
        torch.testing.assert_close(covariance, one_pass.covariance, rtol=0, atol=1e-14)


def test_total_variance_gives_the_share_explained():
    images = smooth_images(64)
    moments = PatchMoments(48)
    pca = fit_patch_pca(images, patch_size=4, latent_dim=8, moments=moments)
    peer = PCA(n_components=8, svd_solver="full").fit(patchify(images, 4).flatten(0, 1).double().numpy())
    share = pca.explained_variance.sum().item() / moments.total_variance
    assert share == pytest.approx(peer.explained_variance_ratio_.sum(), rel=1e-6)


@pytest.mark.parametrize("latent_scaling", ["none", "global", "per_dim"])
def test_full_dimension_is_a_round_trip_at_every_scaling(latent_scaling):
    images = smooth_images(64)
    pca = fit_patch_pca(images, patch_size=4, latent_dim=48, latent_scaling=latent_scaling)
    patches = patchify(images, 4)  # (B, N, D)
    torch.testing.assert_close(pca.decode(pca.encode(patches)), patches, atol=1e-5, rtol=0)


def test_latents_have_the_spread_that_their_scaling_names():
    images = smooth_images(200)
    latents = {}
    for latent_scaling in ("none", "global", "per_dim"):
        pca = fit_patch_pca(images, patch_size=4, latent_dim=12, latent_scaling=latent_scaling)
        latents[latent_scaling] = pca.encode(patchify(images, 4)).flatten(0, 1)  # (n, d)
        assert latents[latent_scaling].mean(dim=0).abs().max() < 1e-4
    variances = {name: z.var(dim=0) for name, z in latents.items()}
    torch.testing.assert_close(variances["none"], pca.explained_variance, rtol=1e-4, atol=0)
    assert variances["global"].mean().item() == pytest.approx(1, rel=1e-4)
    torch.testing.assert_close(variances["per_dim"], torch.ones(12), rtol=1e-3, atol=0)
    ratio = latents["global"] / latents["none"]
    torch.testing.assert_close(ratio, ratio[0, 0].expand_as(ratio), rtol=1e-3, atol=0)  # one scalar


def test_a_fitted_pca_goes_into_a_model():
    config = LDAEConfig.from_size("nano", image_size=16, patch_size=4, latent_dim=8)
    model = LDAEForPreTraining(config)
    assert not model.ldae.tokenizer.fitted
    pca = fit_patch_pca(smooth_images(16), patch_size=4, latent_dim=8, latent_scaling="global")
    model.ldae.tokenizer.load_state_dict(pca.state_dict())
    assert model.ldae.tokenizer.fitted
    assert torch.equal(model.ldae.tokenizer.components, pca.components)


# Input that PCA cannot be fitted on, or only in part.


@pytest.mark.parametrize("value", [0.0, 0.3, -1.0])
def test_constant_images_are_refused(value):
    with pytest.raises(ValueError, match="all the same"):
        fit_patch_pca(torch.full((8, 3, 16, 16), value), patch_size=4, latent_dim=4)


def test_one_patch_is_refused():
    with pytest.raises(ValueError, match="the 1 patches"):
        fit_patch_pca(torch.rand(1, 3, 4, 4), patch_size=4, latent_dim=4)


def test_grey_images_in_three_channels():
    grey = smooth_images(64, channels=1).expand(-1, 3, -1, -1)
    with pytest.warns(UserWarning, match="latent_dim=20 exceeds the rank.*span 16 directions of 48.*latent_dim <= 16"):
        pca = fit_patch_pca(grey, patch_size=4, latent_dim=20)
    torch.testing.assert_close(pca.components @ pca.components.T, torch.eye(20), atol=1e-6, rtol=0)
    assert (pca.explained_variance[:16] > 0).all()
    assert (pca.explained_variance[16:] == 0).all()
    torch.testing.assert_close(pca.decode(pca.encode(patchify(grey, 4))), patchify(grey, 4), atol=1e-5, rtol=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit_patch_pca(grey, patch_size=4, latent_dim=16)


def test_fewer_patches_than_dimensions():
    few = torch.rand(9, 3, 4, 4)
    with pytest.warns(UserWarning, match="9 of them span 8 directions of 48.*latent_dim <= 8"):
        pca = fit_patch_pca(few, patch_size=4, latent_dim=12, latent_scaling="per_dim")
    torch.testing.assert_close(pca.components @ pca.components.T, torch.eye(12), atol=1e-6, rtol=0)
    assert (pca.explained_variance[8:] == 0).all()
    latents = pca.encode(patchify(few, 4))
    assert latents.isfinite().all()
    assert (latents[..., 8:] == 0).all()


def test_more_dimensions_than_a_patch_has_are_refused_before_anything_is_read():
    def endless():
        yield torch.rand(1, 3, 8, 8)
        raise AssertionError("read on")

    with pytest.raises(ValueError, match="latent_dim=49"):
        fit_patch_pca(endless(), patch_size=4, latent_dim=49)


@pytest.mark.parametrize("images", [[], torch.zeros(0, 3, 16, 16)])
def test_no_images_are_refused(images):
    with pytest.raises(ValueError, match="images is empty"):
        fit_patch_pca(images, patch_size=4, latent_dim=4)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused_and_leave_the_moments_alone(value):
    moments = PatchMoments(48).update(patchify(smooth_images(4), 4))
    before = moments.count, moments.mean.clone(), moments.covariance
    images = smooth_images(4, seed=1)
    images[2, 1, 5, 5] = value
    with pytest.raises(ValueError, match="NaN or infinite"):
        fit_patch_pca(images, patch_size=4, latent_dim=4, moments=moments)
    assert moments.count == before[0] and torch.equal(moments.mean, before[1])
    assert torch.equal(moments.covariance, before[2])


def test_other_shapes_and_types_are_refused():
    images = smooth_images(4)
    with pytest.raises(ValueError, match="1 channels where num_channels=3"):
        fit_patch_pca([images, images[:, :1]], patch_size=4, latent_dim=4)
    with pytest.raises(ValueError, match="3 channels where num_channels=1"):
        fit_patch_pca(images, patch_size=4, latent_dim=4, num_channels=1)
    with pytest.raises(ValueError, match="16x16; both must be multiples of patch_size=5"):
        fit_patch_pca(images, patch_size=5, latent_dim=4)
    with pytest.raises(ValueError, match=r"\(B, C, H, W\)"):
        fit_patch_pca(images[0], patch_size=4, latent_dim=4)
    with pytest.raises(ValueError, match=r"torch.uint8; scale pixels to \[-1, 1\]"):
        fit_patch_pca((images * 127 + 128).to(torch.uint8), patch_size=4, latent_dim=4)
    with pytest.raises(ValueError, match="D=48"):
        PatchMoments(48).update(torch.rand(3, 12))
    with pytest.raises(ValueError, match=r"patch_dim=12.*make 48"):
        pca_from_moments(PatchMoments(12), patch_size=4, num_channels=3, latent_dim=4)


def test_batches_of_other_sizes_and_half_precision_are_taken():
    batches = [smooth_images(8), smooth_images(3, size=32, seed=1), smooth_images(8, seed=2)]
    pca = fit_patch_pca(batches, patch_size=4, latent_dim=6)
    patches = torch.cat([patchify(batch, 4).flatten(0, 1) for batch in batches]).double()
    torch.testing.assert_close(
        pca.explained_variance.double(), torch.linalg.eigvalsh(torch.cov(patches.T)).flip(0)[:6], rtol=1e-6, atol=0
    )
    half = fit_patch_pca([batch.bfloat16() for batch in batches], patch_size=4, latent_dim=6)
    torch.testing.assert_close(half.explained_variance, pca.explained_variance, rtol=2e-2, atol=0)
