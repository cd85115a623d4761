"""Rows under a preset: what is laid over them, what is not, and which share a tokenizer."""

from pathlib import Path

import pytest

from ldae.deconstruct.preset import load_preset
from ldae.deconstruct.shared_networks import tokenizer_name
from ldae.deconstruct.variants import list_variants, variant_recipe


PRESETS = Path(__file__).parents[2] / "training" / "recipes" / "deconstruction"
SHIPPED = sorted(path for path in PRESETS.glob("*.yaml") if not path.stem[:2].isdigit())


def recipes(preset, seed: int = 0, num_classes: int = 10):
    return {
        variant.key: variant_recipe(variant, preset, seed, Path("out"), num_classes)
        for variant in list_variants(preset)
    }


def test_sections_are_laid_over_every_row_and_switch_nothing_on(write_preset):
    tokenizer = {"perceptual_weight": 0.3, "adversarial_weight": 0.7, "tokenizer_images": 192}
    by_row = recipes(load_preset(write_preset(tokenizer=tokenizer)), seed=4)
    assert {(r.training.images, r.training.seed, r.model_config().latent_dim) for r in by_row.values()} == {
        (192, 4, 4)
    }
    assert {key: r.tokenizer.perceptual_weight for key, r in by_row.items() if r.tokenizer.perceptual_weight} == {
        "00": 0.3,
        "01": 0.3,
    }
    assert [key for key, r in by_row.items() if r.tokenizer.adversarial_weight == 0.7] == ["00", "01", "02"]
    assert [key for key, r in by_row.items() if r.model_config().num_class_embeds == 10] == ["00"]
    assert [key for key, r in by_row.items() if r.model_config().conv_vae_config] == ["00", "01", "02", "03", "04"]
    assert [key for key, r in by_row.items() if r.data.random_resized_crop] == ["12a"]


def test_a_kind_of_tokenizer_may_have_fields_of_its_own(write_preset):
    fields = {"conv_vae": {"tokenizer_images": 64, "adversarial_weight": 0.7}, "ae": {"tokenizer_learning_rate": 0.1}}
    by_row = recipes(load_preset(write_preset(tokenizers=fields)))
    assert [key for key, r in by_row.items() if r.tokenizer.tokenizer_images == 64] == ["00", "01", "02", "03", "04"]
    assert [key for key, r in by_row.items() if r.tokenizer.adversarial_weight == 0.7] == ["00", "01", "02"]
    assert [key for key, r in by_row.items() if r.tokenizer.tokenizer_learning_rate == 0.1] == ["06"]


def test_every_run_that_can_have_one_gets_its_own_cache_of_latents(write_preset):
    by_row = recipes(load_preset(write_preset(), {"latent_cache": "latents"}), seed=3)
    caches = {key: r.training.latent_cache for key, r in by_row.items() if r.training.latent_cache}
    names = {"00": "00_dit", "01": "01_no_labels", "02": "02_no_perceptual_loss", "03": "03_no_adversarial_loss"}
    names["04"] = "04_linear_gamma2"
    assert caches == {key: f"latents/rows/{name}/seed-3" for key, name in names.items()}


def test_the_number_of_classes_may_be_given(write_preset):
    preset = load_preset(write_preset(), {"num_class_embeds": "7"})
    assert [r.model_config().num_class_embeds for r in recipes(preset).values()] == [7] + [None] * 14


def test_rows_with_the_same_tokenizer_share_it_and_others_do_not(write_preset):
    preset = load_preset(write_preset())
    names = {key: tokenizer_name(recipe) for key, recipe in recipes(preset).items()}
    groups = [["00", "01"], ["02"], ["03", "04"], ["05"], ["06"], ["07", "08", "09", "10", "11", "12", "12a", "12b"]]
    shared = [[key for key in names if names[key] == name] for name in dict.fromkeys(names.values())]
    assert shared == groups
    # Budgets and the folder make no difference; what the tokenizer sees does, and so does the seed.
    assert not set(names.values()) & {tokenizer_name(r) for r in recipes(preset, seed=5).values()}
    other = load_preset(write_preset(), {"images": "640"})
    assert {k: tokenizer_name(r) for k, r in recipes(other).items()} == names
    for name, value in {"tokenizer_images": "193", "image_size": "8", "split": "train[:100]"}.items():
        changed = recipes(load_preset(write_preset(), {name: value}))
        assert not {tokenizer_name(r) for r in changed.values()} & set(names.values()), name


def test_where_the_perceptual_network_lies_makes_no_difference(write_preset):
    name = {
        tokenizer_name(recipes(load_preset(write_preset(), {"perceptual_model": path}))["00"])
        for path in ("here/classifiers/resnet-1", "there/classifiers/resnet-1")
    }
    assert len(name) == 1


def test_a_sweep_sets_the_dimension_of_every_tokenizer(write_preset):
    dimensions = {"conv_vae": [4, 8], "vae": [4], "pca": [2, 48], "pixel": [3, 12]}
    preset = load_preset(write_preset(sweep={"dimensions": dimensions}))
    found = {key: recipe.model_config() for key, recipe in recipes(preset).items()}
    assert list(found) == ["conv_vae-4", "conv_vae-8", "vae-4", "pca-2", "pca-48", "pixel-3", "pixel-12"]
    for key, config in found.items():
        assert f"{config.latent_tokenizer}-{config.latent_dim}" == key
        assert (config.prediction_target, config.noise_schedule) == ("noise", "linear_gamma2")
    assert [found[f"conv_vae-{d}"].conv_vae_config["latent_channels"] for d in (4, 8)] == [1, 2]
    folders = [variant.folder for variant in list_variants(preset)]
    assert folders[:2] == ["sweep/conv_vae-d4", "sweep/conv_vae-d8"]


def test_an_impossible_dimension_names_the_variant_and_the_reason(write_preset):
    preset = load_preset(write_preset(sweep={"dimensions": {"pixel": [5]}}))
    with pytest.raises(ValueError, match=r"pixel at d = 5 under .*latent_dim=5 is invalid"):
        recipes(preset)
    preset = load_preset(write_preset(sweep={"dimensions": {"conv_vae": [6]}}))
    with pytest.raises(ValueError, match="conv_vae=6 must be a multiple of 4, for a stride of 2"):
        recipes(preset)


@pytest.mark.parametrize("name", ["search_blocks", "blocks"])
def test_blocks_that_do_not_exist_are_refused_before_a_row_is_trained(write_preset, name):
    preset = load_preset(write_preset(rows=[12], probe={name: [1, 3]}))
    with pytest.raises(ValueError, match=rf"12_ldae under .*probe.{name}=\[1, 3\] must be blocks of the 2"):
        recipes(preset)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_preset_of_the_repository_makes_sense_and_says_how_to_launch_it(path):
    preset = load_preset(path)
    assert recipes(preset)
    assert f"training/deconstruct.py --config training/recipes/deconstruction/{path.name}" in path.read_text()
