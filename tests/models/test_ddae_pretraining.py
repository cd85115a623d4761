"""DDAEForPreTraining: its loss by hand, draws by position, and the encoder that its folder is."""

import pytest
import torch
from diffusers import DDPMScheduler
from transformers import AutoModel, AutoModelForPreTraining

from ldae import DDAEConfig, DDAEForPreTraining, DDAEModel
from ldae.training.recipe import load_recipe


UNET = {
    "sample_size": 16,
    "block_out_channels": [8, 16],
    "norm_num_groups": 4,
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
}


def small_model(**fields) -> DDAEForPreTraining:
    torch.manual_seed(0)
    return DDAEForPreTraining(DDAEConfig(denoiser_config=UNET, **fields)).eval()


def pixels(count: int = 3) -> torch.Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_the_loss_is_that_of_the_noise_which_diffusers_would_add():
    model, x0 = small_model(), pixels()
    timesteps, noise = model.draw_corruption(torch.arange(3), seed=0)
    scheduler = DDPMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
    with torch.no_grad():
        outputs = model(x0, timesteps, noise)
        expected = model.ddae.denoiser(scheduler.add_noise(x0, noise, timesteps), timesteps).sample
    torch.testing.assert_close(outputs.prediction, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(outputs.loss, ((expected - noise) ** 2).mean(), rtol=1e-4, atol=1e-4)


def test_a_perfect_prediction_gives_the_image_back():
    model, x0 = small_model(), pixels()
    timesteps, noise = torch.tensor([0, 100, 400]), model.draw_corruption(torch.arange(3), seed=0)[1]
    xt = model.ddae.corruption(x0, noise, timesteps)
    torch.testing.assert_close(model.ddae.corruption.reconstruct(noise, xt, timesteps), x0, rtol=0, atol=1e-5)


def test_draws_depend_on_seed_and_position_alone():
    model = small_model()
    timesteps, noise = model.draw_corruption(torch.arange(1000), seed=3)
    again = model.draw_corruption(torch.tensor([998, 5]), seed=3)
    assert torch.equal(again[0], timesteps[[998, 5]]) and torch.equal(again[1], noise[[998, 5]])
    assert not torch.equal(model.draw_corruption(torch.arange(1000), seed=4)[0], timesteps)
    assert timesteps.min() < 20 and timesteps.max() > 980 and abs(timesteps.float().mean() - 500) < 30
    assert noise.shape == (1000, 3, 16, 16) and abs(noise.std() - 1) < 0.01


def test_its_folder_is_an_encoder_cut_at_the_tap(tmp_path):
    model, x0 = small_model(feature_layer="up_blocks.0.attentions.0"), pixels()
    model.save_pretrained(tmp_path)
    encoder = AutoModel.from_pretrained(tmp_path)
    assert isinstance(encoder, DDAEModel) and not encoder.whole
    assert encoder.num_parameters() < model.num_parameters()
    with torch.no_grad():
        torch.testing.assert_close(encoder(x0).last_hidden_state, model.ddae(x0).last_hidden_state)
    other = DDAEModel.from_pretrained(tmp_path, feature_layer="mid_block.resnets.0")
    with torch.no_grad():
        taps = model.ddae.features(x0, ["mid_block.resnets.0"])
        torch.testing.assert_close(other(x0).pooler_output, taps["mid_block.resnets.0"][0])
    assert list(model.ddae.feature_layers)[-1].startswith("up_blocks.1")

    whole = AutoModelForPreTraining.from_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), model.parameters(), strict=True))


def test_every_weight_is_trained():
    model = small_model().train()
    timesteps, noise = model.draw_corruption(torch.arange(3), seed=0)
    model(pixels(), timesteps, noise).loss.backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"denoiser_type": "LDAEModel", "denoiser_config": None}, "denoiser_type='LDAEModel' cannot be pre-trained"),
        ({"scheduler_config": {"prediction_type": "sample"}}, "prediction_type='sample' cannot be pre-trained"),
        ({"denoiser_config": {**UNET, "num_class_embeds": 3}, "null_class": 2}, "null_class=2 cannot be pre-trained"),
    ],
)
def test_what_is_not_pre_trained_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        DDAEForPreTraining(DDAEConfig(**({"denoiser_config": UNET} | fields)))


def test_labels_are_refused():
    model = small_model()
    timesteps, noise = model.draw_corruption(torch.arange(3), seed=0)
    with pytest.raises(ValueError, match="trained without labels"):
        model(pixels(), timesteps, noise, torch.zeros(3, dtype=torch.long))


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("ddae_digits", 0.70),
        ("ddae_cifar10_ddpm", 35.75),
        ("ddae_cifar10_edm", 35.75),
        ("ddae_tiny_imagenet", 35.75),
        ("ddae_cifar10_edm_large", 59.01),
        ("ddae_cifar10_edm_augmented", 59.02),
        ("ddae_digits_dit", 1.24),
    ],
)
def test_the_recipes_networks_have_the_stated_sizes(name, millions):
    with torch.device("meta"):
        model = DDAEForPreTraining(load_recipe(f"training/recipes/{name}.yaml").model_config())
    assert model.num_parameters() / 1e6 == pytest.approx(millions, abs=0.006)
