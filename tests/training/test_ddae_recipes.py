"""DDAE's recipes have the settings of its public code, which multiplies the stated rate by the number of GPUs."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from ldae import DDAEModel
from ldae.models.taps_ddae import block_ends
from ldae.training.budget import learning_rate
from ldae.training.recipe import Recipe, load_recipe


RECIPES = Path(__file__).parents[2] / "training" / "recipes"
EPOCH = 50_000  # training images of CIFAR-10


class Published(NamedTuple):
    """Settings of one of the public code's YAML files, and the number of GPUs it runs on."""

    epochs: int
    gpus: int
    batch: int  # of a GPU
    warmup: int  # epochs
    dropout: float
    ema: float
    tap: int  # out_N
    rate: float = 1e-4  # of a GPU


PUBLISHED = {
    "ddae_cifar10_ddpm": Published(2000, 4, 128, 13, 0.1, 0.9999, 6),
    "ddae_cifar10_edm": Published(2000, 4, 128, 200, 0.13, 0.9993, 7),
    "ddae_cifar10_edm_large": Published(2000, 4, 64, 200, 0.13, 0.9993, 7),
    "ddae_cifar10_edm_augmented": Published(4000, 8, 64, 200, 0.13, 0.9993, 7),
}


def peak_rate(recipe: Recipe) -> float:
    """Return the learning rate at the end of the warm-up."""
    return learning_rate(recipe.training.warmup_images, recipe.training)


def published_tap(recipe: Recipe) -> int:
    """Return the number N of the default tap among the up path's blocks, counted from 1."""
    with torch.device("meta"):
        model = DDAEModel(recipe.model_config())
    up = [tap for tap in block_ends(list(model.feature_layers)) if tap.startswith("up_blocks.")]
    return up.index(str(model.config.feature_layer)) + 1


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_resolves_to_the_public_codes_settings(name: str) -> None:
    recipe, published = load_recipe(RECIPES / f"{name}.yaml"), PUBLISHED[name]
    t, config = recipe.training, recipe.model_config()
    assert t.images == published.epochs * EPOCH
    assert t.total_batch_size == published.gpus * published.batch
    assert peak_rate(recipe) == pytest.approx(published.gpus * published.rate)
    assert t.warmup_images == published.warmup * EPOCH
    assert config.denoiser_config["dropout"] == published.dropout
    assert t.ema_decay == published.ema
    assert t.weight_decay == 0 and t.max_grad_norm == 1
    assert recipe.data.horizontal_flip
    assert published_tap(recipe) == published.tap
    assert config.feature_timestep == (10 if config.parametrization == "ddpm" else 3)


@pytest.mark.parametrize("path", sorted(RECIPES.glob("ddae_*.yaml")), ids=lambda path: path.stem)
def test_every_ddae_trains_with_adams_usual_betas(path: Path) -> None:
    assert tuple(load_recipe(path).training.adam_betas) == (0.9, 0.999)


def test_the_mini_recipe_stays_as_it_was_trained() -> None:
    """A checkpoint is published with it, and an interrupted run resumes only with the same settings."""
    resolved: Any = load_recipe(RECIPES / "ddae_mini_cifar10.yaml").resolved()
    fields = ("images", "total_batch_size", "base_learning_rate", "warmup_images", "ema_decay")
    assert [resolved["training"][field] for field in fields] == [100_000, 64, 4e-3, 5_000, 0.998]
    assert resolved["model"]["feature_timestep"] == 11
