"""The README's code runs, and its commands name verbs, recipes and fields that exist."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from ldae.options import parse
from ldae.training.pretraining import pretrain
from ldae.training.recipe import load_recipe
from ldae.verbs import VERBS


ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
BLOCKS = {kind: re.findall(rf"```{kind}\n(.*?)```", TEXT, re.DOTALL) for kind in ("python", "bash")}
COMMANDS = [line.split("  #")[0].strip() for block in BLOCKS["bash"] for line in block.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory) -> Path:
    """A folder in which `runs/quickstart` is a finished run, though a short one."""
    folder = tmp_path_factory.mktemp("readme")
    overrides = {
        "images": 128,
        "warmup_images": 0,
        "probe_every_images": 0,
        "select_features": False,
        "tokenizer_images": 100,
    }
    overrides["output_dir"] = str(folder / "runs" / "quickstart")
    pretrain(load_recipe(ROOT / "training/recipes/digits.yaml", overrides))
    return folder


def test_python_blocks_run_in_order(quickstart, monkeypatch):
    monkeypatch.chdir(quickstart)
    names: dict[str, object] = {}
    for block in BLOCKS["python"]:
        exec(compile(block, "README.md", "exec"), names)
    assert names["outputs"].loss.isfinite()
    assert [tuple(m.shape) for m in names["maps"]] == [(1, 128, 8, 12)] * 2
    assert names["segments"].loss.isfinite() and names["segments"].logits.shape == (2, 3, 16, 16)
    assert names["colours"].shape == (4, 3, 4, 4)
    assert len(names["features"][0]) == 128
    assert len(names["tokens"]) == 2
    assert names["exported"].max_abs_error < 1e-4
    assert np.abs(np.subtract(names["native"], names["features"])).max() < 1e-4
    assert len(names["embedded"]) == 360 and len(names["embedded"][0]["features"]) == 128
    assert list(names["table"].scores) == ["runs/quickstart", "runs/quickstart, untrained", "raw pixels, 16 x 16"]
    assert names["score"] == names["table"].scores["runs/quickstart"]["ridge, 5 labels a class"]
    assert [image.size for image in names["samples"]] == [(16, 16)] * 4
    assert {name: tuple(f.shape) for name, f in names["by_block"].items()} == {
        "mid_block.resnets.1": (3, 1, 64),
        "up_blocks.1.resnets.0": (3, 1, 32),
    }
    assert names["encoder"].feature_layers["up_blocks.0.attentions.1"] == (64, 16, 16)
    assert names["shown"].noisy_images[0].size == (16, 16)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_name_what_exists_and_options_that_exist(command, monkeypatch):
    words = shlex.split(command)
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return
    if words[0] == "accelerate":
        launcher = next(i for i, word in enumerate(words) if word.endswith(".py"))
        assert (ROOT / words[launcher]).is_file()
        files = [words[i + 1] for i, word in enumerate(words) if word == "--config_file"]
        assert all((ROOT / file).is_file() for file in files)
        words = ["ldae", Path(words[launcher]).stem, *words[launcher + 1 :]]
    assert words[0] == "ldae" and words[1] in VERBS
    monkeypatch.chdir(ROOT)
    parse(VERBS[words[1]].options, words[2:])


def test_links_and_pictures_exist():
    for target in re.findall(r"\]\(([^)]+)\)", TEXT):
        assert target.startswith("https://") or (ROOT / target).exists(), target
