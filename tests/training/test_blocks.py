"""Blocks of classifiers in running order, and what hangs on them: learning rates, drop path, LoRA."""

import pytest
import torch
from torch import nn

from ldae import DDAEConfig, DDAEForImageClassification, DDAEModel, LDAEForImageClassification
from ldae.training.blocks import DropPath, add_lora, depth_of, encoder_blocks, merge_lora, parameter_groups
from tests.models.small_diffusers import small_conditional_unet, small_dit, small_unet, small_vae
from tests.models.small_models import draw_images, open_gates, small_config


UNET = {"down": "AttnDownBlock2D", "up": "AttnUpBlock2D"}


def classifier(kind: str) -> nn.Module:
    if kind == "ldae":
        return open_gates(LDAEForImageClassification(small_config(num_labels=5)))
    networks = {
        "unet": (small_unet(**UNET), {"feature_layer": "up_blocks.1.resnets.0"}),
        "conditional": (small_conditional_unet(), {"feature_layer": "last", "vae": small_vae()}),
        "dit": (small_dit(), {"feature_layer": "transformer_blocks.1", "vae": small_vae()}),
        "inner_ldae": (open_gates(LDAEForImageClassification(small_config()).ldae), {}),
    }
    network, arguments = networks[kind]
    encoder = DDAEModel.from_diffusers(network, **arguments)
    model = DDAEForImageClassification(DDAEConfig(**encoder.config.to_diff_dict() | {"num_labels": 5}))
    model.ddae.load_state_dict(encoder.state_dict())
    return model.eval()


KINDS = ["ldae", "unet", "conditional", "dit", "inner_ldae"]


def test_a_unets_blocks_are_what_its_paper_counts_as_layers():
    model = classifier("unet")
    blocks = encoder_blocks(model)
    names = [[name.removeprefix("ddae.denoiser.") for name in block.modules] for block in blocks]
    assert names == [
        ["down_blocks.0.resnets.0", "down_blocks.0.downsamplers"],
        ["down_blocks.1.resnets.0", "down_blocks.1.attentions.0"],
        ["mid_block.resnets.0", "mid_block.attentions.0"],
        ["mid_block.resnets.1"],
        ["up_blocks.0.resnets.0", "up_blocks.0.attentions.0"],
        ["up_blocks.0.resnets.1", "up_blocks.0.attentions.1", "up_blocks.0.upsamplers"],
        ["up_blocks.1.resnets.0"],
    ]
    first = {name for name, _ in model.named_parameters() if depth_of(name, blocks) == 0}
    assert {name.split(".")[2] for name in first} == {"conv_in", "time_embedding"}


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_is_in_one_group_that_slows_down_towards_the_input(kind):
    model = classifier(kind)
    blocks = encoder_blocks(model)
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    groups = parameter_groups(trained, blocks, layer_decay=0.5, weight_decay=0.1)
    grouped = [id(weight) for group in groups for weight in group["params"]]
    assert sorted(grouped) == sorted(map(id, trained.values()))
    assert {group["lr_scale"] for group in groups} == {0.5**power for power in range(len(blocks) + 2)}
    for group in groups:
        assert all((weight.ndim < 2) == (group["weight_decay"] == 0) for weight in group["params"])
    head = [group for group in groups if any(weight is model.classifier.weight for weight in group["params"])]
    assert head[0]["lr_scale"] == 1


@pytest.mark.parametrize("kind", KINDS)
def test_drop_path_leaves_out_whole_branches_of_single_examples(kind):
    model, images = classifier(kind), draw_images(6)
    dropped = DropPath(model, encoder_blocks(model), rate=0.6)
    assert dropped.rates[-1] == pytest.approx(0.6) and dropped.rates == sorted(dropped.rates)
    clean = model(images).logits
    dropped.draw(torch.arange(6), seed=0)
    assert torch.equal(model(images).logits, clean)  # not in evaluation
    model.train()
    mixed = model(images).logits
    changed = (mixed - clean).abs().amax(dim=1) > 1e-5
    lost = (dropped.scales == 0).any(dim=0)
    assert lost.any() and changed[lost].all()
    assert dropped.scales.unique().numel() <= 1 + len(set(dropped.rates))
    dropped.draw(torch.arange(2, 6), seed=0)  # of the position, not of the place in the batch
    torch.testing.assert_close(model(images[2:]).logits, mixed[2:], atol=1e-5, rtol=1e-4)
    dropped.scales = torch.ones_like(dropped.scales)
    torch.testing.assert_close(model(images[2:]).logits, clean[2:], atol=1e-5, rtol=1e-4)


def test_dropping_every_branch_leaves_the_input_of_the_blocks():
    model, images = classifier("ldae"), draw_images(2)
    dropped = DropPath(model, encoder_blocks(model), rate=0.5)
    dropped.draw(torch.arange(2), seed=0)
    dropped.scales = torch.zeros_like(dropped.scales)  # of the second block: the first has rate 0
    model.train()
    hidden = model.ldae(images, output_hidden_states=True).hidden_states
    assert torch.equal(hidden[2], hidden[1]) and not torch.equal(hidden[1], hidden[0])


@pytest.mark.parametrize("kind", KINDS)
def test_lora_trains_factors_and_is_saved_without_them(kind):
    model, images = classifier(kind), draw_images(2)
    names, before = set(model.state_dict()), model(images).logits
    blocks = encoder_blocks(model)
    add_lora(model, blocks[1:], rank=2)
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert {name for name in trained if "lora_" not in name} == {"classifier.weight", "classifier.bias"}
    assert not any(blocks[0].holds(name) for name in trained)
    torch.testing.assert_close(model(images).logits, before)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    after = model(images).logits
    assert any("lora_A" in name for name in model.state_dict())
    merge_lora(model)
    assert set(model.state_dict()) == names
    assert not torch.allclose(after, before, atol=1e-4)
    torch.testing.assert_close(model(images).logits, after, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="lower frozen_blocks"):
        add_lora(classifier(kind), [], rank=2)
