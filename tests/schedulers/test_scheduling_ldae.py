"""The scheduler: its tables, noise as in training, and chains that end where they should, here and in diffusers."""

import json

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from ldae import LDAEConfig, LDAEForPreTraining, LDAEScheduler


SCHEDULES = ("linear_beta", "linear_gamma2", "linear_sigma", "constant")
CHAINS = SCHEDULES[:3]  # the constant one is left in one step
STOCK = SCHEDULES[:2]  # diffusers has betas for these


def chain(scheduler, model, zt, **step_kwargs):
    """Runs the chain; yields each z_s with its time step, None for the clean end."""
    timesteps = scheduler.timesteps.tolist()
    for t, s in zip(timesteps, [*timesteps[1:], None], strict=True):
        zt = scheduler.step(model(zt, t), t, zt, **step_kwargs).prev_sample
        yield s, zt


# Tables


@pytest.mark.parametrize("num_train_timesteps", [1000, 17, 1])
def test_tables_are_the_closed_forms(num_train_timesteps):
    total = num_train_timesteps
    t = torch.arange(total, dtype=torch.float64)
    fraction = t / max(1, total - 1)
    beta_product = torch.ones(total, dtype=torch.float64)
    running = 1.0
    for i in range(total):
        running *= 1 - (1e-4 + (0.02 - 1e-4) * fraction[i].item())
        beta_product[i] = running
    gamma2 = {
        "linear_beta": beta_product,
        "linear_gamma2": 1 - (t + 1) / total,
        "linear_sigma": torch.ones_like(t),
        "constant": torch.ones_like(t),
    }
    sigma2 = {
        "linear_beta": 1 - beta_product,
        "linear_gamma2": (t + 1) / total,
        "linear_sigma": 2 * fraction**2,
        "constant": torch.full_like(t, 1 / 3),
    }
    for name in SCHEDULES:
        scheduler = LDAEScheduler(num_train_timesteps, name)
        for table in (scheduler.gammas, scheduler.sigmas, scheduler.loss_weights):
            assert (table.shape, table.dtype) == ((total,), torch.float32)
        torch.testing.assert_close(scheduler.gammas.double() ** 2, gamma2[name], rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(scheduler.sigmas.double() ** 2, sigma2[name], rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(scheduler.loss_weights.double(), 1 / (1 + sigma2[name]), rtol=1e-6, atol=0)
        assert len(scheduler) == total


@pytest.mark.parametrize("name", STOCK)
def test_variance_is_preserved_where_it_should_be(name):
    scheduler = LDAEScheduler(noise_schedule=name)
    torch.testing.assert_close(scheduler.gammas**2 + scheduler.sigmas**2, torch.ones(1000), atol=1e-6, rtol=0)
    assert scheduler.init_noise_sigma == pytest.approx(1, abs=1e-6)


def test_both_ends():
    assert LDAEScheduler(noise_schedule="linear_gamma2").gammas[-1] == 0
    assert LDAEScheduler(noise_schedule="linear_gamma2").sigmas[-1] == 1
    assert LDAEScheduler(noise_schedule="linear_sigma").sigmas[0] == 0
    assert LDAEScheduler(noise_schedule="linear_sigma").sigmas[-1] == torch.tensor(2.0).sqrt()
    assert LDAEScheduler(noise_schedule="linear_sigma").init_noise_sigma == pytest.approx(3**0.5)
    assert LDAEScheduler(noise_schedule="constant").init_noise_sigma == pytest.approx((4 / 3) ** 0.5)


@pytest.mark.parametrize("loss_weighting", ["uniform", "gamma2", "inverse_variance"])
def test_loss_weights(loss_weighting):
    scheduler = LDAEScheduler(noise_schedule="linear_gamma2", loss_weighting=loss_weighting)
    gamma, sigma = scheduler.gammas, scheduler.sigmas
    expected = {"uniform": gamma * 0 + 1, "gamma2": gamma**2, "inverse_variance": 1 / (1 + sigma**2)}
    torch.testing.assert_close(scheduler.loss_weights, expected[loss_weighting])


@pytest.mark.parametrize("name", CHAINS)
def test_an_error_of_the_noise_is_an_error_of_the_latent_times_the_signal_to_noise_ratio(name):
    scheduler = LDAEScheduler(noise_schedule=name, prediction_type="epsilon", loss_weighting="uniform")
    z0, eps, guess = torch.randn(3, 5, 6, 4, dtype=torch.float64).unbind()
    for t in (1, 300, 998):
        zt = scheduler.add_noise(z0, eps, torch.tensor([t]))
        predicted = scheduler.step(guess, t, zt).pred_original_sample
        gamma, sigma = scheduler.gammas[t].double(), scheduler.sigmas[t].double()
        of_noise = scheduler.loss_weights[t] * (eps - guess) ** 2
        of_latent = scheduler.loss_weights[t] * gamma**2 / sigma**2 * (z0 - predicted) ** 2
        torch.testing.assert_close(of_latent, of_noise, rtol=1e-6, atol=1e-9)


# Noise as in training


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_add_noise_is_bit_for_bit_the_models_corruption(name, dtype):
    config = LDAEConfig.from_size("nano", image_size=16, patch_size=4, latent_dim=8, noise_schedule=name)
    model = LDAEForPreTraining(config).to(dtype)
    scheduler = LDAEScheduler.from_ldae_config(config)
    timesteps, eps = model.draw_corruption(torch.arange(64), seed=3)
    z0 = torch.randn(64, config.num_patches, config.latent_dim, dtype=dtype)
    trained_on = model.ldae.corruption(z0, eps, timesteps)
    assert torch.equal(scheduler.add_noise(z0, eps, timesteps), trained_on)
    assert trained_on.dtype == dtype
    for ours, models in (
        (scheduler.gammas, model.ldae.corruption.gammas),
        (scheduler.sigmas, model.ldae.corruption.sigmas),
        (scheduler.loss_weights, model.objective.loss_weights),
    ):
        assert torch.equal(ours.to(dtype), models)


def test_add_noise_takes_a_shared_time_step_and_any_shape():
    scheduler = LDAEScheduler()
    images, eps = torch.randn(2, 4, 3, 8, 8).unbind()
    shared = scheduler.add_noise(images, eps, torch.tensor([500]))
    assert torch.equal(shared, scheduler.add_noise(images, eps, torch.full((4,), 500)))
    assert torch.equal(scheduler.scale_model_input(images, 500), images)


def test_half_precision_comes_back_as_half_and_is_computed_in_float32():
    scheduler = LDAEScheduler(noise_schedule="linear_beta")
    scheduler.set_timesteps(10)
    z0, eps = torch.randn(2, 4, 6, 8).bfloat16().unbind()
    timesteps = torch.tensor([0, 3, 500, 999])
    wide = scheduler.add_noise(z0.float(), eps.float(), timesteps)
    zt = scheduler.add_noise(z0, eps, timesteps)
    assert zt.dtype == torch.bfloat16
    assert torch.equal(zt, wide.bfloat16())
    for eta in (0.0, 1.0):
        narrow = scheduler.step(z0, 499, zt, eta=eta, generator=torch.Generator().manual_seed(0))
        in_float32 = scheduler.step(z0.float(), 499, zt.float(), eta=eta, generator=torch.Generator().manual_seed(0))
        assert narrow.prev_sample.dtype == narrow.pred_original_sample.dtype == torch.bfloat16
        assert torch.equal(narrow.prev_sample, in_float32.prev_sample.bfloat16())


def test_the_tables_follow_the_samples_to_another_device():
    scheduler = LDAEScheduler()
    sample = torch.empty(2, 3, 4, device="meta")
    assert scheduler.add_noise(sample, sample, torch.tensor([1, 2], device="meta")).device.type == "meta"
    scheduler.set_timesteps(5, device="meta")
    assert scheduler.timesteps.device.type == "meta"
    assert scheduler.step(sample, 999, sample, eta=0.0).prev_sample.device.type == "meta"


# Chains


@pytest.mark.parametrize("name", CHAINS)
def test_time_steps_are_distinct_fall_and_begin_with_the_last(name):
    scheduler = LDAEScheduler(97, name)
    assert scheduler.timesteps.tolist() == list(range(97))[::-1]
    for count in range(1, 98):
        scheduler.set_timesteps(count)
        timesteps = scheduler.timesteps
        assert scheduler.num_inference_steps == count == len(timesteps)
        assert (timesteps.diff() < 0).all()
        assert timesteps[0] == 96
        assert timesteps[-1] >= 0


def test_numbers_of_steps_that_cannot_be_are_refused():
    scheduler = LDAEScheduler(100)
    for count in (0, -1, 101):
        with pytest.raises(ValueError, match=f"num_inference_steps={count} is invalid; give 1 to 100"):
            scheduler.set_timesteps(count)
    constant = LDAEScheduler(100, "constant")
    assert constant.timesteps.tolist() == [99]
    constant.set_timesteps(1)
    assert constant.timesteps.tolist() == [99]
    with pytest.raises(ValueError, match="whose one noise level is removed in 1 step"):
        constant.set_timesteps(2)


def test_wrong_steps_are_refused():
    scheduler, z = LDAEScheduler(100), torch.randn(2, 3, 4)
    for t in (-1, 100):
        with pytest.raises(ValueError, match=f"timestep={t} does not exist; choose one of 0 to 99"):
            scheduler.step(z, t, z)
    for eta in (-0.1, 1.1):
        with pytest.raises(ValueError, match=f"eta={eta}"):
            scheduler.step(z, 50, z, eta=eta)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample"])
@pytest.mark.parametrize("count", [1, 7, 1000])
def test_the_true_prediction_leads_along_the_marginals_to_the_clean_latent(name, prediction_type, count):
    if name == "constant" and count > 1:
        return
    scheduler = LDAEScheduler(noise_schedule=name, prediction_type=prediction_type)
    scheduler.set_timesteps(count)
    z0, eps = torch.randn(2, 4, 6, 8, dtype=torch.float64).unbind()
    truth = eps if prediction_type == "epsilon" else z0
    zt = scheduler.add_noise(z0, eps, scheduler.timesteps[:1])
    for s, zs in chain(scheduler, lambda zt, t: truth, zt):
        if s is None:
            expected = z0
        else:
            expected = scheduler.add_noise(z0, eps, torch.tensor([s]))
        blind = name == "linear_gamma2" and prediction_type == "epsilon"  # gamma_T = 0: z_T does not know z_0
        if not blind:
            torch.testing.assert_close(zs, expected, rtol=0, atol=1e-6)
        assert zs.isfinite().all()
    if prediction_type == "sample":
        assert torch.equal(zs, z0)


def test_at_gamma_zero_predicted_noise_gives_the_mean_and_the_chain_goes_on():
    scheduler = LDAEScheduler(noise_schedule="linear_gamma2", prediction_type="epsilon")
    scheduler.set_timesteps(4)
    eps = torch.randn(2, 3, 4)
    output = scheduler.step(eps, 999, eps)
    assert (output.pred_original_sample == 0).all()
    torch.testing.assert_close(output.prev_sample, scheduler.sigmas[749] * eps)


def test_at_sigma_zero_the_sample_is_clean():
    scheduler = LDAEScheduler(noise_schedule="linear_sigma", prediction_type="epsilon")
    z0 = torch.randn(2, 3, 4)
    assert torch.equal(scheduler.step(torch.randn(2, 3, 4), 0, z0).prev_sample, z0)
    for eta in (0.0, 1.0):  # from t = 1 to s = 0, where sigma is 0
        assert torch.equal(scheduler.step(torch.zeros(2, 3, 4), 1, z0, eta=eta).prev_sample, z0)


@pytest.mark.parametrize("name", CHAINS)
def test_an_ancestral_step_draws_from_the_posterior(name):
    """q(z_s | z_t, z_0) by Bayes' rule: the product of N(gamma_s z_0, sigma_s^2) and the likelihood of z_t."""
    scheduler = LDAEScheduler(noise_schedule=name)
    scheduler.set_timesteps(5)
    generator = torch.Generator().manual_seed(0)
    for t, s in zip(scheduler.timesteps[:-1].tolist(), scheduler.timesteps[1:].tolist(), strict=True):
        gamma_t, sigma_t, gamma_s, sigma_s = (
            table[i].double().item() for i in (t, s) for table in (scheduler.gammas, scheduler.sigmas)
        )
        ratio = gamma_t / gamma_s
        forward_variance = sigma_t**2 - ratio**2 * sigma_s**2  # of z_t given z_s
        precision = 1 / sigma_s**2 + ratio**2 / forward_variance
        z0, zt = 0.7, -0.4
        mean = (gamma_s * z0 / sigma_s**2 + ratio * zt / forward_variance) / precision
        draws = scheduler.step(
            torch.full((40000,), z0), t, torch.full((40000,), zt), eta=1.0, generator=generator
        ).prev_sample
        assert draws.mean().item() == pytest.approx(mean, abs=4.5 * (1 / precision / 40000) ** 0.5)
        assert draws.var().item() == pytest.approx(1 / precision, rel=4.5 * (2 / 40000) ** 0.5)


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_every_chain_keeps_the_marginals_of_gaussian_data(name, eta):
    """With z_0 drawn from its posterior given z_t each step is exact, however few the steps and whatever eta."""
    generator = torch.Generator().manual_seed(1)
    n, mean, std = 40000, 0.5, 0.8
    scheduler = LDAEScheduler(noise_schedule=name)
    scheduler.set_timesteps(5)

    def posterior_draw(zt, t):
        gamma, sigma = scheduler.gammas[t].item(), scheduler.sigmas[t].item()
        gain = gamma * std**2 / (gamma**2 * std**2 + sigma**2)
        spread = (std**2 * (1 - gain * gamma)) ** 0.5
        return mean + gain * (zt - gamma * mean) + spread * torch.randn(n, generator=generator)

    first = scheduler.timesteps[:1]
    z0 = mean + std * torch.randn(n, generator=generator)
    zt = scheduler.add_noise(z0, torch.randn(n, generator=generator), first)
    for s, zs in chain(scheduler, posterior_draw, zt, eta=eta, generator=generator):
        gamma, sigma = (1.0, 0.0) if s is None else (scheduler.gammas[s].item(), scheduler.sigmas[s].item())
        variance = gamma**2 * std**2 + sigma**2
        assert zs.mean().item() == pytest.approx(gamma * mean, abs=4.5 * (variance / n) ** 0.5)
        assert zs.var().item() == pytest.approx(variance, rel=4.5 * (2 / n) ** 0.5)


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_best_denoiser_generates_gaussian_data(name, eta):
    """A trained model predicts the mean of z_0 given z_t; from noise of the prior's scale it makes the data again."""
    generator = torch.Generator().manual_seed(2)
    n, std = 20000, 0.8
    scheduler = LDAEScheduler(noise_schedule=name)
    scheduler.set_timesteps(500)

    def posterior_mean(zt, t):
        gamma, sigma = scheduler.gammas[t].item(), scheduler.sigmas[t].item()
        return gamma * std**2 / (gamma**2 * std**2 + sigma**2) * zt

    prior = (scheduler.gammas[-1] ** 2 * std**2 + scheduler.sigmas[-1] ** 2).sqrt()
    zt = prior * torch.randn(n, generator=generator)
    *_, (_, z0) = chain(scheduler, posterior_mean, zt, eta=eta, generator=generator)
    assert z0.mean().item() == pytest.approx(0, abs=4.5 * std / n**0.5)
    assert z0.std().item() == pytest.approx(std, rel=0.03)  # the steps' own error, as 1 / steps, and 0.5 % sampling


# diffusers' own schedulers


@pytest.mark.parametrize("name", STOCK)
@pytest.mark.parametrize("prediction_target", ["noise", "latent", "projected_image", "image"])
@pytest.mark.parametrize("stock", [DDPMScheduler, DDIMScheduler])
def test_a_saved_scheduler_loads_in_diffusers_with_the_same_schedule(name, prediction_target, stock, tmp_path):
    config = LDAEConfig(noise_schedule=name, prediction_target=prediction_target, loss_weighting="uniform")
    ours = LDAEScheduler.from_ldae_config(config)
    ours.save_pretrained(tmp_path)
    for theirs in (stock.from_pretrained(tmp_path), stock.from_config(ours.config)):
        torch.testing.assert_close(theirs.alphas_cumprod, ours.gammas**2, rtol=0, atol=1e-6)
        assert theirs.config.clip_sample is False
        assert theirs.config.prediction_type == ("epsilon" if prediction_target == "noise" else "sample")
        back = LDAEScheduler.from_config(theirs.config)
        assert torch.equal(back.gammas, ours.gammas)
        for count in (1, 5, 16, 30, 1000):
            ours.set_timesteps(count)
            theirs.set_timesteps(count)
            assert torch.equal(ours.timesteps, theirs.timesteps)


@pytest.mark.parametrize("name", ["linear_sigma", "constant"])
@pytest.mark.parametrize("stock", [DDPMScheduler, DDIMScheduler])
def test_diffusers_refuses_a_schedule_that_it_does_not_have(name, stock, tmp_path):
    LDAEScheduler(noise_schedule=name).save_pretrained(tmp_path)
    with pytest.raises(NotImplementedError, match=name):
        stock.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", STOCK)
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample"])
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_steps_are_those_of_ddim(name, prediction_type, eta):
    ours = LDAEScheduler(noise_schedule=name, prediction_type=prediction_type)
    theirs = DDIMScheduler.from_config(ours.config)
    _assert_same_steps(ours, theirs, 20, eta=eta)


@pytest.mark.parametrize("name", STOCK)
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample"])
@pytest.mark.parametrize("count", [20, 1000])
def test_ancestral_steps_are_those_of_ddpm(name, prediction_type, count):
    ours = LDAEScheduler(noise_schedule=name, prediction_type=prediction_type)
    theirs = DDPMScheduler.from_config(ours.config)
    _assert_same_steps(ours, theirs, count, eta=1.0)


def _assert_same_steps(ours, theirs, count, *, eta):
    ours.set_timesteps(count)
    theirs.set_timesteps(count)
    generator = torch.Generator().manual_seed(0)
    for t in ours.timesteps.tolist():
        if ours.config.prediction_type == "epsilon" and ours.gammas[t] == 0:
            continue  # where diffusers divides by zero
        output, zt = torch.randn(2, 2, 6, 8, generator=generator).unbind()
        mine = ours.step(output, t, zt, eta=eta, generator=torch.Generator().manual_seed(t))
        kwargs = {"eta": eta} if isinstance(theirs, DDIMScheduler) else {}
        their = theirs.step(output, t, zt, generator=torch.Generator().manual_seed(t), **kwargs)
        # with a small gamma_t diffusers' float32 betas cost digits of predicted z_0, and so do its small steps
        torch.testing.assert_close(mine.prev_sample, their.prev_sample, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(mine.pred_original_sample, their.pred_original_sample, rtol=1e-3, atol=1e-3)


def test_another_schedulers_configuration_is_refused(tmp_path):
    with pytest.raises(ValueError, match="noise_schedule is missing from the configuration"):
        LDAEScheduler.from_config(DDPMScheduler().config)
    DDIMScheduler().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="configuration of a DDIMScheduler"):
        LDAEScheduler.from_pretrained(tmp_path)


# Configuration


@pytest.mark.parametrize("name", SCHEDULES)
def test_json_round_trip(name, tmp_path):
    scheduler = LDAEScheduler(50, name, beta_end=0.03, sigma_max=1.5, sigma=0.4, prediction_type="epsilon")
    scheduler.save_pretrained(tmp_path)
    loaded = LDAEScheduler.from_pretrained(tmp_path)
    for table in ("gammas", "sigmas", "loss_weights", "timesteps"):
        assert torch.equal(getattr(loaded, table), getattr(scheduler, table))
    fields = {key: value for key, value in scheduler.config.items() if not key.startswith("_")}
    assert {key: loaded.config[key] for key in fields} == fields
    loaded.save_pretrained(tmp_path / "again")
    written = (tmp_path / "scheduler_config.json").read_text()
    assert (tmp_path / "again" / "scheduler_config.json").read_text() == written
    assert json.loads(written)["_class_name"] == "LDAEScheduler"
    for step in (scheduler, loaded):
        assert len(step.step(torch.ones(2, 3), 20, torch.ones(2, 3), return_dict=False)) == 2


def test_a_scheduler_beside_a_model_must_say_the_same(tmp_path):
    config = LDAEConfig(noise_schedule="linear_gamma2", prediction_target="latent", num_train_timesteps=100)
    LDAEScheduler.from_ldae_config(config).save_pretrained(tmp_path)
    LDAEScheduler.from_pretrained(tmp_path).verify_matches(config)
    for field, value in (
        ("num_train_timesteps", 99),
        ("noise_schedule", "linear_sigma"),
        ("sigma", 0.1),
        ("loss_weighting", "uniform"),
    ):
        other = LDAEConfig.from_dict({**config.to_dict(), field: value})
        with pytest.raises(ValueError, match=f"disagrees with the model's config.json: .*{field}="):
            LDAEScheduler.from_pretrained(tmp_path).verify_matches(other)
    with pytest.raises(ValueError, match="prediction_type='sample' not 'epsilon'"):
        LDAEScheduler.from_pretrained(tmp_path).verify_matches(
            LDAEConfig.from_dict({**config.to_dict(), "prediction_target": "noise", "loss_weighting": "uniform"})
        )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("beta_schedule", "scaled_linear"),
        ("trained_betas", [0.1, 0.3]),
        ("clip_sample", True),
        ("timestep_spacing", "leading"),
    ],
)
def test_words_for_diffusers_that_say_something_else_are_refused(field, value, tmp_path):
    LDAEScheduler(100, "linear_gamma2").save_pretrained(tmp_path)
    path = tmp_path / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    with pytest.raises(ValueError, match=f"{field}=.* disagrees with noise_schedule='linear_gamma2'"):
        LDAEScheduler.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"noise_schedule": "cosine"}, "noise_schedule='cosine' is unknown; choose one of linear_beta"),
        ({"loss_weighting": "snr"}, "loss_weighting='snr' is unknown"),
        ({"prediction_type": "v_prediction"}, "prediction_type='v_prediction' is unknown; choose epsilon or sample"),
        ({"num_train_timesteps": 0}, "num_train_timesteps=0"),
        ({"sigma_max": -1.0}, "sigma_max=-1.0"),
        ({"beta_start": 0.5}, "beta_start=0.5"),
    ],
)
def test_wrong_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        LDAEScheduler(**fields)
