"""Presets: what they hold, what the command line changes, and what they refuse."""

import pytest

from ldae.deconstruct.preset import load_preset, select_rows
from ldae.reports.paper_figures import TRAJECTORY


def test_by_default_all_rows_are_run(write_preset):
    preset = load_preset(write_preset())
    assert [name.split("_")[0] for name in preset.rows] == [step.row for step in TRAJECTORY]
    assert preset.seeds == (0,) and preset.sweep is None and preset.generation is None
    assert preset.probe.study_rows == ["12"] and preset.classifier.images == 192


def test_rows_are_named_by_number_or_by_name(write_preset):
    preset = load_preset(write_preset(rows=[7, "12a", "00_dit"]))
    assert preset.rows == ("00_dit", "07_patch_pca", "12a_random_crop")
    assert select_rows(preset.rows, ["12a", "0"]) == ("00_dit", "12a_random_crop")


def test_the_command_line_wins(write_preset):
    overrides = {"rows": "0,7", "seeds": "0,1,2", "images": "1e3", "probe.epochs": "5", "generation.steps": "7"}
    preset = load_preset(write_preset(), overrides)
    assert preset.rows == ("00_dit", "07_patch_pca") and preset.seeds == (0, 1, 2)
    assert float(preset.sections["training"]["images"]) == 1000 and preset.probe.epochs == 5
    assert preset.generation.steps == 7


def test_a_preset_may_be_a_difference_from_another(write_preset, tmp_path):
    write_preset("first.yaml")
    second = tmp_path / "second.yaml"
    second.write_text("base: first.yaml\nseeds: [3]\nmodel: {latent_dim: 8}\n")
    preset = load_preset(second)
    assert preset.seeds == (3,) and len(preset.rows) == len(TRAJECTORY)
    assert preset.sections["model"]["latent_dim"] == 8 and preset.sections["model"]["image_size"] == 16


def test_a_sweep_runs_no_rows_unless_asked(write_preset):
    sweep = {"dimensions": {"pca": [2, 4], "pixel": [3]}}
    preset = load_preset(write_preset(sweep=sweep))
    assert preset.rows == () and preset.sweep.row == "07"
    assert load_preset(write_preset(sweep=sweep, rows=[12])).rows == ("12_ldae",)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"imagse": {}}, "section 'imagse' is unknown"),
        ({"model": {"latent_dims": 3}}, "model.latent_dims is not a field of a recipe; did you mean latent_dim?"),
        ({"data": {"images": 3}}, "data.images is not a field of a recipe"),
        ({"probe": {"epoch": 3}}, "unknown field probe.epoch; did you mean epochs?"),
        ({"probe": {"epochs": "many"}}, "probe.epochs='many' must be an integer"),
        ({"probe": {"protocol": "fast"}}, "probe.protocol='fast' must be one of cached, paper"),
        ({"probe": {"probe": "svm"}}, "probe.probe='svm' must be one of logistic, adam"),
        ({"probe": {"protocol": "paper"}}, "give probe: adam"),
        ({"probe": {"search_timesteps": [1000]}}, "must be from 0 to 999"),
        ({"probe": {"timesteps": [0, 1000]}}, "timesteps=[0, 1000] must be from 0 to 999"),
        ({"probe": 3}, "section 'probe' must hold `field: value` lines"),
        ({"generation": {"steps": 0}}, "generation.steps=0 must be an integer, 1 or more"),
        ({"rows": [0, 99]}, "rows='99' does not exist; choose from 00, 01"),
        ({"recipes": "."}, "holds no recipe of a row"),
        ({"seeds": [0, 0]}, "preset.yaml: seeds=[0, 0] must be"),
        ({"seeds": ["a"]}, "seeds='a' must be an integer"),
        ({"model": {"noise_schedule": "constant"}}, "model.noise_schedule differs between rows"),
        ({"data": {"random_resized_crop": True}}, "data.random_resized_crop differs between rows"),
        ({"training": {"seed": 3}}, "training.seed is not a field of a preset; give seeds"),
        ({"tokenizer": {"tokenizer": "runs/pca"}}, "tokenizer.tokenizer is not a field of a preset; rows differ"),
        ({"tokenizers": {"vaee": {}}}, "tokenizers.vaee is not a latent tokenizer; did you mean vae?"),
        ({"tokenizers": {"ae": {"image": 3}}}, "tokenizers.ae.image is not a field of a recipe"),
        ({"tokenizers": {"ae": 3}}, "tokenizers={'ae': 3} must hold fields by type"),
        ({"sweep": {"dimensions": {"pca": 8}}}, "dimensions.pca=8 must be a list of positive integers"),
        ({"sweep": {"dimensions": {"pca": [8]}, "row": "99"}}, "rows='99' does not exist"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(write_preset, keys, message):
    with pytest.raises(ValueError) as error:
        load_preset(write_preset(**keys))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"), [("imagse", "did you mean images"), ("probe.epoch", "did you mean epochs")]
)
def test_unknown_options_are_refused(write_preset, name, message):
    with pytest.raises(ValueError, match=message):
        load_preset(write_preset(), {name: "3"})


def test_a_wrong_option_is_not_blamed_on_the_preset(write_preset):
    for name, value, told in (
        ("seeds", "1,1", "seeds="),
        ("probe.epochs", "many", "probe.epochs="),
        ("sweep.row", "99", "rows=.99. does not exist"),
    ):
        with pytest.raises(ValueError, match=f"^{told}"):
            load_preset(write_preset(), {name: value})
    with pytest.raises(ValueError, match=r"^/.*preset\.yaml: seeds="):
        load_preset(write_preset(seeds=[0, 0]), {"images": "1e3"})


def test_a_preset_that_comes_with_ldae_is_found_by_its_name():
    preset = load_preset("deconstruction/digits")
    assert preset.path.name == "digits.yaml" and len(preset.rows) == 15
