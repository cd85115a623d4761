"""`ldae generate`: a picture, scores with their protocol, the same on one process and on two, and clear refusals."""

from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from ldae import DDAEPipeline
from ldae.cli import main
from ldae.results import read_results
from ldae.schedulers.scheduling_ldae import build_scheduler
from ldae.training.recipe import load_recipe
from tests.models.test_ddae_pretraining import UNET, small_model
from tests.pipelines.conftest import make_pipeline
from tests.processes import forget_processes, run_on_two


ROOT = Path(__file__).parents[2]
FIELDS = {"dataset": "digits", "num_workers": "0", "image_size": "16", "patch_size": "4", "latent_dim": "8"}
FAST = "--steps 2 --num_images 4 --num_workers 0".split()
SCORES_ONLY = "--steps 2 --num_images 0 --num_workers 0".split()


@pytest.fixture(autouse=True)
def fresh_state():
    yield
    forget_processes()


@pytest.fixture
def run(tmp_path):
    """A run's folder with its recipe."""
    folder = tmp_path / "run"
    make_pipeline().save_pretrained(folder)
    load_recipe(None, FIELDS).save(folder / "recipe.yaml")
    return folder


@pytest.fixture
def ddae_run(tmp_path):
    """A DDPM run's folder with its recipe."""
    folder, model = tmp_path / "ddae", small_model()
    DDAEPipeline(model, build_scheduler(model.config)).save_pretrained(folder)
    fields = {"model_type": "ddae", "denoiser_config": yaml.safe_dump(UNET), "dataset": "digits", "num_workers": "0"}
    load_recipe(None, fields).save(folder / "recipe.yaml")
    return folder


def generate(run, *options) -> int:
    last = dict(zip(options[::2], options[1::2], strict=True))  # an option that is given twice is refused
    return main(["generate", *(str(word) for word in (run, *(word for pair in last.items() for word in pair)))])


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
    assert generate(run, *SCORES_ONLY, *options, "--reference_split", "test") == 0
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
    assert generate(run, *SCORES_ONLY, "--fid", 20, "--extractor", run) == 0
    assert "20 images are not more than the 32 features" in capsys.readouterr().out
    assert [r["metric"] for r in read_results(run)] == ["FID-40", "KID-40", "FID-20"]


def test_a_class_conditional_model_has_a_row_a_class(tmp_path, capsys):
    pipe = make_pipeline(target="noise", noise_schedule="linear_beta", num_class_embeds=30)
    pipe.save_pretrained(tmp_path)
    assert generate(tmp_path, *FAST, "--classes", "3,5", "--guidance_scale", 2) == 0
    assert Image.open(tmp_path / "pictures" / "samples.png").size[1] == 4 + 2 * 68
    assert generate(tmp_path, "--steps", 2, "--num_images", 16) == 0
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


@pytest.mark.slow
def test_samplers_are_compared_from_the_same_noise(ddae_run, capsys):
    chosen = ("--samplers", "ddim:3,ancestral:4,heun:2", "--num_images", 5)
    assert generate(ddae_run, *chosen, "--fid", 20, "--kid", 20, "--extractor", ddae_run) == 0
    printed = capsys.readouterr().out
    assert "15 images:" in printed and "calls of the network  FID-20" in printed
    names = ["DDIM", "ancestral", "EDM (Heun)"]
    results = read_results(ddae_run)
    assert [(e["metric"], e["protocol"]["sampler"], e["protocol"]["steps"]) for e in results] == [
        (metric, name, steps) for name, steps in zip(names, (3, 4, 2), strict=True) for metric in ("FID-20", "KID-20")
    ]
    assert [e["protocol"]["eta"] for e in results[::2]] == [0.0, 1.0, 0.0]
    picture = Image.open(ddae_run / "pictures" / "samplers.png")
    assert picture.size[1] == 4 + 3 * 68 and picture.size[0] > 4 + 5 * 68  # a row each, its name on the left
    assert not (ddae_run / "pictures" / "samples.png").exists()

    # what is compared is what each sampler gives alone
    for name, steps, expected in zip(("ddim", "ancestral", "heun"), (3, 4, 2), results[::2], strict=True):
        alone = ("--sampler", name, "--steps", steps, "--num_images", 0, "--fid", 20, "--extractor", ddae_run)
        assert generate(ddae_run, *alone) == 0
        (entry,) = [e for e in read_results(ddae_run) if e["protocol"] == expected["protocol"]]
        assert entry["value"] == pytest.approx(expected["value"], rel=1e-4)
    assert len(read_results(ddae_run)) == 6


def test_a_wrong_choice_of_samplers_is_one_line(run, ddae_run, capsys):
    assert "sampler='heun' is unknown; this model has ddim, ancestral" in error_of(
        capsys, run, "--samplers", "ddim:2,heun:2"
    )
    assert not (run / "pictures").exists()  # before the first is drawn
    assert "sampler='euler' is unknown" in error_of(capsys, ddae_run, "--sampler", "euler")
    assert "samplers=['ddim:fast'] must be names and steps" in error_of(capsys, ddae_run, "--samplers", "ddim:fast")
    assert "steps=5 does not go with samplers=" in error_of(capsys, ddae_run, "--samplers", "ddim", "--steps", 5)
    assert "num_inference_steps=0" in error_of(capsys, ddae_run, "--samplers", "heun:0")


def test_what_is_wrong_is_one_line(run, tmp_path, capsys):
    assert "extractor='inception' is not at hand" in error_of(capsys, run, *FAST, "--fid", 10)
    assert "give both the same number" in error_of(capsys, run, *FAST, "--fid", 10, "--kid", 20)
    assert "fid=1 must be an integer, 2 or more" in error_of(capsys, run, *FAST, "--fid", 1)
    assert "num_images=0 without fid or kid leaves nothing to do" in error_of(capsys, run, "--num_images", 0)
    assert "batch_size=0 must be an integer, 1 or more" in error_of(capsys, run, *FAST, "--batch_size", 0)
    assert "guidance_scale=2.0 needs" in error_of(capsys, run, *FAST, "--guidance_scale", 2)
    assert "eta=3.0" in error_of(capsys, run, *FAST, "--eta", 3)
    assert "num_inference_steps=1001" in error_of(capsys, run, "--num_images", 4, "--steps", 1001)
    assert "split='validation'" in error_of(
        capsys, run, *FAST, "--fid", 4, "--extractor", run, "--reference_split", "validation"
    )
    assert "is not a folder; if it is a Hub id" in error_of(capsys, "someone/model")
    assert "does not exist" in error_of(capsys, tmp_path / "x", "--output_dir", tmp_path, *FAST)
    (run / "recipe.yaml").unlink()
    assert "dataset is missing" in error_of(capsys, run, *FAST, "--fid", 4, "--extractor", run)
    assert not (run / "pictures").exists()


@pytest.mark.parametrize(
    ("kind", "sampling"),
    [
        ("run", "--eta 1 --steps 2"),
        pytest.param("ddae_run", "--samplers ancestral:2,heun:2", marks=pytest.mark.slow),
    ],
)
def test_two_processes_give_what_one_gives(kind, sampling, tmp_path, request):
    run = request.getfixturevalue(kind)
    scores = ("--fid", "60", "--kid", "60", "--extractor", str(run), *sampling.split(), "--batch_size", "16")
    options = (*scores, "--num_images", "4", "--num_workers", "0")
    assert generate(run, *options, "--output_dir", tmp_path / "one") == 0
    launcher = ROOT / "training" / "generate.py"
    process = run_on_two(launcher, run, *options, "--output_dir", tmp_path / "two", folder=tmp_path)
    samplers = 1 if kind == "run" else 2
    assert process.stdout.count(f"{4 * samplers} images:") == 1 and "on 2 x cpu" in process.stdout
    one, two = read_results(tmp_path / "one"), read_results(tmp_path / "two")
    assert [entry["metric"] for entry in two] == ["FID-60", "KID-60"] * samplers
    for a, b in zip(one, two, strict=True):
        assert b["value"] == pytest.approx(a["value"], rel=1e-4)
        assert {**a, "value": 0, "subset_std": 0} == {**b, "value": 0, "subset_std": 0}
    picture = "samples.png" if kind == "run" else "samplers.png"
    pictures = [Image.open(tmp_path / name / "pictures" / picture).convert("L") for name in ("one", "two")]
    levels = [torch.tensor(list(picture.tobytes())) for picture in pictures]
    assert (levels[0] - levels[1]).abs().max() <= 1
