"""The convolutional VAE: its losses, one backward pass for both networks, and the start of the adversary."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from ldae import LDAEConfig
from ldae.models.tokenizer_ldae import build_conv_vae, build_tokenizer
from ldae.tokenizers.autoencoders import ConvAutoencoderTraining
from ldae.tokenizers.perceptual import PerceptualLoss

from .small_backbone import save_backbone


TINY_VAE = {"block_out_channels": [8, 16], "layers_per_block": 1, "latent_channels": 2, "norm_num_groups": 4}
SIDE, NOISE = 16, (3, 2, 8, 8)
VAE_CONFIG = LDAEConfig.from_size(
    "nano",
    image_size=SIDE,
    patch_size=4,
    latent_tokenizer="conv_vae",
    latent_dim=8,
    input_space="latent",
    prediction_target="noise",
    loss_weighting="uniform",
    conv_vae_config=TINY_VAE,
)
ALL_PARTS = {"mse", "kl", "perceptual", "generator", "discriminator", "adaptive_weight"}


@pytest.fixture(scope="module")
def perceptual(tmp_path_factory: pytest.TempPathFactory) -> PerceptualLoss:
    return PerceptualLoss(save_backbone(tmp_path_factory.mktemp("backbone")))


def make_model(perceptual: PerceptualLoss | None = None, adversarial: float = 0.5) -> ConvAutoencoderTraining:
    torch.manual_seed(0)
    vae = build_conv_vae(VAE_CONFIG)
    return ConvAutoencoderTraining(vae, 1e-2, perceptual, 0.3, adversarial, discriminator_width=8).train()


def draw_images(count: int = 3) -> torch.Tensor:
    return torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2)) * 2 - 1


def draw_noise() -> torch.Tensor:
    return torch.randn(NOISE, generator=torch.Generator().manual_seed(3))


def gradients_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def test_one_backward_pass_gives_each_network_the_gradient_of_its_own_loss(perceptual: PerceptualLoss) -> None:
    model, images, noise = make_model(perceptual), draw_images(), draw_noise()
    output = model(images, noise)
    output.loss.backward()
    found = gradients_of(model)

    # The same losses in the usual way: two backward passes, each with the other network out of the way.
    model.zero_grad(set_to_none=True)
    posterior = model.vae.encode(images).latent_dist
    decoded = model.vae.decode(posterior.mean + posterior.std * noise).sample
    likeness = (decoded - images).square().mean() + 0.3 * perceptual(decoded, images)
    model.discriminator.requires_grad_(False)
    generator = -model.discriminator(decoded).mean()
    last = model.vae.decoder.conv_out.weight
    norms = [torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (likeness, generator)]
    weight = norms[0] / (norms[1] + 1e-4)
    (likeness + 1e-2 * posterior.kl().sum() / images.numel() + weight * 0.5 * generator).backward()
    model.discriminator.requires_grad_(True)
    real, fake = model.discriminator(images), model.discriminator(decoded.detach())
    hinge = 0.5 * ((1 - real).relu().mean() + (1 + fake).relu().mean())
    hinge.backward()

    torch.testing.assert_close(found, gradients_of(model), rtol=1e-4, atol=1e-6)
    assert all(gradient.abs().sum() > 0 for name, gradient in found.items() if name.endswith("weight"))
    torch.testing.assert_close(output.parts["adaptive_weight"], weight, rtol=1e-4, atol=0)
    torch.testing.assert_close(output.parts["discriminator"], hinge.detach())
    torch.testing.assert_close(output.parts["generator"], generator.detach())


def test_the_loss_is_the_sum_of_its_weighted_parts(perceptual: PerceptualLoss) -> None:
    model, images = make_model(perceptual), draw_images()
    output = model(images, draw_noise())
    p = output.parts
    assert set(p) == ALL_PARTS
    assert all(part.shape == () and part.isfinite() and not part.requires_grad for part in p.values())
    expected = p["mse"] + 1e-2 * p["kl"] + 0.3 * p["perceptual"] + p["discriminator"]
    torch.testing.assert_close(output.loss.detach(), expected + p["adaptive_weight"] * 0.5 * p["generator"])
    assert output.reconstruction.shape == images.shape
    torch.testing.assert_close(p["mse"], (output.reconstruction - images).square().mean().detach())
    kl = model.vae.encode(images).latent_dist.kl().sum().detach()
    torch.testing.assert_close(p["kl"], kl / images.numel())  # beside the mean of squares: the ratio of the sums


@pytest.mark.parametrize("with_perceptual", [False, True])
@pytest.mark.parametrize("adversarial", [0.0, 0.5])
def test_a_loss_that_is_not_asked_for_is_not_there(
    with_perceptual: bool, adversarial: float, perceptual: PerceptualLoss
) -> None:
    model = make_model(perceptual if with_perceptual else None, adversarial)
    expected = {"mse", "kl"}
    expected |= {"perceptual"} if with_perceptual else set()
    expected |= {"generator", "discriminator", "adaptive_weight"} if adversarial else set()
    output = model(draw_images(), draw_noise())
    assert set(output.parts) == expected and output.loss.isfinite()
    prefixes = {name.split(".")[0] for name in model.state_dict()}
    assert prefixes == ({"vae", "discriminator"} if adversarial else {"vae"})


def test_before_its_start_the_adversary_neither_learns_nor_is_heard(perceptual: PerceptualLoss) -> None:
    images, noise = draw_images(), draw_noise()
    waiting, without = make_model(perceptual), make_model(perceptual, adversarial=0.0)
    outputs = [waiting(images, noise, adversarial=False), without(images, noise)]
    torch.testing.assert_close(outputs[0].loss, outputs[1].loss)
    assert set(outputs[0].parts) == {"mse", "kl", "perceptual"}
    for output in outputs:
        output.loss.backward()
    torch.testing.assert_close(gradients_of(waiting.vae), gradients_of(without.vae))
    assert all(p.grad is not None and not p.grad.any() for p in waiting.discriminator.parameters())


def test_every_parameter_takes_part_in_every_step(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        parallel, plain = DistributedDataParallel(make_model()), make_model()
        for adversarial in (False, True, False):  # DistributedDataParallel would refuse the step after one left out
            for model in (parallel, plain):
                model.zero_grad()
                model(draw_images(), draw_noise(), adversarial=adversarial).loss.backward()
            torch.testing.assert_close(gradients_of(parallel.module), gradients_of(plain))
    finally:
        dist.destroy_process_group()


def test_without_gradients_the_generator_is_only_reported() -> None:
    model, images, noise = make_model(), draw_images(), draw_noise()
    trained = model(images, noise)
    for mode, gradients in ((False, True), (True, False)):
        model.train(mode)
        with torch.set_grad_enabled(gradients):
            output = model(images, noise)
        p = output.parts
        assert set(p) == ALL_PARTS - {"perceptual", "adaptive_weight"}
        torch.testing.assert_close(output.loss.detach(), p["mse"] + 1e-2 * p["kl"] + p["discriminator"])
        torch.testing.assert_close(p["generator"], trained.parts["generator"])


def test_without_noise_the_latent_is_the_posteriors_mean() -> None:
    model, images = make_model(adversarial=0.0), draw_images()
    mean = model.vae.encode(images).latent_dist.mode()
    torch.testing.assert_close(model(images).reconstruction, model.vae.decode(mean).sample)
    assert not torch.allclose(model(images, draw_noise()).reconstruction, model(images).reconstruction, atol=1e-3)
    assert model.noise_size(SIDE) == 2 * 8 * 8
    torch.testing.assert_close(model(images, draw_noise().flatten(1)).loss, model(images, draw_noise()).loss)
    with pytest.raises(ValueError, match="give 128 numbers for each of the 3 images"):
        model(images, torch.zeros(3, 64))


def test_all_of_it_is_saved_but_the_perceptual_network(perceptual: PerceptualLoss) -> None:
    model, other = make_model(perceptual), make_model(perceptual)
    torch.nn.init.normal_(model.discriminator.layers[0].weight, std=0.1)
    torch.nn.init.normal_(model.vae.decoder.conv_out.weight, std=0.1)
    assert {name.split(".")[0] for name in model.state_dict()} == {"vae", "discriminator"}
    other.load_state_dict(model.state_dict(), strict=True)
    outputs = [each(draw_images(), draw_noise()) for each in (model, other)]
    assert torch.equal(outputs[0].loss, outputs[1].loss)
    tokenizer = build_tokenizer(VAE_CONFIG)
    tokenizer.vae.load_state_dict(model.vae.state_dict())
    decoded = tokenizer.decode_images(tokenizer.encode_images(draw_images()), SIDE, SIDE)
    torch.testing.assert_close(decoded, model(draw_images()).reconstruction.detach())


def test_a_vae_that_was_frozen_is_trained() -> None:
    vae = build_tokenizer(VAE_CONFIG).vae
    assert not any(parameter.requires_grad for parameter in vae.parameters())
    model = ConvAutoencoderTraining(vae, 0.0, None, 0.0, 0.0)
    model(draw_images()).loss.backward()
    assert all(parameter.grad is not None for parameter in vae.parameters())


def test_training_with_all_losses_brings_the_reconstruction_nearer(perceptual: PerceptualLoss) -> None:
    model, images = make_model(perceptual, adversarial=0.1), draw_images()
    images = torch.nn.functional.avg_pool2d(images, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3, betas=(0.5, 0.9))
    before, discriminators = model(images).parts, []
    for step in range(80):
        optimizer.zero_grad()
        output = model(images, torch.randn(NOISE), adversarial=step >= 20)
        output.loss.backward()
        optimizer.step()
        discriminators.append(output.parts.get("discriminator"))
    after = model(images).parts
    assert after["mse"] < before["mse"] / 2 and after["perceptual"] < before["perceptual"]
    assert discriminators[:20] == [None] * 20
    assert discriminators[-1] < discriminators[20]


def test_mixed_precision_keeps_the_losses_in_float32(perceptual: PerceptualLoss) -> None:
    model, images, noise = make_model(perceptual), draw_images(), draw_noise()
    exact = model(images, noise)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(images, noise)
    assert {output.loss.dtype, output.reconstruction.dtype, *(p.dtype for p in output.parts.values())} == {
        torch.float32
    }
    torch.testing.assert_close(output.parts, exact.parts, rtol=0.1, atol=0.02)
    output.loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
