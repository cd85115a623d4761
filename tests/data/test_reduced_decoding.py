"""Large JPEG files are decoded at a reduced scale: faster, and hardly different."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from ldae.data import DataConfig, ImageLoader, decode_image, iterate_once, open_images
from ldae.data.augment import RandomCrop
from ldae.data.decode import image_to_pixels, reduce_jpeg
from tests.data.image_files import encode


def photograph(width: int, height: int, seed: int = 0) -> Image.Image:
    """An image with the spectrum of photographs, amplitude 1 / frequency."""
    generator = np.random.default_rng(seed)
    rows, columns = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    frequency = np.maximum(np.hypot(rows, columns), 1 / max(width, height))
    shape = (3, height, width // 2 + 1)
    spectrum = (generator.normal(size=shape) + 1j * generator.normal(size=shape)) / frequency
    values = np.fft.irfft2(spectrum, s=(height, width))
    values = 128 + 50 * values / values.std()
    return Image.fromarray(values.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))


def turned(image: Image.Image, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(image, "JPEG", quality=92, exif=exif)


FILES = {
    "plain": lambda: encode(photograph(640, 480), "JPEG", quality=92),
    "odd sides": lambda: encode(photograph(643, 517), "JPEG", quality=92),
    "subsampled": lambda: encode(photograph(800, 603), "JPEG", quality=60, subsampling="4:2:0"),
    "progressive": lambda: encode(photograph(481, 640), "JPEG", progressive=True),
    "luminance": lambda: encode(photograph(640, 480).convert("L"), "JPEG"),
    "CMYK": lambda: encode(photograph(640, 480).convert("CMYK"), "JPEG", quality=95),
    "upside down": lambda: turned(photograph(640, 480), 3),
    "on its side": lambda: turned(photograph(640, 480), 6),
    "two pictures": lambda: encode(photograph(640, 480), "MPO", save_all=True, append_images=[photograph(64, 48)]),
}


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    """Compare to within the documented tolerance, a grey level in the mean, and 10 anywhere."""
    difference = np.abs(found.astype(float) - expected)
    assert found.shape == expected.shape and expected.std() > 10
    assert difference.mean() < 1 and difference.max() <= 10, (difference.mean(), difference.max())
    vectors = [torch.tensor(pixels / 127.5 - 1).flatten() for pixels in (found, expected)]
    assert torch.cosine_similarity(*vectors, dim=0) > 0.9993


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(("size", "factor"), [(16, 8), (32, 4), (64, 2)])
def test_large_files_are_reduced_and_look_the_same(name: str, size: int, factor: int) -> None:
    data = FILES[name]()
    _, _, reduced_by = reduce_jpeg(opened(data), size)
    assert reduced_by == factor
    for channels in (3, 1):
        pixels, notes = decode_image(data, channels, size)
        whole, whole_notes = decode_image(data, channels, size, reduced=False)
        assert notes == whole_notes
        assert_close(pixels, whole)
    assert np.array_equal(whole, image_to_pixels(opened(data), 1, size))


@pytest.mark.parametrize("name", FILES)
def test_crops_are_cut_from_the_same_place(name: str) -> None:
    data, crop = FILES[name](), RandomCrop(0, (0.2, 1.0))
    for position in range(6):

        def box(width: int, height: int, position: int = position) -> tuple[float, float, float, float]:
            return crop.box(position, width, height)

        assert reduce_jpeg(opened(data), 16, box) is not None
        assert_close(decode_image(data, 3, 16, box)[0], decode_image(data, 3, 16, box, reduced=False)[0])


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (encode(photograph(640, 480), "PNG"), 16),
        (encode(photograph(640, 480), "JPEG"), 81),  # less than three times the size after halving
        (encode(photograph(1700, 100), "JPEG"), 8),  # so narrow that it is cut
        (turned(photograph(641, 481), 6), 16),  # its partial pixel would come first
    ],
)
def test_other_files_are_decoded_whole(data: bytes, size: int) -> None:
    assert reduce_jpeg(opened(data), size) is None
    assert np.array_equal(decode_image(data, 3, size)[0], image_to_pixels(opened(data), 3, size))


@pytest.mark.parametrize("streaming", [False, True])
def test_the_field_turns_it_off(streaming: bool, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "images"
    folder.mkdir()
    for seed in range(2):
        photograph(320, 240, seed).save(folder / f"{seed}.jpg", quality=92)
    whole = [decode_image((folder / f"{i}.jpg").read_bytes(), 3, 16, reduced=False)[0] for i in range(2)]
    for reduced in (True, False):
        config = DataConfig(str(folder), num_workers=0, streaming=streaming, reduced_decoding=reduced)
        (once,) = iterate_once(open_images(config), image_size=16, batch_size=2)
        sizes = {"image_size": 16, "num_channels": 3, "micro_batch_size": 2, "total_batch_size": 2}
        endless = next(ImageLoader(open_images(config), config, **sizes, rank=0, world_size=1, seed=0))
        for batch in (once, endless):
            same = all(any(np.array_equal(image, pixels) for pixels in whole) for image in batch.images.numpy())
            assert same == (not reduced)
