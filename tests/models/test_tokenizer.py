"""Patches in a convolution's order, the unfitted basis, and buffers that keep their precision."""

import pytest
import torch
from torch.nn import functional as F

from ldae import LDAEConfig, LDAEForPreTraining, PatchPCA, patchify, unpatchify
from ldae.models.tokenizer_ldae import cosine_basis


BUFFERS = ("mean", "components", "explained_variance")


@pytest.mark.parametrize(
    ("channels", "height", "width", "patch_size"), [(3, 8, 8, 4), (1, 4, 12, 2), (4, 9, 6, 3), (2, 5, 5, 5)]
)
def test_patchify_has_the_order_of_a_convolution(channels, height, width, patch_size):
    pixel_values = torch.randn(2, channels, height, width)
    patches = patchify(pixel_values, patch_size)  # (B, N, D)
    assert torch.equal(patches, F.unfold(pixel_values, patch_size, stride=patch_size).transpose(1, 2))
    weight = torch.randn(5, channels, patch_size, patch_size)
    convolved = F.conv2d(pixel_values, weight, stride=patch_size).flatten(2).transpose(1, 2)  # (B, N, 5)
    torch.testing.assert_close(patches @ weight.flatten(1).T, convolved, atol=1e-4, rtol=1e-4)
    assert torch.equal(unpatchify(patches, patch_size, height, width), pixel_values)


@pytest.mark.parametrize(("patch_size", "channels"), [(4, 3), (4, 1), (2, 4), (16, 3), (1, 3)])
def test_cosine_basis_is_orthonormal_and_begins_with_grey(patch_size, channels):
    patch_dim = channels * patch_size**2
    basis = cosine_basis(patch_size, channels, patch_dim)
    torch.testing.assert_close(basis @ basis.T, torch.eye(patch_dim), atol=1e-5, rtol=0)
    torch.testing.assert_close(basis[0].abs(), torch.full((patch_dim,), patch_dim**-0.5))
    few = cosine_basis(patch_size, channels, 1 + patch_dim // 3)
    torch.testing.assert_close(few, basis[: len(few)])


def test_an_unfitted_pca_says_so_and_is_usable():
    pca = PatchPCA(4, 3, 48)
    assert not pca.fitted
    assert pca.fitted.dtype == torch.bool
    patches = torch.randn(2, 5, 48)
    latents = pca.encode(patches)
    assert latents.shape == (2, 5, 48)
    torch.testing.assert_close(pca.decode(latents), patches, atol=1e-5, rtol=0)
    torch.testing.assert_close(pca.project(patches), latents)  # zero mean, unit scale
    assert set(pca.state_dict()) == {"mean", "components", "explained_variance", "fitted"}


def test_projection_is_what_encode_and_decode_do_to_a_difference():
    pca = PatchPCA(4, 3, 10)
    pca.mean.normal_()
    patches = torch.randn(7, 48)
    torch.testing.assert_close(pca.project(patches - pca.mean), pca.encode(patches))
    twice = pca.decode(pca.encode(pca.decode(pca.encode(patches))))
    torch.testing.assert_close(twice, pca.decode(pca.encode(patches)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("dim", [0, -1, 49])
def test_a_latent_that_no_patch_has_is_refused(dim):
    with pytest.raises(ValueError, match=f"latent_dim={dim} is invalid; a patch has 48 values"):
        PatchPCA(4, 3, dim)


@pytest.mark.parametrize("narrow", [torch.bfloat16, torch.float16])
def test_buffers_keep_float32_in_a_narrow_model_and_widen_in_a_double_one(narrow):
    pca = PatchPCA(4, 3, 8)
    before = {name: getattr(pca, name).clone() for name in BUFFERS}
    pca.to(narrow)
    for name in BUFFERS:
        assert getattr(pca, name).dtype == torch.float32
        assert torch.equal(getattr(pca, name), before[name])
    assert pca.fitted.dtype == torch.bool
    assert pca.encode(torch.zeros(2, 48, dtype=narrow)).dtype == torch.float32
    pca.double()
    assert all(getattr(pca, name).dtype == torch.float64 for name in BUFFERS)


def test_a_narrow_model_keeps_its_tokenizer_in_float32():
    config = LDAEConfig.from_size("nano", image_size=16, patch_size=4, latent_dim=8)
    model = LDAEForPreTraining(config).to(torch.bfloat16)
    tokenizer = model.ldae.tokenizer
    assert all(getattr(tokenizer, name).dtype == torch.float32 for name in BUFFERS)
    assert model.ldae.corruption.sigmas.dtype == torch.float32
    assert model.head.projection.weight.dtype == torch.bfloat16


def test_moving_devices_moves_the_buffers_too():
    pca = PatchPCA(4, 3, 8).to("meta")
    assert pca.components.device.type == "meta"
