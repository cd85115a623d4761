"""Training of the convolutional VAE with its losses: with all of them it is the VQGAN of the baseline (Sec. 4.1)."""

from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from ldae.tokenizers.autoencoder_output import AutoencoderOutput, as_noise_of, gaussian_kl
from ldae.tokenizers.discriminator import PatchDiscriminator, adaptive_weight, hinge_loss
from ldae.tokenizers.perceptual import PerceptualLoss


class ConvAutoencoderTraining(nn.Module):
    """||x - g(f(x))||^2 + KL[f(x)|N] and, where they are asked for, a perceptual and an adversarial loss. The squared error
    is the paper's (Sec. 4.2; latent diffusion takes the absolute one), the rest is latent diffusion's (Rombach et al.
    2022, arXiv 2112.10752): a discriminator of patches with the hinge loss, whose word to the decoder has the adaptive
    weight of VQGAN.

    One backward pass trains both networks. The discriminator's loss sees detached images and the generator's loss sees a
    discriminator of detached weights, so that the sum of the two has for each network the gradient of its own loss.

    Args:
        vae (`diffusers.AutoencoderKL`): As of [`~ldae.models.tokenizer_conv_ldae.build_conv_vae`]; all of it is trained.
        kl_weight (`float`): Weight of the KL divergence; 1 is the paper's sum, latent diffusion has 1e-6.
        perceptual ([`PerceptualLoss`], *optional*): The perceptual loss.
        perceptual_weight (`float`): Its weight.
        adversarial_weight (`float`): Weight of the generator's loss, besides the adaptive one; 0 leaves the discriminator
            out.
        discriminator_width (`int`, defaults to 64), discriminator_layers (`int`, defaults to 3): As of
            [`PatchDiscriminator`].
        image_size (`int`, *optional*): Side of the images, in pixels; by default the `sample_size` of `vae`.

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
        discriminator_layers: int = 3,
        image_size: int | None = None,
    ):
        super().__init__()
        self.vae = vae.requires_grad_(True)
        self.kl_weight, self.perceptual_weight = kl_weight, perceptual_weight
        self.adversarial_weight = adversarial_weight
        self.perceptual = perceptual
        self.discriminator: PatchDiscriminator | None = None
        if adversarial_weight:
            side = image_size or vae.config.sample_size
            self.discriminator = PatchDiscriminator(
                vae.config.out_channels, side, discriminator_width, discriminator_layers
            )

    def noise_size(self, image_size: int) -> int:
        """Random numbers that an image of this side needs: c * h * w, the size of its latent."""
        c = self.vae.config
        return c.latent_channels * (image_size // 2 ** (len(c.block_out_channels) - 1)) ** 2

    def forward(
        self, pixel_values: torch.Tensor, noise: torch.Tensor | None = None, adversarial: bool = True
    ) -> AutoencoderOutput:
        """Args:
            pixel_values (`torch.Tensor` of shape `(B, C, H, W)`): In [-1, 1].
            noise (`torch.Tensor` of shape `(B, c, h, w)`, or the same numbers in another shape, *optional*): Standard
                normal; without it the latent is the posterior's mean.
            adversarial (`bool`, defaults to `True`): `False` before the adversary's start: neither the generator's nor
                the discriminator's loss counts, and the discriminator's gradients are zero.

        Returns:
            [`AutoencoderOutput`]: The loss is the mean squared error of a pixel value plus `kl_weight` times the KL
            divergence summed over latents and divided by the number of pixel values, so that the two stand to each
            other as the paper's sums, plus the other terms, each a mean. The generator's term counts in training mode
            alone: its adaptive weight is made of gradients (those of this micro-batch, on this process).

        Raises:
            ValueError: for noise of another size.
        """
        posterior = self.vae.encode(pixel_values).latent_dist
        z = posterior.mean  # (B, c, h, w)
        kl = gaussian_kl(z, posterior.logvar).sum() / pixel_values.numel()  # nats a pixel value
        if noise is not None:
            z = z + (0.5 * posterior.logvar).exp() * as_noise_of(z, noise)
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
            else:  # every parameter takes part in every step: DistributedDataParallel waits for each of them
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
        """The terms of both networks, added up, and each of them in `parts`."""
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
