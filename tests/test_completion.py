"""Shell completion: bash completes verbs, options, values and recipes; zsh's script names them too."""

import subprocess

import pytest

from ldae.cli import main
from ldae.options import describe
from ldae.training.recipe import recipe_files, recipe_options
from ldae.verbs import VERBS


@pytest.fixture
def complete(capsys, tmp_path, monkeypatch):
    """Return what bash offers for the last of some words."""
    assert main(["completion", "bash"]) == 0
    script = tmp_path / "completion.bash"
    script.write_text(capsys.readouterr().out)
    (tmp_path / "mine.yaml").write_text("")
    (tmp_path / "a folder").mkdir()
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> list[str]:
        quoted = " ".join(f"'{word}'" for word in ("ldae", *words))
        lines = f"source {script}\nCOMP_WORDS=({quoted})\nCOMP_CWORD={len(words)}\n_ldae\n"
        ran = subprocess.run(
            ["bash", "-c", lines + "printf '%s\\n' \"${COMPREPLY[@]}\""], capture_output=True, text=True, check=True
        )
        assert ran.stderr == ""
        return [line for line in ran.stdout.splitlines() if line]

    return run


def test_bash_completes_verbs_and_options(complete):
    assert complete("") == [*VERBS, "--help", "--version"]
    assert complete("pre") == ["pretrain"]
    assert complete("pretrain", "--image") == ["--image_size", "--image_column", "--images"]
    for verb, declared in VERBS.items():
        fields = [] if not hasattr(declared.options, "sections") else declared.options.sections().values()
        options = [*describe(declared.options), *(option for section in fields for option in section)]
        expected = {f"--{option.name}" for option in options if not option.positional} | {"--help"}
        assert set(complete(verb, "--")) == expected


def test_bash_completes_values_recipes_and_files(complete):
    assert complete("export", "run", "--format", "t") == ["transformers", "timm", "torch-export"]
    assert complete("train-tokenizer", "--mixed-precision", "") == ["no", "bf16"]
    assert complete("pretrain", "--mixed_precision", "=", "b") == ["bf16"]
    assert complete("pretrain", "--dry_run", "=") == ["true", "false"]
    assert set(complete("pretrain", "--config", "")) == {*recipe_files(), "mine.yaml", "a folder", "completion.bash"}
    assert complete("pretrain", "--config", "deconstruction/12_") == ["deconstruction/12_ldae"]
    assert complete("recipes", "own_images_") == ["own_images_base", "own_images_cpu"]
    assert complete("completion", "") == ["bash", "zsh"]
    assert complete("init", "m") == ["mine.yaml"]
    assert complete("pretrain", "--dataset", "m") == ["mine.yaml"]


def test_zsh_names_every_verb_and_option_with_its_help(capsys):
    assert main(["completion", "zsh"]) == 0
    script = capsys.readouterr().out
    assert script.startswith("#compdef ldae\n")
    for verb, declared in VERBS.items():
        assert f"    '{verb}:" in script
        for option in describe(declared.options):
            assert option.positional or f"'--{option.name}=[" in script
    for section in recipe_options().values():
        assert all(f"'--{option.name}=[" in script for option in section)
    assert "'1:argument:(bash zsh)'" in script
    assert r'{_alternative "names\:recipe\:(' in script and "own_images_cpu" in script
