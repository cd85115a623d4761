"""Fine-tuning: what a run's folder holds, resuming, micro-batches, where it starts from, and what is refused."""

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification

from ldae import DDAEConfig, DDAEForPreTraining, LDAEForImageClassification, LDAEForPreTraining
from ldae.cli import main
from ldae.data import DataConfig, open_images
from ldae.results import read_results
from ldae.training.finetuning import FineTuningTask, compare_with_scratch, finetune, load_classifier
from ldae.training.finetuning_recipe import TRAINING_DEFAULTS, finetuning_options, load_finetuning_recipe
from ldae.training.pretraining import pretrain
from ldae.training.recipe import build_recipe
from tests.models.small_models import draw_images, open_gates
from tests.models.test_ddae_pretraining import UNET
from tests.training.conftest import TINY, stop_after


FAST = {
    "images": 96,
    "total_batch_size": 32,
    "base_learning_rate": 1e-2,
    "ema_decay": 0.9,
    "log_every_images": 32,
    "checkpoint_every_images": 32,
    "probe_every_images": 0,
    "num_workers": 0,
    "mixup": 0.8,
    "drop_path": 0.3,
}


def options(**fields) -> list[str]:
    chosen = FAST | fields
    return [part for name, value in chosen.items() for part in (f"--{name}", yaml.safe_dump(value).splitlines()[0])]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A pre-training run's folder: two blocks; their gates are open, as after a longer run."""
    recipe = build_recipe(TINY, {"images": 64, "num_hidden_layers": 2, "decoder_num_hidden_layers": 0})
    recipe.training.output_dir = str(tmp_path_factory.mktemp("finetuning") / "run")
    folder = pretrain(recipe).path
    model = LDAEForPreTraining.from_pretrained(folder)
    tokenizer = copy.deepcopy(model.ldae.tokenizer.state_dict())
    open_gates(model).ldae.tokenizer.load_state_dict(tokenizer)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A copy of it, to write into."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture
def ddae(tmp_path) -> Path:
    """A DDAE's folder, with dropout, and no recipe."""
    torch.manual_seed(0)
    DDAEForPreTraining(DDAEConfig(denoiser_config=UNET | {"dropout": 0.2})).save_pretrained(tmp_path / "ddae")
    return tmp_path / "ddae"


def load(checkpoint, output_dir, epochs=None, **fields):
    return load_finetuning_recipe(checkpoint, None, FAST | {"output_dir": str(output_dir)} | fields, epochs=epochs)


def losses(folder: Path) -> list[float]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records if record["event"] == "train"]


def test_a_run_leaves_a_classifier_that_pipelines_load_in_a_new_process(run, tmp_path, capsys):
    assert main(["finetune", str(run), *options(probe_every_images=32, probe_eval_examples=50)]) == 0
    folder = run / "finetune"
    printed = capsys.readouterr().out
    assert "Accuracy on digits (test)" in printed and "with a new head" in printed
    results = {entry["protocol"]["weights"]: entry for entry in read_results(folder)}
    assert set(results) == {"raw", "ema"} and all(entry["n"] == 360 for entry in results.values())
    protocol = results["ema"]["protocol"]
    assert (protocol["checkpoint"], protocol["layer_decay"], protocol["rand_augment"]) == ("..", 0.85, 9.0)
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    measured = [record for record in records if record["event"] == "accuracy"]
    assert [record["images"] for record in measured] == [32, 64] and measured[0]["examples"] == 50
    assert all(record["grad_norm"] > 0 for record in records if record["event"] == "train")  # though it is not clipped
    assert not (folder / "scheduler").exists() and (folder / "pictures" / "training.png").is_file()
    card = (folder / "README.md").read_text()
    assert "fine-tuned on labelled images" in card and "| the weights before averaging | weights raw," in card
    assert card.count("| this model | weights ema,") == card.count("type: accuracy") == 1

    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert main(["finetune", str(run), *options(probe_every_images=32, probe_eval_examples=50)]) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert main(["finetune", str(run), "--config", str(folder / "recipe.yaml"), "--output_dir", str(folder)]) == 0
    assert main(["knn", str(folder)]) == 0  # takes the data set of the run

    script = (
        "import ldae, sys; from PIL import Image; from transformers import pipeline\n"
        "classify = pipeline('image-classification', model=sys.argv[1])\n"
        "print(sorted(answer['label'] for answer in classify(Image.new('RGB', (40, 30)), top_k=10)))"
    )
    answer = subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True, timeout=120)
    assert answer.stdout.strip() == str([str(digit) for digit in range(10)]), answer.stderr


def test_it_learns(run, tmp_path):
    plain = {"mixup": 0, "cutmix": 0, "rand_augment": None, "drop_path": 0, "random_resized_crop": False}
    budget = {"images": 2048, "checkpoint_every_images": 2048, "base_learning_rate": 4e-2}
    finetune(load(run, tmp_path / "out", **plain, **budget, horizontal_flip=False))
    assert min(entry["value"] for entry in read_results(tmp_path / "out")) > 0.3  # of ten classes; about 0.4


@pytest.mark.parametrize("kind", ["run", "ddae"])
def test_stopping_and_resuming_changes_no_bit(kind, request, tmp_path):
    checkpoint = request.getfixturevalue(kind)
    whole = finetune(load(checkpoint, tmp_path / "whole", dataset="digits")).path
    stop_after(FineTuningTask(load(checkpoint, tmp_path / "parts", dataset="digits")), 2)
    parts = finetune(load(checkpoint, tmp_path / "parts", dataset="digits")).path
    assert (parts / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert losses(parts) == losses(whole) and len(losses(whole)) == 3
    assert read_results(parts) == read_results(whole)
    finetune(load_finetuning_recipe(checkpoint, parts / "recipe.yaml"))  # the same recipe, so there is nothing to do
    model = AutoModelForImageClassification.from_pretrained(parts)
    assert model.config.label2id["9"] == 9 and type(model).__name__.startswith(("LDAE", "DDAE"))


def test_the_micro_batch_changes_nothing(run, tmp_path):
    whole = finetune(load(run, tmp_path / "whole")).path
    parts = finetune(load(run, tmp_path / "parts", micro_batch_size=8)).path
    assert losses(whole) == pytest.approx(losses(parts), abs=1e-5)


def test_a_saved_probe_keeps_its_head(run, tmp_path):
    names = open_images(DataConfig("digits")).class_names
    probe = LDAEForImageClassification.from_pretrained(run, num_labels=10)
    probe.config.id2label = dict(enumerate(names))
    probe.save_pretrained(run / "linear_probe")
    recipe = load(run / "linear_probe", tmp_path / "out")
    assert recipe.has_head and recipe.data.dataset == "digits"
    images = draw_images()
    torch.testing.assert_close(load_classifier(recipe).eval()(images).logits, probe.eval()(images).logits)
    with pytest.raises(ValueError, match="feature_timestep=20 does not fit the head of"):
        load(run / "linear_probe", tmp_path / "out", feature_timestep=20)
    fresh = load_classifier(load(run / "linear_probe", tmp_path / "out", new_head=True, feature_timestep=20))
    assert not fresh.classifier.weight.any() and not fresh.classifier.bias.any()

    probe.config.id2label = dict(enumerate("abcdefghij"))
    probe.save_pretrained(run / "linear_probe")
    with pytest.raises(ValueError, match=r"classifier of 10 classes \(a, b, c, ...\).*give --new_head true"):
        load(run / "linear_probe", tmp_path / "out")


def test_from_scratch_keeps_the_tokenizer_alone(run, tmp_path):
    recipe = load(run, tmp_path / "out", from_scratch=True, seed=1)
    assert recipe.finetuning.layer_decay == 1
    ours, trained = load_classifier(recipe).state_dict(), load_classifier(load(run, tmp_path / "out")).state_dict()
    same = {name for name in ours if torch.equal(ours[name], trained[name])}
    assert {name for name in ours if ".tokenizer." in name} <= same
    assert not any("q_proj.weight" in name or "modulation" in name for name in same)


def test_frozen_blocks_stay_as_they_are(run, tmp_path):
    before = load_classifier(load(run, tmp_path / "out")).state_dict()
    after = load_file(finetune(load(run, tmp_path / "out", frozen_blocks=1)).path / "model.safetensors")
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed and all(name.startswith(("ldae.layers.1.", "classifier.")) for name in changed)


def test_lora_is_saved_as_a_plain_checkpoint(run, tmp_path):
    before = load_classifier(load(run, tmp_path / "out")).state_dict()
    recipe = load(run, tmp_path / "out", lora_rank=2, ema_decay=None, images=128)
    assert recipe.finetuning.layer_decay == 1
    after = load_file(finetune(recipe).path / "model.safetensors")
    assert after.keys() == before.keys()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert "ldae.layers.1.mlp.fc1.weight" in changed and not any("modulation" in name for name in changed)
    assert not any(name.endswith("fc1.bias") for name in changed)
    assert [entry["protocol"]["lora_rank"] for entry in read_results(tmp_path / "out")] == [2]


def test_a_comparison_with_training_from_scratch(run, capsys):
    arguments = ["finetune", str(run), "--compare_from_scratch", "--seeds", "0,1", *options(images=32)]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "from_scratch  ema" in printed and "over seeds [0, 1]" in printed
    folder = run / "finetuning_comparison"
    results = read_results(folder)
    assert [(r["checkpoint"], r["protocol"]["weights"]) for r in results] == [
        (start, weights) for start in ("finetuned", "from_scratch") for weights in ("raw", "ema")
    ]
    for entry in results:
        runs = [folder / entry["checkpoint"] / f"seed-{seed}" for seed in (0, 1)]
        found = [r["value"] for path in runs for r in read_results(path) if r["protocol"]["weights"] == "ema"]
        if entry["protocol"]["weights"] == "ema":
            assert entry["value"] == pytest.approx(sum(found) / 2) and entry["seeds"] == [0, 1]
    assert main(arguments) == 0 and capsys.readouterr().out.count("nothing to do") == 4


def test_a_comparison_is_checked_before_it_trains_and_holds_one_budget(run, tmp_path):
    budget = FAST | {"output_dir": str(tmp_path / "out"), "images": 32, "ema_decay": None, "layer_decay": 0.5}
    with pytest.raises(ValueError, match="lora_rank=2 does not go with from_scratch"):
        compare_with_scratch(str(run), None, budget | {"lora_rank": 2}, seeds=(0,))
    assert not (tmp_path / "out").exists()
    first, longer = (compare_with_scratch(str(run), None, budget | {"images": n}, seeds=(0,)) for n in (32, 64))
    folder = tmp_path / "out" / "finetuned" / "seed-0"
    own = [(e["checkpoint"], e["protocol"]["images"], e["value"]) for e in read_results(folder)]
    assert own == [("checkpoints/images-000000000032", 32, first[0].value), (".", 64, longer[0].value)]
    assert longer[0].stderr is None and longer[0].protocol["images"] == 64
    decays = {result.checkpoint: result.protocol["layer_decay"] for result in longer}
    assert decays == {"finetuned": 0.5, "from_scratch": 1.0}  # given, and without
    card = (folder / "README.md").read_text()
    assert card.count("| this model |") == 1 and card.count("type: accuracy") == 1
    with pytest.raises(ValueError, match="holds a finished run of another budget than images=48"):
        compare_with_scratch(str(run), None, budget | {"images": 48}, seeds=(0,))


def test_missing_labels_are_refused_before_the_first_step(run, tmp_path):
    images = [Image.new("L", (16, 16), index) for index in range(8)]
    features = Features(image=ImageFeature(), label=Value("int64"))

    def write(split: str, labels: list[int | None]) -> None:
        dataset = Dataset.from_dict({"image": images, "label": labels}, features=features)
        dataset.to_parquet(tmp_path / "data" / f"{split}-0.parquet")

    (tmp_path / "data").mkdir()
    write("train", [0, 1] * 4)
    write("test", [-1, None] * 4)
    recipe = load(run, tmp_path / "out", dataset=str(tmp_path / "data"), cache_dir=str(tmp_path / "cache"))
    with pytest.raises(ValueError, match=r"data \(test\) has no labels; name another eval_split"):
        FineTuningTask(recipe).open_source()
    write("test", [0, None] * 4)
    write("train", [0, 1, None, 1] * 2)
    recipe = load(run, tmp_path / "out", dataset=str(tmp_path / "data"), cache_dir=str(tmp_path / "cache"))
    with pytest.raises(ValueError, match=r"data \(train\) has 2 images without a label"):
        FineTuningTask(recipe).open_source()
    write("train", [None] * 8)
    with pytest.raises(ValueError, match="has no labels in its column 'label'"):
        load(run, tmp_path / "out", dataset=str(tmp_path / "data"), cache_dir=str(tmp_path / "cache"))


def test_weights_of_other_shapes_are_not_drawn_at_random(run, tmp_path):
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"intermediate_size": 32}))
    with pytest.raises(ValueError, match=r"its weights have other shapes than its config.json says\. Give"):
        load_classifier(load(run, tmp_path / "out"))


def test_epochs_and_the_rest_of_the_protocol_fill_in_the_budget(run, tmp_path):
    recipe = load_finetuning_recipe(run)
    t = recipe.training
    assert (t.images, t.warmup_images, t.total_batch_size) == (100 * 1437, 7185, 1024)
    assert (t.base_learning_rate, t.weight_decay, t.ema_decay, t.output_dir) == (
        1e-3,
        0.05,
        0.9999,
        str(run / "finetune"),
    )
    assert recipe.data.random_resized_crop and recipe.data.crop_scale == (0.08, 1.0)
    assert recipe.data.horizontal_flip  # as in the run's recipe
    assert load(run, tmp_path, num_hidden_layers=1).config.num_hidden_layers == 1
    assert load_finetuning_recipe(run, epochs=3).training.images == 3 * 1437
    assert load_finetuning_recipe(run, None, {"project_clean_input": False}).config.project_clean_input is False


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layer_decays": 1}, "--layer_decays is not a field of fine-tuning; did you mean layer_decay"),
        ({"hidden_size": 8}, "--hidden_size is not a field of fine-tuning"),
        ({"latent_cache": "x"}, "--latent_cache is not a field of fine-tuning"),
        ({"drop_path": 1.0}, "drop_path=1.0 must be"),
        ({"rand_augment": 11}, "rand_augment=11.0 must be"),
        ({"lora_rank": 0}, "lora_rank=0 must be"),
        ({"from_scratch": True, "frozen_blocks": 1}, "frozen_blocks=1 does not go with from_scratch"),
        ({"num_hidden_layers": 3}, "num_hidden_layers=3 must be at most 2"),
        ({"feature_layer": 3}, "feature_layer=3 must be from 1"),
        ({"epochs": 2}, "epochs=2 and images=96 are both given"),
        ({"frozen_blocks": 3}, "frozen_blocks=3 exceeds the 2 blocks of the encoder"),
        ({"micro_batch_size": 1}, "micro_batch_size=1 is odd, and MixUp and CutMix mix pairs"),
    ],
)
def test_what_is_wrong_is_named(run, tmp_path, fields, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        finetune(load(run, tmp_path / "out", **fields))


def test_checkpoints_and_images_that_cannot_be_fine_tuned_are_named(run, ddae, tmp_path, capsys):
    with pytest.raises(ValueError, match="dataset is missing"):
        load(ddae, tmp_path / "out")
    (tmp_path / "other.yaml").write_text("model: {patch_size: 4, hidden_size: 8}")
    with pytest.raises(ValueError, match=r"model\.hidden_size=8 of .*other.yaml is not the checkpoint's, which is 32"):
        load_finetuning_recipe(run, tmp_path / "other.yaml")
    with pytest.raises(ValueError, match="cannot be loaded"):
        load(tmp_path, tmp_path / "out", dataset="digits")
    images = open_images(DataConfig("digits")).dataset.with_format(None)
    images.remove_columns("label").to_parquet(tmp_path / "data" / "train.parquet")
    with pytest.raises(ValueError, match="has no label column, which a classifier needs"):
        load(run, tmp_path / "out", dataset=str(tmp_path / "data"))
    assert main(["finetune", str(run), "--seeds", "0,1"]) == 2
    assert "seeds=[0, 1] only applies with --compare_from_scratch" in capsys.readouterr().err
    assert main(["finetune", str(run), "--compare_from_scratch", "--seed", "1"]) == 2
    assert "seed=1 does not apply to a comparison" in capsys.readouterr().err


def test_help_tells_the_defaults_of_a_fine_tuning():
    shown = {option.name: option for group in finetuning_options().values() for option in group}
    assert (
        shown["weight_decay"].default == TRAINING_DEFAULTS["weight_decay"]
        and "App. A" not in shown["weight_decay"].help
    )
    assert shown["images"].default is None and shown["images"].help.endswith("by default 100 epochs.")
    assert shown["crop_scale"].default == (0.08, 1.0) and "select_features" not in shown
