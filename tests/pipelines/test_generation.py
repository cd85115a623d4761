"""What the pipeline generates: every kind of model, chains that end where they must, guidance, determinism."""

import re

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler

from ldae import LDAEPipeline
from ldae.models.tokenizer_ldae import patchify
from tests.models.small_models import draw_images
from tests.pipelines.conftest import KINDS, TARGETS, make_pipeline, seeded


SCHEDULES = ("linear_beta", "linear_gamma2", "linear_sigma", "constant")
STEPS = {"constant": 1}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_target_and_schedule_generates(target, schedule):
    pipe = make_pipeline(target=target, noise_schedule=schedule)
    images = pipe(2, num_inference_steps=STEPS.get(schedule, 5), generator=seeded(0, 1), output_type="pt").images
    assert images.shape == (2, 3, 16, 16)
    assert images.isfinite().all() and images.min() >= 0 and images.max() <= 1
    assert (images[0] - images[1]).abs().max() > 0.01


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_every_tokenizer_generates(kind, eta):
    pipe = make_pipeline(kind, "latent", noise_schedule="linear_gamma2", loss_weighting="gamma2")
    images = pipe(2, num_inference_steps=4, eta=eta, generator=seeded(0, 1), output_type="pt").images
    assert images.shape == (2, 3, 16, 16) and images.isfinite().all()


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_and_coloured_pictures(channels):
    (image,) = make_pipeline(num_channels=channels)(num_inference_steps=2).images
    assert (image.size, image.mode) == ((16, 16), "L" if channels == 1 else "RGB")


# Chains that end where they must


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_perfect_denoiser_leads_to_the_clean_image(target, schedule, monkeypatch):
    pipe = make_pipeline(target=target, noise_schedule=schedule)
    model, corruption = pipe.model, pipe.model.ldae.corruption
    pixels = 0.7 * draw_images()
    z0 = model.ldae.encode(pixels)
    clean = {"latent": z0, "image": patchify(pixels, 4), "projected_image": model.ldae.tokenizer.decode(z0)}

    def oracle(zt, timesteps, class_labels=None):
        if target != "noise":
            return clean[target]
        gamma, sigma = corruption.gammas[timesteps], corruption.sigmas[timesteps]
        return (zt - gamma * z0) / sigma

    monkeypatch.setattr(model, "denoise", oracle)
    options = {"num_inference_steps": STEPS.get(schedule, 7), "generator": seeded(0, 1, 2)}
    latents = pipe(**options, output_type="latent").images
    # At gamma_T = 0 predicted noise says nothing of z_0: what the first step forgets, no later one knows.
    if target != "noise":
        torch.testing.assert_close(latents, z0, rtol=0, atol=1e-5)
    elif schedule != "linear_gamma2":
        torch.testing.assert_close(latents, z0, rtol=0, atol=2e-3)
    images = pipe(**options | {"generator": seeded(0, 1, 2)}, output_type="pt").images * 2 - 1
    if target == "image":  # whole, though its latents hold but a part
        torch.testing.assert_close(images, pixels, rtol=0, atol=1e-5)
    elif target != "noise":
        projected = model.ldae.tokenizer.decode_images(z0, 16, 16).clamp(-1, 1)
        torch.testing.assert_close(images, projected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_chain_begins_at_the_scale_of_the_noisiest_latents(schedule, monkeypatch):
    pipe = make_pipeline("pca", "latent", noise_schedule=schedule)
    seen = []
    monkeypatch.setattr(pipe.model, "denoise", lambda zt, t, labels=None: seen.append((zt, t.tolist())) or zt)
    noise = torch.randn(2, 16, 8)
    pipe(latents=noise, num_inference_steps=1)
    gamma, sigma = pipe.model.ldae.corruption.gammas[-1], pipe.model.ldae.corruption.sigmas[-1]
    torch.testing.assert_close(seen[0][0], noise * (gamma**2 + sigma**2).sqrt())
    assert seen[0][1] == [999]


def test_steps_default_to_fifty_one_or_all():
    assert _default_steps(make_pipeline()) == 50
    assert _default_steps(make_pipeline(noise_schedule="constant")) == 1
    assert _default_steps(make_pipeline(num_train_timesteps=20)) == 20


def _default_steps(pipe: LDAEPipeline) -> int:
    pipe(output_type="latent")
    return pipe.num_timesteps


# Classes and guidance


def test_guidance_is_its_formula(class_pipe, monkeypatch):
    labels = torch.tensor([0, 2])
    zt = torch.randn(2, 16, 8)
    t = torch.tensor([999])
    of_class = class_pipe.model.denoise(zt, t, labels)
    of_null = class_pipe.model.denoise(zt, t, torch.tensor([3, 3]))
    assert (of_class - of_null).abs().max() > 1e-2
    for scale in (0.0, 1.0, 4.0):
        outputs = []
        step = class_pipe.scheduler.step

        def record(output, *args, step=step, outputs=outputs, **kwargs):
            outputs.append(output)
            return step(output, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(class_pipe.scheduler, "step", record)
            first = zt / class_pipe.scheduler.init_noise_sigma
            class_pipe(class_labels=labels, guidance_scale=scale, latents=first, num_inference_steps=1)
        torch.testing.assert_close(outputs[0], of_null + scale * (of_class - of_null), rtol=1e-4, atol=1e-5)


def test_guidance_of_a_clean_prediction():
    pipe = make_pipeline(num_class_embeds=3)
    images = [
        pipe(class_labels=1, guidance_scale=s, generator=seeded(0), num_inference_steps=4, output_type="pt").images
        for s in (1.0, 1.0, 3.0)
    ]
    assert torch.equal(images[0], images[1])
    assert (images[0] - images[2]).abs().max() > 1e-3


def test_classes_are_one_for_all_or_one_for_each(class_pipe):
    options = {"num_inference_steps": 3, "output_type": "pt"}
    shared = class_pipe(2, class_labels=1, generator=seeded(0, 1), **options).images
    each = class_pipe(class_labels=[1, 1], generator=seeded(0, 1), **options).images
    other = class_pipe(class_labels=[1, 2], generator=seeded(0, 1), **options).images
    assert torch.equal(shared, each)
    torch.testing.assert_close(other[0], each[0], rtol=0, atol=1e-4)
    assert (other[1] - each[1]).abs().max() > 1e-3
    unconditional = class_pipe(2, generator=seeded(0, 1), **options).images
    null = class_pipe(2, class_labels=3, generator=seeded(0, 1), **options).images
    torch.testing.assert_close(unconditional, null, rtol=0, atol=1e-4)


def test_guidance_and_classes_that_make_no_sense_are_refused(pipe, class_pipe):
    for labels in ([1], 1):
        with pytest.raises(
            ValueError, match=rf"class_labels={re.escape(str(labels))} needs a class-conditional model"
        ):
            pipe(class_labels=labels)
    with pytest.raises(ValueError, match=r"guidance_scale=2\.0 needs .* trained without labels"):
        pipe(guidance_scale=2.0)
    with pytest.raises(ValueError, match=r"guidance_scale=2.0 needs class_labels"):
        class_pipe(guidance_scale=2.0)
    for wrong in (4, -1):
        with pytest.raises(ValueError, match="the classes are 0 to 2, and 3 is the null class"):
            class_pipe(class_labels=[wrong])
    never_dropped = make_pipeline(target="noise", num_class_embeds=3, class_dropout_prob=0.0)
    for options in ({}, {"class_labels": 1, "guidance_scale": 2.0}):
        with pytest.raises(ValueError, match="never saw the null class"):
            never_dropped(**options)
    assert len(never_dropped(class_labels=1, num_inference_steps=1).images) == 1


# Randomness


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_same_generator_gives_the_same_images(pipe, eta):
    options = {"num_inference_steps": 4, "eta": eta, "output_type": "pt"}
    first, again, other = (pipe(3, generator=seeded(seed)[0], **options).images for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert (first - other).abs().max() > 0.01


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_with_a_generator_for_each_an_image_does_not_depend_on_its_batch(pipe, eta):
    options = {"num_inference_steps": 4, "eta": eta, "output_type": "pt"}
    together = pipe(generator=seeded(3, 4, 5), **options).images
    alone = torch.cat([pipe(generator=seeded(seed), **options).images for seed in (3, 4, 5)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-4)


def test_without_noise_in_the_steps_given_latents_decide_everything(pipe):
    noise = torch.randn(2, 16, 8)
    first, again = (pipe(latents=noise, num_inference_steps=3, output_type="latent").images for _ in range(2))
    assert torch.equal(first, again)


# Precision


@pytest.mark.parametrize("target", ["noise", "image"])
@pytest.mark.parametrize("how", ["cast", "autocast"])
def test_half_precision_stays_near_and_the_chain_in_float32(target, how):
    pipe = make_pipeline(target=target, noise_schedule="linear_beta")
    options = {"num_inference_steps": 5, "output_type": "latent"}
    exact = pipe(generator=seeded(0, 1), **options).images
    if how == "cast":
        pipe.to(torch.bfloat16)
        near = pipe(generator=seeded(0, 1), **options).images
    else:
        with torch.autocast("cpu", torch.bfloat16):
            near = pipe(generator=seeded(0, 1), **options).images
    assert near.dtype == torch.float32
    assert (near - exact).abs().max() > 0 and (near - exact).norm() / exact.norm() < 0.1


def test_a_model_that_is_kept_elsewhere_comes_when_it_is_used(pipe, monkeypatch):
    options = {"num_inference_steps": 2, "output_type": "pt"}
    expected = pipe(generator=seeded(0), **options).images
    pipe.enable_model_cpu_offload(device="cpu")
    fetched = []
    fetch = pipe.model._hf_hook.pre_forward
    monkeypatch.setattr(pipe.model._hf_hook, "pre_forward", lambda module: fetched.append(module) or fetch(module))
    assert torch.equal(pipe(generator=seeded(0), **options).images, expected)
    assert fetched == [pipe.model]


# Schedulers


@pytest.mark.parametrize("target", ["noise", "latent"])
@pytest.mark.parametrize("stock", [DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler])
def test_schedulers_of_diffusers_take_the_place_of_ours(target, stock):
    pipe = make_pipeline(target=target, noise_schedule="linear_beta")
    options = {"num_inference_steps": 200, "output_type": "latent"}
    noise = torch.randn(2, 16, 8, generator=seeded(0)[0])
    eta = {"eta": 1.0} if stock is DDPMScheduler else {}
    ours = pipe(latents=noise, generator=seeded(1, 2), **eta, **options).images
    pipe.scheduler = stock.from_config(pipe.scheduler.config)
    theirs = pipe(latents=noise, generator=seeded(1, 2), **options).images
    # The second-order solver goes another way to the same end, which takes steps: what a random network gives depends
    # on t.
    assert (ours - theirs).norm() / ours.norm() < (0.1 if stock is DPMSolverMultistepScheduler else 2e-3)


def test_a_scheduler_of_another_schedule_is_refused(pipe):
    with pytest.raises(ValueError, match="scheduler=DDIMScheduler does not fit: its schedule is not"):
        LDAEPipeline(pipe.model, DDIMScheduler())
    noise = make_pipeline(target="noise", noise_schedule="linear_beta")
    noise.scheduler = DDIMScheduler.from_config(noise.scheduler.config, prediction_type="sample")
    with pytest.raises(ValueError, match="prediction_type='sample' must be 'epsilon'"):
        noise(1)
    noise.scheduler = DPMSolverMultistepScheduler.from_config(
        make_pipeline(target="noise", noise_schedule="linear_beta").scheduler.config
    )
    with pytest.raises(ValueError, match=r"eta=0\.5 cannot be used with a DPMSolverMultistepScheduler"):
        noise(1, eta=0.5)


def test_a_scheduler_of_ours_that_disagrees_is_refused(pipe):
    other = make_pipeline(noise_schedule="linear_gamma2").scheduler
    with pytest.raises(ValueError, match=r"scheduler disagrees with the model's config\.json: noise_schedule="):
        LDAEPipeline(pipe.model, other)
    pipe.scheduler = other
    with pytest.raises(ValueError, match=r"scheduler disagrees with the model's config\.json"):
        pipe(1)
