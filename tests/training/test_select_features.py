"""The search that ends a pre-training: what it writes, what it leaves alone, and where it has no labels."""

import json

import pytest
from datasets import load_dataset
from transformers import AutoModel, AutoModelForPreTraining

from ldae.data import DataConfig, iterate_once, open_images
from ldae.evaluation.images import fixed_subset
from ldae.evaluation.search import best_score, search_by_criterion
from ldae.results import read_results
from ldae.training.pretraining import pretrain


SEARCHED = {"select_features": True, "probe_train_examples": 200, "decoder_num_hidden_layers": 2}


def test_pretraining_ends_with_a_search(make_recipe, capsys):
    folder = pretrain(make_recipe(**SEARCHED)).path
    (line,) = [
        text for text in capsys.readouterr().out.splitlines() if text.startswith("Features are read after block")
    ]
    results = [entry for entry in read_results(folder) if entry["metric"] == "held_out_accuracy"]
    (chosen,) = [entry for entry in results if entry["chosen"]]
    layer, timestep = chosen["protocol"]["layer"], chosen["protocol"]["timestep"]
    assert f"after block {layer} at t = {timestep}: {chosen['value']:.1%}" in line
    assert any(entry["protocol"]["timestep"] == 10 for entry in results)  # the paper's point stands beside
    assert all(entry["split"] == "train" and entry["value"] <= chosen["value"] for entry in results)
    encoder = AutoModel.from_pretrained(folder)
    assert (len(encoder.layers), encoder.config.feature_timestep) == (layer, timestep)

    # The same command again changes nothing.
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    pretrain(make_recipe(**SEARCHED))
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_search_can_be_left_out(make_recipe):
    folder = pretrain(make_recipe(**SEARCHED | {"select_features": False})).path
    config = json.loads((folder / "config.json").read_text())
    assert (config["num_hidden_layers"], config["feature_timestep"]) == (1, 10)
    assert read_results(folder) == []


@pytest.fixture
def unlabelled(tmp_path):
    rows = open_images(DataConfig("digits"), "train").dataset.with_format(None)
    (tmp_path / "images").mkdir()
    rows.select(range(300)).remove_columns("label").to_parquet(tmp_path / "images" / "train.parquet")
    assert load_dataset(str(tmp_path / "images"))["train"].column_names == ["image"]
    return str(tmp_path / "images")


@pytest.mark.parametrize("asked", [None, True])
def test_without_labels_the_effective_rank_chooses(make_recipe, unlabelled, capsys, asked):
    folder = pretrain(make_recipe(**SEARCHED | {"select_features": asked}, dataset=unlabelled)).path
    (line,) = [text for text in capsys.readouterr().out.splitlines() if text.startswith("Features are read after")]
    results = [entry for entry in read_results(folder) if entry["metric"] == "rankme"]
    (chosen,) = [entry["protocol"] for entry in results if entry["chosen"]]
    assert f"after block {chosen['layer']} at t = {chosen['timestep']}, where their effective rank" in line
    assert chosen["train_images"] == 200
    encoder = AutoModel.from_pretrained(folder)
    assert (len(encoder.layers), encoder.config.feature_timestep) == (chosen["layer"], chosen["timestep"])

    # It is the cell that `ldae grid_search --criterion rankme` chooses on the same images.
    source = fixed_subset(open_images(DataConfig(unlabelled), "train"), 200, seed=0)
    images = list(iterate_once(source, image_size=encoder.config.image_size, num_channels=3, batch_size=256))
    best = best_score(search_by_criterion(AutoModelForPreTraining.from_pretrained(folder).ldae, images, "rankme"))
    assert (best.layer, best.timestep) == (chosen["layer"], chosen["timestep"])


def test_without_labels_the_search_can_be_left_out(make_recipe, unlabelled):
    folder = pretrain(make_recipe(**SEARCHED | {"select_features": False}, dataset=unlabelled)).path
    assert AutoModel.from_pretrained(folder).config.feature_timestep == 10


def test_a_column_of_no_labels_is_warned_of_once(make_recipe, tmp_path, caplog):
    """Probes are opened in training and again for the search at the end."""
    rows = open_images(DataConfig("digits"), "train").dataset.with_format(None).select(range(300))
    (tmp_path / "images").mkdir()
    missing = rows.map(lambda row: {"label": None}, features=rows.features)
    missing.to_parquet(tmp_path / "images" / "train.parquet")
    pretrain(make_recipe(**SEARCHED | {"probe_every_images": 100}, dataset=str(tmp_path / "images")))
    assert caplog.text.count("No online probe") == 1
