"""Launches: what they leave behind, what they do not do twice, how they end, fail, are killed and share a folder."""

import json
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from pyarrow import parquet
from transformers import AutoModel

from ldae.cli import main
from ldae.deconstruct.collect import collect
from ldae.deconstruct.preset import load_preset
from ldae.deconstruct.runner import Deconstruction, count_classes
from ldae.deconstruct.shared_networks import tokenizer_name
from ldae.files import FolderClaim
from ldae.results import read_results
from tests.processes import ForkedProcess, run_on_two


LAUNCHER = Path(__file__).parents[2] / "training" / "deconstruct.py"

# A launch that is killed as soon as row 7 has a checkpoint.
KILLED = """
import os, signal, sys
from ldae.cli import main
from ldae.training import loop

def save_and_die(folder, *state):
    save(folder, *state)
    if "07_patch_pca" in str(folder):
        os.kill(os.getpid(), signal.SIGKILL)

save, loop.save_checkpoint = loop.save_checkpoint, save_and_die
main(["deconstruct", *sys.argv[1:]])
"""


def launch(preset: Path, folder: Path, *options: str) -> ForkedProcess:
    return ForkedProcess(LAUNCHER, "--config", preset, "--output_dir", folder, *options, folder=preset.parent)


def changes(folder: Path) -> dict[str, int]:
    """When each file that holds a number or a weight was written."""
    kinds = ("model.safetensors", "tokenizer.safetensors", "results.json", "metrics.jsonl")
    files = [path for path in folder.rglob("*") if path.name in kinds and "checkpoints" not in path.parts]
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in files}


def tokenizers(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "tokenizers").iterdir())


def test_a_launch_leaves_runs_probes_tokenizers_and_a_report(finished):
    preset, folder = finished
    found = collect(load_preset(preset), folder)
    assert [row.variant.key for row in found.rows] == ["00", "07", "12"]
    for row in found.rows:
        assert row.accuracy.seeds == 2 and 0 < row.accuracy.mean < 1 and row.accuracy.stderr is not None
        assert row.images == 192 and row.failures == {}
    l_dae = found.row("12")
    assert list(l_dae.blocks) == [1, 2] and list(l_dae.timesteps["clean"]) == list(l_dae.timesteps["noisy"]) == [0, 80]
    assert found.row("07").blocks == {} and found.row("07").timesteps == {}
    assert list(found.baselines) == ["untrained encoder", "mean PCA coefficients", "raw pixels"]
    assert [(result.variant.key, result.accuracy.seeds) for result in found.sweep] == [("pca-2", 2)]
    # Each seed has one for rows 7 and 12 together, and one for row 0, which had the classifier's help.
    kinds = [name.rpartition("-")[0] for name in tokenizers(folder)]
    assert kinds == [kind for kind in ("conv_vae-d4", "pca-d2", "pca-d4") for _ in range(2)]
    (network,) = (folder / "classifiers").iterdir()
    assert type(AutoModel.from_pretrained(network)).__name__ == "ResNetModel"
    assert (folder / "report.html").is_file() and (folder / "report.md").is_file()
    assert not list(folder.rglob(".*"))


def test_every_number_is_in_its_runs_results_with_its_protocol(finished):
    _, folder = finished
    entries = read_results(folder / "rows" / "12_ldae" / "seed-1")
    assert {entry["protocol"]["study"] for entry in entries} == {"row", "blocks", "timesteps"}
    for entry in entries:
        assert entry["metric"] == "accuracy" and entry["n"] == 120 and entry["dataset"].endswith("digits")
        assert entry["protocol"]["preset"] == "cached" and entry["protocol"]["name"] == "logistic"
        assert entry["protocol"]["converged"] is True
    searched, paper = (e["protocol"] for e in entries if e["protocol"]["study"] == "row")
    assert (searched["point"], paper["point"]) == ("searched", "paper")
    assert (paper["layer"], paper["timestep"]) == (1, 10)
    assert searched["searched_layers"] == [1, 2] and searched["searched_timesteps"] == [0, 10, 80]
    assert searched["layer"] in (1, 2) and searched["timestep"] in (0, 10, 80)


def test_samples_are_drawn_and_scored_where_the_preset_asks(finished):
    _, folder = finished
    for name, rows in {"00_dit": True, "07_patch_pca": True, "12_ldae": False}.items():
        run = folder / "rows" / name / "seed-0"
        scores = {e["metric"]: e for e in read_results(run) if e["protocol"].get("study") == "samples"}
        assert set(scores) == ({"FID-40", "KID-40"} if rows else set())
        assert (run / "pictures" / "samples.png").is_file() == rows
        for entry in scores.values():
            assert entry["n"] == 40 and entry["protocol"]["reference_images"] == 60
            assert "ResNetModel" in entry["protocol"]["extractor"] and entry["protocol"]["steps"] == 2
        card = (run / "README.md").read_text()
        assert "### logistic" in card and ("FID-40" in card) == rows
    with Image.open(folder / "rows" / "07_patch_pca" / "seed-0" / "pictures" / "samples.png") as grid:
        assert grid.size[1] < 80 and grid.size[0] > 8 * grid.size[1]  # nine images in a row


def test_every_checkpoint_loads_and_gives_features(finished):
    _, folder = finished
    for run in sorted((folder / "rows").glob("*/seed-*")):
        features = AutoModel.from_pretrained(run)(torch.zeros(2, 3, 16, 16)).pooler_output
        assert features.shape == (2, 32) and features.isfinite().all()


def test_the_same_command_again_changes_no_number_and_trains_nothing(finished, tmp_path, capsys):
    preset, shared = finished  # by all workers of a test run, so it is left alone
    folder = shutil.copytree(shared, tmp_path / "again")
    before = changes(folder)
    assert main(["deconstruct", "--config", str(preset), "--output_dir", str(folder)]) == 0
    assert changes(folder) == before
    assert capsys.readouterr().out.count("was finished before") == 8


def test_a_folder_can_be_moved_and_gone_on_with(finished, tmp_path):
    preset, folder = finished
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    before = changes(moved)
    # A larger budget for the denoisers alone: they go on from their checkpoints, with the tokenizers that are there.
    options = ["--rows", "7", "--seeds", "0", "--images", "256"]
    assert main(["deconstruct", "--config", str(preset), "--output_dir", str(moved), *options]) == 0
    changed = {name for name, when in changes(moved).items() if before.get(name) != when}
    assert changed == {
        f"rows/07_patch_pca/seed-0/{name}" for name in ("model.safetensors", "results.json", "metrics.jsonl")
    }


def test_other_probe_settings_measure_again_without_training(finished, tmp_path):
    preset, folder = finished
    again = tmp_path / "again"
    shutil.copytree(folder, again)
    before = changes(again)
    options = ["--rows", "7", "--seeds", "0", "--probe.probe", "adam", "--probe.epochs", "3"]
    assert main(["deconstruct", "--config", str(preset), "--output_dir", str(again), *options]) == 0
    changed = {name for name, when in changes(again).items() if before.get(name) != when}
    assert changed == {"rows/07_patch_pca/seed-0/results.json"}
    (again / "rows" / "07_patch_pca" / "seed-1" / "deconstruct.json").touch()  # as by another step's end
    row = collect(load_preset(preset), again).row("07")
    (entry,) = row.at_paper.entries  # seed 1 has none with these settings yet
    assert row.left_out == {1: ["row"]}
    text = "Not measured with the settings used last, so not in the means: 07_patch_pca, seed 1 (accuracy)."
    assert text in (again / "report.md").read_text()
    assert entry["protocol"]["epochs"] == 3 and "learning_rate_at_edge" in entry["protocol"]
    assert row.searched is None  # Adam's probe has the recipe's own point alone


def test_a_row_that_fails_does_not_stop_the_others_and_can_be_tried_again(write_preset, tmp_path, capsys):
    folder = tmp_path / "out"
    preset = write_preset(rows=[7, 12], classifier=None, probe={"search_timesteps": [10], "study_rows": []})
    run = folder / "rows" / "07_patch_pca" / "seed-0"
    trained = run / "checkpoints" / "images-000000000032"
    trained.mkdir(parents=True)
    (run / "recipe.yaml").write_text("model: {}\ndata: {}\ntokenizer: {}\ntraining: {}\n")  # another recipe's
    command = ["deconstruct", "--config", str(preset), "--output_dir", str(folder)]
    assert main(command) == 2
    said = capsys.readouterr().out
    assert "FAILED: 07_patch_pca, seed 0: " in said and "12_ldae, seed 0: linear probe" in said
    found = collect(load_preset(preset), folder)
    assert found.row("07").accuracy is None and "another recipe" in found.row("07").failures[0]
    assert found.row("12").accuracy is not None
    assert "Failed, to be tried again" in (folder / "report.md").read_text()

    trained.rmdir()
    assert main(command) == 0
    found = collect(load_preset(preset), folder)
    assert found.row("07").accuracy is not None and found.row("07").failures == {}
    assert "Failed" not in (folder / "report.md").read_text()


def test_a_killed_launch_goes_on_and_does_nothing_twice(write_preset, tmp_path, capsys):
    folder = tmp_path / "out"
    preset = write_preset(rows=[6, 7], classifier=None, probe={"search_timesteps": [10], "study_rows": []})
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    killed = ForkedProcess(script, "--config", preset, "--output_dir", folder, folder=tmp_path).wait()
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    second = folder / "rows" / "07_patch_pca" / "seed-0"
    first = folder / "rows" / "06_patch_ae" / "seed-0"
    assert (second / ".claim").is_file() and not (second / "results.json").exists()
    before = {name: when for name, when in changes(folder).items() if "06_patch_ae" in name or "tokenizers" in name}
    assert f"{first.relative_to(folder)}/results.json" in before and len(tokenizers(folder)) == 2

    assert main(["deconstruct", "--config", str(preset), "--output_dir", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "06_patch_ae, seed 0: was finished before" in said
    assert re.search(r"Resuming from [\d,]+ images", said) and said.count("Resuming from") == 1
    after = changes(folder)
    assert {name: after[name] for name in before} == before
    assert all(row.accuracy is not None for row in collect(load_preset(preset), folder).rows)
    assert not list(folder.rglob(".claim*"))


@pytest.mark.slow
def test_two_launches_share_a_folder_and_a_tokenizer(write_preset, tmp_path, capsys):
    """Row 4 is launched in a process of its own; row 3 here, once that one trains the tokenizer that both need."""
    folder = tmp_path / "out"
    preset = write_preset(rows=[3, 4], classifier=None, probe={"search_timesteps": [10], "study_rows": []})
    options = ["--tokenizer_images", "4800"]
    other = launch(preset, folder, "--rows", "4", *options)
    deadline = time.time() + 120
    while not list(folder.glob("tokenizers/*/recipe.yaml")) and time.time() < deadline:
        time.sleep(0.02)
    assert main(["deconstruct", "--config", str(preset), "--output_dir", str(folder), "--rows", "3", *options]) == 0
    assert f"Waiting for {folder}/tokenizers/conv_vae-d4-" in capsys.readouterr().out
    done = other.wait()
    assert done.returncode == 0, done.stderr
    (tokenizer,) = tokenizers(folder)
    records = (folder / "tokenizers" / tokenizer / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in records].count("finished") == 1
    assert all(row.accuracy is not None for row in collect(load_preset(preset), folder).rows)


def test_a_run_that_another_launch_holds_is_waited_for(write_preset, tmp_path):
    folder = tmp_path / "out"
    preset = load_preset(write_preset(rows=[7], probe={"search_timesteps": [10], "study_rows": []}))
    claim = FolderClaim(folder / "rows" / "07_patch_pca" / "seed-0")
    assert claim.acquire()
    other = Deconstruction(preset, folder)
    assert not other._try(other.runs[0])
    claim.release()
    assert other.run() == []
    assert collect(preset, folder).row("07").accuracy is not None


@pytest.mark.slow
def test_many_rows_are_compiled_in_one_process(write_preset, tmp_path, monkeypatch):
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 1)
    monkeypatch.setattr(torch._dynamo.config, "accumulated_recompile_limit", 1)
    preset = write_preset(rows=[7, 8, 9], classifier=None, probe={"search_timesteps": [10], "study_rows": []})
    command = ["deconstruct", "--config", str(preset), "--output_dir", str(tmp_path / "out"), "--compile", "true"]
    assert main(command) == 0


@pytest.mark.slow
def test_two_processes_of_one_launch_measure_what_one_does(write_preset, tmp_path):
    probe = {"search_timesteps": [10], "horizontal_flip": False, "study_rows": [7]}
    generation = {"num_images": 30, "reference_images": 60, "steps": 2, "grid": 9, "batch_size": 4}
    preset = write_preset(rows=[4, 7], probe={**probe, "timesteps": [0, 80]}, generation=generation)
    arguments = ["--config", str(preset), "--output_dir"]
    run_on_two(LAUNCHER, *arguments, tmp_path / "two", folder=tmp_path)
    assert main(["deconstruct", *arguments, str(tmp_path / "one")]) == 0
    one, two = (collect(load_preset(preset), tmp_path / name) for name in ("one", "two"))
    for ours, theirs in zip(one.rows, two.rows, strict=True):
        assert theirs.accuracy.mean == pytest.approx(ours.accuracy.mean, abs=0.02)
        assert "fid" in theirs.samples and theirs.images == ours.images
    assert list(two.row("07").blocks) == [1, 2] and set(two.baselines) == set(one.baselines)


def test_classes_are_counted_where_they_are_not_named(tmp_path):
    from dataclasses import replace

    from ldae.data import DataConfig, open_images

    source = open_images(DataConfig("digits"))
    assert count_classes(source) == count_classes(replace(source, class_names=None)) == 10
    with pytest.raises(ValueError, match="give --num_class_embeds"):
        count_classes(replace(source, class_names=None, label_column=None))
    some = source.dataset.with_format(None).map(lambda row: {"label": row["label"] or None})  # of zeros, none is left
    assert count_classes(replace(source, dataset=some, class_names=None)) == 10


def test_wrong_arguments_are_one_line(write_preset, tmp_path, capsys):
    preset = str(write_preset())
    arguments = ["deconstruct", "--config", preset, "--output_dir", str(tmp_path / "out")]
    for options, message in (
        (["--imagse", "3"], "did you mean --images?"),
        (["--rows", "99"], "rows='99' does not exist"),
    ):
        assert main([*arguments, *options]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_measurements_would_not_find_is_told_before_a_row_is_trained(write_preset, digits, tmp_path, capsys):
    (tmp_path / "plain").mkdir()
    for split in ("train", "test"):
        table = parquet.read_table(digits / f"{split}.parquet").drop_columns("label").replace_schema_metadata()
        parquet.write_table(table, tmp_path / "plain" / f"{split}.parquet")
    data = {"dataset": str(tmp_path / "plain"), "image_column": "image", "eval_split": None, "num_workers": 0}
    keys = {"rows": [7], "classifier": None, "data": data}
    generation = {"num_images": 4, "extractor": str(tmp_path / "none")}
    for preset, message in (
        (write_preset("plain.yaml", **keys), "has no labels, which probes need"),
        (write_preset(rows=[7], classifier=None, generation=generation), f"{tmp_path}/none"),
    ):
        assert main(["deconstruct", "--config", str(preset), "--output_dir", str(tmp_path / "out")]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_a_tokenizers_name_says_what_it_is(write_preset, tmp_path):
    preset = load_preset(write_preset(rows=[7]))
    run = Deconstruction(preset, tmp_path).runs[0]
    assert re.fullmatch(r"pca-d4-[0-9a-f]{8}", tokenizer_name(Deconstruction(preset, tmp_path).recipe(run)))
