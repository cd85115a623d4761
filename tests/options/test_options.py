"""Options: conversion from YAML, ranges, command lines, files, and what they say of themselves."""

import dataclasses
import json
from typing import Annotated, Any, Literal

import pytest
import yaml
from pydantic import Field

from ldae.cli import main, verb_help
from ldae.options import Positional, build, describe, describe_source, documented_arguments, options, parse, read_yaml
from ldae.options.help import json_schema
from ldae.training.recipe import PACKAGE, model_class
from ldae.verbs import VERBS
from ldae.verbs.start import recipe_schema


OPTIONS = {name: verb.options for name, verb in VERBS.items()}


@options
class Shared:
    """
    Images.

    Args:
        dataset: Data set to read.
    """

    dataset: str | None = None


@options
class Example(Shared):
    """
    Do something.

    Args:
        checkpoint: A folder.
        config: A file.
        images: Budget.
        rate: Rate.
        noisy: Add noise.
        precision: Precision.
        layers: Blocks.
        scale: Range.
        tag: Name.
        sure: Certainty.
        fields: More.
    """

    checkpoint: Annotated[str, Positional] = "."
    config: str | None = None
    images: int = Field(1000, ge=1)
    rate: float | None = Field(None, gt=0, le=1)
    noisy: bool = False
    precision: Literal["no", "bf16"] = "no"
    layers: list[int | str] | None = None
    scale: tuple[float, float] = (0.5, 1.0)
    tag: str | None = None
    sure: bool | None = None
    fields: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"scale={self.scale} must rise.")


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        ("--images 1e6", "images", 1_000_000),
        ("--images=500_000", "images", 500_000),
        ("--rate 1e-3", "rate", 1e-3),
        ("--rate null", "rate", None),
        ("--noisy", "noisy", True),
        ("--noisy false", "noisy", False),
        ("--noisy --images 5", "noisy", True),
        ("--noisy no", "noisy", False),
        ("--noisy x", "checkpoint", "x"),
        ("--sure null", "sure", None),
        ("--tag=--noisy", "tag", "--noisy"),
        ("--precision no", "precision", "no"),
        ("--layers 3,up_blocks.1", "layers", [3, "up_blocks.1"]),
        ("--layers 3", "layers", [3]),
        ("--scale 0.2,1", "scale", (0.2, 1.0)),
        ("--scale [0.2,1]", "scale", (0.2, 1.0)),
        ("--tag 1.0", "tag", "1.0"),
        ("--tag null", "tag", None),
        ("--tag no", "tag", "no"),
        ("runs/x", "checkpoint", "runs/x"),
    ],
)
def test_values_of_a_command_line_have_their_fields_type(words, field, value):
    found = getattr(parse(Example, words.split()), field)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--images 0", "images=0 must be an integer, 1 or more."),
        ("--images true", "images=True must be an integer."),
        ("--images 1.5", "images=1.5 must be an integer."),
        ("--images many", "images='many' must be an integer."),
        ("--rate 2", "rate=2.0 must be a number, above 0 and at most 1, or null."),
        ("--precision bf15", "precision='bf15' must be one of no, bf16; did you mean bf16?"),
        ("--noisy=perhaps", "noisy='perhaps' must be true or false."),
        ("--scale 1", "scale=1 must be a list of 2 values, such as 1,1."),
        ("--scale 1,0.5", "scale=(1.0, 0.5) must rise."),
        ("--imagse 3", "unknown option --imagse; did you mean --images?"),
        ("--images", "--images has no value; write --images VALUE."),
        ("--tag --noisy", "--tag has no value; write --tag VALUE."),
        ("--fields {[1]:2}", "fields='{[1]:2}' is not YAML; quote it."),
        ("--fields {a:[1,.nan]}", "fields.a.1=nan must be finite."),
        ("--images 3 --images=4", "--images is given twice, as 3 and as 4; give it once."),
        ("a b", "unexpected argument 'b'; write --option value."),
        ("--images '[1", 'images="\'[1" is not YAML; quote it.'),
        ("--rate .inf", "rate=inf must be finite, a number or null."),
        ("--images {a:1,a:1}", "images='{a:1,a:1}' is not YAML ('a:1' stands twice); quote it."),
    ],
)
def test_a_wrong_command_line_is_one_line_that_names_option_value_and_remedy(words, message):
    with pytest.raises(ValueError) as error:
        parse(Example, words.split() if "'" not in words else ["--images", "'[1"])
    assert str(error.value) == message


def test_a_file_of_options_is_read_before_the_command_line(tmp_path):
    path = tmp_path / "options.yaml"
    path.write_text("images: 5\nlayers: [1, 2]\nprecision: no\nnoisy: true\n")
    found = parse(Example, ["--config", str(path), "--images", "7"])
    assert (found.images, found.layers, found.precision, found.noisy) == (7, [1, 2], "no", True)
    path.write_text("imagse: 5\n")
    with pytest.raises(ValueError, match=r"options.yaml: unknown option imagse; did you mean images\?"):
        parse(Example, ["--config", str(path)])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: 1\na: 2\n", "line 2: 'a' stands twice"),
        ("a: [1\nb: 2\n", "line 2"),
        ("- a\n", "must hold `name: value` lines"),
        ("[]", "must hold `name: value` lines, not []"),
        ("a: {b: 1, b: 2}\n", "line 1: 'b' stands twice"),
        ("a: 1\n? [1, 2]\n: 3\n", "line 2: the key [1, 2] is a list or a mapping"),
        ("a: &x {b: *x}\n", "recursion"),
    ],
)
def test_a_broken_yaml_file_is_named_with_its_line(content, message, tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_text(content)
    with pytest.raises(ValueError) as error:
        read_yaml(path)
    assert str(path) in str(error.value) and message in str(error.value) and "\n" not in str(error.value)


def test_sections_are_built_with_the_section_in_the_message():
    assert build(Example, {"images": "3"}, "training").images == 3
    with pytest.raises(ValueError, match=r"unknown option training.imagse; did you mean images\?"):
        build(Example, {"imagse": 3}, "training")
    with pytest.raises(ValueError, match=r"^training.images=0 must be"):
        build(Example, {"images": 0}, "training")


def test_options_are_dataclasses():
    changed = dataclasses.replace(Example(), images=3)
    assert dataclasses.asdict(changed)["images"] == 3
    with pytest.raises(ValueError, match="images=0"):
        dataclasses.replace(changed, images=0)


@pytest.mark.parametrize("model_type", ["ldae", "ddae"])
def test_fields_read_from_source_are_those_of_the_imported_class(model_type):
    kind = model_class(model_type)
    read = {
        o.name: o.default for o in describe_source(PACKAGE / f"models/configuration_{model_type}.py", kind.__name__)
    }
    declared = {f.name: f.default for f in dataclasses.fields(kind) if f.name in read}
    assert list(read) == [name for name in kind.__annotations__ if name[0] != "_"]
    assert read == {name: pytest.approx(d, abs=1e-4) if isinstance(d, float) else d for name, d in declared.items()}
    assert all(documented_arguments(kind.__doc__)[name] for name in read)


@pytest.mark.parametrize("verb", OPTIONS)
def test_every_option_is_explained_and_help_fits_a_terminal(verb, capsys):
    assert [o.name for o in describe(OPTIONS[verb]) if not o.help] == []
    assert main([verb, "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown == verb_help(verb, OPTIONS[verb]) + "\n"
    assert max(map(len, shown.splitlines())) <= 80
    assert shown.startswith(f"usage: ldae {verb}")
    for option in describe(OPTIONS[verb]):
        assert (option.name.upper() if option.positional else f"--{option.name} ") in shown


def test_the_help_of_pretrain_shows_every_field_of_a_recipe(capsys):
    main(["pretrain", "--help"])
    shown = capsys.readouterr().out
    for fields in OPTIONS["pretrain"].sections().values():
        assert all(f"--{option.name} " in shown for option in fields)
    for text in ("(1 or more; default: 1000000)", "one of no, bf16; default: no", "model, with model_type: ddae:"):
        assert text in " ".join(shown.split()) or text in shown


def test_the_help_of_a_models_fields_shows_plain_text_and_choices():
    shown = " ".join(verb_help("pretrain", OPTIONS["pretrain"]).split())
    assert "`" not in shown and "*optional*" not in shown and "None" not in shown
    assert "one of pca, ae, vae, conv_vae, pixel; default: pca" in shown
    assert "one of nano, tiny, small, base, 12L, large" in shown
    assert "one of ddpm, edm; default: ddpm" in shown
    assert "--conditioning_size N Width of the conditioning MLP; null is a quarter of hidden_size" in shown


def test_a_field_given_with_and_without_its_section_is_given_twice():
    with pytest.raises(ValueError, match=r"^--training.images is given twice, as 3 and as 4; give it once.$"):
        parse(OPTIONS["pretrain"], "--config digits --images 3 --training.images 4".split())


def test_the_schema_accepts_every_recipe_that_comes_with_ldae():
    schema = recipe_schema()
    for path in (PACKAGE.parents[1] / "training" / "recipes").glob("*.yaml"):
        for section, values in yaml.safe_load(path.read_text()).items():
            if section == "base":
                continue
            known = schema["properties"][section]["properties"]
            for name, value in values.items():
                about = known[name]
                names = {
                    bool: "boolean",
                    int: "integer",
                    float: "number",
                    str: "string",
                    list: "array",
                    type(None): "null",
                }
                allowed = about.get("type", [])
                fits = names.get(type(value)) in allowed or (type(value) is int and "number" in allowed)
                assert fits or value in about.get("enum", []) or ("type" not in about and "enum" not in about), (
                    path,
                    name,
                )
    assert json.loads(json.dumps(schema))["properties"]["training"]["additionalProperties"] is False
    assert json_schema(describe(Example))["properties"]["precision"]["enum"] == ["no", "bf16", False]


def test_recipes_are_listed_printed_and_found_by_name(capsys):
    assert main(["recipes"]) == 0
    listed = capsys.readouterr().out
    assert "digits " in listed and "deconstruction/12_ldae" in listed
    assert main(["recipes", "digits"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["data"]["dataset"] == "digits"
    assert main(["recipes", "digts"]) == 2
    assert "name='digts'" in capsys.readouterr().err
    assert parse(OPTIONS["pretrain"], ["--config", "digits"]).config == "digits"
