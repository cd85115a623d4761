"""One image file gives the same pixels, and so the same features, by every way into a model."""

import base64
import functools
import http.server
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, ViTImageProcessorPil, pipeline

from ldae import LDAEConfig, LDAEForImageClassification, LDAEImageProcessor, LDAEModel, save_image_processor
from ldae.data import decode_image
from ldae.demo.model import DemoModel
from ldae.pipelines.images import to_pixels
from tests.data.image_files import write_every_kind
from tests.models.small_models import open_gates, small_config


Way = Callable[[Path], torch.Tensor]  # from a file to pixels (1, C, S, S)


@pytest.fixture(scope="module", params=[3, 1], ids=["colour", "luminance"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LDAEConfig]:
    """The folder of an encoder and a classifier, with the files."""
    folder = tmp_path_factory.mktemp("checkpoint")
    config = small_config(num_channels=request.param)
    for name, kind in (("encoder", LDAEModel), ("classifier", LDAEForImageClassification)):
        open_gates(kind(config)).save_pretrained(folder / name)
        save_image_processor(folder / name, config)
    write_every_kind(folder)
    return folder, config


def ways_in(folder: Path, config: LDAEConfig) -> dict[str, Way]:
    channels, size = config.num_channels, config.image_size
    processor = AutoImageProcessor.from_pretrained(folder / "encoder")
    extract = pipeline("image-feature-extraction", model=str(folder / "encoder"))
    classify = pipeline("image-classification", model=str(folder / "classifier"))
    demo = DemoModel("shown", extract.model, None)

    def scaled(pixels: np.ndarray) -> torch.Tensor:
        return torch.tensor(pixels)[None] / 127.5 - 1

    return {
        "verbs": lambda file: scaled(decode_image(file.read_bytes(), channels, size)[0]),
        "demo": lambda file: scaled(demo.read(file)[0]),
        "denoise": lambda file: to_pixels(Image.open(file), size, channels),
        "processor, image": lambda file: processor(Image.open(file), return_tensors="pt").pixel_values,
        "processor, path": lambda file: processor(str(file), return_tensors="pt").pixel_values,
        "extraction, image": lambda file: extract.preprocess(Image.open(file))["pixel_values"],
        "extraction, path": lambda file: extract.preprocess(str(file))["pixel_values"],
        "classification, image": lambda file: classify.preprocess(Image.open(file))["pixel_values"],
        "classification, path": lambda file: classify.preprocess(str(file))["pixel_values"],
    }


def test_a_file_gives_the_same_pixels_by_every_way(checkpoint: tuple[Path, LDAEConfig]) -> None:
    folder, config = checkpoint
    ways = ways_in(folder, config)
    files = sorted(path for path in folder.iterdir() if path.is_file())
    assert len(files) == 40
    apart = []
    for file in files:
        pixels = {name: way(file) for name, way in ways.items()}
        expected = pixels["verbs"]
        assert expected.shape == (1, config.num_channels, 16, 16) and expected.std() > 0.1, file.name
        for name, found in pixels.items():
            if found.shape != expected.shape or not torch.allclose(found, expected, atol=1e-5):
                apart.append(f"{file.name} by {name}: {found.shape}")
    assert not apart, "\n".join(apart)


@torch.no_grad()
def test_a_pipeline_gives_the_features_of_the_verbs(checkpoint: tuple[Path, LDAEConfig]) -> None:
    folder, config = checkpoint
    model = LDAEModel.from_pretrained(folder / "encoder")
    extract = pipeline("image-feature-extraction", model=str(folder / "encoder"), pool=True)
    for name in ("sixteen_bit.png", "rgba.png", "cmyk.jpg", "rotated_6.jpg", "float_in_one.tif"):
        pixels = torch.tensor(decode_image((folder / name).read_bytes(), config.num_channels, 16)[0])
        expected = model(pixels[None] / 127.5 - 1).pooler_output
        found = torch.tensor(extract(str(folder / name)))
        assert torch.cosine_similarity(found, expected).item() >= 0.9999, name


def test_pipelines_of_other_image_processors_stay_as_they_are(checkpoint: tuple[Path, LDAEConfig]) -> None:
    folder, _ = checkpoint
    file, model = folder / "sixteen_bit.png", LDAEForImageClassification.from_pretrained(folder / "classifier")
    theirs = ViTImageProcessorPil(size={"height": 16, "width": 16})
    classify = pipeline("image-classification", model=model, image_processor=theirs)
    expected = theirs(Image.open(file).convert("RGB"), return_tensors="pt").pixel_values
    assert torch.equal(classify.preprocess(str(file))["pixel_values"], expected)


def test_a_saved_processor_is_loaded_again(checkpoint: tuple[Path, LDAEConfig], tmp_path: Path) -> None:
    folder, _ = checkpoint
    processor = AutoImageProcessor.from_pretrained(folder / "encoder")
    processor.save_pretrained(tmp_path)
    again = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(again) is type(processor) and again.to_dict() == processor.to_dict()


def test_an_address_and_base64_give_the_pixels_of_the_file(checkpoint: tuple[Path, LDAEConfig]) -> None:
    folder, _ = checkpoint
    file = folder / "sixteen_bit.png"
    extract = pipeline("image-feature-extraction", model=str(folder / "encoder"))
    expected = extract.preprocess(str(file))["pixel_values"]
    text = base64.b64encode(file.read_bytes()).decode()
    for source in (text, f"data:image/png;base64,{text}"):
        assert torch.equal(extract.preprocess(source)["pixel_values"], expected)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/{file.name}"
        assert torch.equal(extract.preprocess(address, timeout=10)["pixel_values"], expected)
        server.shutdown()
    with pytest.raises(ValueError, match=r"'no/such\.png' is no existing file"):
        extract.preprocess("no/such.png")


@pytest.mark.parametrize("name", ["ldae", "ddae"])
def test_a_checkpoint_of_an_earlier_version_loads_and_can_be_updated(name: str, tmp_path: Path) -> None:
    stored = Path(__file__).parents[1] / "fixtures" / name
    assert type(AutoImageProcessor.from_pretrained(stored)) is ViTImageProcessorPil
    pipeline("image-feature-extraction", model=str(stored))(Image.new("RGB", (20, 30)))
    save_image_processor(tmp_path, AutoConfig.from_pretrained(stored))
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is LDAEImageProcessor
