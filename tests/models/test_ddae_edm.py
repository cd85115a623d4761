"""EDM: preconditioning by its closed forms, the loss by hand, features at a level of the schedule, samples."""

import math

import pytest
import torch
from transformers import AutoModel

from ldae import DDAEConfig, DDAEPipeline
from ldae.models.noise_ddae import EDM
from ldae.pipelines.loading import open_pipeline
from ldae.schedulers.scheduling_ldae import build_scheduler
from tests.models.test_ddae_pretraining import UNET, pixels, small_model


SIGMAS = torch.tensor([0.002, 0.1, 0.5, 3.0, 80.0], dtype=torch.float64)


def test_the_network_sees_and_predicts_values_of_unit_variance():
    edm = EDM(EDM.complete(None))
    c_skip, c_out, c_in, _ = edm.precondition(SIGMAS)
    ones = torch.ones_like(SIGMAS)
    torch.testing.assert_close(c_in**2 * (SIGMAS**2 + 0.25), ones)  # of x = x_0 + sigma eps
    # F's target is (x_0 - c_skip x) / c_out, of x_0 and eps independent
    torch.testing.assert_close(((1 - c_skip) ** 2 * 0.25 + c_skip**2 * SIGMAS**2) / c_out**2, ones)
    torch.testing.assert_close(edm.weight(SIGMAS) * c_out**2, ones)


def test_without_noise_an_image_is_itself():
    x0 = pixels()
    torch.testing.assert_close(small_model(parametrization="edm").denoise_at(x0, torch.tensor([1e-6])), x0)


def test_sigmas_are_log_normal_and_depend_on_the_position_alone():
    model = small_model(parametrization="edm")
    sigmas, _ = model.draw_corruption(torch.arange(4000), seed=1)
    assert abs(sigmas.log().mean() + 1.2) < 0.08 and abs(sigmas.log().std() - 1.2) < 0.06
    assert torch.equal(model.draw_corruption(torch.tensor([77]), seed=1)[0], sigmas[77:78])


def test_the_loss_is_that_of_the_networks_own_target():
    """Weighted, the error of the image is the plain error of F against (x_0 - c_skip x) / c_out."""
    model, x0 = small_model(parametrization="edm"), pixels()
    sigma, noise = model.draw_corruption(torch.arange(3), seed=0)
    with torch.no_grad():
        outputs = model(x0, sigma, noise)
        s = sigma[:, None, None, None]
        x, total = x0 + s * noise, s**2 + 0.25
        raw = model.ddae.denoiser(x / total.sqrt(), sigma.log() / 4).sample
    target = (x0 - 0.25 / total * x) * total.sqrt() / (0.5 * s)
    torch.testing.assert_close(outputs.loss, ((raw - target) ** 2).mean(), rtol=1e-4, atol=1e-4)


def test_features_are_read_at_a_level_counted_from_the_clean_end(tmp_path):
    model, x0 = small_model(parametrization="edm"), pixels()
    assert model.config.feature_timestep == 3 and model.config.num_train_timesteps == 18
    model.save_pretrained(tmp_path)
    encoder = AutoModel.from_pretrained(tmp_path)
    level = (0.002 ** (1 / 7) + 3 / 17 * (80 ** (1 / 7) - 0.002 ** (1 / 7))) ** 7
    assert encoder.corruption.levels[3].item() == pytest.approx(level, rel=1e-4)
    scaled, c_noise = x0 / math.hypot(level, 0.5), torch.tensor(math.log(level) / 4)
    with torch.no_grad():
        expected = encoder.denoiser(scaled, c_noise).sample.mean(dim=(2, 3))
        torch.testing.assert_close(encoder(x0).pooler_output, expected, rtol=1e-4, atol=1e-4)


def test_levels_are_those_of_the_public_code_whose_list_begins_with_a_zero():
    """times[t] of the public code is our level t - 1: its grid 3, 4, 5 is 2, 3, 4 here."""
    levels = small_model(parametrization="edm").ddae.corruption.levels
    steps = torch.arange(18, dtype=torch.float64) / 17
    schedule = (80 ** (1 / 7) + steps * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    times = torch.cat([schedule, torch.zeros(1, dtype=torch.float64)]).flip(0)  # the public code's list
    torch.testing.assert_close(levels.double(), times[1:], rtol=1e-4, atol=0)
    assert times[1].item() == pytest.approx(0.002)
    assert levels[[2, 3, 4]].tolist() == pytest.approx([0.023, 0.0599, 0.1395], abs=1e-3)


def test_its_folder_samples_in_eighteen_steps(tmp_path):
    model = small_model(parametrization="edm")
    DDAEPipeline(model, build_scheduler(model.config)).save_pretrained(tmp_path)
    pipe = open_pipeline(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    assert pipe(2, output_type="pt").images.shape == (2, 3, 16, 16)
    assert pipe.num_timesteps == 18 and pipe.describe_sampler(None, 0.0) == "EDM (Heun)"
    with pytest.raises(ValueError, match=r"eta=1.0 contradicts sampler='heun'"):
        pipe(eta=1.0)
    pipe.scheduler.register_to_config(sigma_max=50.0)
    with pytest.raises(ValueError, match="its sigma_max is 50"):
        pipe()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"parametrization": "flow"}, "parametrization='flow' is unknown; choose one of ddpm, edm"),
        (
            {"scheduler_config": {"beta_end": 0.1}},
            "scheduler_config has 'beta_end', which EDM does not have; choose from sigma_data",
        ),
        ({"feature_timestep": 18}, "feature_timestep=18 is invalid"),
        ({"denoiser_type": "LDAEModel", "denoiser_config": None}, "parametrization='edm' is invalid"),
    ],
)
def test_what_is_no_edm_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        DDAEConfig(**({"denoiser_config": UNET, "parametrization": "edm"} | fields))
