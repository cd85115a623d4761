"""What autoencoders' training shares: the KL divergence, and noise in the latents' shape."""

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from ldae.tokenizers.autoencoders import gaussian_kl, reshape_noise


def test_the_kl_divergence_is_that_of_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    mean, log_variance = torch.randn(2, 3, 50, generator=generator)
    expected = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0))
    torch.testing.assert_close(gaussian_kl(mean, log_variance), expected)
    one_for_all = kl_divergence(Normal(mean, log_variance[0].mul(0.5).exp().expand(3, 50)), Normal(0.0, 1.0))
    torch.testing.assert_close(gaussian_kl(mean, log_variance[0]), one_for_all)


def test_the_kl_divergence_is_computed_in_float32() -> None:
    small = torch.full((4,), 0.01, dtype=torch.bfloat16)
    found = gaussian_kl(small, small)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, gaussian_kl(small.double(), small.double()).float())


def test_noise_takes_the_shape_and_precision_of_the_latents() -> None:
    latents, noise = torch.zeros(2, 3, 4, dtype=torch.float64), torch.randn(2, 12)
    assert torch.equal(reshape_noise(noise, latents), noise.reshape(2, 3, 4).double())
    for shape in ((2, 11), (3, 8), (4, 6)):
        with pytest.raises(ValueError, match="give 12 numbers for each of the 2 images"):
            reshape_noise(torch.zeros(shape), latents)
