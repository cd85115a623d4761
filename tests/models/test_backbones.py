"""l-DAE and DDAE as backbones of transformers' heads for dense tasks."""

import pytest
import torch
from transformers import AutoBackbone, AutoConfig, UperNetConfig, UperNetForSemanticSegmentation

from ldae import DDAEBackbone, DDAEModel, LDAEBackbone, LDAEForPreTraining
from ldae.evaluation.features import feature_map
from tests.models.small_diffusers import draw_input, small_dit, small_unet
from tests.models.small_models import draw_images, open_gates, small_config


@pytest.fixture
def saved(tmp_path):
    """A folder of a small l-DAE and one of a DDAE with all of its taps."""
    torch.manual_seed(0)
    open_gates(LDAEForPreTraining(small_config())).save_pretrained(tmp_path / "ldae")
    DDAEModel.from_diffusers(small_unet(), feature_layer="last").save_pretrained(tmp_path / "ddae")
    return tmp_path


def test_a_ddaes_maps_are_those_of_its_taps_in_the_order_that_is_asked_for(saved):
    whole, pixels = DDAEModel.from_pretrained(saved / "ddae"), draw_images(height=16, width=24)
    names = ["up_blocks.1.resnets.0", "mid_block.resnets.1", "down_blocks.0.resnets.0"]
    backbone = DDAEBackbone.from_pretrained(saved / "ddae", out_features=names)
    assert backbone.out_features == names and backbone.channels == [8, 16, 8]
    assert backbone.ddae.config.feature_layer == names[0]  # the last of them to run: the rest is not built
    assert not any(name.startswith("ddae.denoiser.up_blocks.1.resnets.1") for name in backbone.state_dict())
    with torch.no_grad():
        maps = backbone(pixels).feature_maps
    assert [tuple(level.shape) for level in maps] == [(3, 8, 16, 24), (3, 16, 8, 12), (3, 8, 16, 24)]
    for name, level in zip(names, maps, strict=True):
        torch.testing.assert_close(level, feature_map(whole, pixels, layer=name))
    every = backbone(pixels, output_hidden_states=True).hidden_states
    assert len(every) == len(backbone.stage_names)
    torch.testing.assert_close(every[backbone.out_indices[1]], maps[1])


def test_its_levels_are_by_default_the_last_of_each_resolution_the_finest_first(saved):
    backbone = DDAEBackbone.from_pretrained(saved / "ddae")
    assert backbone.out_features == ["up_blocks.1.resnets.1", "up_blocks.0.resnets.1"]
    backbone = DDAEBackbone.from_pretrained(saved / "ddae", feature_layer="up_blocks.0.resnets.0")
    assert backbone.out_features == ["up_blocks.0.resnets.0"]
    dit = DDAEModel.from_diffusers(small_dit())
    tokens = DDAEBackbone(dit.config)
    assert tokens.out_features == [dit.config.feature_layer] and tokens.channels == [16]
    assert tokens(draw_input(dit.denoiser)).feature_maps[0].shape == (2, 16, 4, 4)


def test_wrong_taps_are_refused(saved):
    with pytest.raises(ValueError, match=r"feature_layer='up_blocks.9.resnets.0' is unknown"):
        DDAEBackbone.from_pretrained(saved / "ddae", out_features=["up_blocks.9.resnets.0"])
    with pytest.raises(ValueError, match=r"out_features=\[\] is invalid; give one or more different taps"):
        DDAEBackbone.from_pretrained(saved / "ddae", out_features=[])
    backbone = DDAEBackbone.from_pretrained(saved / "ddae", out_features=["mid_block.resnets.0"])
    with pytest.raises(ValueError, match="give different ones of down_blocks"):
        backbone.out_features = ["up_blocks.0.resnets.0"]
    backbone.out_indices = [0, 2]
    assert backbone.channels == [8, 16]


@pytest.mark.parametrize("kind", ["ldae", "ddae"])
def test_upernet_trains_saves_and_loads_on_it(saved, tmp_path, kind):
    stages = {"ldae": ["stage1", "stage2"], "ddae": ["up_blocks.1.resnets.1", "up_blocks.0.resnets.1"]}
    classes = {"ldae": LDAEBackbone, "ddae": DDAEBackbone}
    backbone = classes[kind].from_pretrained(saved / kind, out_features=stages[kind])
    sizes = {"hidden_size": 16, "pool_scales": [1, 2], "use_auxiliary_head": False, "num_labels": 3}
    torch.manual_seed(0)
    model = UperNetForSemanticSegmentation(UperNetConfig(backbone_config=backbone.config, **sizes))
    model.backbone.load_state_dict(backbone.state_dict())
    pixels = draw_images(4, height=4, width=4).repeat_interleave(4, 2).repeat_interleave(4, 3)  # a colour a patch
    labels = (pixels[:, 0] > 0).long() + (pixels[:, 1] > 0.5).long()  # (B, H, W), of 3 classes
    before = {name: weight.clone() for name, weight in model.backbone.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        loss = model(pixels, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert any(not torch.equal(weight, before[name]) for name, weight in model.backbone.named_parameters())
    model.eval().save_pretrained(tmp_path / "upernet")
    loaded = UperNetForSemanticSegmentation.from_pretrained(tmp_path / "upernet")
    assert isinstance(loaded.backbone, classes[kind]) and loaded.backbone.out_features == stages[kind]
    with torch.no_grad():
        logits = loaded(pixels).logits
        assert logits.shape == (4, 3, 16, 16)
        torch.testing.assert_close(logits, model(pixels).logits, atol=1e-5, rtol=1e-5)


def test_auto_backbone_builds_either(saved):
    for kind, expected in (("ldae", LDAEBackbone), ("ddae", DDAEBackbone)):
        assert isinstance(AutoBackbone.from_config(AutoConfig.from_pretrained(saved / kind)), expected)
