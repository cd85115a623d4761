"""Pipelines of tiny denoisers of every kind, whose blocks compute something."""

from collections.abc import Callable

import pytest
import torch

from ldae import LDAEForPreTraining, LDAEPipeline, LDAEScheduler
from tests.models.small_models import open_gates, small_config
from tests.models.test_tokenizer_kinds import TINY_VAE


# What a configuration needs beside its prediction target.
TARGETS = {
    "noise": {"loss_weighting": "uniform", "input_space": "latent"},
    "latent": {"input_space": "latent"},
    "projected_image": {},
    "image": {},
}
KINDS = {
    "pca": {},
    "ae": {"residual_weight": 1.0},
    "vae": {"residual_weight": 1.0},
    "pixel": {"latent_dim": 12},
    "conv_vae": {"latent_dim": 8, "conv_vae_config": TINY_VAE},
}


def make_pipeline(kind: str = "pca", target: str = "image", **fields: object) -> LDAEPipeline:
    """A pipeline that says nothing while it works."""
    torch.manual_seed(0)
    config = small_config(
        latent_tokenizer=kind, prediction_target=target, **{**TARGETS[target], **KINDS[kind], **fields}
    )
    pipe = LDAEPipeline(open_gates(LDAEForPreTraining(config)), LDAEScheduler.from_ldae_config(config))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.fixture
def pipe() -> LDAEPipeline:
    return make_pipeline()


@pytest.fixture
def class_pipe() -> LDAEPipeline:
    """Row 0: predicts noise, told a class of three."""
    return make_pipeline(target="noise", noise_schedule="linear_beta", num_class_embeds=3)


Make = Callable[..., LDAEPipeline]
