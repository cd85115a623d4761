"""The recipes of the trajectory: each is the one before but for what its step changes, and the last is l-DAE."""

from pathlib import Path

import pytest
import yaml

from ldae.reports.paper_figures import TRAJECTORY, paper_step
from ldae.training.recipe import load_recipe


RECIPES = Path(__file__).parents[2] / "training" / "recipes"
ROWS = {path.stem: path for path in sorted((RECIPES / "deconstruction").glob("[0-9][0-9]*_*.yaml"))}

# What each row changes in its base, to what; a test holds that it is all it changes.
STEPS = {
    "01_no_labels": {"model.num_class_embeds": None},
    "02_no_perceptual_loss": {"tokenizer.perceptual_weight": 0},
    "03_no_adversarial_loss": {"tokenizer.adversarial_weight": 0},
    "04_linear_gamma2": {"model.noise_schedule": "linear_gamma2"},
    "05_patch_vae": {"model.latent_tokenizer": "vae", "model.latent_dim": 32, "model.conv_vae_config": None},
    "06_patch_ae": {"model.latent_tokenizer": "ae"},
    "07_patch_pca": {"model.latent_tokenizer": "pca", "tokenizer.tokenizer_images": 50_000},
    "08_predict_latent": {"model.prediction_target": "latent", "model.loss_weighting": "gamma2"},
    "09_no_input_scaling": {"model.noise_schedule": "linear_sigma", "model.loss_weighting": "inverse_variance"},
    "10_noisy_image_input": {"model.input_space": "image"},
    "11_projected_image_output": {"model.prediction_target": "projected_image"},
    "12_ldae": {"model.prediction_target": "image", "model.residual_weight": 0.1},
    "12a_random_crop": {"data.random_resized_crop": True},
    "12b_single_noise_level": {"model.noise_schedule": "constant"},
}


def resolved(path: Path) -> dict[str, object]:
    """Every field of a recipe, its defaults filled in, as `section.field`."""
    return {
        f"{section}.{name}": value
        for section, values in load_recipe(path).resolved().items()
        for name, value in values.items()
    }


def test_there_is_a_recipe_for_every_row_of_the_paper():
    assert [name.split("_")[0] for name in ROWS] == [step.row for step in TRAJECTORY]
    assert list(ROWS) == ["00_dit", *STEPS]


@pytest.mark.parametrize("name", STEPS)
def test_a_row_differs_from_its_base_in_its_step_and_in_nothing_else(name):
    ours = resolved(ROWS[name])
    base = yaml.safe_load(ROWS[name].read_text())["base"]
    before = "12_ldae" if name.startswith("12") and name != "12_ldae" else list(ROWS)[list(ROWS).index(name) - 1]
    assert base == f"{before}.yaml"
    theirs = resolved(ROWS[before])
    assert ours.keys() == theirs.keys()
    assert {field: value for field, value in ours.items() if value != theirs[field]} == STEPS[name]


def test_the_baseline_is_the_papers():
    row = resolved(ROWS["00_dit"])
    expected = {
        "model.latent_tokenizer": "conv_vae",
        "model.latent_dim": 16,
        "model.noise_schedule": "linear_beta",
        "model.prediction_target": "noise",
        "model.input_space": "latent",
        "model.loss_weighting": "uniform",
        "model.num_class_embeds": 1000,
        "tokenizer.kl_weight": 1,
    }
    assert {field: row[field] for field in expected} == expected
    assert row["tokenizer.perceptual_weight"] > 0 and row["tokenizer.adversarial_weight"] > 0
    assert load_recipe(ROWS["00_dit"]).model_config().conv_vae_stride == 8


def test_row_12_is_the_recipe_of_ldae_in_all_that_it_trains():
    """Its tokenizer is PCA, which of the tokenizer section only the number of images matters to."""
    ours, theirs = resolved(ROWS["12_ldae"]), resolved(RECIPES / "imagenet_12L.yaml")
    gradient = {name for name in ours if name.startswith("tokenizer.")} - {"tokenizer.tokenizer_images"}
    assert ours["model.latent_tokenizer"] == "pca"
    assert {name for name in ours if ours[name] != theirs[name]} <= gradient


@pytest.mark.parametrize("name", ROWS)
def test_a_row_says_its_step_and_the_papers_figures(name):
    comment = ROWS[name].read_text().split("\nbase:" if name in STEPS else "\nmodel:")[0]
    step = paper_step(name.split("_")[0])
    assert comment.startswith(f"# Row {step.row.removeprefix('0')}")
    text = comment.replace("\n#", "")
    assert f"{step.accuracy} " in text and step.source.split(",")[0] in text
    if step.fid is not None:
        assert f"FID-50K {step.fid}" in text
