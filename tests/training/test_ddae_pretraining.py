"""Runs of a DDAE's recipe: what the folder holds, resuming, probes of it, samples, and what its recipe refuses."""

import json

import pytest
import torch
import yaml
from safetensors.torch import load_file

from ldae import DDAEModel, DDAEPipeline
from ldae.cli import main
from ldae.data import augment_geometry
from ldae.results import read_results
from ldae.training.loop import Callback
from ldae.training.pretraining import DenoisingTask, pretrain
from ldae.training.recipe import load_recipe
from tests.models.test_ddae_conditioning import DIT
from tests.models.test_ddae_pretraining import UNET
from tests.training.conftest import as_text, stop_after, train_task


TINY = {
    "model": {"model_type": "ddae", "denoiser_config": UNET | {"dropout": 0.1}},
    "data": {"dataset": "digits", "num_workers": 0, "horizontal_flip": True},
    "training": {
        "images": 128,
        "total_batch_size": 32,
        "base_learning_rate": 1e-2,
        "ema_decay": 0.9,
        "log_every_images": 32,
        "checkpoint_every_images": 64,
        "probe_every_images": 128,
        "select_features": False,
        "probe_train_examples": 100,
        "probe_eval_examples": 50,
    },
}


@pytest.fixture
def make_ddae(tmp_path):
    path = tmp_path / "ddae.yaml"
    path.write_text(yaml.safe_dump(TINY))

    def make(folder: str = "run", **overrides):
        text = {name: as_text(value) for name, value in overrides.items()}
        return load_recipe(path, {"output_dir": str(tmp_path / folder), **text})

    return make


def test_a_run_leaves_a_folder_to_probe_and_to_sample_from(make_ddae):
    recipe = make_ddae()
    folder = pretrain(recipe).path
    for name in "preprocessor_config.json README.md pictures/denoising.png pictures/training.png".split():
        assert (folder / name).is_file(), name
    assert json.loads((folder / "scheduler" / "scheduler_config.json").read_text())["_class_name"] == "DDIMScheduler"
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [r["images"] for r in records if r["event"] == "train"] == [32, 64, 96, 128]
    assert [r["images"] for r in records if r["event"] == "probe"] == [128]
    saved = load_recipe(folder / "recipe.yaml")
    assert saved.model_type == "ddae" and saved.resolved() == recipe.resolved()
    assert "also generates images" in (folder / "README.md").read_text()

    assert isinstance(DDAEPipeline.from_pretrained(folder), DDAEPipeline)
    assert DDAEModel.from_pretrained(folder).config.feature_layer.startswith("up_blocks.")
    assert main(["knn", str(folder)]) == 0
    assert read_results(folder)[0]["metric"] == "accuracy"
    assert main(["generate", str(folder), "--steps", "2", "--num_images", "4"]) == 0
    assert (folder / "pictures" / "samples.png").is_file()


def test_stopping_and_resuming_changes_no_bit_with_dropout_either(make_ddae):
    whole = pretrain(make_ddae("whole", probe_every_images=0)).path
    stop_after(DenoisingTask(make_ddae("parts", probe_every_images=0)), 2)
    resumed = pretrain(make_ddae("parts", probe_every_images=0)).path
    ours, theirs = load_file(resumed / "model.safetensors"), load_file(whole / "model.safetensors")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model_type": "mae"}, "model_type='mae' is unknown; choose one of ldae, ddae"),
        ({"tokenizer_images": 5}, "tokenizer.tokenizer_images='?5'? does not apply with model_type='ddae'"),
        ({"latent_cache": "folder"}, "latent_cache='folder' does not apply with model_type='ddae'"),
        ({"size": "nano"}, "size only applies with model_type='ldae'"),
        ({"feature_timestep": 1000}, "feature_timestep=1000 is invalid"),
        ({"geometric_augmentation": 0.12}, "geometric_augmentation=0.12 needs augmentation_labels"),
        ({"geometric_augmentation": 1.2}, "data.geometric_augmentation=1.2 must be a number"),
    ],
)
def test_a_recipe_refuses_what_a_ddae_has_no_use_for(make_ddae, overrides, message):
    with pytest.raises(ValueError, match=message):
        make_ddae(**overrides)


def test_an_edm_run_is_probed_pictured_and_sampled(make_ddae):
    folder = pretrain(make_ddae(parametrization="edm", images=64)).path
    assert json.loads((folder / "scheduler" / "scheduler_config.json").read_text())["sigma_max"] == 80
    assert {path.name for path in (folder / "pictures").iterdir()} == {"denoising.png", "training.png"}
    assert "ridge_accuracy" in (folder / "metrics.jsonl").read_text()
    assert main(["generate", str(folder), "--steps", "2", "--num_images", "4"]) == 0


def test_a_dit_is_trained_with_self_conditioning_and_told_of_augmentation(make_ddae):
    recipe = make_ddae(
        denoiser_type="DiTTransformer2DModel",
        denoiser_config=DIT,
        parametrization="edm",
        self_conditioning=True,
        augmentation_labels=True,
        geometric_augmentation=0.5,
        feature_layer="transformer_blocks.2",
        probe_every_images=0,
    )
    told = []

    class Listen(Callback):
        def start(self, run):
            module = run.task.module.ddae.augmentation
            module.register_forward_pre_hook(lambda module, args: told.append(args[0]))

    seed, images = recipe.training.seed, torch.rand(32, 3, 16, 16)
    labels = augment_geometry(images, torch.arange(32), seed, probability=0.5)[1]
    folder = train_task(DenoisingTask(recipe), Listen()).path
    assert len(told) == 4 and torch.equal(told[0], labels) and labels.any(dim=1).sum() > 16
    weights = load_file(folder / "model.safetensors")
    for name in ("denoiser.proj_out_2", "self_conditioning.output", "augmentation"):
        assert weights[f"ddae.{name}.weight"].any(), name
    encoder = DDAEModel.from_pretrained(folder)
    assert encoder.self_conditioning is not None and encoder.augmentation is None
    options = "--protocol cached --horizontal_flip false --timesteps 3,4".split()
    assert main(["grid_search", str(folder), *options]) == 0
    assert main(["generate", str(folder), "--steps", "2", "--num_images", "4"]) == 0
