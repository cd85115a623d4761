"""Data sets that the tests write: odd and broken images, numbered images in parquet, tar and folder form."""

import io
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def random_pixels(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def encode(image: Image.Image, file_format: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def odd_images() -> dict[str, bytes]:
    """The twelve files of a bad day, by file name; the first three cannot be read."""
    rgb = Image.fromarray(random_pixels(24, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise to see it upright
    palette = rgb.quantize(8)
    grey16 = (np.arange(24 * 20).reshape(24, 20) * 136).astype(np.uint16)
    return {
        "truncated.jpg": encode(Image.fromarray(random_pixels(64, 64)), "JPEG")[:-600],
        "empty.png": b"",
        "text.png": b"this is no image\n",
        "cmyk.jpg": encode(rgb.convert("CMYK"), "JPEG"),
        "sixteen_bit.png": encode(Image.fromarray(grey16)),
        "palette.png": encode(palette, transparency=0),
        "grey.png": encode(rgb.convert("L")),
        "grey_alpha.png": encode(rgb.convert("LA")),
        "alpha.png": encode(rgb.convert("RGBA")),
        "animated.gif": encode(rgb, "GIF", save_all=True, append_images=[rgb.rotate(90)]),
        "narrow.png": encode(Image.fromarray(random_pixels(40, 1))),
        "rotated.jpg": encode(rgb, "JPEG", exif=exif),
    }


def write_odd_folder(folder: Path, plain: int = 0) -> Path:
    """A flat folder of the twelve odd files and of `plain` ordinary ones."""
    folder.mkdir(parents=True)
    for name, data in odd_images().items():
        (folder / name).write_bytes(data)
    for i in range(plain):
        (folder / f"plain_{i}.png").write_bytes(numbered_image(i))
    return folder


def numbered_image(number: int) -> bytes:
    """A 4x4 image from whose first two values its number can be read, see [`numbers`]."""
    pixels = np.zeros((4, 4, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = number % 256, number // 256
    return encode(Image.fromarray(pixels))


def numbers(images) -> list[int]:
    """The numbers of a batch `(b, 3, 4, 4)` of numbered images."""
    values = images[:, :2, 0, 0].long()
    return (values[:, 0] + 256 * values[:, 1]).tolist()


def write_parquet(folder: Path, sizes: list[int], split: str = "train", broken: tuple[int, ...] = ()) -> Path:
    """Shards of numbered images, as the Hub lays them out; those in `broken` cannot be read."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    number = 0
    for shard, size in enumerate(sizes):
        rows = range(number, number + size)
        images = [{"bytes": b"broken" if i in broken else numbered_image(i), "path": None} for i in rows]
        table = pa.table(
            {
                "image": pa.array(images, pa.struct({"bytes": pa.binary(), "path": pa.string()})),
                "label": pa.array([i % 10 for i in rows], pa.int64()),
            }
        )
        pq.write_table(table, folder / "data" / f"{split}-{shard:05d}-of-{len(sizes):05d}.parquet", row_group_size=8)
        number += size
    return folder


def write_tars(folder: Path, sizes: list[int]) -> Path:
    """Webdataset shards of numbered images."""
    folder.mkdir(parents=True)
    number = 0
    for shard, size in enumerate(sizes):
        with tarfile.open(folder / f"{shard:03d}.tar", "w") as archive:
            for i in range(number, number + size):
                for suffix, data in (("png", numbered_image(i)), ("cls", str(i % 10).encode())):
                    member = tarfile.TarInfo(f"{i:05d}.{suffix}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
        number += size
    return folder


def picture(height: int = 40, width: int = 30) -> np.ndarray:
    """A picture `(H, W, 3)` in [0, 1] without any symmetry."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    return np.stack([x, (y + x**2) / 2, np.sin(5 * x + 3 * y) ** 2], axis=-1)


def sixteen_bit_png(values: np.ndarray) -> bytes:
    """A PNG of 16 bits a channel from values `(H, W, C)` in [0, 1]: Pillow writes grey ones only."""
    height, width, channels = values.shape
    rows = (65535 * values).astype(">u2")
    data = b"".join(b"\0" + row.tobytes() for row in rows)  # each row begins with its filter, 0 for none
    header = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(data)), (b"IEND", b""))
    chunks = (struct.pack(">I", len(d)) + name + d + struct.pack(">I", zlib.crc32(name + d)) for name, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def write_every_kind(folder: Path) -> None:
    """Write one picture as 40 files: modes, depths, kinds of transparency, orientations, frames and formats."""
    values = picture()
    rgb = Image.fromarray((255 * values).astype(np.uint8))
    grey, sixteen = rgb.convert("L"), (65535 * values[..., 1]).astype(np.uint16)
    alpha = Image.fromarray((255 * picture()[::-1, :, 2]).astype(np.uint8))
    rgba, grey_alpha = rgb.copy(), grey.copy()
    rgba.putalpha(alpha)
    grey_alpha.putalpha(alpha)
    palette = rgb.quantize(16)
    images: dict[str, tuple[Image.Image, dict]] = {
        "rgb.png": (rgb, {}),
        "rgb.jpg": (rgb, {}),
        "rgb.bmp": (rgb, {}),
        "rgb.webp": (rgb, {"lossless": True}),
        "rgba.png": (rgba, {}),
        "rgba.webp": (rgba, {"lossless": True}),
        "grey_alpha.png": (grey_alpha, {}),
        "grey.png": (grey, {}),
        "grey.jpg": (grey, {}),
        "one_bit.png": (grey.convert("1"), {}),
        "palette.png": (palette, {}),
        "palette_transparent.png": (palette, {"transparency": 3}),
        "palette_alphas.png": (palette, {"transparency": bytes(range(0, 256, 16))}),
        "palette.gif": (palette, {}),
        "rgb_transparent.png": (rgb, {"transparency": rgb.getpixel((3, 5))}),
        "grey_transparent.png": (grey, {"transparency": grey.getpixel((3, 5))}),
        "sixteen_bit.png": (Image.fromarray(sixteen), {}),
        "sixteen_bit.tif": (Image.fromarray(sixteen), {}),
        "thirty_two_bit.tif": (Image.fromarray(sixteen.astype(np.int32)), {}),
        "cmyk.jpg": (rgb.convert("CMYK"), {}),
        "cmyk.tif": (rgb.convert("CMYK"), {}),
        "lab.tif": (Image.merge("LAB", rgb.split()), {}),
        "float_in_one.tif": (Image.fromarray(values[..., 1].astype(np.float32)), {}),
        "float_in_255.tif": (Image.fromarray((255 * values[..., 1]).astype(np.float32)), {}),
        "narrow.png": (Image.fromarray((255 * picture(400, 5)).astype(np.uint8)), {}),
        "sixteen_bit.pgm": (Image.fromarray(sixteen), {}),
        "rgb.jp2": (rgb, {}),
    }
    endless = values[..., 1].astype(np.float32)
    endless[3, 5:8] = np.nan, np.inf, -np.inf
    images["float_not_finite.tif"] = (Image.fromarray(endless), {})
    frames = {"save_all": True, "append_images": [rgb.rotate(90, expand=True).resize(rgb.size)]}
    images |= {f"frames.{name}": (rgb, frames) for name in ("gif", "png", "tif")}
    images["frames.webp"] = (rgb, frames | {"lossless": True})
    for orientation in (3, 5, 6):
        for name in ("jpg", "png"):
            exif = Image.Exif()
            exif[0x0112] = orientation
            images[f"rotated_{orientation}.{name}"] = (rgb, {"exif": exif})
    for name, (image, options) in images.items():
        image.save(folder / name, **options)
    (folder / "sixteen_bit_rgb.png").write_bytes(sixteen_bit_png(values))
    (folder / "sixteen_bit_rgba.png").write_bytes(sixteen_bit_png(np.dstack([values, picture()[::-1, :, 2]])))
