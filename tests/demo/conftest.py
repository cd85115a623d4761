"""The stored tiny checkpoints, to be shown."""

from pathlib import Path

import pytest

from ldae.data import DataConfig
from ldae.demo.model import DemoModel, open_demo_model


STORED = Path(__file__).parents[1] / "fixtures"


def open_stored(name: str) -> DemoModel:
    return open_demo_model(str(STORED / name), DataConfig("digits", split="test"), device="cpu")


@pytest.fixture(scope="session", params=["ldae", "ddae"])
def demo(request: pytest.FixtureRequest) -> DemoModel:
    return open_stored(request.param)


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("files") / "notes.png"  # by its name a picture
    path.write_text("no picture")
    return path
