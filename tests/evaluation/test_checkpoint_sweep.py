"""`ldae checkpoint_sweep`: every kept checkpoint probed and scored, nothing twice, the test set choosing nothing."""

import json
import shutil

import pytest
import torch
from PIL import Image

from ldae import DDAEModel
from ldae.data import DataConfig, iterate_once, open_probe_images
from ldae.evaluation.checkpoint_sweep import SweepPoint, best_points
from ldae.evaluation.features import extract_features
from ldae.evaluation.probing import probe_features
from ldae.reports.curves import checkpoint_course
from ldae.results import read_results
from ldae.training.pretraining import pretrain
from ldae.training.recipe import load_recipe
from ldae.verbs import checkpoint_sweep
from tests.models.test_ddae_pretraining import UNET

from ..verb_calls import call


FIELDS = {
    "dataset": "digits",
    "num_workers": 0,
    "images": 96,
    "total_batch_size": 32,
    "ema_decay": 0.5,
    "base_learning_rate": 1e-2,
    "checkpoint_every_images": 32,
    "keep_checkpoints": 3,
    "probe_every_images": 0,
    "select_features": False,
}
STEPS = "--steps 2 --num_workers 0".split()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "ddae"
    fields = FIELDS | {"model_type": "ddae", "denoiser_config": UNET, "output_dir": str(folder)}
    return pretrain(load_recipe(None, {name: str(value) for name, value in fields.items()})).path


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "ddae")


def sweep(*arguments) -> int:
    return call(checkpoint_sweep, [str(argument) for argument in arguments])


def test_every_checkpoint_is_probed_and_scored_and_nothing_twice(run, capsys, monkeypatch):
    options = ("--fid", 20, "--kid", 20, "--extractor", run, *STEPS)
    assert sweep(run, *options) == 0
    printed = capsys.readouterr().out
    results = read_results(run)
    assert [e["images_seen"] for e in results] == [32] * 4 + [64] * 4 + [96] * 4
    assert [(e["metric"], e["protocol"]["name"]) for e in results[:4]] == [
        ("accuracy", "ridge"),
        ("accuracy", "knn"),
        ("FID-20", "generation"),
        ("KID-20", "generation"),
    ]
    assert results[-1]["checkpoint"] == "checkpoints/images-000000000096"
    assert results[2]["protocol"]["weights"] == "ema" and results[2]["protocol"]["steps"] == 2
    assert (
        "ridge" in printed and "held-out" in printed and "FID-20" in printed and "32 images seen: ridge 0." in printed
    )
    assert Image.open(run / "pictures" / "checkpoint_sweep.png").size[0] > 400

    # the last checkpoint of a finished run is the model in its folder
    encoder = DDAEModel.from_pretrained(run)
    sources = open_probe_images(DataConfig("digits"))
    train, test = (extract_features(encoder, iterate_once(s, image_size=16, batch_size=256)) for s in sources)
    by_hand = probe_features("ridge", train, test)
    ridge = results[-4]
    assert (ridge["value"], ridge["held_out_value"]) == pytest.approx((by_hand.score(0)[0], by_hand.held_out_score(0)))
    assert ridge["protocol"]["layer"] == encoder.config.feature_layer and ridge["protocol"]["timestep"] == 10

    # again: nothing is computed, and the table is the same
    monkeypatch.setattr("ldae.evaluation.checkpoint_sweep.extract_features", None)
    monkeypatch.setattr("ldae.evaluation.generation.generate_images", None)
    assert sweep(run, *options) == 0
    again = capsys.readouterr().out
    assert "32 images seen: in results.json already" in again
    assert again[again.index("images seen  ridge") :] == printed[printed.index("images seen  ridge") :]
    assert read_results(run) == results


@pytest.mark.slow
def test_what_differs_is_measured_again(run):
    assert sweep(run, "--probes", "knn", *STEPS) == 0
    before = read_results(run)
    assert len(before) == 3
    other = run / "checkpoints" / "images-000000000064"
    shutil.copy(run / "checkpoints" / "images-000000000032" / "ema.safetensors", other)
    assert sweep(run, "--probes", "knn", *STEPS) == 0
    after = read_results(run)
    assert len(after) == 3 and after[1]["value"] == after[0]["value"]
    assert after[1]["weights_hash"] == after[0]["weights_hash"] != before[1]["weights_hash"]
    assert sweep(run, "--probes", "knn", "--timesteps", 40, *STEPS) == 0
    assert len(read_results(run)) == 6


@pytest.mark.slow
def test_linear_probes_too_and_elsewhere(run, tmp_path):
    place = tmp_path / "out"
    options = ("--probes", "linear", "--epochs", 1, "--output_dir", place, *STEPS)
    assert sweep(run, *options, "--horizontal_flip", "false") == 0
    results = read_results(place)
    assert [e["protocol"]["name"] for e in results] == ["linear"] * 3 and not read_results(run)
    assert all(0 < e["value"] < 1 and 0 < e["held_out_value"] < 1 for e in results)
    assert results[0]["checkpoint"] == f"{run}/checkpoints/images-000000000032"
    assert sweep(run, *options, "--horizontal_flip", "false") == 0
    assert read_results(place) == results
    for other in ([], ["--mixed_precision", "bf16"]):
        before = read_results(place)
        assert sweep(run, *options, *other) == 0
        assert read_results(place)[: len(before)] == before and len(read_results(place)) == len(before) + 3


def test_an_ldae_run_is_swept_without_fid(tmp_path):
    sizes = "hidden_size 32 num_attention_heads 2 intermediate_size 64 num_hidden_layers 1 decoder_num_hidden_layers 1"
    words = sizes.split()
    fields = FIELDS | {"image_size": 16, "patch_size": 4, "latent_dim": 8, "output_dir": str(tmp_path / "ldae")}
    fields |= dict(zip(words[::2], words[1::2], strict=True)) | {"images": 64, "tokenizer_images": 200}
    folder = pretrain(load_recipe(None, {name: str(value) for name, value in fields.items()})).path
    assert sweep(folder, "--num_workers", 0) == 0
    results = read_results(folder)
    assert [(e["images_seen"], e["protocol"]["name"]) for e in results] == [
        (seen, name) for seen in (32, 64) for name in ("ridge", "knn")
    ]
    assert results[0]["protocol"]["layer"] == 1
    (folder / "results.json").write_text(json.dumps([results[0] | {"train_split": "other"}, *results[1:]]))
    assert sweep(folder, "--num_workers", 0) == 0
    assert read_results(folder) == results
    with pytest.raises(ValueError, match="fid and kid say nothing with noise_schedule='linear_sigma'"):
        sweep(folder, "--fid", 10, "--extractor", folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--probes", "svm"], "probes='svm' must be one of ridge, knn, linear, none"),
        (["--probes", "none"], "leaves nothing to measure"),
        (["--timesteps", "1,11"], "timesteps=1,11 must be one here"),
        (["--fid", "1"], "fid=1 must be an integer, 2 or more"),
        (["--fid", "10"], "extractor='inception' is not at hand"),
    ],
)
def test_what_makes_no_sense_is_refused(run, options, message):
    with pytest.raises(ValueError, match=message):
        sweep(run, *options)
    assert not read_results(run)


def test_a_folder_without_checkpoints_is_refused(run):
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(ValueError, match="holds no checkpoints/images-"):
        sweep(run)


def test_held_out_images_choose_the_best_and_both_axes_are_drawn():
    points = [
        SweepPoint(10, "ridge", 0.9, held_out=0.5),
        SweepPoint(20, "ridge", 0.4, held_out=0.6),
        SweepPoint(10, "FID-50", 9.0),
        SweepPoint(20, "FID-50", 12.0),
    ]
    best = best_points(points)
    assert best["ridge"] is points[1] and best["FID-50"] is points[2]
    left, right = checkpoint_course(points).axes
    assert left.lines[0].get_xydata().tolist() == [[20, 40]] and left.lines[1].get_ydata().tolist() == [90, 40]
    assert right.lines[0].get_xydata().tolist() == [[10, 9]]
    assert "FID-50" in right.get_ylabel()
    (alone,) = checkpoint_course(points[2:]).axes
    assert torch.tensor(alone.lines[1].get_ydata()).tolist() == [9, 12]
