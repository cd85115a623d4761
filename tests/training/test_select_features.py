"""The search that ends a pre-training: what it writes, what it leaves alone, and where it has no labels."""

import json

import pytest
from datasets import load_dataset
from transformers import AutoModel

from ldae.data import DataConfig, open_images
from ldae.results import read_results
from ldae.training.pretraining import pretrain


SEARCHED = {"select_features": None, "probe_train_examples": 200, "decoder_num_hidden_layers": 2}


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


def test_without_labels_there_is_no_search_unless_asked_for(make_recipe, unlabelled):
    folder = pretrain(make_recipe(**SEARCHED, dataset=unlabelled)).path
    assert AutoModel.from_pretrained(folder).config.feature_timestep == 10
    with pytest.raises(ValueError, match=r"select_features=true needs labels.*--criterion rankme"):
        pretrain(make_recipe("asked", **SEARCHED | {"select_features": True}, dataset=unlabelled))
