import dataclasses

import pytest

from ldae.sections import TrainingConfig
from ldae.training.budget import learning_rate


RULE = TrainingConfig(images=4000, warmup_images=1000, total_batch_size=2048, base_learning_rate=1e-4)


def test_warm_up_is_linear_to_the_papers_peak():
    assert learning_rate(0, RULE) == 0
    assert learning_rate(500, RULE) == pytest.approx(4e-4)
    assert learning_rate(1000, RULE) == pytest.approx(8e-4)  # 1e-4 x 2048 / 256


def test_half_cycle_cosine_falls_to_zero_and_stays_there():
    assert learning_rate(2500, RULE) == pytest.approx(4e-4)
    assert learning_rate(4000, RULE) == pytest.approx(0, abs=1e-12)
    assert learning_rate(5000, RULE) == pytest.approx(0, abs=1e-12)
    rates = [learning_rate(seen, RULE) for seen in range(1000, 4001, 100)]
    assert rates == sorted(rates, reverse=True)


def test_without_warm_up_it_starts_at_the_peak():
    assert learning_rate(0, dataclasses.replace(RULE, warmup_images=0)) == pytest.approx(8e-4)
