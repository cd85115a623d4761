"""Self-conditioning, augmentation labels and DiTs of pixels: trained, cut, saved and sampled as plain UNets are."""

import copy
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel

from ldae import DDAEConfig, DDAEForPreTraining, DDAEModel, DDAEPipeline
from ldae.hub.model_card import write_model_card
from ldae.models.diffusers_ddae import zeros
from ldae.pipelines.loading import open_pipeline
from ldae.schedulers.scheduling_ldae import build_scheduler
from ldae.training.recipe import load_recipe
from tests.models.test_ddae_pretraining import UNET, pixels


DIT: dict[str, Any] = {
    "sample_size": 16,
    "patch_size": 4,
    "in_channels": 3,
    "num_layers": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "num_embeds_ada_norm": 0,
}
NETWORKS = {
    "UNet2DModel": (UNET, "mid_block.resnets.1", "up_blocks.0.resnets.0"),
    "DiTTransformer2DModel": (DIT, "transformer_blocks.1", "transformer_blocks.2"),
}
BOTH = pytest.mark.parametrize("kind", list(NETWORKS))
LABELS = torch.eye(3, 9)


def small_model(kind: str, awake: bool = True, **fields: Any) -> DDAEForPreTraining:
    """With random weights in place of the zeros that training starts from, where it is to be awake."""
    torch.manual_seed(0)
    model = DDAEForPreTraining(DDAEConfig(denoiser_type=kind, denoiser_config=NETWORKS[kind][0], **fields)).eval()
    for parameter in model.parameters():
        if awake and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def loss_of(model: DDAEForPreTraining, call: Any = None, **inputs: Any) -> torch.Tensor:
    timesteps, noise = model.draw_corruption(torch.arange(3), seed=0)
    return (model if call is None else call)(pixels(), timesteps, noise, **inputs).loss


def prediction_of(model: DDAEForPreTraining, labels: torch.Tensor | None = None) -> torch.Tensor:
    with torch.no_grad():
        return model.denoise(pixels(), torch.tensor([5]), labels)


@BOTH
def test_it_starts_as_the_plain_network(kind: str) -> None:
    plain, told = small_model(kind), small_model(kind, awake=False, self_conditioning=True, augmentation_labels=True)
    left = told.load_state_dict(plain.state_dict(), strict=False)
    assert not left.unexpected_keys
    assert {name.split(".")[1] for name in left.missing_keys} == {"self_conditioning", "augmentation"}
    assert prediction_of(plain).std() > 0.01
    torch.testing.assert_close(prediction_of(told), prediction_of(plain), rtol=1e-5, atol=1e-5)
    assert told.config.self_conditioning_layer == NETWORKS[kind][1]


@BOTH
def test_only_what_runs_after_the_middle_is_told_of_it(kind: str) -> None:
    _, middle, after = NETWORKS[kind]
    told = small_model(kind, self_conditioning=True)
    plain = small_model(kind)
    plain.load_state_dict({name: value for name, value in told.state_dict().items() if name in plain.state_dict()})
    with torch.no_grad():
        ours, theirs = (m.ddae.features(pixels(), list(m.ddae.feature_layers), [0, 500]) for m in (told, plain))
    same = [name for name in ours if torch.allclose(ours[name], theirs[name], atol=1e-5)]
    assert same == list(ours)[: list(ours).index(middle) + 1]
    assert after in ours and (prediction_of(told) - prediction_of(plain)).abs().max() > 0.01


@BOTH
def test_a_folder_gives_encoders_on_both_sides_of_the_middle(kind: str, tmp_path: Any) -> None:
    _, middle, after = NETWORKS[kind]
    model = small_model(kind, self_conditioning=True, augmentation_labels=True, feature_layer=after)
    model.save_pretrained(tmp_path / "whole")
    whole = DDAEForPreTraining.from_pretrained(tmp_path / "whole")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), model.parameters(), strict=True))

    with torch.no_grad():
        expected = model.ddae.features(pixels(), [middle, after])
        encoder = AutoModel.from_pretrained(tmp_path / "whole")
        assert {name.split(".")[0] for name in encoder.state_dict()} == {"denoiser", "self_conditioning"}
        torch.testing.assert_close(encoder(pixels()).pooler_output, expected[after][0])
        encoder.save_pretrained(tmp_path / "encoder")
        for folder in ("whole", "encoder"):
            early = DDAEModel.from_pretrained(tmp_path / folder, feature_layer=middle)
            assert {name.split(".")[0] for name in early.state_dict()} == {"denoiser"}
            torch.testing.assert_close(early(pixels()).pooler_output, expected[middle][0])


@pytest.mark.parametrize(
    ("kind", "parametrization"),
    [
        pytest.param(kind, "edm", marks=pytest.mark.slow) if index else (kind, "ddpm")
        for index, kind in enumerate(NETWORKS)
    ],
)
def test_all_is_trained_alike_compiled_and_with_checkpointing(kind: str, parametrization: str) -> None:
    fields = {"self_conditioning": True, "augmentation_labels": True, "parametrization": parametrization}
    model = small_model(kind, **fields).train()

    def gradients(model: DDAEForPreTraining, call: Any = None) -> dict[str, torch.Tensor]:
        model.zero_grad()
        loss_of(model, call, augmentation_labels=LABELS).backward()
        return {name: weight.grad.clone() for name, weight in model.named_parameters()}

    expected = gradients(model)
    assert all(expected[f"ddae.self_conditioning.{name}.weight"].any() for name in ("hidden", "output"))
    assert expected["ddae.augmentation.weight"].any()
    compiled = gradients(model, torch.compile(model, fullgraph=True, backend="eager"))
    model.gradient_checkpointing_enable()
    for found in (compiled, gradients(model)):
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


@BOTH
def test_labels_of_zero_are_those_of_an_image_that_nothing_was_done_to(kind: str) -> None:
    model = small_model(kind, augmentation_labels=True)
    torch.testing.assert_close(prediction_of(model, torch.zeros(3, 9)), prediction_of(model))
    assert ((prediction_of(model, LABELS) - prediction_of(model)).abs().amax(dim=(1, 2, 3)) > 1e-3).all()
    alike = prediction_of(model, LABELS[[0, 0, 0]])[0]
    torch.testing.assert_close(prediction_of(model, LABELS)[0], alike)
    with pytest.raises(ValueError, match="augmentation_labels was given, but config"):
        loss_of(small_model(kind), augmentation_labels=LABELS)


def test_the_papers_network_computes_hardly_more() -> None:
    def cost(recipe: str) -> tuple[int, int]:
        with torch.device("meta"):
            model = DDAEForPreTraining(load_recipe(f"training/recipes/{recipe}.yaml").model_config())
            with FlopCounterMode(display=False) as counter:
                model.denoise(torch.empty(1, 3, 32, 32), torch.zeros(1, dtype=torch.long))
        return counter.get_total_flops(), model.num_parameters()

    (flops, weights), (plain_flops, plain_weights) = cost("ddae_cifar10_self_conditioning"), cost("ddae_cifar10_ddpm")
    assert 1 < flops / plain_flops < 1.001
    assert 1 < weights / plain_weights < 1.012
    assert weights / 1e6 == pytest.approx(36.14, abs=0.006)


@pytest.mark.parametrize("told", [False, True], ids=["plain", "told of more"])
def test_a_dit_starts_from_zero_gates_and_predicts_nothing(told: bool) -> None:
    model = small_model("DiTTransformer2DModel", awake=False, self_conditioning=told, augmentation_labels=told)
    assert not prediction_of(model).any()
    with torch.no_grad():
        embedded = model.ddae.denoiser.pos_embed(model.ddae.corruption(pixels(), None, torch.tensor([10])))
        torch.testing.assert_close(model.ddae(pixels()).last_hidden_state, embedded)
    encoder = DDAEModel(model.config).eval()  # an untrained one, to compare trained ones with, is not the identity
    with torch.no_grad():
        embedded = encoder.denoiser.pos_embed(encoder.corruption(pixels(), None, torch.tensor([10])))
        assert (encoder(pixels()).last_hidden_state - embedded).std() > 0.01


def test_a_dits_loss_is_that_of_diffusers_own_forward() -> None:
    model, told = (small_model("DiTTransformer2DModel", self_conditioning=on) for on in (False, True))
    timesteps, noise = model.draw_corruption(torch.arange(3), seed=0)
    with torch.no_grad():
        xt = model.ddae.corruption(pixels(), noise, timesteps)
        expected = model.ddae.denoiser(xt, timesteps, torch.zeros(3, dtype=torch.long)).sample
        torch.testing.assert_close(model(pixels(), timesteps, noise).loss, ((expected - noise) ** 2).mean())
        told.load_state_dict(model.state_dict(), strict=False)
        zeros(told.ddae.self_conditioning.output)
        torch.testing.assert_close(told(pixels(), timesteps, noise).prediction, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("parametrization", ["ddpm", "edm"])
@BOTH
def test_images_are_sampled_of_a_folder_without_labels(kind: str, parametrization: str, tmp_path: Any) -> None:
    fields = {"self_conditioning": True, "augmentation_labels": True, "parametrization": parametrization}
    model = small_model(kind, **fields)
    DDAEPipeline(model, build_scheduler(model.config)).save_pretrained(tmp_path)
    pipe = open_pipeline(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    images, deaf = (
        p(2, num_inference_steps=3, latents=torch.randn(2, 3, 16, 16), output_type="pt").images
        for p in (pipe, _without_augmentation(pipe))
        if torch.manual_seed(1)
    )
    assert images.shape == (2, 3, 16, 16) and images.std() > 0
    torch.testing.assert_close(images, deaf)


def _without_augmentation(pipe: Any) -> Any:
    """As a pipeline whose network was never told of augmentation."""
    other = copy.deepcopy(pipe)
    other.model.ddae.augmentation = None
    return other


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"self_conditioning_layer": "mid_block.resnets.1"},
            "self_conditioning_layer='mid_block.resnets.1' is invalid; it must be None without self_conditioning",
        ),
        (
            {"self_conditioning": True, "denoiser_type": "LDAEModel", "denoiser_config": None},
            "self_conditioning=True is",
        ),
        ({"self_conditioning": True, "denoiser_config": {**UNET, "mid_block_type": None}}, "without a middle block"),
        (
            {"augmentation_labels": True, "denoiser_config": {**UNET, "num_class_embeds": 3}, "null_class": 2},
            "augmentation_labels=True is invalid; it must be False, except for",
        ),
        (
            {"self_conditioning": True, "self_conditioning_layer": "up_blocks.0.resnets.0"},
            "the end of its middle block",
        ),
        (
            {
                "denoiser_type": "DiTTransformer2DModel",
                "denoiser_config": DIT,
                "self_conditioning": True,
                "self_conditioning_layer": "transformer_blocks.3",
            },
            "choose one of transformer_blocks.0, transformer_blocks.1, transformer_blocks.2",
        ),
        ({"denoiser_config": {**UNET, "out_channels": 6}}, "out_channels=6 cannot be pre-trained; it must be 3"),
        (
            {
                "denoiser_type": "DiTTransformer2DModel",
                "denoiser_config": DIT | {"num_embeds_ada_norm": 10},
                "null_class": 3,
            },
            "null_class=3 cannot be pre-trained; it must be left out",
        ),
    ],
)
def test_what_cannot_be_told_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DDAEForPreTraining(DDAEConfig(**({"denoiser_config": UNET} | fields)))


def test_a_dit_is_told_of_the_block_that_is_asked_for() -> None:
    model = small_model(
        "DiTTransformer2DModel", self_conditioning=True, self_conditioning_layer="transformer_blocks.2"
    )
    seen = []
    model.ddae.self_conditioning.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        found = model.ddae.features(pixels(), list(model.ddae.feature_layers), pool="none")
    assert len(seen) == 1 and torch.equal(seen[0], found["transformer_blocks.2"][0])


@BOTH
def test_a_plain_checkpoint_is_not_said_to_know_more(kind: str, tmp_path: Any) -> None:
    small_model(kind).save_pretrained(tmp_path)
    after = NETWORKS[kind][2]
    with pytest.raises(ValueError, match="self_conditioning=True does not fit this checkpoint"):
        DDAEModel.from_pretrained(tmp_path, feature_layer=after, self_conditioning=True)
    with pytest.raises(ValueError, match="augmentation_labels=True does not fit this checkpoint"):
        DDAEForPreTraining.from_pretrained(tmp_path, augmentation_labels=True)


def test_its_card_says_what_it_is_told(tmp_path: Any) -> None:
    model = small_model("DiTTransformer2DModel", self_conditioning=True, augmentation_labels=True)
    model.save_pretrained(tmp_path)
    assert write_model_card(tmp_path) == "written"
    card = (tmp_path / "README.md").read_text()
    assert "after `transformer_blocks.1` are conditioned on the mean" in card and "xiang2025ddaepp" in card
    assert "conditioned on how each image was augmented" in card
