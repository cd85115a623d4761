"""Damaged image files: every way into a model gives the same whole pixels, or a refusal of one line."""

import tempfile
from functools import cache
from pathlib import Path

import numpy as np

from ldae import LDAEConfig
from ldae.data import decode_image
from ldae.data.decode import UnreadableImageError, decode_whole_image
from ldae.data.image_processor import image_processor_settings
from ldae.models.image_processing_ldae import LDAEImageProcessor
from tests.data.image_files import write_every_kind

from .damage import damage_bytes
from .judge import Case, by_call, chance_of


COUNT = 1000
SIZE = 16


@cache
def seed_files() -> dict[str, bytes]:
    """The forty files that are damaged."""
    with tempfile.TemporaryDirectory() as folder:
        write_every_kind(Path(folder))
        return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


@cache
def processor(channels: int) -> LDAEImageProcessor:
    settings = image_processor_settings(LDAEConfig(image_size=SIZE, patch_size=4, latent_dim=8, num_channels=channels))
    return LDAEImageProcessor(**{name: value for name, value in settings.items() if name != "auto_map"})


def case(seed: int, number: int, ground: Path) -> Case:
    chance = chance_of("images", seed, number)
    name = sorted(seed_files())[number % len(seed_files())]
    what, data = damage_bytes(seed_files()[name], chance)
    if chance.random() < 0.2:
        more, data = damage_bytes(data or b"\0", chance)
        what = f"{what}, {more}"
    channels = chance.choice((3, 3, 1))

    def run() -> str | None:
        file = ground / f"image-{number}{Path(name).suffix}"
        file.write_bytes(data)
        try:
            return read(file, data, channels)
        finally:
            file.unlink()

    return Case(f"{name}: {what}, {channels} channels", run, (f"image-{number}",))


def read(file: Path, data: bytes, channels: int) -> str | None:
    """Read a file by the commands' way, and if they can by the image processor's."""
    try:
        pixels, _ = decode_image({"bytes": data, "path": str(file)}, channels, SIZE)
        whole, _ = decode_whole_image(data, channels)
    except UnreadableImageError as error:
        assert error.reason and "\n" not in error.reason
        refusal = by_call(processor(channels), str(file))
        assert refusal is not None, f"the image processor reads what the commands refuse: {error.reason}"
        return refusal
    assert pixels.shape == (channels, SIZE, SIZE) and pixels.dtype == np.uint8
    assert whole.mode == ("RGB" if channels == 3 else "L")
    found = np.asarray(processor(channels)(str(file), return_tensors="np").pixel_values)[0]  # (C, S, S)
    assert np.isfinite(found).all()
    assert np.abs(found - (pixels / 127.5 - 1)).max() < 1e-5, "the image processor sees other pixels"
    return None
