"""`ldae init`: what it tells of images and machine, and the recipe that it writes."""

from dataclasses import replace
from unittest.mock import Mock

import pytest
import torch
import yaml
from PIL import Image

from ldae.cli import main
from ldae.data import ImageSurvey
from ldae.data.decode import ImageFacts
from ldae.training import estimate, own_recipe
from ldae.training.estimate import Rehearsal
from ldae.training.machine import Machine
from ldae.training.own_recipe import STEPS, Planner
from ldae.training.pretraining import pretrain
from ldae.training.recipe import load_recipe
from tests.data.image_files import encode, random_pixels


CPU = Machine(8, 2**34, 2**33, "cpu", [], False)
GPU = Machine(16, 2**36, 2**35, "cuda", ["a GPU"], True)
FACT = ImageFacts(640, 480, "RGB", True, "")
PHOTOS = ImageSurvey(10_000, [FACT], [], [], {"cat": 6000, "dog": 4000})


class Measured(Planner):
    """A planner for which an image takes `nano` so many milliseconds, and its source is the time to read one."""

    nano = 5.0

    def _measure_reading(self):
        return self.source

    def _measure(self, own):
        size = own.sections["model"]["size"].value
        return self.nano / 1000 * self._work(size) / self._work("nano")


def plan(survey=PHOTOS, machine=CPU, minutes=60.0, reading=0.004, **fields):
    return Measured(
        {"dataset": "photos"}, reading, survey, machine, 60 * minutes, 10.0, "runs/photos", **fields
    ).plan()


@pytest.fixture
def photos(tmp_path):
    for name in ("cats", "dogs"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(30):
            pixels = random_pixels(48, 40, seed=number + 100 * len(name) + ord(name[0]))
            (tmp_path / "photos" / name / f"{number}.jpg").write_bytes(encode(Image.fromarray(pixels), "JPEG"))
    (tmp_path / "photos" / "cats" / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    return tmp_path / "photos"


def test_init_tells_what_it_found_and_writes_a_recipe_that_trains(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(estimate, "SHORTEST", 0.0)
    assert main(["init", "photos", "--minutes", "2", "--size", "nano", "--image_size", "16"]) == 0
    shown = capsys.readouterr().out
    for line in (
        "Images: 61\n",
        "Labels: 2 classes (cats, dogs)",
        "Unreadable: 1,",
        "Machine: ",
        "Training: nano at 16",
    ):
        assert line in shown
    assert shown.endswith("Wrote photos.yaml. Next:\n  ldae pretrain --config photos.yaml\n")
    assert not (tmp_path / "runs").exists()

    text = (tmp_path / "photos.yaml").read_text()
    recipe = load_recipe("photos.yaml")
    assert recipe.data.dataset == str(photos) and recipe.training.output_dir == "runs/photos"
    values = yaml.safe_load(text)
    # How many depends on the machine: see the tests of the plan below.
    assert recipe.training.images == values["training"]["images"] >= recipe.training.total_batch_size
    reasons = [line for line in text.splitlines() if line.startswith("  # ")]
    assert len(reasons) >= sum(map(len, values.values())) - 5  # nearly every value has its own
    folder = pretrain(load_recipe("photos.yaml", {"images": "64", "num_workers": "0"}))
    assert (folder.path / "model.safetensors").is_file()

    assert main(["init", "photos"]) == 2
    assert "output='photos.yaml' exists; give another --output, or --overwrite true." in capsys.readouterr().err


def test_the_largest_network_that_sees_enough_images_is_chosen():
    sizes = [
        plan(minutes=minutes, machine=machine).sections["model"]["size"].value
        for machine, minutes in ((CPU, 10), (CPU, 60), (CPU, 60 * 24), (CPU, 60 * 24 * 14), (GPU, 60 * 24))
    ]
    assert sizes == ["nano", "nano", "tiny", "small", "tiny"]


@pytest.mark.parametrize("minutes", [2, 30, 600])
def test_the_budget_fills_the_time_and_has_enough_steps(minutes):
    own = plan(minutes=minutes)
    t = own.build().training
    work = Measured.nano / 1000 * (1 if own.sections["model"]["size"].value == "nano" else 27)
    assert 0.5 * 60 * minutes < t.images * work < 60 * minutes
    assert t.total_batch_size == (64 if t.images > 64 * STEPS else 32)
    assert t.warmup_images * 20 == pytest.approx(t.images, abs=20)


def test_probes_are_left_out_where_they_would_take_the_time():
    with_probes, without = plan(minutes=60).build().training, plan(minutes=0.6).build().training
    assert with_probes.probe_every_images == -(-with_probes.images // 2)
    assert without.probe_every_images == 0 and without.select_features is False
    few = plan(replace(PHOTOS, num_images=99))
    assert few.build().training.probe_every_images == 0 and "99 images are very few" in few.notes[0]
    unlabelled = plan(replace(PHOTOS, classes=None)).sections["training"]
    assert not {"probe_every_images", "probe_eval_examples", "select_features"} & set(unlabelled)
    short = plan(replace(PHOTOS, classes=None), minutes=0.6).sections["training"]["select_features"]
    assert short.value is False and short.reason.endswith("ldae grid_search --criterion rankme")


@pytest.mark.parametrize(
    ("machine", "side", "expected"),
    [
        (CPU, 480, (64, 8, 24)),
        (GPU, 480, (224, 16, 32)),
        (CPU, 28, (32, 4, 16)),
        (GPU, 120, (128, 16, 32)),
        (CPU, 8, (16, 4, 8)),
    ],
)
def test_the_shape_follows_the_images_and_the_machine(machine, side, expected):
    survey = replace(PHOTOS, facts=[replace(FACT, width=side, height=2 * side)])
    config = plan(survey, machine).build().model_config()
    assert (config.image_size, config.patch_size, config.latent_dim) == expected


def test_grey_images_make_a_network_of_one_channel():
    survey = replace(PHOTOS, facts=[replace(FACT, has_colour=False)])
    config = plan(survey).build().model_config()
    assert config.num_channels == 1 and config.latent_dim == 16


def test_the_micro_batch_is_halved_until_it_fits(monkeypatch):
    tried = []

    def short_of_memory(task):
        tried.append(task.options.micro_batch_size)
        if tried[-1] > 16:
            raise torch.OutOfMemoryError
        return Rehearsal(1.0, 100, waited=0.0)

    monkeypatch.setattr(own_recipe, "rehearse", short_of_memory)
    planner = Measured({"dataset": "digits"}, 0.0, PHOTOS, GPU, 7200, 10.0, "runs/photos")
    own = planner._recipe("small", 64)
    assert Planner._measure(planner, own) == 1 / 64
    assert tried == [64, 32, 16] and own.build().training.micro_batch_size == 16
    own.sections["training"]["micro_batch_size"] = own_recipe.Choice(1)
    monkeypatch.setattr(own_recipe, "rehearse", Mock(side_effect=torch.OutOfMemoryError))
    with pytest.raises(ValueError, match="size='small' does not fit this accelerator's memory"):
        Planner._measure(planner, own)


def test_a_gpu_gets_its_precision_and_slow_files_and_short_times_a_note(monkeypatch):
    for compiles in (True, False):
        monkeypatch.setattr(own_recipe, "can_compile", lambda device, compiles=compiles: compiles)
        training = plan(machine=GPU).build().training
        assert training.mixed_precision == "bf16" and training.micro_batch_size == 64 and training.compile is compiles
    assert plan(minutes=60).notes == []
    assert "too few to learn much" in plan(minutes=0.6).notes[0]
    assert "training waits for it" in plan(reading=0.2).notes[0]
