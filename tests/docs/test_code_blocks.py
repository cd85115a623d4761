"""The code of README and site runs, and their commands name verbs, files and options that exist.

Blocks marked `python` and `bash` are run, page by page and in order, where `runs/quickstart` is a short run. Blocks
marked `sh` need more than that (other data, other machines, minutes); their commands are checked, but not run.
"""

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ldae.cli import main
from ldae.options import parse
from ldae.training.pretraining import pretrain
from ldae.training.recipe import load_recipe
from ldae.verbs import VERBS
from tests.docs.pages import PAGES, ROOT, blocks, commands, name


RUN = {name(page): blocks(page) for page in PAGES if {b.language for b in blocks(page)} & {"python", "bash"}}
COMMANDS = sorted(
    {c for page in PAGES for b in blocks(page) if b.language in ("sh", "bash") for c in commands(b.code)}
)


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the digits, though a short one."""
    folder = tmp_path_factory.mktemp("documentation") / "quickstart"
    overrides = {
        "images": 128,
        "warmup_images": 0,
        "probe_every_images": 0,
        "select_features": False,
        "tokenizer_images": 100,
    }
    pretrain(load_recipe(ROOT / "training/recipes/digits.yaml", overrides | {"output_dir": str(folder)}))
    return folder


def check_readme(names: dict[str, Any]) -> None:
    assert names["features"].shape == (1, 128)


def check_quickstart(names: dict[str, Any]) -> None:
    assert names["outputs"].pooler_output.shape == (1, 128)
    assert len(names["features"][0]) == 128
    assert len(names["tokens"]) == 2


def check_building(names: dict[str, Any]) -> None:
    assert names["outputs"].loss.isfinite()
    assert [tuple(m.shape) for m in names["maps"]] == [(1, 128, 8, 12)] * 2
    assert names["segments"].loss.isfinite() and names["segments"].logits.shape == (2, 3, 16, 16)
    assert names["colours"].shape == (4, 3, 4, 4)


def check_export(names: dict[str, Any]) -> None:
    from transformers import pipeline

    assert names["exported"].max_abs_error < 1e-4
    ours = pipeline("image-feature-extraction", model="runs/quickstart", pool=True)
    image = names["Image"].new("RGB", (64, 48))
    assert np.abs(np.subtract(names["native"], ours(image))).max() < 1e-4
    assert Path("runs/timm/model.safetensors").is_file()


def check_features(names: dict[str, Any]) -> None:
    assert len(names["embedded"]) == 1437 and len(names["embedded"][0]["features"]) == 128
    assert names["neighbours"]["row"][0] == 0 and names["scores"][0] == pytest.approx(1, abs=1e-3)


def check_probing(names: dict[str, Any]) -> None:
    assert list(names["table"].scores) == ["runs/quickstart", "runs/quickstart, untrained", "raw pixels, 16 x 16"]
    assert names["score"] == names["table"].scores["runs/quickstart"]["ridge, 5 labels a class"]


def check_generating(names: dict[str, Any]) -> None:
    assert [image.size for image in names["samples"]] == [(16, 16)] * 4
    assert names["shown"].noisy_images[0].size == (16, 16)
    assert Path("runs/quickstart/pictures/samples.png").is_file()


def check_ddae(names: dict[str, Any]) -> None:
    assert {name: tuple(f.shape) for name, f in names["by_block"].items()} == {
        "mid_block.resnets.1": (3, 1, 64),
        "up_blocks.1.resnets.0": (3, 1, 32),
    }
    assert names["encoder"].feature_layers["up_blocks.0.attentions.1"] == (64, 16, 16)


CHECKS: dict[str, Callable[[dict[str, Any]], None]] = {
    "README.md": check_readme,
    "docs/quickstart.md": check_quickstart,
    "docs/building.md": check_building,
    "docs/export.md": check_export,
    "docs/features.md": check_features,
    "docs/probing.md": check_probing,
    "docs/generating.md": check_generating,
    "docs/ddae.md": check_ddae,
}


@pytest.mark.parametrize("page", RUN)
def test_blocks_of_a_page_run_in_order(
    page: str, quickstart: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(quickstart, tmp_path / "runs" / "quickstart")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in RUN[page]:
        if block.language == "python":
            exec(compile(block.code, page, "exec"), names)
        for command in commands(block.code) if block.language == "bash" else []:
            program, *arguments = shlex.split(command)
            assert program == "ldae" and main(arguments) == 0, command
    if page in CHECKS:
        CHECKS[page](names)


def test_every_check_is_of_a_page_that_runs() -> None:
    assert set(CHECKS) <= set(RUN)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_name_what_exists_and_options_that_exist(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    words = shlex.split(command.replace("images.yaml", "own_images --dataset digits"))  # as `ldae init` writes it
    scripts = [i for i, word in enumerate(words) if word.endswith(".py")]
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif scripts:
        files = [words[i + 1] for i, word in enumerate(words) if word == "--config_file"]
        assert all((ROOT / file).is_file() for file in [*files, words[scripts[0]]])
        words = ["ldae", Path(words[scripts[0]]).stem, *words[scripts[0] + 1 :]]
    if words[0] == "ldae":
        parse(VERBS[words[1]].options, words[2:])
    else:
        assert words[0] in ("make", "pip"), command
