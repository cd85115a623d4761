"""Rehearsals (--dry_run) and estimates: what a run takes is told without writing, and without changing a number."""

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ldae.cli import main
from ldae.training import estimate, machine, memory
from ldae.training.estimate import Estimate
from ldae.training.loop import Callback
from ldae.training.memory import blank_loss, estimate_memory
from ldae.training.pretraining import DenoisingTask, pretrain, rehearse_pretraining
from ldae.training.tokenizer_training import rehearse_tokenizer
from tests.training.conftest import After, train_task


AE = {"latent_tokenizer": "ae", "input_space": "latent", "prediction_target": "latent"}


def files(folder: Path) -> dict[Path, tuple[bytes, float]]:
    return {p: (p.read_bytes(), p.stat().st_mtime) for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("model", [{}, AE], ids=["pca", "ae"])
def test_a_dry_run_takes_steps_tells_what_a_run_takes_and_writes_nothing(make_recipe, capsys, tmp_path, model):
    before = files(tmp_path)
    rehearsal = rehearse_pretraining(make_recipe(**model))
    shown = capsys.readouterr().out
    assert rehearsal.steps == 8 and rehearsal.seconds == 8 * rehearsal.seconds_per_step > 0
    assert ("Dry run of tokenizer: nothing is written." in shown) == bool(model)
    for line in ("Dry run of pre-training: nothing is written.", "digits (train)", "Model: ", "Batch: 32 images = "):
        assert line in shown
    assert "Memory: about" in shown and "for 8 steps" in shown
    assert files(tmp_path) == before and not (tmp_path / "run").exists()


@pytest.mark.parametrize("model", [{}, AE], ids=["pca", "ae"])
def test_a_dry_run_leaves_a_run_as_it_is_and_refuses_another_recipe(make_recipe, tmp_path, model):
    pretrain(make_recipe(**model))
    before = files(tmp_path)
    rehearse_pretraining(make_recipe(images=512, **model))
    with pytest.raises(RuntimeError, match="holds a run of another recipe"):
        rehearse_pretraining(make_recipe(hidden_size=64, **model))
    assert files(tmp_path) == before


def test_a_dry_run_of_a_fitted_tokenizer_reads_a_few_images(make_recipe, capsys, tmp_path):
    assert rehearse_tokenizer(make_recipe(tokenizer_images=1000)) is None
    shown = capsys.readouterr().out
    assert "pca of 1,024 patches" in shown  # of 64 images
    assert re.search(r"Time: about \d+ s to read 1,000 images, without .* peak memory", shown)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("verb", ["pretrain", "train_tokenizer", "finetune", "deconstruct"])
def test_every_verb_that_trains_has_a_dry_run(verb, make_recipe, recipe_file, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["--config", str(recipe_file)]
    if verb == "finetune":
        pretrain(make_recipe())
        arguments = [str(tmp_path / "run"), "--images", "320", "--total_batch_size", "32", "--compare_from_scratch"]
    if verb == "deconstruct":
        preset = Path(__file__).parents[2] / "training" / "recipes" / "deconstruction" / "digits.yaml"
        arguments = ["--config", str(preset), "--output_dir", "rows", "--rows", "12", "--seeds", "0,1"]
        arguments += ["--size", "null", "--hidden_size", "32", "--num_hidden_layers", "1", "--images", "128"]
        arguments += ["--decoder_num_hidden_layers", "1", "--num_attention_heads", "2", "--intermediate_size", "64"]
    before = files(tmp_path)
    assert main([verb, *arguments, "--dry_run"]) == 0
    shown = capsys.readouterr().out
    expected = {
        "pretrain": "for 8 steps",
        "train_tokenizer": "pca of 1,024 patches",
        "finetune": "The comparison trains 6 runs of this budget",
        "deconstruct": "for 2 runs, without fits",
    }
    assert expected[verb] in shown
    assert files(tmp_path) == before


def test_the_estimate_changes_no_number(make_recipe):
    plain, estimated = (
        train_task(DenoisingTask(make_recipe(folder)), *callbacks)
        for folder, callbacks in (("plain", []), ("estimated", [Estimate()]))
    )
    losses = [[record["loss"] for record in run.records() if "loss" in record] for run in (plain, estimated)]
    assert losses[0] == losses[1] and len(losses[0]) == 4


class Look(Callback):
    """Keeps the estimate of the memory, and the bytes that torch's allocator really hands out in a whole step."""

    def start(self, run):
        self.memory = estimate_memory(run)
        assert all(parameter.grad is None for parameter in run.state.trained.values())
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
            blank_loss(run.task, run.micro_batch_size, run.device).backward()
        run.state.optimizer.zero_grad()
        events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
        events.sort(key=lambda event: event.start_ns())
        self.taken = max(itertools.accumulate(event.nbytes() for event in events))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_memory_is_estimated_from_few_images(make_recipe, monkeypatch, checkpointing):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    look = Look()
    blocks = {"num_hidden_layers": 6, "decoder_num_hidden_layers": 6}
    task = DenoisingTask(make_recipe(activation_checkpointing=checkpointing, total_batch_size=128, **blocks))
    train_task(task, look)
    weights = sum(parameter.numel() for parameter in task.module.parameters() if parameter.requires_grad)
    assert look.memory.optimizer == 3 * 4 * weights
    assert look.memory.missing - look.memory.optimizer == pytest.approx(look.taken, rel=0.05)


@pytest.mark.skipif(sys.platform != "linux", reason="the memory of a process is returned by glibc")
def test_a_process_takes_what_was_estimated_where_activations_are_computed_again(recipe_file):
    sizes = "--hidden_size 96 --num_hidden_layers 8 --decoder_num_hidden_layers 8 --intermediate_size 384".split()
    sizes += "--total_batch_size 512 --activation_checkpointing true --dry_run true".split()
    # Linux counts the memory of the process that starts another to the other's peak, so a shell starts it.
    own = [sys.executable, "-m", "ldae", "pretrain", "--config", str(recipe_file), *sizes]
    command = ["sh", "-c", '"$@"; exit $?', "sh", *own]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    told, peak = (
        float(number) * (1024 if unit == "GiB" else 1)
        for number, unit in re.findall(r"(?:about|peak memory) ([\d.]+) (MiB|GiB)", done.stdout)
    )
    assert peak == pytest.approx(told, rel=0.15)


def test_memory_that_will_not_suffice_is_told_with_the_micro_batch_that_fits(make_recipe, monkeypatch, capsys):
    look = Look()
    train_task(DenoisingTask(make_recipe("look")), look)
    room = look.memory.optimizer + look.memory.fixed + 9 * look.memory.per_image
    monkeypatch.setattr(memory, "free_memory", lambda device: room)
    train_task(DenoisingTask(make_recipe("short")), Estimate())
    (warning,) = [line for line in capsys.readouterr().err.splitlines() if "needs about" in line]
    assert warning.startswith("Warning: pre-training: the first step needs about") and warning.endswith(
        "give --micro_batch_size 8, which changes no result."
    )
    monkeypatch.setattr(memory, "free_memory", lambda device: look.memory.optimizer)
    train_task(DenoisingTask(make_recipe("none")), Estimate())
    assert "are free; choose a smaller network." in capsys.readouterr().err


def test_a_large_network_on_a_cpu_is_told(make_recipe, monkeypatch, capsys):
    monkeypatch.setattr(estimate, "LARGE_ON_CPU", 10_000)
    train_task(DenoisingTask(make_recipe()), Estimate())
    assert ("M weights train on a CPU" in capsys.readouterr().err) == (not torch.cuda.is_available())


def test_the_time_of_a_run_is_told_once_after_its_first_steps(make_recipe, monkeypatch, capsys):
    monkeypatch.setattr(estimate, "SHORTEST", 0.0)
    train_task(DenoisingTask(make_recipe()), Estimate())
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Time: ")]
    assert re.search(r"a step, about \d+ s for 5 steps, without probes and pictures; peak memory", line)


def test_a_slow_first_step_such_as_a_compilation_is_not_taken_for_the_others(make_recipe, monkeypatch, capsys):
    now = [0.0]

    def clock() -> float:
        now[0] += 0.25
        return now[0]

    monkeypatch.setattr(estimate, "time", SimpleNamespace(perf_counter=clock))
    monkeypatch.setattr(estimate, "LONGEST", 0.5)
    task = DenoisingTask(make_recipe())
    train_task(task, After(1, lambda run: now.append(now.pop() + 1000)), Estimate())
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Time: ")]
    assert line.startswith("Time: 250 ms a step, about 2 s for 6 steps")


def test_free_memory_is_no_more_than_a_container_may_use(monkeypatch, tmp_path):
    cpu = torch.device("cpu")
    assert machine.free_memory(cpu) > 2**20
    (tmp_path / "memory.max").write_text("3000000\n")
    (tmp_path / "memory.current").write_text("2000000\n")
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    assert machine.free_memory(cpu) == 1_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.free_memory(cpu) > 2**20
