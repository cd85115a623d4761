"""The patch-wise AE and VAE reach what theory says: PCA's subspace, and probabilistic PCA's active dimensions."""

import math

import pytest
import torch
from torch.nn import functional as F

from ldae import PatchPCA, fit_patch_pca, patchify
from ldae.models.tokenizer_ldae import PatchAutoencoder
from ldae.tokenizers.autoencoders import LinearAutoencoderTraining


PATCH, CHANNELS, SIDE, D = 2, 3, 4, 12


def draw_images(count: int = 64) -> torch.Tensor:
    """Images whose patches have variances from 1 down by a factor of 2, in random directions, around a mean."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.linalg.qr(torch.randn(D, D, generator=generator)).Q
    spread = 2.0 ** (-0.5 * torch.arange(D))
    patches = (torch.randn(count, 4, D, generator=generator) * spread) @ directions.T + 0.3
    return patches.reshape(count, 2, 2, CHANNELS, PATCH, PATCH).permute(0, 3, 1, 4, 2, 5).reshape(count, 3, SIDE, SIDE)


def whole_pca(images: torch.Tensor) -> PatchPCA:
    return fit_patch_pca(images, patch_size=PATCH, latent_dim=D)


def make_model(images: torch.Tensor, latent_dim: int, kl_weight: float | None = None) -> LinearAutoencoderTraining:
    torch.manual_seed(0)
    mean = whole_pca(images).mean
    return LinearAutoencoderTraining(PATCH, CHANNELS, latent_dim, mean, kl_weight is not None, kl_weight or 0.0)


def train(model: LinearAutoencoderTraining, images: torch.Tensor, noise: torch.Tensor | None = None) -> float:
    """Full-batch quasi-Newton: the optimum, without a learning rate."""
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=1500, tolerance_change=0, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(images, noise).loss
        loss.backward()
        return loss

    optimizer.step(closure)
    return model(images, noise).loss.item()


def exact_noise(images: torch.Tensor, d: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Repeat the images for 2 d noises of mean zero and unit covariance: means of quadratics over them are exact."""
    noises = math.sqrt(d) * torch.cat([torch.eye(d), -torch.eye(d)])  # (2d, d)
    return images.repeat(2 * d, 1, 1, 1), noises.repeat_interleave(len(images), dim=0)[:, None].expand(-1, 4, -1)


def test_the_autoencoder_reaches_the_subspace_of_pca() -> None:
    images, d = draw_images(), 4
    model, pca = make_model(images, d), fit_patch_pca(images, patch_size=PATCH, latent_dim=d)
    residual = F.mse_loss(pca.decode_images(pca.encode_images(images), SIDE, SIDE), images).item()
    assert model(images).loss.item() > 2 * residual
    assert train(model, images) == pytest.approx(residual, rel=1e-3)
    rows = torch.linalg.qr(model.decoder_weight.detach().T).Q.T  # (d, D)
    singular = torch.linalg.svdvals(rows @ pca.components.T)  # cosines of the angles between the two subspaces
    assert singular.min() > 0.999


def test_the_vae_is_probabilistic_pca_of_the_active_dimensions() -> None:
    images, d, kl_weight = draw_images(), 5, 0.25
    variances = whole_pca(images).explained_variance * (256 - 1) / 256  # lambda of the 256 patches themselves
    noise_variance = kl_weight / 2
    active = int((variances[:d] > noise_variance).sum())
    assert 0 < active < d
    model = make_model(images, d, kl_weight)
    train(model, *exact_noise(images, d))

    # U of pPCA: directions of the active dimensions, each of length sqrt(lambda - sigma^2), the rest zero.
    expected = (variances[:active] - noise_variance).sqrt()
    lengths = model.decoder_weight.detach().norm(dim=1).sort(descending=True)
    torch.testing.assert_close(lengths.values[:active], expected, rtol=0.02, atol=0)
    assert lengths.values[active:].max() < 0.03
    # The posterior's variance: sigma^2 / lambda of an active dimension, the prior's 1 of another.
    posterior = model.log_variance.detach().exp()[lengths.indices]
    torch.testing.assert_close(posterior[:active], noise_variance / variances[:active], rtol=0.03, atol=0)
    torch.testing.assert_close(posterior[active:], torch.ones(d - active), rtol=0.01, atol=0)
    # KL over the batch: each active dimension has log(lambda / sigma^2) / 2 nats, spread over D pixel values.
    kl = 0.5 * (variances[:active] / noise_variance).log().sum() / D
    torch.testing.assert_close(model(images).parts["kl"], kl, rtol=0.01, atol=0)


def test_the_loss_has_the_ratio_of_the_papers_sums() -> None:
    images = draw_images(5)
    model = make_model(images, 4, kl_weight=0.7)
    torch.nn.init.normal_(model.log_variance)
    noise = torch.randn(5, 4, 4)
    x = patchify(images, PATCH) - model.mean
    z = x @ model.encoder_weight.T
    drawn = z + model.log_variance.exp().sqrt() * noise
    squares = (x - drawn @ model.decoder_weight).square().sum()
    kl = 0.5 * (z.square() + model.log_variance.exp() - 1 - model.log_variance).sum()
    output = model(images, noise)
    torch.testing.assert_close(output.loss, (squares + 0.7 * kl) / images.numel())
    torch.testing.assert_close(output.parts["mse"], squares.detach() / images.numel())
    torch.testing.assert_close(output.parts["kl"], kl.detach() / images.numel())
    torch.testing.assert_close(F.mse_loss(output.reconstruction, images), output.parts["mse"])
    torch.testing.assert_close(model(images, noise.reshape(5, 16)).loss, output.loss)


@pytest.mark.parametrize("kl_weight", [None, 0.1])
def test_the_tokenizer_does_what_was_trained(kl_weight: float | None) -> None:
    images = draw_images(5)
    model = make_model(images, 4, kl_weight)
    torch.nn.init.normal_(model.encoder_weight)
    torch.nn.init.normal_(model.decoder_weight)
    variance = torch.tensor([4.0, 3.0, 2.0, 1.0])
    for latent_scaling in ("none", "global", "per_dim"):
        tokenizer = model.to_tokenizer(latent_scaling, variance)
        assert isinstance(tokenizer, PatchAutoencoder) and bool(tokenizer.fitted)
        latents = tokenizer.encode_images(images)
        torch.testing.assert_close(tokenizer.decode_images(latents, SIDE, SIDE), model(images).reconstruction.detach())
        std = {"none": torch.ones(1), "global": torch.tensor([2.5]).sqrt(), "per_dim": variance.sqrt()}[latent_scaling]
        unscaled = (patchify(images, PATCH) - model.mean) @ model.encoder_weight.detach().T
        torch.testing.assert_close(latents, unscaled / std)


def test_it_starts_from_one_random_orthonormal_set_of_rows() -> None:
    model = make_model(draw_images(5), 4, kl_weight=1.0)
    torch.testing.assert_close(model.encoder_weight @ model.encoder_weight.T, torch.eye(4))
    assert torch.equal(model.encoder_weight, model.decoder_weight)
    assert model.encoder_weight.data_ptr() != model.decoder_weight.data_ptr()
    assert {name for name, _ in model.named_parameters()} == {"encoder_weight", "decoder_weight", "log_variance"}
    assert model.noise_size(SIDE) == 4 * 4
    assert make_model(draw_images(5), 4).noise_size(SIDE) == 0


@pytest.mark.parametrize(("kl_weight", "variance"), [(0.2, 0.1), (1e-6, 5e-7), (3.0, 1.0), (0.0, 1e-12)])
def test_the_posterior_starts_from_the_optimum_of_unit_variance(kl_weight: float, variance: float) -> None:
    model = LinearAutoencoderTraining(PATCH, CHANNELS, 4, torch.zeros(D), variational=True, kl_weight=kl_weight)
    torch.testing.assert_close(model.log_variance.detach().exp(), torch.full((4,), variance), rtol=1e-4, atol=0)


def test_adam_trains_a_vae_of_small_kl_weight_in_a_small_budget() -> None:
    images, d = draw_images(), 4
    model, pca = make_model(images, d, 1e-6), whole_pca(images)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(400):
        optimizer.zero_grad()
        model(images, torch.randn(64, 4, d)).loss.backward()
        optimizer.step()
    variances = pca.explained_variance * 255 / 256
    assert model(images).parts["mse"].item() == pytest.approx(variances[d:].sum().item() / D, rel=0.05)


def test_an_autoencoder_without_a_posterior_refuses_noise() -> None:
    model = LinearAutoencoderTraining(PATCH, CHANNELS, 4, torch.zeros(D), variational=False, kl_weight=0.0)
    with pytest.raises(ValueError, match="an AE has no posterior to draw from"):
        model(draw_images(2), torch.zeros(2, 4, 4))
