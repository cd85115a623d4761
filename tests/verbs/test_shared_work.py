"""The verbs that measure, in one, two and four processes of a launch."""

import json

import pytest

from ldae.cli import run_verb
from ldae.data import DataConfig, open_images
from ldae.data.image_processor import save_image_processor
from ldae.evaluation.untrained import untrained_like
from ldae.models.configuration_ldae import LDAEConfig
from ldae.models.pretraining_ldae import LDAEForPreTraining
from ldae.results import read_results
from ldae.training.pretraining import pretrain
from ldae.training.recipe import load_recipe
from tests.processes import forget_processes, run_on


CALLS = """
import json, sys
from pathlib import Path
from ldae.cli import run_verb

calls, out = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
for name, (verb, *options) in calls.items():
    assert run_verb(verb, [*options, "--output_dir", str(out / name)]) == 0
sys.exit(run_verb(verb, [*options, "--layers", "9"]))
"""
CACHED = "--protocol cached --horizontal_flip true".split()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A checkpoint of 2 + 2 blocks, a run of two checkpoints, and 96 + 40 images of which three are broken."""
    place = tmp_path_factory.mktemp("shared")
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
    config = LDAEConfig.from_size("nano", image_size=16, patch_size=4, latent_dim=8, **sizes)
    untrained_like(LDAEForPreTraining(config), seed=0).save_pretrained(place / "run")
    save_image_processor(place / "run", config)
    (place / "data").mkdir()
    for split, count in (("train", 96), ("test", 40)):
        rows = open_images(DataConfig("digits"), split).dataset.with_format(None).select(range(count))
        broken = {7, 17, 40} if split == "train" else set()
        images = [
            {"bytes": b"x" if i in broken else row["image"]["bytes"], "path": None} for i, row in enumerate(rows)
        ]
        features = rows.features
        rows = rows.remove_columns("image").add_column("image", images).cast(features.copy())
        rows.to_parquet(place / "data" / f"{split}.parquet")
    fields = {"size": "nano", "image_size": 16, "patch_size": 4, "latent_dim": 8, "num_workers": 0, **sizes}
    fields |= {"dataset": place / "data", "images": 64, "total_batch_size": 32, "checkpoint_every_images": 32}
    fields |= {
        "keep_checkpoints": 2,
        "select_features": False,
        "probe_every_images": 0,
        "output_dir": place / "trained",
    }
    pretrain(load_recipe(None, {name: str(value) for name, value in fields.items()}))
    for split in ("train", "test"):
        table = ["--dataset", str(place / "data"), "--split", split, "--output_dir", str(place / f"{split}-features")]
        assert run_verb("extract_features", [str(place / "run"), *table, "--num_workers", "0"]) == 0
    forget_processes()
    return place


@pytest.fixture(scope="module")
def calls(place):
    """The verbs with their arguments, by the names of their folders of results."""
    run = str(place / "run")
    data = ["--dataset", str(place / "data"), "--num_workers", "0", "--forward_batch_size", "16"]
    tables = ["--features", f"{place / 'train-features'},{place / 'test-features'}"]
    heads = "--timesteps 10,400 --images 64 --draws 2 --head_learning_rates 1e-2".split()
    return {
        "ridge": ["linear_probe", run, *data, "--block_sweep", *CACHED, "--probe", "ridge"],
        "paper": ["linear_probe", run, *data, "--epochs", "2", "--seeds", "0", "--batch_size", "64"],
        "grid_search": ["grid_search", run, *data, "--layers", "1,4", "--timesteps", "0,100", "--noisy", "both"],
        "criterion": ["grid_search", run, *data, "--timesteps", "10", "--criterion", "alignment_uniformity"],
        "knn": ["knn", run, *data, "--block_sweep", "--timesteps", "0,20", "--k", "5"],
        "table": ["knn", run, *tables],
        "probed table": ["linear_probe", run, *tables, "--protocol", "cached", "--horizontal_flip", "false"],
        "alignment": ["alignment", run, *data, "--layers", "2", "--timesteps", "10,200"],
        "compare": ["compare", run, *data, "--metrics", "few_shot,knn,robustness", "--sigmas", "0.2", "--draws", "2"],
        "sweep": [
            "checkpoint_sweep",
            str(place / "trained"),
            *data[2:],
            "--probes",
            "ridge,knn,linear",
            "--epochs",
            "1",
        ],
        "heads": ["noise_classification", run, *data, *heads],
    }


@pytest.fixture(scope="module")
def in_one_process(place, calls):
    """The entries of results.json."""
    for name, (verb, *options) in calls.items():
        assert run_verb(verb, [*options, "--output_dir", str(place / "one" / name)]) == 0
    return {name: read_results(place / "one" / name) for name in calls}


@pytest.mark.parametrize(("count", "some"), [(2, None), pytest.param(4, ("ridge", "knn"), marks=pytest.mark.slow)])
def test_processes_measure_what_one_process_does(calls, in_one_process, tmp_path, count, some):
    calls = {name: calls[name] for name in some or calls}
    (tmp_path / "script.py").write_text(CALLS)
    (tmp_path / "calls.json").write_text(json.dumps(calls))
    processes = run_on(count, tmp_path / "script.py", tmp_path / "calls.json", tmp_path / "out", folder=tmp_path)
    told = [process.stderr.splitlines()[-1:] for process in processes]
    assert [process.returncode for process in processes] == [2] * count, told
    assert "layers=9" in told[0][0] and told[1:] == [[]] * (count - 1)  # one line in all for the wrong call
    for name in calls:
        found, expected = read_results(tmp_path / "out" / name), in_one_process[name]
        for entry, other in zip(found, expected, strict=True):
            if entry["protocol"].get("kind") == "trained from scratch":
                entry["value"] = other["value"]  # training over processes has a BatchNorm in each
            assert entry.pop("value") == pytest.approx(other["value"], abs=1e-9), (name, entry)
            assert entry == {key: value for key, value in other.items() if key != "value"}, name
    assert not any(process.stdout for process in processes[1:])
