"""Compiled, checkpointed and in mixed precision, training computes what it computes plainly."""

import copy

import pytest
import torch

from ldae import (
    DDAEConfig,
    DDAEForPreTraining,
    DDAEModel,
    LDAEForImageClassification,
    LDAEForPreTraining,
    LDAEModel,
)
from tests.models.small_models import draw_corruption, draw_images, open_gates, small_config
from tests.models.test_ddae_pretraining import UNET


def gradients(model: LDAEForPreTraining, step: LDAEForPreTraining | None = None) -> dict[str, torch.Tensor]:
    """Gradients of the loss; `step` is what to call in place of the model (the compiled one)."""
    model.zero_grad()
    (model if step is None else step)(draw_images(), *draw_corruption()).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.fixture
def denoiser() -> LDAEForPreTraining:
    return open_gates(LDAEForPreTraining(small_config())).train()


def test_every_parameter_learns(denoiser: LDAEForPreTraining) -> None:
    still = {name for name, gradient in gradients(denoiser).items() if not gradient.any()}
    # A softmax does not see a shift of all its scores, so neither does the bias of the keys beyond rounding.
    assert not {name for name in still if not name.endswith("k_proj.bias")}


def test_activation_checkpointing_gives_the_same_gradients(denoiser: LDAEForPreTraining) -> None:
    expected = gradients(denoiser)
    ran = []
    denoiser.ldae.layers[1].mlp.register_forward_hook(lambda *args: ran.append(1))
    # transformers before 5.23 knows the other name alone
    enable = getattr(denoiser, "activation_checkpointing_enable", None) or denoiser.gradient_checkpointing_enable
    enable()
    checkpointed = gradients(denoiser)
    assert len(ran) == 2  # once forward, once again backward
    assert all(torch.equal(checkpointed[name], expected[name]) for name in expected)


def test_the_whole_encoder_forward_compiles() -> None:
    model = open_gates(LDAEModel(small_config()))
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        got, expected = compiled(draw_images()), model(draw_images())
    torch.testing.assert_close(got.last_hidden_state, expected.last_hidden_state, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(got.pooler_output, expected.pooler_output, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("target", ["image", pytest.param("noise", marks=pytest.mark.slow)])
def test_the_whole_pre_training_step_compiles(target: str) -> None:
    weighting = {"loss_weighting": "uniform"} if target == "noise" else {}
    config = small_config(prediction_target=target, num_class_embeds=3, **weighting)
    model = open_gates(LDAEForPreTraining(config)).train()
    expected = gradients(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    got = gradients(model, compiled)
    assert got.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


def test_autocast_keeps_schedule_targets_and_loss_in_float32(denoiser: LDAEForPreTraining) -> None:
    seen = {}
    denoiser.ldae.corruption.register_forward_hook(lambda m, args, out: seen.update(zt=out))
    denoiser.ldae.layers[0].mlp.register_forward_hook(lambda m, args, out: seen.update(mlp=out))
    images, (timesteps, noise) = draw_images(), draw_corruption()
    exact = denoiser(images, timesteps, noise)
    expected_zt = seen["zt"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = denoiser(images, timesteps, noise)
    assert seen["mlp"].dtype == torch.bfloat16  # it was on
    assert torch.equal(seen["zt"], expected_zt)
    assert outputs.loss.dtype == outputs.prediction.dtype == outputs.reconstruction.dtype == torch.float32
    torch.testing.assert_close(outputs.loss, exact.loss, atol=0, rtol=0.02)
    outputs.loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in denoiser.parameters())


def test_half_the_batch_twice_is_the_whole_batch(denoiser: LDAEForPreTraining) -> None:
    """The loss is a mean over examples: gradient accumulation needs no more than a division."""
    images, (timesteps, noise) = draw_images(4), draw_corruption(4)
    whole = denoiser(images, timesteps, noise).loss
    halves = [denoiser(images[part], timesteps[part], noise[part]).loss for part in (slice(0, 2), slice(2, 4))]
    torch.testing.assert_close(sum(halves) / 2, whole)


def test_a_few_steps_lower_the_loss() -> None:
    torch.manual_seed(0)
    model = LDAEForPreTraining(small_config())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    batch = (draw_images(), *draw_corruption())
    losses = []
    for _ in range(30):
        loss = model(*batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def ddae() -> DDAEForPreTraining:
    return DDAEForPreTraining(DDAEConfig(denoiser_config=UNET))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("make", [lambda: open_gates(LDAEForPreTraining(small_config())), ddae], ids=["ldae", "ddae"])
def test_corruption_that_is_not_given_is_drawn_by_torchs_generator(make, training: bool) -> None:
    model = make().train(training)

    def loss(seed: int, **given: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(seed)
        return model(draw_images(), **given).loss

    assert torch.equal(loss(0), loss(0)) and not torch.equal(loss(0), loss(1))
    torch.manual_seed(0)
    timesteps, noise = model.draw_corruption(torch.randint(2**40, (3,)), seed=0)
    assert torch.equal(loss(0), loss(1, timesteps=timesteps, noise=noise))
    assert torch.equal(loss(0), loss(0, timesteps=timesteps)) and torch.equal(loss(0), loss(0, noise=noise))
    assert not torch.equal(loss(0), loss(1, timesteps=timesteps))


def test_a_step_that_draws_its_corruption_compiles(denoiser: LDAEForPreTraining) -> None:
    compiled = torch.compile(copy.deepcopy(denoiser), fullgraph=True, backend="aot_eager")
    compiled(draw_images()).loss.backward()
    assert compiled(draw_images()).loss != compiled(draw_images()).loss


@pytest.mark.parametrize(
    "make",
    [
        lambda: LDAEModel(small_config()),
        lambda: LDAEForPreTraining(small_config()),
        lambda: LDAEForImageClassification(small_config()),
        ddae,
        lambda: DDAEModel(DDAEConfig(denoiser_config=UNET)),
    ],
    ids=["LDAEModel", "LDAEForPreTraining", "LDAEForImageClassification", "DDAEForPreTraining", "DDAEModel"],
)
def test_an_image_without_a_batch_is_one_line_with_its_shape(make) -> None:
    with pytest.raises(
        ValueError, match=r"^pixel_values has shape \(3, 16, 16\).* give pixel_values\[None\]\.$"
    ) as said:
        make()(draw_images()[0])
    assert "\n" not in str(said.value)
