"""training/README.md keeps step with the code: fields and defaults, error messages, recipes, launch files."""

import dataclasses
import re
from pathlib import Path

import pytest
import yaml

from ldae.data import DataConfig
from ldae.deconstruct.preset import KEYS, GenerationOptions, ProbeOptions, SweepOptions
from ldae.models.configuration_ddae import DDAEConfig
from ldae.models.configuration_ldae import LDAEConfig
from ldae.training.finetuning_recipe import FineTuningConfig
from ldae.training.recipe import MODEL_FIELDS, TokenizerConfig, TrainingConfig, model_fields
from ldae.training.resnet_classifier import ResNetClassifierConfig


ROOT = Path(__file__).parents[2]
README = (ROOT / "training" / "README.md").read_text()


def rows(heading: str) -> list[list[str]]:
    """The cells of the table below a heading."""
    section = re.split(r"\n#+ ", README.split(f"\n{heading}\n")[1])[0]
    table = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table]


def defaults(kind: type) -> dict[str, object]:
    """Default of every field; MISSING where it must be given."""
    missing = dataclasses.MISSING
    return {
        f.name: f.default if f.default_factory is missing else f.default_factory() for f in dataclasses.fields(kind)
    }


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ("model", {"size": None} | {name: defaults(LDAEConfig)[name] for name in MODEL_FIELDS}),
        (
            "model:` of a DDAE",
            {"model_type": "ldae"} | {name: defaults(DDAEConfig)[name] for name in model_fields("ddae")},
        ),
        ("data", defaults(DataConfig)),
        ("tokenizer", defaults(TokenizerConfig)),
        ("finetuning", defaults(FineTuningConfig)),
        ("training", defaults(TrainingConfig)),
        ("sweep", defaults(SweepOptions)),
        ("classifier", defaults(ResNetClassifierConfig)),
        ("probe", defaults(ProbeOptions)),
        ("generation", defaults(GenerationOptions)),
    ],
    ids=["model", "ddae", "data", "tokenizer", "finetuning", "training", "sweep", "classifier", "probe", "generation"],
)
def test_every_field_of_a_recipe_or_preset_is_explained_with_its_default(section, expected):
    explained = {
        name.strip("`"): (default, meaning)
        for name, default, meaning in rows(f"### `{section}" if " of a " in section else f"### `{section}:`")
    }
    assert list(explained) == list(expected)
    for name, (default, meaning) in explained.items():
        assert meaning, name
        if expected[name] is dataclasses.MISSING:
            assert default == "", name
            continue
        text = default.strip("`")
        value = text if text == "no" else yaml.safe_load(text)  # YAML takes a bare `no` for false
        value = float(value) if isinstance(expected[name], float) else value
        value = tuple(value) if isinstance(expected[name], tuple) else value
        assert value == (pytest.approx(expected[name], abs=1e-4) if isinstance(value, float) else expected[name]), name


def test_every_key_of_a_preset_is_explained():
    assert [name.strip("`") for name, _, _ in rows("### Presets")] == list(KEYS)


def test_every_explained_message_is_one_of_the_code():
    source = "\n".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    messages = [row[0].strip("`") for row in rows("## What an error means")]
    assert len(messages) > 15
    assert [message for message in messages if message not in source] == []


def test_every_recipe_and_launch_file_is_named():
    for path in (ROOT / "training" / "recipes").glob("*.yaml"):
        assert f"({path.relative_to(ROOT / 'training')})" in README, path
    for path in (ROOT / "training" / "recipes" / "deconstruction").glob("[!0-9]*.yaml"):
        assert f"({path.relative_to(ROOT / 'training')})" in README, path
    for path in (ROOT / "training" / "accelerate").glob("*.yaml"):
        assert path.name in README, path
    for name in re.findall(r"training/[\w/]+\.(?:yaml|py)", README):
        assert (ROOT / name).is_file(), name
