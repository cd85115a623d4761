"""A slice of benchmarks/gpu.py that ends mid-stage is continued by the same command, without its finished steps."""

import importlib.util
import sys
from pathlib import Path

import pytest


FILE = Path(__file__).parents[2] / "benchmarks" / "gpu.py"
# Counts to ten in a file, in a second, and saves itself at SIGTERM, as training does; the same command goes on.
COUNTING = """
import signal, sys, time
from pathlib import Path
path = Path(sys.argv[1])
stop = []
signal.signal(signal.SIGTERM, lambda *_: stop.append(True))
count = int(path.read_text()) if path.exists() else 0
while count < 10 and not stop:
    time.sleep(0.1)
    count += 1
    path.write_text(str(count))
sys.exit(0 if count == 10 else 143)
"""


@pytest.fixture(scope="module")
def gpu():
    spec = importlib.util.spec_from_file_location("benchmarks_gpu", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    yield spec.loader.exec_module(module) or module
    del sys.modules[spec.name]


def test_a_slice_that_ends_mid_stage_is_continued(gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "machine", lambda: {"device": "cpu"})
    measured, path = [], tmp_path / "count"
    stages = {
        "throughput": [gpu.Step("first", lambda: measured.append(1) or {"found": 1})],
        "pretrain": [
            gpu.Step("train", [sys.executable, "-c", COUNTING, str(path)], collect=lambda: {"end": path.read_text()})
        ],
        "ddpm": [gpu.Step("last", lambda: {"found": 2})],
    }
    assert gpu.run_stages(gpu.Slice(tmp_path, seconds=0.7), stages) == gpu.MORE_TO_DO
    steps = gpu.read_steps(tmp_path)
    assert steps["throughput/first"]["status"] == "done" and steps["pretrain/train"]["status"] == "stopped"
    assert "ddpm/last" not in steps
    assert not path.exists() or int(path.read_text()) < 10

    assert gpu.run_stages(gpu.Slice(tmp_path, seconds=60), stages) == 0
    steps = gpu.read_steps(tmp_path)
    assert measured == [1]
    assert steps["pretrain/train"]["status"] == "done" and steps["pretrain/train"]["slices"] == 2
    assert steps["pretrain/train"]["end"] == "10" and steps["ddpm/last"]["found"] == 2
    assert "device" in steps["pretrain/train"] and "command" in steps["pretrain/train"]

    path.unlink()  # finished commands are not run again
    assert gpu.run_stages(gpu.Slice(tmp_path, seconds=60), stages) == 0
    assert not path.exists()


def test_a_step_that_cannot_resume_waits_for_a_slice_with_time(gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "machine", dict)
    step = gpu.Step("search", dict, least_seconds=100)
    late = gpu.Slice(tmp_path, seconds=200)
    late.began -= 150
    assert late.run("pretrain", step) == "stopped"
    assert gpu.Slice(tmp_path, seconds=200).run("pretrain", step) == "done"


def test_a_failed_step_is_told_and_tried_again(gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "machine", dict)
    failing = gpu.Step("train", [sys.executable, "-c", "raise SystemExit('no such thing')"])
    stages = {"pretrain": [failing, gpu.Step("search", dict)], "ddpm": [gpu.Step("last", dict)]}
    assert gpu.run_stages(gpu.Slice(tmp_path, seconds=60), stages) == 1
    assert gpu.read_steps(tmp_path)["pretrain/train"]["status"] == "failed"
    assert "no such thing" in (tmp_path / "logs" / "pretrain-train.log").read_text()
    assert set(gpu.read_steps(tmp_path)) == {"pretrain/train", "ddpm/last"}
    stages["pretrain"][0] = gpu.Step("train", [sys.executable, "-c", ""])
    assert gpu.run_stages(gpu.Slice(tmp_path, seconds=60), stages) == 0


def test_other_settings_are_refused(gpu, tmp_path):
    gpu.check_settings(tmp_path, gpu.parse(["--tiny", "--output_dir", str(tmp_path)]))
    with pytest.raises(ValueError, match="seeds="):
        gpu.check_settings(tmp_path, gpu.parse(["--tiny", "--output_dir", str(tmp_path), "--seeds", "1"]))


def test_lengths_and_a_missing_dataset(gpu, monkeypatch, capsys):
    monkeypatch.delenv("LDAE_CIFAR10", raising=False)
    assert gpu.parse(["--tiny", "--output_dir", "x"]).pretrain_images == 640
    with pytest.raises(SystemExit):
        gpu.parse(["--dataset", "", "--output_dir", "x"])
    assert "dataset is missing" in capsys.readouterr().err
