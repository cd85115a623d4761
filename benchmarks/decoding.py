"""Decode JPEG files to the model's size: ours against Pillow alone, which decodes the whole image and resizes it.

Both read from memory, resize the shortest edge (bicubic) and crop the centre; the pixels are compared first. The
images have the spectrum of photographs (amplitude 1 / frequency) and quality 90. `--others` compares ours with itself
around another decoder, where one is installed, at the same reduced scale.

    python benchmarks/decoding.py [--pairs 9] [--others]
"""

import argparse
import io
from importlib.util import find_spec

import numpy as np
import torch
from harness import compare
from PIL import Image

from ldae.data import decode_image
from ldae.data.decode import image_to_pixels, reduce_jpeg


# width, height, side of the result, target ratio
CASES = (
    (4000, 3000, 64, 3.0),
    (4000, 3000, 224, 3.0),
    (1600, 1200, 64, None),
    (1600, 1200, 224, None),
    (500, 375, 64, 1.0),
    (500, 375, 224, 1.0),
)


def make_photograph(width: int, height: int) -> bytes:
    """Make a JPEG file whose content has the spectrum of photographs."""
    generator = np.random.default_rng(0)
    rows, columns = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    frequency = np.maximum(np.hypot(rows, columns), 1 / max(width, height))
    channels = []
    for _ in range(3):
        shape = (height, width // 2 + 1)
        spectrum = (generator.normal(size=shape) + 1j * generator.normal(size=shape)) / frequency
        values = np.fft.irfft2(spectrum, s=(height, width))
        channels.append((128 + 50 * values / values.std()).clip(0, 255).astype(np.uint8))
    file = io.BytesIO()
    Image.fromarray(np.stack(channels, axis=2)).save(file, "JPEG", quality=90)
    return file.getvalue()


def decode_with_pillow(data: bytes, size: int) -> np.ndarray:
    """Decode the whole image, resize its shortest edge and crop the centre."""
    with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
        width, height = image.size
        scale = size / min(width, height)
        image = image.resize((int(width * scale), int(height * scale)), Image.Resampling.BICUBIC)
        left, top = (image.width - size) // 2, (image.height - size) // 2
        return np.asarray(image.crop((left, top, left + size, top + size))).transpose(2, 0, 1)


def choose_reduction(data: bytes, size: int) -> tuple[int, int, int]:
    """Return width and height of the whole image, and the factor by which ours would decode it smaller."""
    with Image.open(io.BytesIO(data)) as image:
        return reduce_jpeg(image, size) or (*image.size, 1)


def decode_with_simplejpeg(data: bytes, size: int) -> np.ndarray:
    """Decode as ours does, with simplejpeg in place of Pillow's decoder."""
    import simplejpeg

    whole = choose_reduction(data, size)
    least = {"min_width": -(-whole[0] // whole[2]), "min_height": -(-whole[1] // whole[2])} if whole[2] > 1 else {}
    image = Image.fromarray(simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False, **least))
    return image_to_pixels(image, 3, size, whole=whole)


def decode_with_opencv(data: bytes, size: int) -> np.ndarray:
    """Decode as ours does, with OpenCV in place of Pillow's decoder."""
    import cv2

    cv2.setNumThreads(1)
    whole = choose_reduction(data, size)
    mode = {1: cv2.IMREAD_COLOR, **{n: getattr(cv2, f"IMREAD_REDUCED_COLOR_{n}") for n in (2, 4, 8)}}[whole[2]]
    image = Image.fromarray(cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), mode), cv2.COLOR_BGR2RGB))
    return image_to_pixels(image, 3, size, whole=whole)


def run_others(pairs: int = 9) -> None:
    """Measure the decoders that are installed, and print a line for each case."""
    torch.set_num_threads(1)
    decoders = {"simplejpeg": decode_with_simplejpeg, "cv2": decode_with_opencv}
    for name in [name for name in decoders if find_spec(name)]:
        for width, height, size, _ in CASES:
            data, decode = make_photograph(width, height), decoders[name]
            difference = np.abs(decode_image(data, 3, size)[0].astype(float) - decode(data, size))
            assert difference.mean() < 1, difference.mean()
            compare(
                f"{name}: {width}x{height} to {size}",
                lambda data=data, size=size, decode=decode: decode(data, size),
                lambda data=data, size=size: decode_image(data, 3, size),
                pairs=pairs,
                target=1.5,
            )


def run(pairs: int = 9) -> None:
    """Measure, and print a line for each case."""
    torch.set_num_threads(1)
    for width, height, size, target in CASES:
        data = make_photograph(width, height)
        difference = np.abs(decode_image(data, 3, size)[0].astype(float) - decode_with_pillow(data, size))
        assert difference.mean() < 1, difference.mean()
        compare(
            f"decode {width}x{height} to {size}, {len(data) // 1024} KiB",
            lambda data=data, size=size: decode_image(data, 3, size),
            lambda data=data, size=size: decode_with_pillow(data, size),
            pairs=pairs,
            target=target,
        )
        print(f"  pixels differ by {difference.mean():.2f} grey levels in the mean, {difference.max():.0f} at most")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--others", action="store_true", help="compare other decoders: simplejpeg, OpenCV")
    options = parser.parse_args()
    (run_others if options.others else run)(options.pairs)
