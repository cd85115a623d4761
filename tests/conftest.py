"""Fixtures for all tests."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import ldae
from tests.hub.hub_server import TestHub
from tests.processes import NO_LDAE, ForkedProcess, Runner


@pytest.fixture
def run_python(tmp_path: Path) -> Runner:
    """Run a script in a separate process: offline, with a hub, or where ldae cannot be imported."""

    def run(
        script: str,
        *arguments: object,
        hub: TestHub | None = None,
        without_ldae: bool = False,
        cwd: Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        path = tmp_path / "script.py"
        path.write_text((NO_LDAE if without_ldae else "") + script)
        if hub is None:
            done = ForkedProcess(path, *arguments, folder=tmp_path, cwd=cwd, without_ldae=without_ldae).wait()
        else:
            home = tmp_path / "hf_home"
            environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "PYTHON"))}
            environment |= {"OMP_NUM_THREADS": "1"} | hub.environment(home)
            environment |= {} if without_ldae else {"PYTHONPATH": str(Path(ldae.__file__).parents[1])}
            done = subprocess.run(
                [sys.executable, str(path), *map(str, arguments)],
                env=environment,
                cwd=cwd or tmp_path,
                capture_output=True,
                text=True,
                timeout=240,
            )
        assert done.returncode == 0, done.stderr[-4000:]
        return done

    return run
