"""Every sampler of DDPM's and EDM's networks: the distribution of data whose ideal network is known, and errors."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ldae import DDAEPipeline
from ldae.models.noise_ddae import DDPM, fractional_timesteps
from ldae.schedulers.scheduling_ldae import build_scheduler
from tests.models.test_ddae_pretraining import pixels, small_model
from tests.pipelines.conftest import make_pipeline, seeded


MEAN, DEVIATION = 0.2, 0.3  # of every pixel, normal


class IdealNetwork(nn.Module):
    """What a network would have learnt of independent normal pixels: F = (D - c_skip x) / c_out of the ideal D."""

    def __init__(self, model):
        super().__init__()
        self.place = nn.Parameter(torch.zeros(()))  # says where a model is
        self.config, self.process = model.config, model.ddae.corruption

    def forward(self, scaled, times):
        sigma = (4 * times).exp()
        if isinstance(self.process, DDPM):
            logs = self.process.levels.log()
            below = times.long().clamp(max=len(logs) - 2)
            sigma = (logs[below] + (times - below) * (logs[below + 1] - logs[below])).exp()
        c_skip, c_out, c_in, _ = self.process.precondition(sigma)
        c_skip, c_out, c_in, sigma = (value[:, None, None, None] for value in (c_skip, c_out, c_in, sigma))
        x = scaled / c_in
        denoised = (DEVIATION**2 * x + sigma**2 * MEAN) / (DEVIATION**2 + sigma**2)
        return SimpleNamespace(sample=(denoised - c_skip * x) / c_out)


def make(parametrization: str, ideal: bool = False) -> DDAEPipeline:
    unclipped = {"clip_sample": False} if parametrization == "ddpm" else {}
    model = small_model(parametrization=parametrization, scheduler_config=unclipped)
    if ideal:
        model.ddae.denoiser = IdealNetwork(model)
    pipe = DDAEPipeline(model, build_scheduler(model.config))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("parametrization", ["ddpm", "edm"])
def test_the_scales_are_those_of_the_noisy_images(parametrization):
    pipe, noise = make(parametrization), torch.randn(1, 3, 16, 16, generator=seeded(0)[0]) / 10
    gamma, sigma = pipe.noise_scales(3)
    images = pipe.denoise(torch.full_like(noise, 0.6), 3, noise=noise, output_type="pt").noisy_images
    torch.testing.assert_close(images * 2 - 1, gamma * 0.2 + sigma * noise, rtol=0, atol=1e-6)


@pytest.mark.parametrize("parametrization", ["ddpm", "edm"])
@pytest.mark.parametrize(
    ("sampler", "steps"), [("ddim", 500), ("ancestral", 1000), ("heun", 40)], ids=["ddim", "ancestral", "heun"]
)
def test_every_sampler_finds_the_distribution_of_the_data(parametrization, sampler, steps):
    pipe = make(parametrization, ideal=True)
    noise = torch.randn(16, 3, 16, 16, generator=seeded(0)[0])
    options = {"latents": noise, "sampler": sampler, "num_inference_steps": steps, "output_type": "pt"}
    found = pipe(generator=seeded(1)[0], **options).images * 2 - 1
    assert found.mean().item() == pytest.approx(MEAN, abs=0.01)
    assert found.std().item() == pytest.approx(DEVIATION, abs=0.012)
    correlation = torch.corrcoef(torch.stack([noise.flatten(), found.flatten()]))[0, 1].item()
    assert correlation < 0.1 if sampler == "ancestral" else correlation > 0.99
    assert pipe.num_timesteps == steps


def test_at_a_level_it_was_trained_at_a_ddpm_is_asked_as_it_was_trained():
    model, noise = small_model(), torch.randn(3, 3, 16, 16, generator=seeded(0)[0])
    timesteps = torch.tensor([0, 11, 600])
    levels = model.ddae.corruption.levels
    assert torch.equal(fractional_timesteps(levels, levels), torch.arange(1000.0))
    with torch.no_grad():
        outputs = model(pixels(), timesteps, noise)
        found = model.denoise_at(pixels() + levels[timesteps][:, None, None, None] * noise, levels[timesteps])
    torch.testing.assert_close(found, outputs.reconstruction, rtol=1e-3, atol=1e-4)


def test_levels_go_as_far_as_a_ddpm_was_trained():
    model = small_model()
    levels = model.ddae.corruption.sampling_levels(18)
    assert levels[0].item() == pytest.approx(80) and levels[-1].item() == pytest.approx(0.01, rel=1e-3)
    assert (levels.diff() < 0).all()
    short = small_model(scheduler_config={"num_train_timesteps": 300, "beta_end": 0.02})
    assert short.ddae.corruption.sampling_levels(5)[0] == short.ddae.corruption.levels[-1] < 5
    edges = fractional_timesteps(torch.tensor([1e-3, 1e3]), model.ddae.corruption.levels)
    assert edges.tolist() == [0, 999]


def test_a_ddpms_estimates_stay_in_range_by_heuns_method_too():
    model = small_model()
    pipe = DDAEPipeline(model, build_scheduler(model.config))
    assert pipe.scheduler.config.clip_sample
    x = 100 * torch.randn(2, 3, 16, 16, generator=seeded(0)[0])
    with torch.no_grad():
        assert pipe._denoise(x, torch.tensor([50.0])).abs().max() == 1
        assert make("ddpm")._denoise(x, torch.tensor([50.0])).abs().max() > 10


def test_steps_by_default_and_names():
    ddpm, edm, ldae = make("ddpm"), make("edm"), make_pipeline(num_train_timesteps=40)
    assert [ddpm.steps_by_default(name) for name in (None, "ddim", "ancestral", "heun")] == [50, 50, 1000, 18]
    assert [edm.steps_by_default(name) for name in (None, "ddim", "ancestral", "heun")] == [18, 50, 1000, 18]
    assert [ldae.steps_by_default(name) for name in (None, "ddim", "ancestral")] == [40, 40, 40]
    names = ["DDIM", "ancestral", "EDM (Heun)"]
    assert [edm.describe_sampler(name, 0.0) for name in ("ddim", "ancestral", "heun")] == names
    assert ddpm.describe_sampler(None, 0.3) == "DDIM with noise"


def test_an_ldae_names_its_samplers_too():
    pipe, shared = make_pipeline(), {"num_inference_steps": 3, "output_type": "pt"}
    by_name = pipe(sampler="ancestral", generator=seeded(0), **shared).images
    torch.testing.assert_close(by_name, pipe(eta=1.0, generator=seeded(0), **shared).images)
    with pytest.raises(ValueError, match="sampler='heun' is unknown; this model has ddim, ancestral"):
        pipe(sampler="heun", **shared)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "euler"}, "sampler='euler' is unknown; this model has ddim, ancestral, heun"),
        (
            {"sampler": "heun", "eta": 1.0},
            "eta=1.0 contradicts sampler='heun', whose eta is 0; leave out one of them",
        ),
        ({"sampler": "ancestral", "eta": 0.5}, "eta=0.5 contradicts sampler='ancestral', whose eta is 1"),
        ({"num_inference_steps": 0}, "num_inference_steps=0 is too small"),
    ],
)
def test_what_is_not_possible_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make("ddpm")(**options)
