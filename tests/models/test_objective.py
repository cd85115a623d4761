"""Targets, the loss over PCA dimensions and time steps, and what a perfect prediction gives."""

import pytest
import torch

from ldae import LDAEConfig, LDAEForPreTraining, patchify
from ldae.models.corruption_ldae import noise_schedule_tables
from ldae.models.objective_ldae import clean_latent, loss_weight_table
from tests.models.small_models import draw_corruption, draw_images, open_gates, small_config


TARGETS = ["noise", "latent", "projected_image", "image"]
SCHEDULES = ["linear_beta", "linear_gamma2", "linear_sigma", "constant"]


def make_model(target: str, **fields: object) -> LDAEForPreTraining:
    weighting = {"loss_weighting": "uniform"} if target == "noise" else {}
    return open_gates(LDAEForPreTraining(small_config(prediction_target=target, **(weighting | fields))))


def perfect_prediction(model: LDAEForPreTraining, x0: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
    tokenizer, target = model.ldae.tokenizer, model.config.prediction_target
    z0 = tokenizer.encode(x0)
    return {"noise": eps, "latent": z0, "projected_image": tokenizer.decode(z0), "image": x0}[target]


@pytest.mark.parametrize("weighting", ["uniform", "gamma2", "inverse_variance"])
@pytest.mark.parametrize("w_rest", [0.0, 0.1, 1.0])
def test_eq_4_equals_the_explicit_product_over_all_dimensions(w_rest: float, weighting: str) -> None:
    fields = {"noise_schedule": "linear_gamma2", "latent_scaling": "per_dim"}
    model = make_model("image", residual_weight=w_rest, loss_weighting=weighting, **fields)
    images, (timesteps, eps) = draw_images(), draw_corruption()
    outputs = model(images, timesteps, eps)

    # V completed to an orthonormal basis of all D dimensions, in float64.
    v = model.ldae.tokenizer.components.double()  # (d, D)
    basis = torch.linalg.qr(torch.cat([v.T, torch.randn(48, 40, dtype=torch.float64)], dim=1)).Q.T  # (D, D)
    assert torch.allclose((basis[:8] @ v.T).abs(), torch.eye(8, dtype=torch.float64), atol=1e-6)
    w = torch.cat([torch.ones(8), torch.full((40,), w_rest)]).double()
    residue = (patchify(images, 4) - outputs.prediction).double() @ basis.T  # (B, N, D)
    gamma = (1 - (timesteps.double() + 1) / 1000).sqrt()
    lambda_t = {"uniform": gamma**0, "gamma2": gamma**2, "inverse_variance": 1 / (1 + 1 - gamma**2)}[weighting]
    expected = (lambda_t[:, None, None] * w * residue**2).mean()
    torch.testing.assert_close(outputs.loss.double(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_perfect_prediction_costs_nothing_and_gives_the_image_back(target: str, schedule: str) -> None:
    model = make_model(target, noise_schedule=schedule)
    x0, (timesteps, eps) = patchify(draw_images(), 4), draw_corruption()
    timesteps = timesteps.clamp(max=900)  # at gamma = 0 the latent cannot be had from the noise
    z0 = model.ldae.tokenizer.encode(x0)
    perfect = perfect_prediction(model, x0, eps)
    sources = {"x0": x0, "z0": z0, "eps": eps, "timesteps": timesteps, "tokenizer": model.ldae.tokenizer}
    assert model.objective(perfect, **sources) == 0
    assert model.objective(perfect + 1, **sources) > 0

    zt = model.ldae.corruption(z0, eps, timesteps)
    images = model.predicted_images(perfect, zt, timesteps)
    expected = x0 if target == "image" else model.ldae.tokenizer.decode(z0)
    torch.testing.assert_close(patchify(images, 4), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("input_space", ["latent", "image"])
def test_loss_prediction_and_reconstruction_belong_together(target: str, input_space: str) -> None:
    model = make_model(target, input_space=input_space)
    images, (timesteps, eps) = draw_images(), draw_corruption()
    outputs = model(images, timesteps, eps)
    assert outputs.prediction.shape == (3, 16, 8 if target in ("noise", "latent") else 48)
    assert outputs.prediction.std() > 0.01
    x0 = patchify(images, 4)
    z0 = model.ldae.tokenizer.encode(x0)
    sources = {"x0": x0, "z0": z0, "eps": eps, "timesteps": timesteps, "tokenizer": model.ldae.tokenizer}
    torch.testing.assert_close(outputs.loss, model.objective(outputs.prediction, **sources))
    if target in ("noise", "latent"):
        lambda_t = loss_weight_table(
            model.config.loss_weighting, model.ldae.corruption.gammas, model.ldae.corruption.sigmas
        )
        error = (perfect_prediction(model, x0, eps) - outputs.prediction) ** 2
        torch.testing.assert_close(outputs.loss, (lambda_t[timesteps][:, None, None] * error).mean())
    zt = model.ldae.corruption(z0, eps, timesteps)
    assert torch.equal(outputs.reconstruction, model.predicted_images(outputs.prediction, zt, timesteps))


def test_predicted_noise_at_gamma_zero_says_nothing_about_the_latent() -> None:
    eps = torch.randn(2, 16, 8)
    gamma, sigma = torch.tensor([0.0, 0.6]), torch.tensor([1.0, 0.8])
    z0 = torch.randn(2, 16, 8)
    zt = gamma[:, None, None] * z0 + sigma[:, None, None] * eps
    clean = clean_latent(eps, zt, gamma, sigma)
    assert torch.equal(clean[0], torch.zeros(16, 8))
    torch.testing.assert_close(clean[1], z0[1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_loss_weights_are_those_of_the_schedule(schedule: str) -> None:
    gammas, sigmas = noise_schedule_tables(LDAEConfig(noise_schedule=schedule))
    assert torch.equal(loss_weight_table("uniform", gammas, sigmas), torch.ones(1000))
    assert torch.equal(loss_weight_table("gamma2", gammas, sigmas), gammas**2)
    inverse = loss_weight_table("inverse_variance", gammas, sigmas)
    torch.testing.assert_close(inverse * (1 + sigmas**2), torch.ones(1000))
    for weighting in ("uniform", "gamma2", "inverse_variance"):
        model = make_model("image", noise_schedule=schedule, loss_weighting=weighting)
        assert torch.equal(model.objective.loss_weights, loss_weight_table(weighting, gammas, sigmas))


def test_a_rare_time_step_weighs_as_lambda_says() -> None:
    model = make_model("image")
    x0, (_, eps) = patchify(draw_images(2), 4), draw_corruption(2)
    residue = torch.randn(1, 16, 48)
    sources = {"x0": x0[:1], "z0": eps[:1], "eps": eps[:1], "tokenizer": model.ldae.tokenizer}
    early, late = (model.objective(x0[:1] + residue, timesteps=torch.tensor([t]), **sources) for t in (0, 999))
    torch.testing.assert_close(early / late, torch.tensor(3.0))  # 1 + sigma_max^2
