"""Training of the autoencoders (Sec. 4.2): two linear maps of a patch, or a convolutional VAE up to a VQGAN."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from transformers.utils import ModelOutput

from ldae.models.tokenizer_ldae import PatchAutoencoder, patchify, unpatchify
from ldae.tokenizers.discriminator import PatchDiscriminator, adaptive_weight, hinge_loss
from ldae.tokenizers.perceptual import PerceptualLoss


SMALLEST_VARIANCE = 1e-12  # of a linear VAE's initial posterior, where kl_weight is close to 0


@dataclass
class AutoencoderOutput(ModelOutput):
    """Loss `()`, reconstructed images `(B, C, H, W)`, and the terms of the loss before their weights, detached.

    The terms are `mse` and, where the module has them, `kl`, `perceptual`, `generator`, `discriminator` and
    `adaptive_weight`.
    """

    loss: torch.Tensor | None = None
    reconstruction: torch.Tensor | None = None
    parts: dict[str, torch.Tensor] | None = None


def gaussian_kl(mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    """Return KL[N(mean, exp(log_variance)) | N(0, 1)] of each latent value in nats, in float32 (Sec. 4.2)."""
    mean, log_variance = mean.float(), log_variance.float()
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)


def reshape_noise(noise: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    """Return noise in the shape and precision of latents; both begin with the batch."""
    if noise.shape[0] != latents.shape[0] or noise.numel() != latents.numel():
        raise ValueError(
            f"noise has shape {tuple(noise.shape)}; give {latents[0].numel()} numbers for each of the "
            f"{latents.shape[0]} images, as noise_size says."
        )
    return noise.reshape(latents.shape).to(latents)


class LinearAutoencoderTraining(nn.Module):
    """Loss of a linear AE, ||x - U^T V x||^2, or VAE, + KL[V x|N], on centred patches (Sec. 4.2).

    V and U start from one random orthonormal set of rows, the posterior from the optimum of a direction of variance 1.
    The VAE's posterior is N(V x, diag(s^2)) with one learnt variance per latent dimension: with a linear decoder the
    best posterior variance does not depend on x (Lucas et al. 2019, arXiv 1911.02469). At its optimum such a VAE is
    probabilistic PCA with noise variance `kl_weight / 2`: it keeps the principal directions whose variance lambda
    exceeds `kl_weight / 2`, with s^2 = kl_weight / (2 lambda), and ignores the others.

    Args:
        patch_size (`int`): P, in pixels.
        num_channels (`int`): C. A patch has D = C * P * P values.
        latent_dim (`int`): d.
        mean (`torch.Tensor` of shape `(D,)`): Mean of the patches.
        variational (`bool`): Whether it is a VAE.
        kl_weight (`float`): Weight of a VAE's KL divergence; 1 is the paper's sum.

    Parameters: `encoder_weight (d, D)`, the rows of V, `decoder_weight (d, D)`, the rows of U, and the VAE's
    `log_variance (d,)`.

    Example:
    ```python
    >>> import torch
    >>> model = LinearAutoencoderTraining(4, 3, 8, torch.zeros(48), variational=True, kl_weight=0.01)
    >>> model.noise_size(image_size=16)
    128
    >>> output = model(torch.zeros(2, 3, 16, 16), noise=torch.randn(2, 16, 8))
    >>> output.reconstruction.shape, sorted(output.parts)
    (torch.Size([2, 3, 16, 16]), ['kl', 'mse'])

    ```
    """

    mean: torch.Tensor

    def __init__(
        self,
        patch_size: int,
        num_channels: int,
        latent_dim: int,
        mean: torch.Tensor,
        variational: bool,
        kl_weight: float,
    ):
        super().__init__()
        patch_dim = num_channels * patch_size**2
        self.patch_size, self.num_channels, self.latent_dim = patch_size, num_channels, latent_dim
        self.variational, self.kl_weight = variational, kl_weight
        self.register_buffer("mean", mean.detach().float().clone())
        rows = nn.init.orthogonal_(torch.empty(latent_dim, patch_dim))
        self.encoder_weight = nn.Parameter(rows)
        self.decoder_weight = nn.Parameter(rows.clone())
        if variational:
            # Near the optimum: a small kl_weight has hardly any gradient to cross the nats from far away.
            s2 = min(max(kl_weight / 2, SMALLEST_VARIANCE), 1.0)
            self.log_variance = nn.Parameter(torch.full((latent_dim,), math.log(s2)))

    def noise_size(self, image_size: int) -> int:
        """Return how many random numbers an image of this side needs: N * d for the VAE, 0 for the AE."""
        return (image_size // self.patch_size) ** 2 * self.latent_dim if self.variational else 0

    def forward(self, pixel_values: torch.Tensor, noise: torch.Tensor | None = None) -> AutoencoderOutput:
        """Compute the loss.

        It is the mean squared error of a pixel value, plus `kl_weight` times the KL divergence summed over latents and
        divided by the number of pixel values: the ratio of the paper's sums.

        Args:
            pixel_values (`torch.Tensor` of shape `(B, C, H, W)`): In [-1, 1].
            noise (`torch.Tensor` of shape `(B, N, d)` or of as many values, *optional*): Standard normal, for a VAE;
                by default the latent is the mean of the posterior.

        Raises:
            ValueError: If the noise has another size or is given to an AE.
        """
        x = patchify(pixel_values, self.patch_size)  # (B, N, D)
        z = (x - self.mean) @ self.encoder_weight.T  # (B, N, d)
        parts = {}
        if self.variational:
            kl = gaussian_kl(z, self.log_variance).sum(dim=-1).mean()
            parts["kl"] = kl / self.mean.numel()  # nats a pixel value
            if noise is not None:
                z = z + (0.5 * self.log_variance).exp() * reshape_noise(noise, z)
        elif noise is not None:
            raise ValueError(
                "noise was given with variational=False; an AE has no posterior to draw from, so leave it out."
            )
        decoded = (z @ self.decoder_weight).float() + self.mean  # (B, N, D)
        loss = mse = F.mse_loss(decoded, x.float())
        if self.variational:
            loss = mse + self.kl_weight * parts["kl"]
        reconstruction = unpatchify(decoded, self.patch_size, *pixel_values.shape[2:])
        detached = {name: part.detach() for name, part in {"mse": mse, **parts}.items()}
        return AutoencoderOutput(loss=loss, reconstruction=reconstruction, parts=detached)

    def to_tokenizer(self, latent_scaling: str, variance: torch.Tensor) -> PatchAutoencoder:
        """Build the fitted tokenizer, on the CPU; `variance` `(d,)` is that of the latents V (x - mean)."""
        tokenizer = PatchAutoencoder(self.patch_size, self.num_channels, self.latent_dim, latent_scaling)
        state = {
            "mean": self.mean,
            "components": self.encoder_weight,
            "decoder_weight": self.decoder_weight,
            "explained_variance": variance,
            "fitted": torch.tensor(True),
        }
        tokenizer.load_state_dict(state)  # copies into float32
        return tokenizer


class ConvAutoencoderTraining(nn.Module):
    """Loss of a convolutional VAE: ||x - g(f(x))||^2 + KL[f(x)|N], and optionally perceptual and adversarial terms.

    The squared error is the paper's (Sec. 4.2; latent diffusion takes the absolute error). The rest is latent
    diffusion's (Rombach et al. 2022, arXiv 2112.10752): a discriminator of patches with the hinge loss, and VQGAN's
    adaptive weight on the generator's loss.

    One backward pass trains both networks: the discriminator's loss sees detached images, and the generator's loss a
    discriminator with detached weights, so each network receives the gradient of its own loss.

    Args:
        vae (`diffusers.AutoencoderKL`): From [`~ldae.models.tokenizer_ldae.build_conv_vae`]; all of it is
            trained.
        kl_weight (`float`): Weight of the KL divergence; the paper's sum has 1, latent diffusion 1e-6.
        perceptual ([`PerceptualLoss`], *optional*): The perceptual loss.
        perceptual_weight (`float`): Its weight.
        adversarial_weight (`float`): Weight of the generator's loss beside the adaptive weight; 0 for no
            discriminator.
        discriminator_width (`int`, defaults to 64): Width of [`PatchDiscriminator`].

    Example:
    ```python
    >>> import torch
    >>> from diffusers import AutoencoderKL
    >>> vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=2, sample_size=16)
    >>> model = ConvAutoencoderTraining(vae, 1e-6, None, 0.0, adversarial_weight=0.5, discriminator_width=8)
    >>> output = model(torch.zeros(2, 3, 16, 16), noise=torch.randn(2, model.noise_size(image_size=16)))
    >>> sorted(output.parts)
    ['adaptive_weight', 'discriminator', 'generator', 'kl', 'mse']

    ```
    """

    def __init__(
        self,
        vae: Any,
        kl_weight: float,
        perceptual: PerceptualLoss | None,
        perceptual_weight: float,
        adversarial_weight: float,
        discriminator_width: int = 64,
    ):
        super().__init__()
        self.vae = vae.requires_grad_(True)
        self.kl_weight, self.perceptual_weight = kl_weight, perceptual_weight
        self.adversarial_weight = adversarial_weight
        self.perceptual = perceptual
        self.discriminator: PatchDiscriminator | None = None
        if adversarial_weight:
            c = vae.config
            self.discriminator = PatchDiscriminator(c.out_channels, c.sample_size, discriminator_width)

    def noise_size(self, image_size: int) -> int:
        """Return how many random numbers an image of this side needs: c * h * w, the size of its latent."""
        c = self.vae.config
        return c.latent_channels * (image_size // 2 ** (len(c.block_out_channels) - 1)) ** 2

    def forward(
        self, pixel_values: torch.Tensor, noise: torch.Tensor | None = None, adversarial: bool = True
    ) -> AutoencoderOutput:
        """Compute the loss: that of [`LinearAutoencoderTraining`], plus the mean of each other term.

        The generator's term counts in training mode only: its adaptive weight is made of gradients, those of this
        micro-batch in this process.

        Args:
            pixel_values (`torch.Tensor` of shape `(B, C, H, W)`): In [-1, 1].
            noise (`torch.Tensor` of shape `(B, c, h, w)` or of as many values, *optional*): Standard normal; by
                default the latent is the mean of the posterior.
            adversarial (`bool`, defaults to `True`): `False` before the adversary starts: the losses of generator and
                discriminator do not count, and the discriminator's gradients are zero.

        Raises:
            ValueError: If the noise has another size.
        """
        posterior = self.vae.encode(pixel_values).latent_dist
        z = posterior.mean  # (B, c, h, w)
        kl = gaussian_kl(z, posterior.logvar).sum() / pixel_values.numel()  # nats a pixel value
        if noise is not None:
            z = z + (0.5 * posterior.logvar).exp() * reshape_noise(noise, z)
        reconstruction = self.vae.decode(z).sample.float()  # (B, C, H, W)
        mse = F.mse_loss(reconstruction, pixel_values.float())
        parts = {"mse": mse, "kl": kl}
        likeness = mse
        if self.perceptual is not None:
            parts["perceptual"] = self.perceptual(reconstruction, pixel_values)
            likeness = likeness + self.perceptual_weight * parts["perceptual"]
        loss = likeness + self.kl_weight * kl
        if self.discriminator is not None:
            if adversarial:
                loss = loss + self._adversarial_terms(likeness, reconstruction, pixel_values, parts)
            else:  # DistributedDataParallel waits for a gradient of every parameter
                loss = loss + 0 * torch.stack([p.sum() for p in self.discriminator.parameters()]).sum()
        detached = {name: part.detach() for name, part in parts.items()}
        return AutoencoderOutput(loss=loss, reconstruction=reconstruction, parts=detached)

    def _adversarial_terms(
        self,
        likeness: torch.Tensor,
        reconstruction: torch.Tensor,
        pixel_values: torch.Tensor,
        parts: dict[str, torch.Tensor],
    ) -> torch.Tensor:
        """Return the sum of both networks' terms, and add each to `parts`."""
        discriminator = self.discriminator
        assert discriminator is not None
        both = torch.cat([pixel_values.to(reconstruction), reconstruction.detach()])
        real_scores, fake_scores = discriminator(both).chunk(2)
        loss = parts["discriminator"] = hinge_loss(real_scores, fake_scores)

        frozen = {name: p.detach() for name, p in discriminator.named_parameters()}
        generator = parts["generator"] = -functional_call(discriminator, frozen, (reconstruction,)).float().mean()
        if self.training and torch.is_grad_enabled():
            weight = adaptive_weight(likeness, generator, self.vae.decoder.conv_out.weight)
            parts["adaptive_weight"] = weight
            loss = loss + weight * self.adversarial_weight * generator
        return loss
