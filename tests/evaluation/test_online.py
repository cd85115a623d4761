from dataclasses import replace

import pytest
import torch
from datasets import Dataset

from ldae.data import DataConfig, iterate_once, open_probe_images
from ldae.evaluation.features import extract_features
from ldae.evaluation.knn import knn_accuracy
from ldae.evaluation.online import NoLabelsError, OnlineProbe
from ldae.evaluation.probing import probe_features
from ldae.training.recipe import TrainingConfig


def test_scores_are_those_of_the_probes_on_the_whole_set(model, digits):
    probe = OnlineProbe(*digits, image_size=16)
    scores = probe(model)
    train, test = (extract_features(model, iterate_once(source, image_size=16, batch_size=512)) for source in digits)
    data = (train.flat[:, 0], train.classes, test.flat[:, 0], test.classes)
    assert scores["ridge_accuracy"] == probe_features("ridge", train, test).score(0)[0] and scores[
        "knn_accuracy"
    ] == knn_accuracy(*data)
    best = {"layers": [scores["best_layer"]], "timesteps": [scores["best_timestep"]]}
    fitted, scored = (
        extract_features(model, iterate_once(source, image_size=16, batch_size=512), **best) for source in digits
    )
    by_hand = probe_features("ridge", fitted, scored).score(0)[0]
    assert scores["best_ridge_accuracy"] == pytest.approx(by_hand, abs=0.02)
    assert scores["ridge_accuracy"] > 0.3  # chance is a tenth


def test_the_subset_is_fixed_and_nothing_else_changes(model, digits):
    model.train()
    first, second = (OnlineProbe(*digits, image_size=16, num_train=150, num_eval=60) for _ in range(2))
    state = torch.random.get_rng_state()
    assert first(model) == second(model) == first(model)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_open_takes_its_sizes_from_the_recipe(config):
    options = TrainingConfig(probe_train_examples=64, probe_eval_examples=32, mixed_precision="bf16")
    probe = OnlineProbe.open(DataConfig("digits"), config, options)
    sizes = [sum(len(batch.images) for batch in batches) for batches in probe._batches]
    assert sizes == [64, 32]
    assert probe.dtype == torch.bfloat16


def test_no_labels_no_probe(config, tmp_path, caplog):
    images = open_probe_images(DataConfig("digits"))[1].dataset.with_format(None).remove_columns("label")
    images.to_parquet(tmp_path / "train.parquet")
    assert OnlineProbe.open(DataConfig(str(tmp_path)), config, TrainingConfig()) is None
    assert "no label column" in caplog.text


def test_rows_without_a_label_are_left_out(digits):
    labels = [-1 if i % 2 else 3 for i in range(20)]
    rows = digits[1].dataset.with_format(None).select(range(20))
    some = Dataset.from_dict({"image": rows["image"], "label": labels}, features=None)
    probe = OnlineProbe(digits[0], replace(digits[1], dataset=some.with_format("arrow")), image_size=16)
    assert torch.cat([batch.labels for batch in probe._batches[1]]).tolist() == [3] * 10
    few = some.select([0, 2, 4, 6, *range(1, 20, 2)])
    with pytest.raises(NoLabelsError, match="4 labelled images, too few to hold a tenth out"):
        OnlineProbe(replace(digits[1], dataset=few.with_format("arrow")), digits[1], image_size=16)
