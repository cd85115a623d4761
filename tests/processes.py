"""
Python processes for tests.

Importing torch and transformers takes seconds, so one process imports them once and forks for each script. A forked
process has never imported ldae, and inherits no settings of the Hub: a script that talks to a Hub needs a fresh one.
"""

import atexit
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState, GradientState, PartialState

import ldae


Runner = Callable[..., subprocess.CompletedProcess[str]]  # the fixture run_python

# Put before a script that must run without ldae: importing it fails as if it were not installed.
NO_LDAE = """
import importlib.abc, sys
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "ldae":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Refuse())
sys.path[:] = [path for path in sys.path if not path.rstrip("/").endswith("src")]
try:
    import ldae
except ModuleNotFoundError:
    pass
else:
    raise AssertionError("ldae can be imported")
"""

FORK = """
import json, os, runpy, sys, traceback
import torch
import transformers.pipelines, transformers.modeling_utils
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification

def run(job):
    for number, path in ((0, os.devnull), (1, job["stdout"]), (2, job["stderr"])):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644), number)
    os.environ.update(job["env"])
    os.chdir(job["cwd"])
    sys.argv = [job["script"], *job["arguments"]]
    sys.path[:0] = job["path"]
    try:
        runpy.run_path(job["script"], run_name="__main__")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0

print("ready", flush=True)
for line in sys.stdin:
    kind, value = json.loads(line)
    if kind == "start":
        answer = os.fork()
        if answer == 0:
            code = run(value)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    else:
        pid, status = os.waitpid(value, os.WNOHANG if kind == "poll" else 0)
        answer = os.waitstatus_to_exitcode(status) if pid else None
    print(json.dumps(answer), flush=True)
"""


@cache
def _forker() -> subprocess.Popen[str]:
    home = tempfile.TemporaryDirectory()
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "PYTHON"))}
    environment |= {"HF_HOME": home.name, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", FORK], env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )

    def stop() -> None:
        process.kill()
        process.wait()
        home.cleanup()

    atexit.register(stop)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def _ask(kind: str, value: Any) -> Any:
    process = _forker()
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(json.dumps([kind, value]) + "\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


class ForkedProcess:
    """
    A Python script in a process where torch and transformers are imported already and the Hub is offline.

    Args:
        script (`Path`): The file to run.
        *arguments: Its command line.
        folder (`Path`): Where its output is kept.
        cwd (`Path`, *optional*): The folder to run it in; by default `folder`.
        env (`dict[str, str]`, *optional*): Variables to add to its environment.
        without_ldae (`bool`, defaults to `False`): Whether the package under test is left out of its path.
    """

    def __init__(
        self,
        script: Path,
        *arguments: object,
        folder: Path,
        cwd: Path | None = None,
        env: dict[str, str] | None = None,
        without_ldae: bool = False,
    ) -> None:
        outputs = tempfile.mkdtemp(prefix=".process-", dir=folder)
        self.outputs = {name: Path(outputs, name) for name in ("stdout", "stderr")}
        job = {name: str(path) for name, path in self.outputs.items()}
        job |= {"script": str(script), "arguments": list(map(str, arguments)), "cwd": str(cwd or folder)}
        # The package under test, not an installed one.
        job |= {"env": env or {}, "path": [] if without_ldae else [str(Path(ldae.__file__).parents[1])]}
        self.pid: int = _ask("start", job)
        self._code: int | None = None

    def poll(self) -> int | None:
        """Return the exit status of a process that has ended."""
        if self._code is None:
            self._code = _ask("poll", self.pid)
        return self._code

    def kill(self) -> None:
        """Send SIGKILL, and wait for the end."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
            self.wait()

    def wait(self) -> subprocess.CompletedProcess[str]:
        """Wait for the end."""
        if self._code is None:
            self._code = _ask("wait", self.pid)
        texts = {name: path.read_text() if path.exists() else "" for name, path in self.outputs.items()}
        return subprocess.CompletedProcess([], self._code, **texts)


def start_on(
    count: int, script: Path, *arguments: object, folder: Path, env: dict[str, str] | None = None
) -> list[ForkedProcess]:
    """Start a script on processes of one launch, as `torchrun` would."""
    shared = env or {}
    shared |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
    shared |= {"ACCELERATE_USE_CPU": "1", "MASTER_PORT": str(random.randint(20000, 40000))}
    ranks = [str(rank) for rank in range(count)]
    return [
        ForkedProcess(script, *arguments, folder=folder, env={**shared, "RANK": rank, "LOCAL_RANK": rank})
        for rank in ranks
    ]


def run_on(count: int, script: Path, *arguments: object, folder: Path) -> list[subprocess.CompletedProcess[str]]:
    """Run a script on processes of one launch to its end."""
    return [process.wait() for process in start_on(count, script, *arguments, folder=folder)]


def run_on_two(script: Path, *arguments: object, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a script on two processes of one launch, and return what the first one said."""
    first, second = run_on(2, script, *arguments, folder=folder)
    assert first.returncode == second.returncode == 0, first.stderr[-3000:] + second.stderr[-3000:]
    return first


def forget_processes() -> None:
    """Forget Accelerate's one state for the process; each command of a test starts without."""
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
