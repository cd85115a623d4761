import json
import shutil
from pathlib import Path

import pytest
import torch

from ldae import LDAEModel
from ldae.hub.families import FAMILIES
from ldae.hub.push import published_files
from ldae.hub.remote_code import code_files, save_with_code
from tests.hub.hub_server import TestHub
from tests.processes import Runner


LOAD_ALL = """
import json, sys
import torch
from transformers import AutoBackbone, AutoConfig, AutoImageProcessor, AutoModel
from transformers import AutoModelForImageClassification, AutoModelForPreTraining, pipeline
from PIL import Image

source, is_folder = sys.argv[1], sys.argv[2] == "True"
remote = {"trust_remote_code": True}
pixels = torch.linspace(-1, 1, 3 * 16 * 16).view(1, 3, 16, 16)
config = AutoConfig.from_pretrained(source, **remote)
model = AutoModel.from_pretrained(source, **remote)
pretraining = AutoModelForPreTraining.from_pretrained(source, **remote)
classifier = AutoModelForImageClassification.from_pretrained(source, num_labels=10, **remote)
if is_folder:  # AutoBackbone asks the Hub about its argument first, so a folder goes by way of its config
    backbone = AutoBackbone.from_config(config, **remote)
else:
    backbone = AutoBackbone.from_pretrained(source, **remote)
classes = [type(x) for x in (config, model, pretraining, classifier, backbone)]
assert "ldae" not in sys.modules
with torch.no_grad():
    outputs = model(pixels)
    features = pretraining.ldae(pixels, output_hidden_states=[2]).hidden_states[2]
    assert torch.equal(outputs.last_hidden_state, model.normalize(features)), "AutoModelForPreTraining"
    assert classifier(pixels).logits.shape == (1, 10)
    assert backbone(pixels).feature_maps[0].shape == (1, 128, 4, 4)
extract = pipeline("image-feature-extraction", model=source, pool=True, **remote)
assert len(extract(Image.new("RGB", (20, 30)))[0]) == 128
processor = AutoImageProcessor.from_pretrained(source, **remote)
assert type(processor).__module__.startswith("transformers_modules.")
image = Image.new("I;16", (16, 16), 32896)  # 128 of 8 bits
for prepared in (processor(image, return_tensors="pt"), extract.preprocess(image)):
    assert (prepared["pixel_values"] * 127.5 + 127.5 - 128).abs().max() < 1e-3, "16 bits"
print(json.dumps({
    "classes": [cls.__name__ for cls in classes],
    "modules": [cls.__module__ for cls in classes],
    "pooled": outputs.pooler_output[0].tolist(),
}))
"""

CLASSES = ["LDAEConfig", "LDAEModel", "LDAEForPreTraining", "LDAEForImageClassification", "LDAEBackbone"]


def expected_features(folder: Path) -> torch.Tensor:
    pixels = torch.linspace(-1, 1, 3 * 16 * 16).view(1, 3, 16, 16)
    with torch.no_grad():
        return LDAEModel.from_pretrained(folder)(pixels).pooler_output[0]


def test_all_auto_classes_load_a_folder_without_ldae(run_folder: Path, run_python: Runner) -> None:
    expected = expected_features(run_folder)
    save_with_code(run_folder)
    printed = json.loads(run_python(LOAD_ALL, run_folder, True, without_ldae=True).stdout.splitlines()[-1])
    assert printed["classes"] == CLASSES
    assert all(module.startswith("transformers_modules.") for module in printed["modules"])
    torch.testing.assert_close(torch.tensor(printed["pooled"]), expected)


def test_all_auto_classes_load_from_the_hub_without_ldae(run_folder: Path, run_python: Runner) -> None:
    expected = expected_features(run_folder)
    push = "import sys; from ldae.hub.push import push_to_hub; print(push_to_hub(sys.argv[1], 'tester/digits-nano'))"
    with TestHub() as hub:
        assert run_python(push, run_folder, hub=hub).stdout.strip() == f"{hub.url}/tester/digits-nano"
        shutil.rmtree(run_folder)
        done = run_python(LOAD_ALL, "tester/digits-nano", False, hub=hub, without_ldae=True)
    printed = json.loads(done.stdout.splitlines()[-1])
    assert printed["classes"] == CLASSES
    assert all(module.startswith("transformers_modules.tester.") for module in printed["modules"])
    torch.testing.assert_close(torch.tensor(printed["pooled"]), expected)


def test_imported_ldae_runs_no_code_of_the_folder(run_folder: Path, run_python: Runner) -> None:
    save_with_code(run_folder)
    for path in run_folder.glob("*_ldae.py"):
        path.write_text("raise RuntimeError('the code of the folder ran')")
    script = """
import sys
import ldae
from transformers import AutoImageProcessor, AutoModel, AutoModelForPreTraining, pipeline
for arguments in ({}, {"trust_remote_code": True}):
    assert type(AutoModel.from_pretrained(sys.argv[1], **arguments)) is ldae.LDAEModel
    assert type(AutoModelForPreTraining.from_pretrained(sys.argv[1], **arguments)) is ldae.LDAEForPreTraining
    assert type(AutoImageProcessor.from_pretrained(sys.argv[1], **arguments)) is ldae.LDAEImageProcessor
    extract = pipeline("image-feature-extraction", model=sys.argv[1], **arguments)
    assert type(extract).__module__ == "ldae.models.image_processing_ldae"
assert not any(name.startswith("transformers_modules.") for name in sys.modules)
"""
    run_python(script, run_folder)


def test_the_code_is_what_the_model_imports_and_nothing_else(run_folder: Path) -> None:
    written = save_with_code(run_folder)
    names = [path.name for path in written]
    assert {"modeling_ldae.py", "configuration_ldae.py", "tokenizer_ldae.py"} <= set(names)
    assert [path.read_bytes() for path in written] == [path.read_bytes() for path in code_files()]
    for path in written:
        text = path.read_text()
        assert ".register(" not in text.replace("AttentionInterface.register(", ""), f"{path.name} registers classes"
        assert "import ldae" not in text.replace(">>> import ldae", ""), f"{path.name} needs the package"
    assert set(names) <= set(published_files(run_folder))


def test_saving_code_keeps_the_config_and_is_idempotent(run_folder: Path) -> None:
    before = json.loads((run_folder / "config.json").read_text())
    save_with_code(run_folder)
    after = json.loads((run_folder / "config.json").read_text())
    assert after.pop("auto_map") == FAMILIES["ldae"].auto_map
    assert after == before
    times = {path: path.stat().st_mtime_ns for path in run_folder.iterdir()}
    save_with_code(run_folder)
    assert {path: path.stat().st_mtime_ns for path in run_folder.iterdir()} == times


def test_a_folder_of_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no config\.json"):
        save_with_code(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(ValueError, match="model_type='vit'"):
        save_with_code(tmp_path)
