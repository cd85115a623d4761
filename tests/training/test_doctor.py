"""What limits a recipe: costs counted without values, plans by arithmetic, and speeds measured here."""

from dataclasses import replace
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ldae.cli import main
from ldae.data import open_images
from ldae.processes import join_processes
from ldae.training import doctor, estimate, memory
from ldae.training.costs import ACCELERATORS, Plan, count_costs
from ldae.training.doctor import Speed, advise, measure_speed
from ldae.training.loop import Callback
from ldae.training.machine import Machine
from ldae.training.memory import blank_loss, estimate_memory
from ldae.training.pretraining import DenoisingTask
from ldae.training.recipe import load_recipe
from ldae.verbs.options.start import DoctorOptions
from tests.training.conftest import train_task


GPU = Machine(cores=8, memory=2**36, free=2**35, device="cuda", accelerators=["a GPU"], bf16=True)
TINY_UNET = {
    "model_type": "ddae",
    "image_size": 16,
    "denoiser_config": {
        "block_out_channels": [8, 16],
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
        "norm_num_groups": 4,
        "attention_head_dim": 4,
        "layers_per_block": 1,
    },
}


class Count(Callback):
    """Counts with real tensors what [`count_costs`] counts without."""

    def start(self, run):
        self.memory = estimate_memory(run)
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            loss = blank_loss(run.task, 1, run.device)
            self.forward = counter.get_total_flops()
            loss.backward()
        self.step = counter.get_total_flops()
        run.state.optimizer.zero_grad()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_costs_are_those_of_real_tensors(make_recipe, monkeypatch, checkpointing):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    recipe, count = make_recipe(activation_checkpointing=checkpointing, ema_decay=0.9), Count()
    costs = count_costs(recipe)
    train_task(DenoisingTask(recipe), count)
    assert (costs.forward, costs.step) == (count.forward, count.step)
    assert 2.5 < costs.step / costs.forward < (4.1 if checkpointing else 3.1)
    needed = costs.memory(2**40, 32)
    assert (needed.optimizer, needed.per_image) == (count.memory.optimizer, count.memory.per_image)
    assert needed.fixed == pytest.approx(count.memory.fixed, rel=0.05)
    assert costs.held > 2 * costs.trained == 8 * costs.weights
    assert costs.memory(2**40, 32, devices=2).held == costs.held + costs.trained


def test_a_denoiser_of_diffusers_is_counted_too(tmp_path):
    recipe = load_recipe(None, {"dataset": "digits", "total_batch_size": 8, **TINY_UNET})
    costs = count_costs(recipe)
    weights = sum(weight.numel() for weight in torch.nn.ModuleList([build(recipe)]).parameters())
    assert costs.weights == weights and costs.step > 2.5 * costs.forward > 0 and costs.per_image > 0


def test_an_image_takes_as_much_in_small_steps_as_in_large_ones(make_recipe, monkeypatch):
    """In a wide network the peak of a small step is at its weights, and that of a large one at its activations."""
    recipe = make_recipe(mixed_precision="bf16", hidden_size=256, intermediate_size=1024)
    small = count_costs(recipe)
    monkeypatch.setattr(memory, "SMALL", 64)
    monkeypatch.setattr(memory, "LARGE", 128)
    large = count_costs(recipe)
    assert small.per_image == large.per_image and small.fixed > large.fixed


def build(recipe):
    from transformers import AutoModelForPreTraining

    return AutoModelForPreTraining.from_config(recipe.model_config())


def test_a_plan_is_arithmetic_from_published_figures(make_recipe):
    recipe = make_recipe(mixed_precision="bf16", images=10**9, total_batch_size=512)
    costs = replace(count_costs(recipe), step=10**12, per_image=2**30, fixed=0, held=2**30, trained=2**28)
    plan = Plan(recipe, costs, ACCELERATORS["h100"], 4, 0.5)
    assert plan.seconds == pytest.approx(10**9 * 10**12 / (4 * 0.5 * 989.4e12))
    assert plan.images_per_second == pytest.approx(0.5 * 989.4)
    # 72 GB are 67.06 GiB; 1 GiB is held, 1/4 are the gradients to exchange, 3/4 gradients and moments
    assert not plan.memory.fits and plan.largest_micro_batch == 64
    assert Plan(recipe, replace(costs, per_image=2**37), ACCELERATORS["h100"], 4, 0.5).largest_micro_batch is None
    assert Plan(make_recipe(), costs, ACCELERATORS["h100"], 1, 1).peak == pytest.approx(66.9e12)


def test_what_cannot_be_planned_is_refused(make_recipe, recipe_file, capsys):
    recipe = make_recipe(mixed_precision="bf16")
    with pytest.raises(ValueError, match="a T4 does not have; give --mixed_precision no"):
        Plan(recipe, count_costs(recipe), ACCELERATORS["t4"], 1, 0.35)
    assert main(["doctor", "--config", str(recipe_file), "--on", "h100", "--num_devices", "3"]) == 2
    assert "total_batch_size=32 does not divide over 3 processes" in capsys.readouterr().err
    assert main(["doctor", "--config", str(recipe_file), "--num_devices", "3"]) == 2
    assert "num_devices=3 only applies with --on" in capsys.readouterr().err


def test_every_accelerator_can_be_named():
    literal = get_args(get_type_hints(DoctorOptions)["on"])[0]
    assert get_args(literal) == tuple(ACCELERATORS)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    monkeypatch.setattr(estimate, "SHORTEST", 0.0)
    monkeypatch.setattr(doctor, "SIDES", {"cpu": 64})
    monkeypatch.setattr(doctor, "STEP_SECONDS", 1e9)


@pytest.mark.parametrize("arguments", [["--on", "l4"], ["--read", "false"], []])
def test_the_verb_prints_a_narrow_table_and_writes_nothing(recipe_file, quick, capsys, tmp_path, arguments):
    before = sorted(tmp_path.rglob("*"))
    assert main(["doctor", "--config", str(recipe_file), *arguments]) == 0
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    labels = [line[:14].strip() for line in lines if not line.startswith(" ")]
    assert max(map(len, lines)) <= 80 and shown.err == ""
    if arguments[:1] == ["--on"]:
        assert labels == "Recipe|Arithmetic|On|Memory|Micro-batch|Time|Reading|Assumed|Change".split("|")
        assert "arithmetic, not a measurement" in " ".join(shown.out.split())
    else:
        reading = [] if arguments else ["Loader", "Training"]
        local = ["Memory", "Peak", "Step", *reading, "Whole recipe", "Limit"]
        assert [label for label in labels if label != "Change"][-len(local) :] == local
    assert sorted(tmp_path.rglob("*")) == before


def test_large_files_make_reading_the_limit(make_recipe, quick, tmp_path):
    (tmp_path / "images").mkdir()
    for index in range(8):
        pixels = np.random.default_rng(index).integers(0, 256, (600, 600, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{index}.png")
    recipe = make_recipe(dataset=str(tmp_path / "images"), random_resized_crop=False, total_batch_size=8)
    costs = count_costs(recipe)
    source = open_images(recipe.data)
    speed = measure_speed(recipe, costs, costs.memory(2**40, 8), "cpu", source)
    assert speed.batch_size == 8 and speed.waited > doctor.WAITED
    assert speed.seconds(1000) == 1000 / speed.training
    machine = replace(GPU, device="cpu", bf16=False)
    advice = advise(recipe, machine, speed, costs.memory(2**40, 8), doctor.median_shorter_side(source))
    assert advice[0].startswith("--num_workers ") and "8 cores" in advice[0]
    assert advice[1].startswith("smaller copies of the images: their shorter side is 600")


def test_advice_for_a_gpu(make_recipe):
    recipe = make_recipe(compile=True, micro_batch_size=8, activation_checkpointing=True)
    memory = count_costs(recipe).memory(2**40, 8)
    low = Speed(peak=1e15, flops_per_image=1e6, batch_size=8, step=100.0)
    assert [line.partition(":")[0] for line in advise(recipe, GPU, low, memory, None)] == [
        "--mixed_precision bf16",
        "--micro_batch_size 32",
        "--activation_checkpointing false",
    ]
    full = replace(memory, free=memory.missing)
    recipe = make_recipe(compile=True, micro_batch_size=8, mixed_precision="bf16")
    assert advise(recipe, GPU, low, full, None) == []


def test_a_slow_machine_is_measured_with_fewer_images_and_a_small_one_is_refused(make_recipe, quick, monkeypatch):
    recipe = make_recipe()
    costs = count_costs(recipe)
    memory = costs.memory(2**40, 32)
    join_processes(cpu=True)
    tight = replace(memory, free=memory.missing - 2 * memory.per_image)
    assert measure_speed(recipe, costs, tight, "cpu", None).batch_size == 30
    monkeypatch.setattr(doctor, "STEP_SECONDS", 0.0)
    assert measure_speed(recipe, costs, memory, "cpu", None).batch_size == 1
    with pytest.raises(ValueError, match="not even one image fits here"):
        measure_speed(recipe, costs, replace(memory, free=0), "cpu", None)
