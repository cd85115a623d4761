"""Training of the convolutional VAE; with all of its losses it is the VQGAN of the baseline (Sec. 4.1)."""

from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from ldae.tokenizers.autoencoder_output import AutoencoderOutput, gaussian_kl, reshape_noise
from ldae.tokenizers.discriminator import PatchDiscriminator, adaptive_weight, hinge_loss
from ldae.tokenizers.perceptual import PerceptualLoss


class ConvAutoencoderTraining(nn.Module):
    """Loss of a convolutional VAE: ||x - g(f(x))||^2 + KL[f(x)|N], and optionally perceptual and adversarial terms.

    The squared error is the paper's (Sec. 4.2; latent diffusion takes the absolute error). The rest is latent
    diffusion's (Rombach et al. 2022, arXiv 2112.10752): a discriminator of patches with the hinge loss, and VQGAN's
    adaptive weight on the generator's loss.

    One backward pass trains both networks: the discriminator's loss sees detached images, and the generator's loss a
    discriminator with detached weights, so each network receives the gradient of its own loss.

    Args:
        vae (`diffusers.AutoencoderKL`): From [`~ldae.models.tokenizer_conv_ldae.build_conv_vae`]; all of it is
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
        """Compute the loss.

        Args:
            pixel_values (`torch.Tensor` of shape `(B, C, H, W)`): In [-1, 1].
            noise (`torch.Tensor` of shape `(B, c, h, w)` or of as many values, *optional*): Standard normal; by
                default the latent is the mean of the posterior.
            adversarial (`bool`, defaults to `True`): `False` before the adversary starts: the losses of generator and
                discriminator do not count, and the discriminator's gradients are zero.

        Returns:
            [`AutoencoderOutput`]: The loss is the mean squared error of a pixel value, plus `kl_weight` times the KL
            divergence summed over latents and divided by the number of pixel values (the ratio of the paper's sums),
            plus the mean of each other term. The generator's term counts in training mode only: its adaptive weight is
            made of gradients, those of this micro-batch in this process.

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
