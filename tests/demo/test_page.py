"""The page through a client of its API: uploads, updates, and the message for a file that is no picture."""

import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from ldae.cli import run_verb
from ldae.data import decode_image
from ldae.demo.page import build_page, launch_page
from tests.data.image_files import odd_images, random_pixels
from tests.demo.conftest import STORED, open_stored


def test_without_gradio_the_verb_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "ldae.demo.page", raising=False)
    assert run_verb("demo", [str(STORED / "ldae")]) == 2
    assert "pip install 'ldae[demo]'" in capsys.readouterr().err


@pytest.fixture(scope="module")
def client():
    page = build_page(open_stored("ddae"))
    yield Client(launch_page(page, wait=False), verbose=False)
    page.close()


@pytest.fixture
def picture(client, tmp_path: Path):
    PIL.Image.radial_gradient("L").convert("RGB").save(tmp_path / "mine.png")
    return handle_file(tmp_path / "mine.png")


def test_a_picture_is_shown_at_every_t(client, picture) -> None:
    assert (
        client.predict(picture, api_name="/read")[-1] == "The picture was resized to 16x16 and cropped to its centre."
    )
    first, second = (client.predict(t, None, api_name="/denoise") for t in (100, 800))
    assert first[-1].startswith("t = 100:") and second[-1].startswith("t = 800:")
    pictures = [[Path(path).read_bytes() for path in shown[:3]] for shown in (first, second)]
    assert [a == b for a, b in zip(*pictures, strict=True)] == [True, False, False]


@pytest.fixture(scope="module")
def uploads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of unusual kinds, and a photograph of 24 million pixels."""
    folder = tmp_path_factory.mktemp("uploads")
    for name, data in odd_images().items():
        (folder / name).write_bytes(data)
    small = PIL.Image.fromarray(random_pixels(4, 6))
    small.resize((6000, 4000), PIL.Image.Resampling.BILINEAR).save(folder / "photograph.jpg")
    return folder


@pytest.mark.parametrize(
    ("name", "note"),
    [
        ("sixteen_bit.png", ", 16-bit"),
        ("alpha.png", ", transparency"),
        ("cmyk.jpg", ", CMYK"),
        ("animated.gif", ", animated, palette"),
        ("rotated.jpg", ", rotated by EXIF"),
        ("photograph.jpg", ""),
    ],
)
def test_an_upload_of_any_kind_is_shown_with_the_pixels_that_training_sees(
    client, uploads: Path, name: str, note: str
) -> None:
    said = client.predict(handle_file(uploads / name), api_name="/read")[-1]
    assert said == f"The picture was resized to 16x16 and cropped to its centre{note}."
    clean = PIL.Image.open(client.predict(100, None, api_name="/denoise")[0])
    expected, _ = decode_image((uploads / name).read_bytes(), num_channels=3, decode_size=16)
    assert np.array_equal(np.asarray(clean.convert("RGB"))[::16, ::16], expected.transpose(1, 2, 0))


@pytest.mark.parametrize(
    ("name", "reason"),
    [("truncated.jpg", "truncated or damaged"), ("empty.png", "empty file"), ("text.png", "not an")],
)
def test_an_upload_that_is_no_image_is_refused(client, uploads: Path, name: str, reason: str) -> None:
    said = client.predict(handle_file(uploads / name), api_name="/read")[-1]
    assert said.startswith(f"⚠️ This file cannot be shown: {reason}") and "\n" not in said


def test_every_tab_answers(client, picture) -> None:
    client.predict(picture, api_name="/read")
    _, colours, caption = client.predict("mid_block.resnets.1", 20, api_name="/features")
    assert PIL.Image.open(colours).size == (256, 256)
    assert caption == "Features of mid_block.resnets.1 at t = 20, read from the clean picture."
    grid, caption = client.predict(api_name="/grid")
    assert PIL.Image.open(grid).width == 516 and "Drawn in" in caption
    gallery, caption = client.predict(api_name="/neighbours")
    assert len(gallery) == 8 and "360 images were searched" in caption
    gallery, caption = client.predict(0.5, api_name="/pairs")
    assert len(gallery) == 24 and caption.endswith("at least 0.50 similar, and the 24 closest are shown.")
    samples, caption = client.predict(3, 2, 0, None, api_name="/samples")
    assert PIL.Image.open(samples).size == (140, 140) and "3 images took" in caption


def test_after_a_refused_file_no_picture_is_left_and_the_page_lives_on(client, picture, text_file: Path) -> None:
    client.predict(picture, api_name="/read")
    client.predict(handle_file(text_file), api_name="/read")
    assert client.predict(100, None, api_name="/denoise") == (
        None,
        None,
        None,
        "Drop a picture, or choose an example.",
    )
    with pytest.raises(AppError, match="Drop a picture, or choose an example"):
        client.predict(api_name="/grid")
    assert client.predict(picture, api_name="/read")[-1].startswith("The picture was resized")


def test_a_port_that_is_taken_is_refused(client) -> None:
    port = int(client.src.rstrip("/").rsplit(":", 1)[1])
    with pytest.raises(ValueError, match=f"port={port} of 127.0.0.1 is not free"):
        launch_page(build_page(open_stored("ldae")), "127.0.0.1", port, wait=False)


def test_other_files_of_the_machine_are_not_read(tmp_path: Path) -> None:
    PIL.Image.new("RGB", (16, 16)).save(tmp_path / "private.png")
    read = next(event.fn for event in build_page(open_stored("ldae")).fns.values() if event.api_name == "read")
    assert read({"path": str(tmp_path / "private.png")})[-1] == "⚠️ This file was not uploaded here."
