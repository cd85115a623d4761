"""Runs that read cached latents train as with encoding in every step, also killed and on two processes."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ldae import LDAEConfig
from ldae.errors import RunError
from ldae.tokenizers.files import TOKENIZER_FILE
from ldae.training.pretraining import DenoisingTask, pretrain, storage_dtype
from ldae.training.recipe import Recipe, load_recipe
from ldae.training.tokenizer_training import train_tokenizer
from tests.processes import ForkedProcess, run_on_two
from tests.training.conftest import TINY, as_text, train_task


LAUNCHER = Path(__file__).parents[2] / "training" / "pretrain.py"
ROW_0 = {
    "latent_tokenizer": "conv_vae",
    "conv_vae_config": {
        "block_out_channels": [8, 16],
        "layers_per_block": 1,
        "latent_channels": 1,
        "norm_num_groups": 4,
    },
    "noise_schedule": "linear_beta",
    "input_space": "latent",
    "prediction_target": "noise",
    "loss_weighting": "uniform",
    "num_class_embeds": 10,
    "random_resized_crop": False,
    "horizontal_flip": True,
    "tokenizer_images": 192,
    "tokenizer_batch_size": 32,
}
CLEAN_TARGET = {"noise_schedule": "linear_sigma", "prediction_target": "latent", "loss_weighting": "inverse_variance"}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the tokenizer of row 0."""
    place = tmp_path_factory.mktemp("tokenizer")
    (place / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    fields = {name: as_text(value) for name, value in ROW_0.items()}
    return train_tokenizer(load_recipe(place / "tiny.yaml", {"output_dir": str(place / "tokenizer"), **fields}))


@pytest.fixture
def make(make_recipe: Callable[..., Recipe], tmp_path: Path, tokenizer: Path) -> Callable[..., Recipe]:
    """Make recipes of row 0 on digits, with the tokenizer that is there."""

    def make_row(name: str, cache: str | None = None, **overrides: object) -> Recipe:
        where = None if cache is None else str(tmp_path / cache)
        return make_recipe(name, **{**ROW_0, "tokenizer": str(tokenizer), "latent_cache": where, **overrides})

    return make_row


def losses(folder: Path) -> list[float]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records if record["event"] == "train"]


@pytest.mark.parametrize(
    ("changes", "dtype", "tolerance"),
    [pytest.param({}, "float16", 1e-4, marks=pytest.mark.slow), (CLEAN_TARGET, "float32", 1e-5)],
    ids=["row 0", "no noise at first"],
)
def test_training_from_the_cache_is_training_with_encoding(make, tmp_path, changes, dtype, tolerance):
    images = {"images": 1536, "total_batch_size": 96, "log_every_images": 96}  # more than an epoch of 1,437
    encoding = losses(pretrain(make("encoding", **images, **changes)).path)
    cached = losses(pretrain(make("cached", "latents", **images, **changes)).path)
    assert len(cached) == 16 and cached[-1] < cached[0]
    assert cached == pytest.approx(encoding, abs=tolerance)
    table = datasets.load_from_disk(str(tmp_path / "latents"))
    assert len(table) == 1437 and table.features["latents"].feature.feature.feature.dtype == dtype
    if not changes:
        other = losses(pretrain(make("unflipped", **images, horizontal_flip=False)).path)
        assert max(abs(a - b) for a, b in zip(other, encoding, strict=True)) > 5 * tolerance  # flips are the same
        assert losses(pretrain(make("again", "latents", **images)).path) == cached


def test_a_run_killed_while_it_encodes_ends_with_the_same_bytes(make, tmp_path):
    whole = pretrain(make("whole", "whole_latents")).path
    killed = tmp_path / "killed"
    killed.mkdir()
    recipe = make("killed", "latents", checkpoint_every_images=32)
    recipe.save(killed / "recipe.yaml")
    process = ForkedProcess(LAUNCHER, "--config", killed / "recipe.yaml", folder=tmp_path)
    while not (tmp_path / "latents/data-00001-of-00006.arrow").exists() and process.poll() is None:
        time.sleep(0.005)
    process.kill()
    assert not (killed / "checkpoints" / "images-000000000256").exists()
    pretrain(recipe)
    assert (whole / "model.safetensors").read_bytes() == (killed / "model.safetensors").read_bytes()
    for path in (tmp_path / "whole_latents").glob("*.arrow"):
        assert path.read_bytes() == (tmp_path / "latents" / path.name).read_bytes()


def test_two_processes_encode_their_shares_and_follow_the_curve_of_one(make, tmp_path):
    whole = pretrain(make("whole", "whole_latents")).path
    two = tmp_path / "two"
    two.mkdir()
    make("two", "latents").save(two / "recipe.yaml")
    run_on_two(LAUNCHER, "--config", two / "recipe.yaml", folder=tmp_path)
    assert losses(whole) == pytest.approx(losses(two), abs=1e-5)
    for path in (tmp_path / "whole_latents").glob("*.arrow"):
        assert path.read_bytes() == (tmp_path / "latents" / path.name).read_bytes()


def test_a_run_may_begin_with_encoding_and_go_on_from_the_cache(make):
    whole = losses(pretrain(make("whole")).path)
    pretrain(make("parts", images=128))
    parts = losses(pretrain(make("parts", "latents", images=256)).path)
    assert parts == pytest.approx(whole, abs=0.1) and len(parts) == 4  # another learning rate at the end of the first
    task = DenoisingTask(make("parts", "latents", images=512))
    train_task(task)
    assert task.examples.latent_cache is not None and task.source.latent_cache is None


def test_the_cache_of_another_tokenizer_is_refused_before_the_first_step(make, tokenizer, tmp_path):
    pretrain(make("first", "latents"))
    changed = tmp_path / "changed"
    shutil.copytree(tokenizer, changed)
    file = changed / TOKENIZER_FILE
    tensors = load_file(file)
    tensors["explained_variance"] *= 2
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    save_file(tensors, file, metadata=metadata)
    with pytest.raises(
        ValueError, match=r"holds latents with other settings \(tokenizer was \w+ and is \w+\); give another folder"
    ):
        pretrain(make("second", "latents", tokenizer=str(changed)))
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"latent_cache='.*' cannot be written to"):
        pretrain(make("third", "file/latents"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"streaming": True}, "data.streaming=true: cached latents are read in any order"),
        ({"random_resized_crop": True}, "data.random_resized_crop=true: every epoch crops anew"),
        ({"latent_tokenizer": "ae", "conv_vae_config": None}, "latent_tokenizer='ae': a patch-wise tokenizer is one"),
        (
            {
                "latent_tokenizer": "pca",
                "conv_vae_config": None,
                "prediction_target": "image",
                "input_space": "image",
            },
            "prediction_target='image': the target is the image",
        ),
    ],
)
def test_what_a_cache_does_not_go_with_is_refused_with_the_reason(make_recipe, fields, message):
    with pytest.raises(ValueError, match=f"latent_cache='there' does not go with {message}"):
        make_recipe(**{**ROW_0, **fields, "latent_cache": "there"})


def test_precision_follows_the_first_noise_level():
    def dtype(**fields: object) -> str:
        return storage_dtype(LDAEConfig(input_space="latent", prediction_target="latent", **fields))

    assert dtype(noise_schedule="linear_beta") == dtype(noise_schedule="linear_gamma2") == "float16"
    assert dtype(noise_schedule="constant") == "float16"
    assert dtype(noise_schedule="linear_sigma") == "float32"
    assert dtype(noise_schedule="linear_beta", beta_start=1e-6) == "float32"
    assert dtype(noise_schedule="linear_beta", latent_scaling="none") == "float32"
