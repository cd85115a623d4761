import dataclasses
from pathlib import Path

import pytest
import yaml

from ldae.sections import DataConfig, TokenizerConfig, TrainingConfig
from ldae.training.recipe import differences, load_recipe, model_fields


RECIPES = sorted((Path(__file__).parents[2] / "training" / "recipes").glob("*.yaml"))


def test_field_names_are_unique_over_the_sections():
    names = [*model_fields("ldae"), "size"]
    names += [f.name for kind in (DataConfig, TokenizerConfig, TrainingConfig) for f in dataclasses.fields(kind)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_of_the_repository_loads_and_says_how_to_launch_it(path):
    recipe = load_recipe(path, {"dataset": "digits"})
    assert recipe.model_config().image_size > 0
    header = path.read_text().split("\nmodel:")[0]
    assert f"--config training/recipes/{path.name}" in header


def test_overrides_win_and_are_typed(recipe_file):
    overrides = {"images": "1e3", "streaming": "true", "training.base_learning_rate": "1e-4", "size": "nano"}
    recipe = load_recipe(recipe_file, overrides)
    assert recipe.training.images == 1000 and isinstance(recipe.training.images, int)
    assert recipe.data.streaming is True
    assert recipe.training.base_learning_rate == 1e-4
    assert load_recipe(recipe_file, {"report_to": "tensorboard,wandb"}).training.report_to == ["tensorboard", "wandb"]
    assert load_recipe(recipe_file, {"mixed_precision": "no"}).training.mixed_precision == "no"  # no boolean
    assert load_recipe(recipe_file, {"layer_norm_eps": "1e-5"}).model_config().layer_norm_eps == 1e-5


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"imagse": "3"}, "did you mean images"),
        ({"images": "many"}, "training.images='many' must be an integer"),
        ({"images": "0"}, "training.images=0 must be an integer, 1 or more"),
        ({"streaming": "perhaps"}, "data.streaming='perhaps' must be true or false"),
        ({"mixed_precision": "fp8"}, "mixed_precision='fp8' must be one of no, bf16"),
        ({"latent_dim": "100"}, "latent_dim=100 is invalid"),
        ({"ema_decay": "1.5"}, "ema_decay=1.5 must be a number, above 0 and below 1, or null"),
        ({"hidden_act": "reul"}, "hidden_act='reul' is unknown; choose one of gelu,"),
        ({"size": "huge"}, "model.size='huge' must be one of nano, tiny"),
    ],
)
def test_wrong_values_are_named(recipe_file, overrides, message):
    with pytest.raises(ValueError) as error:
        load_recipe(recipe_file, overrides)
    assert message in str(error.value)


def test_wrong_files_are_named(tmp_path):
    path = tmp_path / "recipe.yaml"
    for content, message in [
        ("modle: {}", "did you mean model"),
        ("model: 3", "must hold"),
        ("- a", "must hold"),
        (
            "data: {dataset: digits, streeming: true}",
            "data.streeming is not a field of a recipe; did you mean streaming",
        ),
        ("data: {images: 3}", "data.images is not a field"),
        ("model: {MODEL_TYPE: ddae, denoiser_config: {}}", "model.MODEL_TYPE is not a field .* mean model_type"),
        (f"base: {'a' * 300}", "base='aaa.*' is not a file"),
        ("training: {images: 3}", "dataset is missing"),
    ]:
        path.write_text(content)
        with pytest.raises(ValueError, match=message):
            load_recipe(path)
    with pytest.raises(ValueError, match="is neither a file nor a recipe of ldae"):
        load_recipe(tmp_path / "missing.yaml")


def test_a_resolved_recipe_is_a_recipe_and_says_everything(recipe_file, tmp_path):
    recipe = load_recipe(recipe_file)
    recipe.save(tmp_path / "resolved.yaml")
    again = load_recipe(tmp_path / "resolved.yaml")
    assert again.resolved() == recipe.resolved()
    assert again.model_config().to_dict() == recipe.model_config().to_dict()
    assert set(yaml.safe_load((tmp_path / "resolved.yaml").read_text())["model"]) == set(model_fields("ldae"))


def test_differences_name_what_matters_and_nothing_else(recipe_file, tmp_path):
    ours = load_recipe(recipe_file).resolved()
    theirs = load_recipe(recipe_file, {"num_workers": "3", "images": "512", "output_dir": "x"}).resolved()
    assert differences(ours, theirs, tmp_path) == []
    theirs = load_recipe(recipe_file, {"latent_dim": "5", "seed": "1"}).resolved()
    assert differences(ours, theirs, tmp_path) == ["model.latent_dim: 5 -> 4", "training.seed: 1 -> 0"]


@pytest.mark.parametrize(
    ("total", "micro", "processes", "layout"),
    [(32, None, 1, (32, 1)), (32, 4, 1, (4, 8)), (32, None, 2, (16, 1)), (32, 4, 2, (4, 4)), (32, 64, 2, (16, 1))],
)
def test_batch_layout(total, micro, processes, layout):
    assert TrainingConfig(total_batch_size=total, micro_batch_size=micro).batch_layout(processes) == layout


def test_batches_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="total_batch_size=32 does not divide over 3 processes"):
        TrainingConfig(total_batch_size=32).batch_layout(3)
    with pytest.raises(ValueError, match="tokenizer_batch_size=32 does not divide over 3 processes"):
        TrainingConfig(total_batch_size=32).batch_layout(3, "tokenizer_batch_size")
    with pytest.raises(ValueError, match="micro_batch_size=5 does not divide the 16 images"):
        TrainingConfig(total_batch_size=32, micro_batch_size=5).batch_layout(2)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"seed": -1}, r"seed=-1 must be .*from 0 to below 4294967296"),
        ({"seed": 2**32}, r"seed=4294967296 must be"),
        ({"total_batch_size": 2**31}, "total_batch_size=2147483648 must be .*1048576"),
        ({"adam_betas": (0.9, 1.0)}, r"adam_betas=\(0.9, 1.0\) must be two numbers from 0 to below 1"),
    ],
)
def test_values_that_would_fail_after_the_tokenizer_was_trained_are_refused_at_once(fields, message):
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**fields)


def test_a_recipe_can_be_the_difference_from_another(tmp_path):
    (tmp_path / "whole.yaml").write_text(
        "model: {size: nano, latent_dim: 8}\ndata: {dataset: digits, num_workers: 0}\n"
    )
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "second.yaml").write_text("base: ../whole.yaml\nmodel: {latent_dim: 16}\n")
    (tmp_path / "third.yaml").write_text("base: sub/second.yaml\ntraining: {seed: 3}\n")
    whole, third = load_recipe(tmp_path / "whole.yaml"), load_recipe(tmp_path / "third.yaml")
    assert differences(third.resolved(), whole.resolved(), tmp_path) == [
        "model.latent_dim: 8 -> 16",
        "training.seed: 0 -> 3",
    ]

    (tmp_path / "lost.yaml").write_text("base: nowhere.yaml\n")
    with pytest.raises(ValueError, match=r"lost\.yaml: base='nowhere\.yaml' is not a file"):
        load_recipe(tmp_path / "lost.yaml")
    (tmp_path / "round.yaml").write_text("base: sub/circle.yaml\n")
    (tmp_path / "sub" / "circle.yaml").write_text("base: ../round.yaml\n")
    with pytest.raises(ValueError, match="its bases lead back to it"):
        load_recipe(tmp_path / "round.yaml")


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("digits", {"denoiser_type": "UNet2DModel"}, "denoiser_type only applies with model_type='ddae', and this is"),
        ("digits", {"model_type": "ddae"}, "model.size only applies with model_type='ldae', and this is 'ddae'"),
        ("ddae_digits", {"model.patch_size": "4"}, "model.patch_size only applies with model_type='ldae'"),
    ],
)
def test_fields_of_the_other_kind_of_model_are_refused_by_that_reason(name, overrides, message):
    with pytest.raises(ValueError, match=message):
        load_recipe(name, overrides)
