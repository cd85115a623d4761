"""Processes of one launch."""

import ast
from pathlib import Path

import yaml

import ldae
from tests.processes import run_on_two


# A run on two processes whose main process writes its pictures for longer than the libraries' limit, made short here.
SLOW_MAIN = """
import sys, time
from datetime import timedelta
from torch.distributed import distributed_c10d
from ldae.training import tokenizer_training

distributed_c10d.default_pg_timeout = timedelta(seconds=2)
finish = tokenizer_training.finish_tokenizer

def slow(*arguments):
    time.sleep(4)
    finish(*arguments)

tokenizer_training.finish_tokenizer = slow
from ldae.cli import run_verb
sys.exit(run_verb("train_tokenizer", ["--config", *sys.argv[1:]]))
"""


def test_processes_wait_for_the_main_one_beyond_the_libraries_limit(tmp_path):
    """accelerate's limits of 10 and 30 minutes ended runs while the main process worked alone."""
    recipe = {"data": {"dataset": "digits", "num_workers": 0}, "training": {"output_dir": str(tmp_path / "pca")}}
    recipe["model"] = {"size": "nano", "image_size": 16, "patch_size": 4, "latent_dim": 8}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    script = tmp_path / "slow.py"
    script.write_text(SLOW_MAIN)
    run_on_two(script, tmp_path / "tiny.yaml", folder=tmp_path)
    assert (tmp_path / "pca" / "tokenizer.safetensors").is_file()


def test_processes_are_joined_in_one_place():
    """Whoever makes accelerate's objects elsewhere, first in its process, gets accelerate's limits."""
    for path in Path(ldae.__file__).parent.rglob("*.py"):
        called = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        names = {func.id for func in called if isinstance(func, ast.Name)}
        assert path.name == "processes.py" or not names & {"Accelerator", "PartialState", "AcceleratorState"}, path
