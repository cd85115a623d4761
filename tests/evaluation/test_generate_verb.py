"""`ldae generate`: a picture, scores with their protocol, the same on one process and on two, and clear refusals."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from PIL import Image

from ldae.cli import main
from ldae.results import read_results
from ldae.training.recipe import load_recipe
from tests.pipelines.conftest import make_pipeline


ROOT = Path(__file__).parents[2]
FIELDS = {"dataset": "digits", "num_workers": "0", "image_size": "16", "patch_size": "4", "latent_dim": "8"}
FAST = "--steps 2 --num_images 4 --num_workers 0".split()


@pytest.fixture(autouse=True)
def fresh_state():
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


@pytest.fixture
def run(tmp_path):
    """A run's folder with its recipe."""
    folder = tmp_path / "run"
    make_pipeline().save_pretrained(folder)
    load_recipe(None, FIELDS).save(folder / "recipe.yaml")
    return folder


def generate(*arguments) -> int:
    return main(["generate", *(str(argument) for argument in arguments)])


def error_of(capsys, *arguments) -> str:
    assert generate(*arguments) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error.splitlines()[-1]


def test_it_draws_samples(run, tmp_path, capsys):
    assert generate(run, *FAST) == 0
    picture = Image.open(run / "pictures" / "samples.png")
    assert picture.size == (140, 140)
    assert "4 images:" in capsys.readouterr().out
    assert not read_results(run)
    first = picture.tobytes()
    assert generate(run, *FAST, "--output_dir", tmp_path / "other") == 0
    assert Image.open(tmp_path / "other" / "pictures" / "samples.png").tobytes() == first
    assert generate(run, *FAST, "--seed", 1) == 0
    assert Image.open(run / "pictures" / "samples.png").tobytes() != first


def test_it_scores_them_with_their_protocol(run, capsys):
    options = ("--fid", 40, "--kid", 40, "--extractor", run, "--eta", 1, "--seed", 2, "--reference_images", 100)
    assert generate(run, *FAST, *options, "--reference_split", "test", "--num_images", 0) == 0
    assert not (run / "pictures").exists()
    fid, kid = read_results(run)
    assert (fid["metric"], fid["n"], fid["seed"], fid["dataset"], fid["split"]) == ("FID-40", 40, 2, "digits", "test")
    assert fid["protocol"]["reference_images"] == 100
    assert (fid["protocol"]["extractor"], fid["protocol"]["features"]) == ("run (LDAEModel)", 32)
    assert (fid["protocol"]["sampler"], fid["protocol"]["steps"], fid["protocol"]["weights"]) == (
        "ancestral",
        2,
        "raw",
    )
    assert (kid["metric"], kid["protocol"]["subset_size"], kid["checkpoint"]) == ("KID-40", 40, ".")
    assert fid["value"] > 0 and kid["value"] > 0
    printed = capsys.readouterr().out
    assert "FID-40" in printed and "100 images of digits (test)" in printed and "weights: raw" in printed
    assert generate(run, *FAST, "--fid", 20, "--extractor", run, "--num_images", 0) == 0
    assert "20 images are not more than the 32 features" in capsys.readouterr().out
    assert [r["metric"] for r in read_results(run)] == ["FID-40", "KID-40", "FID-20"]


def test_a_class_conditional_model_has_a_row_a_class(tmp_path, capsys):
    pipe = make_pipeline(target="noise", noise_schedule="linear_beta", num_class_embeds=30)
    pipe.save_pretrained(tmp_path)
    assert generate(tmp_path, *FAST, "--classes", "3,5", "--guidance_scale", 2) == 0
    assert Image.open(tmp_path / "pictures" / "samples.png").size[1] == 4 + 2 * 68
    assert generate(tmp_path, *FAST, "--num_images", 16) == 0
    assert Image.open(tmp_path / "pictures" / "samples.png").size[1] == 4 + 2 * 68  # two of thirty classes
    assert "the classes are 0 to 29" in error_of(capsys, tmp_path, *FAST, "--classes", "31")


def test_averaged_weights_are_named(run):
    load_recipe(None, FIELDS | {"ema_decay": "0.99"}).save(run / "recipe.yaml")
    assert generate(run, *FAST, "--fid", 4, "--extractor", run) == 0
    assert read_results(run)[0]["protocol"]["weights"] == "ema"
    (run / "recipe.yaml").unlink()
    assert generate(run, *FAST, "--fid", 4, "--extractor", run, "--dataset", "digits") == 0
    assert read_results(run)[1]["protocol"]["weights"] == "unknown"


def test_half_precision_is_named(run):
    assert generate(run, *FAST, "--fid", 4, "--extractor", run, "--mixed_precision", "bf16", "--device", "cpu") == 0
    assert read_results(run)[0]["protocol"]["mixed_precision"] == "bf16"


def test_what_is_wrong_is_one_line(run, tmp_path, capsys):
    assert "extractor='inception' is not at hand" in error_of(capsys, run, *FAST, "--fid", 10)
    assert "give the same number to both" in error_of(capsys, run, *FAST, "--fid", 10, "--kid", 20)
    assert "fid=1 is not possible; give 2 or more" in error_of(capsys, run, *FAST, "--fid", 1)
    assert "batch_size=0 is not possible; give 1 or more" in error_of(capsys, run, *FAST, "--batch_size", 0)
    assert "guidance_scale=2.0 is not possible" in error_of(capsys, run, *FAST, "--guidance_scale", 2)
    assert "eta=3.0" in error_of(capsys, run, *FAST, "--eta", 3)
    assert "num_inference_steps=1001" in error_of(capsys, run, *FAST, "--steps", 1001)
    assert "split 'validation'" in error_of(
        capsys, run, *FAST, "--fid", 4, "--extractor", run, "--reference_split", "validation"
    )
    assert "is no folder; if it is a Hub id" in error_of(capsys, "someone/model")
    assert "cannot be loaded" in error_of(capsys, tmp_path / "x", "--output_dir", tmp_path, *FAST)
    (run / "recipe.yaml").unlink()
    assert "dataset is missing" in error_of(capsys, run, *FAST, "--fid", 4, "--extractor", run)
    assert not (run / "pictures").exists()


def test_two_processes_give_what_one_gives(run, tmp_path):
    scores = ("--fid", "60", "--kid", "60", "--extractor", str(run), "--eta", "1", "--batch_size", "16")
    assert generate(run, *FAST, *scores, "--output_dir", tmp_path / "one") == 0
    port = str(random.randint(20000, 40000))
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", port]
    process = subprocess.run(
        [
            sys.executable,
            *launch,
            ROOT / "training" / "generate.py",
            run,
            *FAST,
            *scores,
            "--output_dir",
            tmp_path / "two",
        ],
        env={**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    assert process.stdout.count("4 images:") == 1 and "on 2 x cpu" in process.stdout
    one, two = read_results(tmp_path / "one"), read_results(tmp_path / "two")
    assert [entry["metric"] for entry in two] == ["FID-60", "KID-60"]
    for a, b in zip(one, two, strict=True):
        assert b["value"] == pytest.approx(a["value"], rel=1e-4)
        assert {**a, "value": 0, "subset_std": 0} == {**b, "value": 0, "subset_std": 0}
    pictures = [Image.open(tmp_path / name / "pictures" / "samples.png").convert("L") for name in ("one", "two")]
    levels = [torch.tensor(list(picture.tobytes())) for picture in pictures]
    assert (levels[0] - levels[1]).abs().max() <= 1
