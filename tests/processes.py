"""
Python processes for tests.

Importing torch and transformers takes seconds, so one process imports them once and forks for each script. A forked
process has never imported ldae, and inherits no settings of the Hub: a script that talks to a Hub needs a fresh one.
"""

import atexit
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path


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
import json, os, runpy, sys
import torch
import transformers.pipelines, transformers.modeling_utils
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification

print("ready", flush=True)
for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if child == 0:
        for number, path in ((0, os.devnull), (1, job["stdout"]), (2, job["stderr"])):
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), number)
        os.chdir(job["cwd"])
        sys.argv = [job["script"], *job["arguments"]]
        sys.path[:0] = job["path"]
        code = 0
        try:
            runpy.run_path(job["script"], run_name="__main__")
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        except BaseException:
            import traceback
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
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


def run_forked(
    script: Path, *arguments: object, cwd: Path, import_from: Path | None
) -> subprocess.CompletedProcess[str]:
    """
    Run a script where torch and transformers are imported already and the Hub is offline.

    Args:
        script (`Path`): The file to run.
        *arguments: Its command line.
        cwd (`Path`): The folder to run it in.
        import_from (`Path`, *optional*): A folder to import from besides the installed packages.
    """
    outputs = {name: script.with_suffix(f".{name}") for name in ("stdout", "stderr")}
    for path in outputs.values():
        path.unlink(missing_ok=True)
    job = {"script": str(script), "arguments": list(map(str, arguments)), "cwd": str(cwd)}
    job |= {name: str(path) for name, path in outputs.items()} | {"path": [str(import_from)] if import_from else []}
    process = _forker()
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(json.dumps(job) + "\n")
    process.stdin.flush()
    code = int(process.stdout.readline())
    texts = {name: path.read_text() if path.exists() else "" for name, path in outputs.items()}
    return subprocess.CompletedProcess([str(script)], code, **texts)
