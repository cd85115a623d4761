import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel, pipeline

from ldae import DDAEForImageClassification, DDAEModel, LDAEForImageClassification, LDAEForPreTraining
from ldae.cli import run_verb
from ldae.export.checkpoint import TARGETS, export_checkpoint
from tests.export.test_graph import unet
from tests.models.small_models import draw_images, open_gates, small_config
from tests.processes import Runner


# Runs where ldae cannot be imported: images and numbers in, pipelines and onnxruntime against the numbers.
ELSEWHERE = """
import json, re, sys
from pathlib import Path
import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor, pipeline

work = Path(sys.argv[1])
image = Image.open(work / "image.png")
expected = json.loads((work / "expected.json").read_text())

def far(found, wanted):
    return float(np.abs(np.asarray(found) - np.asarray(wanted)).max())

extract = pipeline("image-feature-extraction", model=str(work / "features"), pool=True)
classify = pipeline("image-classification", model=str(work / "labels"))
errors = {"features": far(extract(image), expected["features"])}
scores = {entry["label"]: entry["score"] for entry in classify(image)}
assert scores.keys() == expected["scores"].keys()
errors["scores"] = max(abs(scores[name] - score) for name, score in expected["scores"].items())

if (work / "onnx").is_dir():
    import onnxruntime
    session = onnxruntime.InferenceSession(str(work / "onnx" / "model.onnx"))
    pixels = AutoImageProcessor.from_pretrained(work / "onnx")(image, return_tensors="np")["pixel_values"]
    for batch in (pixels, np.repeat(pixels, 3, axis=0)):
        pooled = session.run(["pooler_output"], {"pixel_values": batch})[0]
        errors[f"onnx {len(batch)}"] = far(pooled, expected["features"] * len(batch))

assert not {"ldae", "diffusers"} & set(sys.modules)  # what else there is, transformers itself loads
for folder in ("features", "labels"):
    card = (work / folder / "README.md").read_text()
    exec(re.search(r"```python\\n(.*?)```", card, re.DOTALL)[1], {})
print(json.dumps(errors))
"""


def test_exports_work_where_only_transformers_is(
    encoder_folder: Path, classifier_folder: Path, tmp_path: Path, run_python: Runner
) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 20, 3), dtype=np.uint8))
    image.save(tmp_path / "image.png")
    features = pipeline("image-feature-extraction", model=str(encoder_folder))(image, pool=True)
    scores = {
        entry["label"]: entry["score"] for entry in pipeline("image-classification", str(classifier_folder))(image)
    }
    (tmp_path / "expected.json").write_text(json.dumps({"features": features, "scores": scores}))
    export_checkpoint(encoder_folder, tmp_path / "features", format="transformers")
    export_checkpoint(classifier_folder, tmp_path / "labels", format="transformers")
    export_checkpoint(encoder_folder, tmp_path / "onnx", format="onnx")

    done = run_python(ELSEWHERE, tmp_path, without_ldae=True, cwd=tmp_path)
    errors = json.loads(done.stdout.splitlines()[-1])
    assert errors.keys() == {"features", "scores", "onnx 1", "onnx 3"}
    assert max(errors.values()) < 1e-4, errors


@pytest.mark.parametrize("format", TARGETS)
@torch.no_grad()
def test_the_verb_writes_what_it_says(format, encoder_folder, tmp_path, capsys):
    folder = tmp_path / "new" / "exported"
    options = [
        "--format",
        format,
        "--output_dir",
        str(folder),
        "--timestep",
        "300",
        "--layer",
        "3",
        "--license",
        "mit",
    ]
    assert run_verb("export", [str(encoder_folder), *options]) == 0
    said = capsys.readouterr().out
    assert "encoder: block 3, t = 300, 16 x 16 pixels" in said
    assert "last_hidden_state (batch, 16, 32), pooler_output (batch, 32)" in said
    facts = json.loads((folder / "export.json").read_text())
    assert (facts["format"], facts["timestep"], facts["layer"], facts["source"]) == (format, 300, 3, "encoder")
    assert 0 <= facts["max_abs_error"] < 1e-4
    assert f"Max abs error: {facts['max_abs_error']:.1e}" in said

    model = AutoModel.from_pretrained(encoder_folder, num_hidden_layers=3, feature_timestep=300)
    found = TARGETS[format].run(folder, draw_images())["pooler_output"]
    torch.testing.assert_close(found, model(draw_images()).pooler_output, rtol=0, atol=2e-5)
    assert [path.name for path in folder.parent.iterdir()] == ["exported"]
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o644}
    assert folder.stat().st_mode & 0o777 == 0o755
    card = (folder / "README.md").read_text()
    assert "license: mit" in card and "at t = 300. Everything" in card and "{{" not in card


def test_a_classifier_keeps_its_time_step_names_and_licence(classifier_folder, tmp_path):
    (classifier_folder / "README.md").write_text("---\nlicense: cc-by-4.0\n---\nMine.\n")
    export = export_checkpoint(classifier_folder, tmp_path / "out", format="timm", image_size=24)
    assert export.outputs == {"logits": (1, 3)}
    facts = json.loads((tmp_path / "out" / "export.json").read_text())
    assert facts["timestep"] == 7 and facts["image_size"] == 24
    assert facts["id2label"] == {"0": "zero", "1": "one", "2": "two"}
    assert "license: cc-by-4.0" in (tmp_path / "out" / "README.md").read_text()


def test_a_ddae_leaves_as_a_graph(tmp_path):
    encoder = unet()[0]
    model = DDAEForImageClassification(encoder.config)
    model.ddae = encoder
    model.save_pretrained(tmp_path / "ddae")
    with pytest.raises(ValueError, match=r"format='transformers' only holds plain ViTs.* UNet2DModel.*format='onnx'"):
        export_checkpoint(tmp_path / "ddae", tmp_path / "out", format="transformers")
    export = export_checkpoint(tmp_path / "ddae", tmp_path / "out", format="torch-export", timestep=4)
    assert export.max_abs_error < 1e-4 and export.outputs == {"logits": (1, 2)}
    facts = json.loads((tmp_path / "out" / "export.json").read_text())
    assert facts["layer"] == "up_blocks.0.resnets.0" and facts["model_type"] == "ddae" and facts["timestep"] == 4
    assert "a linear layer on the features of a DDAE" in (tmp_path / "out" / "README.md").read_text()


def test_what_does_not_agree_leaves_nothing(tmp_path, capsys):
    """An offset that LayerNorm takes away leaves float32 no digits for the rest; infinite weights are refused."""
    for name, offset, message in (
        ("offset", 1e6, "what rounding explains; nothing was written"),
        ("infinite", float("inf"), "values in embeddings.projection.bias that are not finite numbers"),
    ):
        model = open_gates(LDAEForPreTraining(small_config()))
        model.ldae.embeddings.projection.bias.data.fill_(offset)
        model.save_pretrained(tmp_path / name)
        arguments = [str(tmp_path / name), "--format", "transformers", "--output_dir", str(tmp_path / "made" / "out")]
        assert run_verb("export", arguments) == 2
        assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["infinite", "offset"]


def test_logits_agree_at_their_own_scale(tmp_path):
    """A probe's may be in the hundreds, where float32 has no 1e-4 left; the error is told as it is."""
    model = open_gates(LDAEForImageClassification(small_config(num_labels=2)))
    model.classifier.weight.data.mul_(1e5)
    model.save_pretrained(tmp_path / "large")
    assert 1e-4 < export_checkpoint(tmp_path / "large", tmp_path / "out", format="transformers").max_abs_error < 10


def test_wrong_inputs_name_option_value_and_remedy(encoder_folder, classifier_folder, tmp_path, capsys):
    def refused(checkpoint: object, *options: object, output_dir: object = tmp_path / "out") -> str:
        arguments = ["--format", "transformers", "--output_dir", output_dir, *options]
        assert run_verb("export", [str(argument) for argument in (checkpoint, *arguments)]) == 2
        assert not (tmp_path / "out").exists()
        return capsys.readouterr().err

    assert "timestep=1000 does not exist; choose one of 0 to 999" in refused(encoder_folder, "--timestep", 1000)
    assert "layer='4' does not exist; choose one of the blocks 1 to 3" in refused(encoder_folder, "--layer", 4)
    assert "layer='first' does not exist" in refused(encoder_folder, "--layer", "first")
    assert "image_size=17 must be a multiple of 4" in refused(encoder_folder, "--image_size", 17)
    assert "the checkpoint is a classifier" in refused(classifier_folder, "--layer", 1)
    assert "does not exist" in refused(tmp_path / "nowhere")
    assert "is not an empty folder" in refused(encoder_folder, output_dir=encoder_folder)
    with pytest.raises(ValueError, match="format='keras' is unknown; choose one of transformers, timm, onnx"):
        export_checkpoint(encoder_folder, tmp_path / "out", format="keras")

    for format, model_type in (("transformers", "'siglip_vision_model'"), ("timm", "'timm_wrapper'")):
        export_checkpoint(encoder_folder, tmp_path / format, format=format)
        assert f"model_type={model_type}; it must be 'ldae'" in refused(tmp_path / format)
    LDAEForPreTraining(small_config()).save_pretrained(tmp_path / "unfitted")
    assert "its latent tokenizer was never fitted" in refused(tmp_path / "unfitted")
    DDAEModel.from_diffusers(encoder_folder).save_pretrained(tmp_path / "ddae")
    assert "layers.9" in refused(tmp_path / "ddae", "--layer", "layers.9")
