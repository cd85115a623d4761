"""DDAEPipeline: DDIM and ancestral chains by diffusers' own steps, generators of their own for images, errors."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from ldae import DDAEPipeline
from ldae.pipelines.loading import open_pipeline
from ldae.schedulers.scheduling_ldae import build_scheduler
from tests.models.test_ddae_pretraining import pixels, small_model
from tests.pipelines.conftest import make_pipeline, seeded


@pytest.fixture
def pipe() -> DDAEPipeline:
    model = small_model()
    pipe = DDAEPipeline(model, build_scheduler(model.config))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("eta", [0.0, 1.0], ids=["ddim", "ancestral"])
def test_a_chain_is_that_of_diffusers(pipe, eta):
    noise = torch.randn(2, 3, 16, 16, generator=seeded(0)[0])
    ours = pipe(latents=noise, num_inference_steps=4, eta=eta, generator=seeded(1)[0], output_type="pt").images
    scheduler = DDIMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
    scheduler.set_timesteps(4)
    generator, xt = seeded(1)[0], noise
    for t in scheduler.timesteps:
        with torch.no_grad():
            prediction = pipe.model.ddae.denoiser(xt, t).sample
        options = {"use_clipped_model_output": True, "generator": generator}
        xt = scheduler.step(prediction, t, xt, eta=eta, **options).prev_sample
    torch.testing.assert_close(ours, (xt / 2 + 0.5).clamp(0, 1))
    assert pipe.num_timesteps == 4 and pipe.describe_sampler(None, eta) == {0.0: "DDIM", 1.0: "ancestral"}[eta]


def test_the_ancestral_chain_is_ddpms_own(pipe):
    """Clean images kept in range, and noise by the posterior that goes with them."""
    noise = torch.randn(2, 3, 16, 16, generator=seeded(0)[0])
    ours = pipe(latents=noise, num_inference_steps=10, sampler="ancestral", generator=seeded(1)[0], output_type="pt")
    pipe.scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    theirs = pipe(latents=noise, num_inference_steps=10, generator=seeded(1)[0], output_type="pt")
    torch.testing.assert_close(ours.images, theirs.images, rtol=0, atol=1e-3)


def test_an_image_depends_on_its_generator_alone(pipe):
    together = pipe(generator=seeded(3, 4), num_inference_steps=3, eta=1.0, output_type="pt").images
    alone = pipe(generator=seeded(4), num_inference_steps=3, eta=1.0, output_type="pt").images
    torch.testing.assert_close(together[1:], alone, rtol=0, atol=1e-4)


def test_it_lives_in_a_folder_and_is_found_by_its_model_type(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "ddae")
    make_pipeline().save_pretrained(tmp_path / "ldae")
    loaded = open_pipeline(tmp_path / "ddae")
    assert isinstance(loaded, DDAEPipeline) and isinstance(loaded.scheduler, DDIMScheduler)
    loaded.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 2, "output_type": "pt"}
    ours, theirs = loaded(generator=seeded(0), **options).images, pipe(generator=seeded(0), **options).images
    torch.testing.assert_close(ours, theirs)
    assert type(open_pipeline(tmp_path / "ldae")).__name__ == "LDAEPipeline"
    with pytest.raises(ValueError, match="holds a model of type 'ldae', but DDAEPipeline needs one of type 'ddae'"):
        DDAEPipeline.from_pretrained(tmp_path / "ldae")


def test_another_scheduler_of_diffusers_may_take_its_place(pipe):
    pipe.scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    assert pipe(2, num_inference_steps=2, output_type="pt").images.shape == (2, 3, 16, 16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_labels": 1}, "class_labels=1"),
        ({"guidance_scale": 2.0}, "guidance_scale=2.0"),
        ({"output_type": "gif"}, "output_type='gif' is unknown"),
        ({"batch_size": 0}, "batch_size=0 is too small"),
        ({"batch_size": 2, "generator": seeded(0)}, "numbers of images disagree"),
        ({"latents": torch.zeros(1, 3, 8, 8)}, r"latents has shape \(1, 3, 8, 8\)"),
    ],
)
def test_what_is_not_possible_is_refused(pipe, options, message):
    with pytest.raises(ValueError, match=message):
        pipe(num_inference_steps=1, **options)


def test_a_scheduler_that_disagrees_is_refused(pipe):
    pipe.scheduler = DDIMScheduler(beta_schedule="scaled_linear")
    with pytest.raises(ValueError, match="its schedule is not the model's"):
        pipe(num_inference_steps=1)
    pipe.scheduler = build_scheduler(pipe.model.config)
    pipe.scheduler.register_to_config(prediction_type="sample")
    with pytest.raises(ValueError, match="prediction_type='sample' must be 'epsilon'"):
        pipe(num_inference_steps=1)


@pytest.mark.parametrize("parametrization", ["ddpm", "edm"])
def test_denoising_is_what_training_does(parametrization):
    model, x0 = small_model(parametrization=parametrization), pixels()
    pipe, noise = DDAEPipeline(model, build_scheduler(model.config)), torch.randn(3, 3, 16, 16)
    t = model.config.num_train_timesteps // 3
    output = pipe.denoise(x0 / 2 + 0.5, t, noise=noise, output_type="pt")
    corruption, timesteps = model.ddae.corruption, torch.full((3,), t)
    if parametrization == "edm":
        sigma = corruption.levels[timesteps]
        noisy = x0 + sigma.view(3, 1, 1, 1) * noise
    else:
        sigma, noisy = timesteps, corruption(x0, noise, timesteps)
    with torch.no_grad():
        denoised = model(x0, sigma, noise).reconstruction
    torch.testing.assert_close(output.noisy_images, (noisy / 2 + 0.5).clamp(0, 1), rtol=0, atol=1e-5)
    torch.testing.assert_close(output.images, (denoised / 2 + 0.5).clamp(0, 1), rtol=0, atol=1e-4)
    assert [image.size for image in pipe.denoise(x0 / 2 + 0.5, t, generator=seeded(0, 1, 2)).images] == [(16, 16)] * 3


def test_denoising_refuses_what_it_would_misread(pipe):
    with pytest.raises(ValueError, match="timestep=1000 does not exist; choose one of 0 to 999"):
        pipe.denoise(torch.zeros(1, 3, 16, 16), 1000)
    with pytest.raises(ValueError, match=r"noise has shape \(1, 3, 8, 8\); it must be \(1, 3, 16, 16\)"):
        pipe.denoise(torch.zeros(1, 3, 16, 16), 10, noise=torch.zeros(1, 3, 8, 8))
