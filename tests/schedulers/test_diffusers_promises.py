"""What diffusers asks of every scheduler: configurations that come back, steps of any sample, the public API."""

import inspect
import warnings

import pytest
import torch

from ldae import LDAEScheduler


SCHEDULES = ("linear_beta", "linear_gamma2", "linear_sigma", "constant")
CHAINS = SCHEDULES[:3]
CONFIGS = [
    *({"noise_schedule": name, "prediction_type": kind} for name in SCHEDULES for kind in ("epsilon", "sample")),
    {"noise_schedule": "linear_beta", "beta_start": 1e-3, "beta_end": 0.05, "num_train_timesteps": 60},
    {"noise_schedule": "linear_sigma", "sigma_max": 3.0, "num_train_timesteps": 101},
    {"noise_schedule": "constant", "sigma": 0.2, "loss_weighting": "uniform"},
]


def draw_sample() -> torch.Tensor:
    """Images rather than tokens: a scheduler does not care."""
    return torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("fields", CONFIGS)
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_saved_configuration_gives_the_same_steps(fields, eta, tmp_path):
    scheduler = LDAEScheduler(**fields)
    scheduler.save_config(tmp_path)
    loaded = LDAEScheduler.from_pretrained(tmp_path)
    sample = draw_sample()
    last = len(scheduler) - 1
    for count in (None, 1, 1 if fields["noise_schedule"] == "constant" else 50):
        for t in (0, 1, last // 2, last):
            outputs = []
            for one in (scheduler, loaded):
                if count is not None:
                    one.set_timesteps(count)
                generator = torch.Generator().manual_seed(1)
                outputs.append(one.step(0.1 * sample, t, sample, eta=eta, generator=generator).prev_sample)
            assert torch.equal(*outputs)
            assert outputs[0].shape == sample.shape and outputs[0].isfinite().all()


def test_what_was_left_at_its_default_is_noted_until_it_is_saved(tmp_path):
    scheduler = LDAEScheduler(noise_schedule="linear_beta", beta_end=0.01)
    scheduler.save_pretrained(tmp_path)
    expected = dict(scheduler.config)
    assert "beta_start" in expected.pop("_use_default_values")
    assert dict(LDAEScheduler.from_pretrained(tmp_path).config) == expected


@pytest.mark.parametrize("name", ["linear_beta", "linear_gamma2"])
def test_a_configuration_survives_the_schedulers_that_can_take_it(name):
    scheduler = LDAEScheduler(noise_schedule=name, prediction_type="epsilon")
    assert {kind.__name__ for kind in scheduler.compatibles} == {"DDPMScheduler", "DDIMScheduler"}
    for kind in scheduler.compatibles:
        back = LDAEScheduler.from_config(kind.from_config(scheduler.config).config)
        assert {key: back.config[key] for key in scheduler.config} == dict(scheduler.config)
        arguments = set(inspect.signature(LDAEScheduler.__init__).parameters)
        assert not arguments & (set(back.config) - set(scheduler.config))


@pytest.mark.parametrize("name", CHAINS)
def test_a_tuple_holds_the_same_as_the_output(name):
    scheduler, sample = LDAEScheduler(noise_schedule=name), draw_sample()
    scheduler.set_timesteps(50)
    for t in (scheduler.timesteps[0], scheduler.timesteps[-1]):
        options = {"eta": 1.0}
        output = scheduler.step(0.1 * sample, t, sample, generator=torch.Generator().manual_seed(0), **options)
        as_tuple = scheduler.step(
            0.1 * sample, t, sample, generator=torch.Generator().manual_seed(0), return_dict=False, **options
        )
        assert len(as_tuple) == len(output.to_tuple()) == 2
        assert all(torch.equal(a, b) for a, b in zip(as_tuple, output.to_tuple(), strict=True))


def test_a_list_of_generators_draws_for_each_sample_alone():
    scheduler, sample = LDAEScheduler(), draw_sample()
    scheduler.set_timesteps(10)
    t = scheduler.timesteps[0]

    def step(rows: slice) -> torch.Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in range(4)][rows]
        return scheduler.step(0.1 * sample[rows], t, sample[rows], eta=1.0, generator=generators).prev_sample

    together = step(slice(0, 4))
    assert torch.equal(together, torch.cat([step(slice(i, i + 1)) for i in range(4)]))
    assert not torch.equal(together[0] - sample[0], together[1] - sample[1])


def test_the_public_api_is_there():
    scheduler, sample = LDAEScheduler(), draw_sample()
    assert scheduler.order == 1 and scheduler.init_noise_sigma > 1
    for t in (0, 0.0, torch.tensor(5), None):
        assert torch.equal(scheduler.scale_model_input(sample, t), sample)
    scheduler.set_timesteps(100)
    noisy = scheduler.add_noise(sample, torch.randn(4, 3, 8, 8), scheduler.timesteps[5][None])
    assert noisy.shape == sample.shape
    kinds = {parameter.kind for parameter in inspect.signature(LDAEScheduler.__init__).parameters.values()}
    assert inspect.Parameter.VAR_KEYWORD not in kinds and not scheduler._deprecated_kwargs
    for t in (3, torch.tensor(3), 3.0):
        assert torch.equal(
            scheduler.step(sample, t, sample).prev_sample, scheduler.step(sample, 3, sample).prev_sample
        )


def test_attributes_are_the_schedulers_own_and_fields_are_the_configurations():
    scheduler = LDAEScheduler()
    scheduler.note = 5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert scheduler.note == 5
        assert scheduler.config.sigma_max == pytest.approx(2**0.5)
    with pytest.warns(FutureWarning, match="sigma_max"):
        assert scheduler.sigma_max == scheduler.config.sigma_max
    with pytest.raises(AttributeError, match="'LDAEScheduler' object has no attribute 'does_not_exist'"):
        _ = scheduler.does_not_exist
