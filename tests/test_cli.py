"""The `ldae` command: what it says of itself, what it says of mistakes, and the launchers in training/."""

import importlib
import os
import runpy
import signal
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from ldae.cli import main
from ldae.errors import RunError
from ldae.training.recipe import load_recipe
from ldae.verbs import VERBS


ROOT = Path(__file__).parents[1]
DIGITS = str(ROOT / "training" / "recipes" / "digits.yaml")


def test_help_names_every_verb_with_its_meaning(capsys):
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("usage: ldae COMMAND")
    listed = dict(line.split(maxsplit=1) for line in lines if line.startswith("  "))
    assert listed == {name: verb.summary for name, verb in VERBS.items()}


@pytest.mark.parametrize(
    ("arguments", "same_as"), [("help", "--help"), ("help knn", "knn --help"), ("-V", "--version")]
)
def test_help_and_version_have_other_names(arguments, same_as, capsys):
    shown = []
    for each in (arguments, same_as):
        assert main(each.split()) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]


def test_no_verb_shows_the_help_and_fails(capsys):
    assert main([]) == 2
    assert "usage: ldae COMMAND" in capsys.readouterr().out


def test_an_unknown_verb_is_one_line_on_stderr(capsys):
    assert main(["pretrian", "--config", DIGITS]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == "ldae: unknown command 'pretrian'; did you mean pretrain?\n"


@pytest.mark.parametrize("verb", ["pretrain", "train_tokenizer", "train-tokenizer"])
def test_a_wrong_recipe_field_is_one_line_on_stderr(verb, capsys, tmp_path):
    assert main([verb, "--config", DIGITS, "--output_dir", str(tmp_path / "run"), "--imagse", "3"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == f"ldae {verb.replace('-', '_')}: unknown option --imagse; did you mean --images?\n"
    assert not (tmp_path / "run").exists()


def test_a_run_that_cannot_start_is_one_line_on_stderr(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    arguments = ["pretrain", "--config", DIGITS, "--output_dir", str(tmp_path / "file" / "run")]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("ldae pretrain: output_dir=") and "is a file or lies in one" in error
    assert error.count("\n") == 1


def test_a_traceback_can_be_asked_for(monkeypatch, tmp_path):
    monkeypatch.setenv("LDAE_TRACEBACK", "1")
    with pytest.raises(ValueError, match="did you mean --images"):
        main(["pretrain", "--config", DIGITS, "--imagse", "3"])
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="is a file or lies in one"):
        main(["pretrain", "--config", DIGITS, "--output_dir", str(tmp_path / "file" / "run")])


STARTS = """
import sys, time
from ldae_cli import main
status = main(sys.argv[1:])
heavy = [name for name in ("torch", "transformers", "diffusers", "datasets") if name in sys.modules]
sys.exit(f"imported {heavy}" if heavy else status)
"""


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        ("--help", 0),
        ("pretrain --help", 0),
        ("knn --help", 0),
        ("init --help", 0),
        ("completion bash", 0),
        ("completion zsh", 0),
        ("recipes", 0),
        ("recipes digits", 0),
        ("init folder --minutes 0", 2),
        ("finetune --help", 0),
        ("deconstruct --help", 0),
        ("pretrain --config digits --images 0", 2),
        ("search table image --k 0", 2),
        ("generate run --samplr ddim", 2),
    ],
)
def test_help_and_wrong_arguments_import_neither_torch_nor_transformers(arguments, status):
    ran = subprocess.run([sys.executable, "-c", STARTS, *arguments.split()], capture_output=True, text=True)
    assert ran.returncode == status, ran.stderr
    assert (ran.stdout if status == 0 else ran.stderr).strip()


@pytest.mark.parametrize("verb", [verb for verb in VERBS if not VERBS[verb].light])
def test_every_verb_has_its_launcher(verb, capsys, monkeypatch):
    launcher = ROOT / "training" / f"{verb}.py"
    monkeypatch.setattr(sys, "argv", [str(launcher), "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(launcher), run_name="__main__")
    assert end.value.code == 0
    assert f"usage: ldae {verb}" in capsys.readouterr().out


def test_a_reader_that_has_seen_enough_ends_the_command_without_a_word():
    reader, writer = os.pipe()
    os.close(reader)
    ran = subprocess.run([sys.executable, "-m", "ldae_cli", "--help"], stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (ran.returncode, ran.stderr) == (128 + signal.SIGPIPE, b"")
    assert importlib.import_module("ldae.__main__").main is importlib.import_module("ldae_cli").main


def test_installing_the_package_gives_the_command():
    (command,) = entry_points(group="console_scripts", name="ldae")
    assert command.value == "ldae_cli:main" and callable(command.load())


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"]
)
@pytest.mark.parametrize("verb", ["train_tokenizer", "recipes"])
def test_a_signal_ends_a_verb_in_one_line(verb, number, status, monkeypatch, tmp_path, capfd):
    def read(*_args, **_kwargs):
        os.kill(os.getpid(), number)
        return load_recipe(DIGITS, {"output_dir": str(tmp_path / "run")})

    monkeypatch.setattr("ldae.verbs.train.load_recipe", read)
    monkeypatch.setattr("ldae.verbs.start.recipes", read)
    arguments = ["--config", DIGITS] if verb == "train_tokenizer" else []
    assert main([verb, *arguments]) == status
    error = capfd.readouterr().err
    assert error.startswith(f"ldae {verb}: received {signal.Signals(number).name}, stopping")
    assert error.count("\n") == 1


def test_an_interrupt_is_one_line(monkeypatch, capsys):
    def interrupt(_options):
        raise KeyboardInterrupt

    monkeypatch.setattr("ldae.verbs.start.recipes", interrupt)
    assert main(["recipes"]) == 130
    assert capsys.readouterr().err == "ldae recipes: interrupted.\n"


def test_idle_threads_sleep_soon_unless_the_user_says_otherwise() -> None:
    code = "import os, sys, ldae_cli; assert 'torch' not in sys.modules; print(os.environ.get('GOMP_SPINCOUNT'))"

    def spins(**given: str) -> str:
        others = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
        command = [sys.executable, "-c", code]
        return subprocess.run(command, env=others | given, text=True, capture_output=True, check=True).stdout.strip()

    assert spins() == "10000"
    assert spins(GOMP_SPINCOUNT="7") == "7" and spins(OMP_WAIT_POLICY="active") == "None"
