"""Every benchmark imports what it needs, so that a renamed function does not break it unnoticed."""

import importlib.util
import sys
from pathlib import Path

import pytest


FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.py")))
def test_a_benchmark_is_imported(name, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))  # they import each other as scripts do
    before = set(sys.modules)
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    finally:
        for added in set(sys.modules) - before:
            if str(getattr(sys.modules[added], "__file__", "")).startswith(str(FOLDER)) or added == spec.name:
                del sys.modules[added]
