"""Criteria without labels against closed forms, and on the cells of a model."""

import math

import pytest
import torch

from ldae.data import iterate_once
from ldae.evaluation.alignment import uniformity
from ldae.evaluation.criteria import CRITERIA, rankme, score_cells
from ldae.evaluation.features import extract_features


def test_rankme_counts_directions():
    line = torch.outer(torch.rand(50) + 1, torch.rand(16) + 1)
    assert rankme(line) == pytest.approx(1.0, abs=1e-4)
    assert rankme(0 * line) == pytest.approx(1.0, abs=1e-4)
    orthogonal = torch.linalg.qr(torch.randn(40, 12, generator=torch.Generator().manual_seed(0)))[0]
    assert rankme(orthogonal) == pytest.approx(12.0, abs=1e-3)
    assert rankme(7 * orthogonal.T) == pytest.approx(12.0, abs=1e-3)  # neither scale nor shape matters


def test_rankme_is_the_papers_formula():
    x = torch.randn(30, 8, generator=torch.Generator().manual_seed(1)) * torch.logspace(0, -3, 8)
    p = torch.linalg.svdvals(x.double())
    p = p / p.sum() + 1e-7
    assert rankme(x) == pytest.approx(math.exp(-(p * p.log()).sum()), rel=1e-6)


def test_broken_features_have_no_rank():
    with pytest.raises(ValueError, match="must be finite"):
        rankme(torch.full((4, 2), torch.nan))


def test_cells_are_scored_each_by_itself(model, digits):
    batches = list(iterate_once(digits[1], image_size=16, batch_size=64, limit=128))
    scores = score_cells(model, batches, CRITERIA, layers=[1, 3], timesteps=[10, 400])
    assert all(score.shape == (2, 2) for score in scores.values())
    cell = extract_features(model, batches, layers=[3], timesteps=[10]).flat[:, 0]
    assert scores["rankme"][1, 0] == pytest.approx(rankme(cell), rel=1e-4)
    assert scores["uniformity"][1, 0] == pytest.approx(-uniformity(cell), rel=1e-4)
    assert (scores["alignment"] < 0).all()  # two noisings of an image never agree exactly
    # At a smaller t there is less noise, and the views are nearer to each other.
    assert (scores["alignment"][:, 0] > scores["alignment"][:, 1]).all()


def test_an_unknown_criterion_is_refused(model):
    with pytest.raises(ValueError, match="criterion='rank' is unknown; choose one of rankme"):
        score_cells(model, [], ["rank"], layers=[1], timesteps=[0])
