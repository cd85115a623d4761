"""DDAE where ldae is not installed, and diffusion models that come from the Hub."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline

from ldae import DDAEModel, LDAEForPreTraining, save_image_processor
from ldae.hub.families import FAMILIES
from ldae.hub.model_card import write_model_card
from ldae.hub.remote_code import code_files, save_with_code
from tests.hub.hub_server import TestHub
from tests.models.small_diffusers import small_dit, small_unet, small_vae
from tests.models.small_models import open_gates, small_config
from tests.processes import Runner


LOAD_ALL = """
import json, sys
import torch
from PIL import Image
from transformers import AutoBackbone, AutoConfig, AutoModel, AutoModelForImageClassification, pipeline

remote = {"trust_remote_code": True}
pixels = torch.linspace(-1, 1, 3 * 16 * 16).view(1, 3, 16, 16)
seen = []
for folder in sys.argv[1:]:
    config = AutoConfig.from_pretrained(folder, **remote)
    model = AutoModel.from_pretrained(folder, **remote)
    classifier = AutoModelForImageClassification.from_pretrained(folder, num_labels=4, **remote)
    features = pipeline("image-feature-extraction", model=folder, pool=True, **remote)
    assert "ldae" not in sys.modules
    with torch.no_grad():
        pooled = model(pixels).pooler_output
        assert classifier(pixels).logits.shape == (1, 4)
    assert len(features(Image.new("RGB", (20, 30)))[0]) == pooled.shape[1] == config.hidden_size
    backbone = AutoBackbone.from_config(config, **remote)
    assert backbone(pixels).feature_maps[-1].shape[1] == backbone.channels[-1]
    classes = [type(x) for x in (config, model, classifier, backbone)]
    assert all(cls.__module__.startswith("transformers_modules.") for cls in classes)
    seen.append([[cls.__name__ for cls in classes], pooled[0].tolist()])
print(json.dumps(seen))
"""


@torch.no_grad()
def test_all_auto_classes_load_a_folder_without_ldae(tmp_path: Path, run_python: Runner) -> None:
    models = {
        "unet": DDAEModel.from_diffusers(small_unet("AttnDownBlock2D", "AttnUpBlock2D")),
        "dit": DDAEModel.from_diffusers(small_dit(), vae=small_vae()),
        "ldae": DDAEModel.from_diffusers(open_gates(LDAEForPreTraining(small_config()))),
    }
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
        save_image_processor(tmp_path / name, model.config)
        save_with_code(tmp_path / name)
    done = run_python(LOAD_ALL, *(tmp_path / name for name in models), without_ldae=True)
    pixels = torch.linspace(-1, 1, 3 * 16 * 16).view(1, 3, 16, 16)
    for (classes, pooled), model in zip(json.loads(done.stdout.splitlines()[-1]), models.values(), strict=True):
        assert classes == ["DDAEConfig", "DDAEModel", "DDAEForImageClassification", "DDAEBackbone"]
        torch.testing.assert_close(torch.tensor(pooled), model(pixels).pooler_output[0])


def test_the_code_is_what_the_model_imports_and_nothing_else(tmp_path: Path) -> None:
    DDAEModel.from_diffusers(small_unet()).save_pretrained(tmp_path)
    before = json.loads((tmp_path / "config.json").read_text())
    written = save_with_code(tmp_path)
    names = {path.name for path in written}
    assert {"modeling_ddae.py", "configuration_ddae.py", "sources_ddae.py", "modeling_ldae.py"} <= names
    assert names == {path.name for path in code_files("ddae")}
    assert names >= {path.name for path in code_files("ldae")}  # for networks that are l-DAEs
    assert [path.read_bytes() for path in written] == [path.read_bytes() for path in code_files("ddae")]
    for path in written:
        assert "from ldae" not in path.read_text().replace(">>> from ldae", ""), f"{path.name} needs the package"
    after = json.loads((tmp_path / "config.json").read_text())
    assert after.pop("auto_map") == FAMILIES["ddae"].auto_map
    assert after == before


def test_its_card_says_where_features_are_read_and_names_the_method(tmp_path: Path) -> None:
    DDAEModel.from_diffusers(small_unet(), "mid_block.resnets.1", 7).save_pretrained(tmp_path)
    assert write_model_card(tmp_path) == "written"
    card = (tmp_path / "README.md").read_text()
    assert "output of its block `mid_block.resnets.1` at t = 7 (of 1000)" in card
    assert "xiang2023denoising" in card and "chen2024" not in card
    assert "latent_dim" not in card and "generates images" not in card


def test_no_card_is_written_for_another_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(ValueError, match=r"model_type='vit'; it must be 'ldae' or 'ddae'"):
        write_model_card(tmp_path)
    assert not (tmp_path / "README.md").exists()


FROM_THE_HUB = """
import json, sys
import torch
from ldae import DDAEModel

pixels = torch.linspace(-1, 1, 3 * 16 * 16).view(1, 3, 16, 16)
model = DDAEModel.from_diffusers(sys.argv[1], "mid_block.resnets.1")
with torch.no_grad():
    print(json.dumps([model.config.scheduler_config["beta_end"], model(pixels).pooler_output[0].tolist()]))
"""


@torch.no_grad()
def test_a_pipeline_comes_from_the_hub(tmp_path: Path, run_python: Runner) -> None:
    pipeline = DDPMPipeline(small_unet(), DDIMScheduler(beta_end=0.5))
    pipeline.save_pretrained(tmp_path / "ddpm")
    push = (
        "import sys; from huggingface_hub import create_repo, upload_folder; create_repo('tester/ddpm'); "
        "upload_folder(repo_id='tester/ddpm', folder_path=sys.argv[1])"
    )
    with TestHub() as hub:
        run_python(push, tmp_path / "ddpm", hub=hub)
        done = run_python(FROM_THE_HUB, "tester/ddpm", hub=hub)
    beta_end, pooled = json.loads(done.stdout.splitlines()[-1])
    assert beta_end == 0.5
    pixels = torch.linspace(-1, 1, 3 * 16 * 16).view(1, 3, 16, 16)
    expected = DDAEModel.from_diffusers(pipeline, "mid_block.resnets.1")(pixels).pooler_output[0]
    torch.testing.assert_close(torch.tensor(pooled), expected)
