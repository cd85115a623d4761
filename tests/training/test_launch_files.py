"""The files in training/launch: their shell, the commands that they run, and what they do at a time limit."""

import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

import click
import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from huggingface_hub import JobHardware
from huggingface_hub.cli.hf import app
from torch.distributed.run import get_args_parser

from ldae.options import parse
from ldae.verbs import VERBS


ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "training" / "launch"
RUN = [*"--config digits --images 1_000 --label_column label --num_workers 3 --output_dir".split(), "a run"]
# Stand-ins. srun runs a command for each node, and passes a signal on as srun does; accelerate starts a training that
# saves for a moment when it is told to.
STAND_INS = {
    "scontrol": """
        if [ "$1" = show ]; then printf 'first\\nsecond\\n'; else echo "$@" >> "$LOG/scontrol"; fi""",
    "srun": """
        [ "$1" = --kill-on-bad-exit=1 ] && shift
        for node in 0 1; do SLURM_NODEID=$node "$@" & nodes="${nodes-} $!"; done
        trap 'kill -USR1 $nodes' USR1
        worst=0
        for node in $nodes; do
          wait "$node"; status=$?
          while kill -0 "$node" 2>/dev/null; do wait "$node"; status=$?; done
          [ "$status" -ne 0 ] && worst=$status
        done
        exit "$worst\"""",
    "accelerate": """
        printf '%s\\n' "$@" > "$LOG/accelerate-$SLURM_NODEID"
        python3 -c "
import os, signal, sys, time
def stop(number, frame):
    time.sleep(0.5)
    open(os.environ['LOG'] + '/saved-' + os.environ['SLURM_NODEID'], 'w').close()
    sys.exit(138)
signal.signal(signal.SIGUSR1, stop)
open(os.environ['LOG'] + '/started-' + os.environ['SLURM_NODEID'], 'w').close()
time.sleep(float(os.environ['SECONDS_OF_WORK']))
sys.exit(int(os.environ['STATUS']))
" || exit 1""",
    "hf": """printf '%s\\0' "$@" > "$LOG/hf\"""",
}


@pytest.fixture
def place(tmp_path):
    """A folder with the stand-ins, and the environment in which they are found first."""
    (tmp_path / "bin").mkdir()
    for name, script in STAND_INS.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{script}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    slurm = {"JOB_ID": "31337", "JOB_NODELIST": "n[1-2]", "JOB_NUM_NODES": "2", "GPUS_ON_NODE": "8"}
    environment = {f"SLURM_{name}": value for name, value in slurm.items()} | {"SLURM_SUBMIT_DIR": str(ROOT)}
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    return tmp_path, {**os.environ, **environment, "PATH": path, "LOG": str(tmp_path), "STATUS": "0"}


@pytest.mark.parametrize("path", sorted(FOLDER.iterdir()), ids=lambda path: path.name)
def test_the_shell_reads_it(path):
    subprocess.run(["bash", "-n", str(path)], check=True)


def run_slurm(environment, seconds, **more):
    command = ["bash", str(FOLDER / "slurm.sbatch"), *RUN]
    return subprocess.Popen(command, env={**environment, "SECONDS_OF_WORK": str(seconds), **more})


@pytest.mark.parametrize("status", ["0", "3"])
def test_slurm_starts_every_node_by_accelerate_and_is_not_queued_again_by_itself(place, status):
    folder, environment = place
    assert (run_slurm(environment, 0, STATUS=status).wait(30) != 0) == (status != "0")
    assert not (folder / "scontrol").exists()
    for node in (0, 1):
        words = (folder / f"accelerate-{node}").read_text().splitlines()
        assert words[0] == "launch"
        launched = _validate_launch_command(launch_command_parser().parse_args(words[1:]))[0]
        assert (launched.num_machines, launched.num_processes, launched.machine_rank) == (2, 16, node)
        assert (launched.main_process_ip, launched.main_process_port) == ("first", 31337)
        assert launched.training_script == "training/pretrain.py"
        options = parse(VERBS["pretrain"].options, launched.training_script_args)
        assert options.config == "digits" and options.overrides["output_dir"] == "a run"


def test_slurm_saves_at_the_time_limit_and_is_queued_again(place):
    folder, environment = place
    job = run_slurm(environment, 30)
    try:
        wanted = [folder / f"started-{node}" for node in (0, 1)]
        until = time.monotonic() + 20
        while not all(path.exists() for path in wanted) and time.monotonic() < until:
            time.sleep(0.05)
        job.send_signal(signal.SIGUSR1)  # as of --signal=B:USR1
        assert job.wait(20) == 0
    finally:
        job.kill()
    assert all((folder / f"saved-{node}").exists() for node in (0, 1))
    assert (folder / "scontrol").read_text() == "requeue 31337\n"
    assert "#SBATCH --signal=B:USR1@" in (FOLDER / "slurm.sbatch").read_text()


def test_a_job_of_the_hub_is_what_its_command_reads(place):
    folder, environment = place
    (folder / "dist").mkdir()
    command = ["bash", str(FOLDER / "hf_jobs.sh"), *RUN]
    missing = subprocess.run(command, env={**environment, "BUCKET": "me/runs"}, cwd=folder, capture_output=True)
    assert missing.returncode == 2 and b"make wheel" in missing.stderr
    (folder / "dist" / "ldae.whl").touch()
    chosen = {"BUCKET": "me/runs", "FLAVOR": "h200x2", "HF_JOBS_OPTIONS": "--dry-run --detach"}
    subprocess.run(command, env={**environment, **chosen}, cwd=folder, check=True)
    words = (folder / "hf").read_text().split("\0")[:-1]
    group = app.get_command(click.Context(app), words[0])
    context = click.Context(group)
    context = group.get_command(context, words[1]).make_context(words[1], words[2:])
    given = {name: value for name, value in context.params.items() if value}
    given |= {name: tuple(given[name]) for name in ("secrets", "volume")}
    sent = given.pop("command")
    assert given == {
        "image": "python:3.12",
        "flavor": "h200x2",
        "timeout": "12h",
        "secrets": ("HF_TOKEN",),
        "volume": ("./dist:/dist", "hf://buckets/me/runs:/runs"),
        "dry_run": True,
        "detach": True,
    }
    assert given["flavor"] in {hardware.value for hardware in JobHardware}
    assert list(sent[:2]) == ["bash", "-c"]
    torchrun = shlex.split(sent[2].partition("exec torchrun ")[2])
    launched = get_args_parser().parse_args(torchrun[:-1])
    assert (launched.nproc_per_node, launched.module, launched.training_script) == ("gpu", True, "ldae")
    assert launched.training_script_args == ["pretrain"] and torchrun[-1] == "$@" and sent[3] == "pretrain"
    assert parse(VERBS["pretrain"].options, list(sent[4:])).overrides["num_workers"] == "3"
