import errno

import numpy as np
import pytest
from PIL import Image
from transformers import ViTImageProcessorPil

from ldae.data import UnreadableImageError, decode_image
from tests.data.image_files import encode, odd_images, random_pixels


def processor(size):
    return ViTImageProcessorPil(
        size={"shortest_edge": size},
        do_center_crop=True,
        crop_size={"height": size, "width": size},
        resample=Image.Resampling.BICUBIC,
        do_rescale=False,
        do_normalize=False,
    )


@pytest.mark.parametrize(
    "shape", [(32, 32), (16, 16), (7, 33), (33, 7), (17, 16), (16, 18), (101, 64), (9, 8), (5, 80)]
)
@pytest.mark.parametrize("size", [15, 16, 32])
def test_pixels_are_those_of_the_image_processor(shape, size):
    image = Image.fromarray(random_pixels(*shape))
    pixels, notes = decode_image(encode(image), 3, size)
    expected = processor(size)(image, return_tensors="np").pixel_values[0]
    assert notes == ()
    assert pixels.dtype == np.uint8 and pixels.flags.c_contiguous
    np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize(
    ("name", "notes"),
    [
        ("cmyk.jpg", ("CMYK",)),
        ("sixteen_bit.png", ("16-bit",)),
        ("palette.png", ("transparency",)),
        ("grey.png", ("greyscale",)),
        ("grey_alpha.png", ("transparency",)),
        ("alpha.png", ("transparency",)),
        ("animated.gif", ("animated", "palette")),
        ("narrow.png", ("very narrow",)),
        ("rotated.jpg", ("rotated by EXIF",)),
    ],
)
def test_odd_images_are_converted_and_named(name, notes):
    pixels, found = decode_image({"bytes": odd_images()[name], "path": None}, 3, 20)
    assert pixels.shape == (3, 20, 20) and pixels.dtype == np.uint8
    assert found == notes


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (odd_images()["truncated.jpg"], "truncated or damaged"),
        (odd_images()["empty.png"], "empty file"),
        (odd_images()["text.png"], "not an image"),
        (encode(Image.fromarray(random_pixels(64, 64)))[:-2000], "truncated or damaged"),
        ({"bytes": None, "path": "/no/such/file.png"}, "missing or forbidden file"),
        ({"bytes": None, "path": None}, "no image in the row"),
        (None, "no image in the row"),
    ],
)
def test_unreadable_images_say_why(data, reason):
    with pytest.raises(UnreadableImageError) as error:
        decode_image(data, 3, 16)
    assert error.value.reason == reason


def test_decompression_bomb_is_refused(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UnreadableImageError, match="too large"):
        decode_image(encode(Image.fromarray(random_pixels(32, 32))), 3, 16)


def test_sixteen_bits_are_scaled_not_clipped():
    ramp = np.linspace(0, 65535, 16 * 16).reshape(16, 16).astype(np.uint16)
    pixels, _ = decode_image(encode(Image.fromarray(ramp)), 1, 16)
    np.testing.assert_array_equal(pixels[0], np.rint(ramp / 257.0).astype(np.uint8))


def test_transparency_becomes_white():
    rgba = np.zeros((16, 16, 4), np.uint8)  # black, left half transparent
    rgba[:, 8:, 3] = 255
    for image in (Image.fromarray(rgba), Image.fromarray(rgba).convert("LA")):
        for channels in (1, 3):
            pixels, _ = decode_image(encode(image), channels, 16)
            assert (pixels[:, :, :8] == 255).all() and (pixels[:, :, 8:] == 0).all()
    palette = Image.fromarray(np.tile(np.repeat([0, 1], 8), (16, 1)).astype(np.uint8), mode="P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    pixels, _ = decode_image(encode(palette, transparency=0), 3, 16)
    assert (pixels[:, :, :8] == 255).all() and (pixels[:, 0, 8] == [40, 50, 60]).all()


def test_exif_orientation_is_applied():
    upright = random_pixels(16, 16)
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = Image.fromarray(np.ascontiguousarray(np.rot90(upright)))  # a quarter against the clock
    for file_format in ("PNG", "WEBP", "TIFF"):
        options = {"lossless": True} if file_format == "WEBP" else {}
        pixels, notes = decode_image(encode(stored, file_format, exif=exif, **options), 3, 16)
        assert file_format == "TIFF" or notes == ("rotated by EXIF",)
        np.testing.assert_array_equal(pixels, upright.transpose(2, 0, 1))


def test_animation_gives_its_first_frame():
    first, second = Image.new("RGB", (16, 16), (255, 0, 0)), Image.new("RGB", (16, 16), (0, 0, 255))
    pixels, notes = decode_image(encode(first, "GIF", save_all=True, append_images=[second]), 3, 16)
    assert "animated" in notes
    assert (pixels[:, 5, 5] == [255, 0, 0]).all()


def test_one_pixel_wide_image_of_any_length_stays_small():
    pixels, notes = decode_image(encode(Image.new("L", (1, 60_000), 7)), 1, 256)
    assert pixels.shape == (1, 256, 256) and (pixels == 7).all() and notes == ("very narrow",)


def test_colour_to_luminance():
    pixels, notes = decode_image(encode(Image.fromarray(random_pixels(16, 16))), 1, 16)
    np.testing.assert_array_equal(pixels[0], np.asarray(Image.fromarray(random_pixels(16, 16)).convert("L")))
    assert notes == ("colour to luminance",)


def test_reads_a_path(tmp_path):
    (tmp_path / "a.png").write_bytes(encode(Image.fromarray(random_pixels(16, 16))))
    pixels, _ = decode_image({"bytes": None, "path": str(tmp_path / "a.png")}, 3, 16)
    np.testing.assert_array_equal(pixels, random_pixels(16, 16).transpose(2, 0, 1))


def test_other_channel_counts_are_refused():
    with pytest.raises(ValueError, match="num_channels=4"):
        decode_image(encode(Image.fromarray(random_pixels(16, 16))), 4, 16)


def test_an_error_of_the_machine_is_none_of_the_image(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("builtins.open", fail)
    with pytest.raises(OSError, match="Too many open files"):
        decode_image({"bytes": None, "path": str(tmp_path / "image.png")}, 3, 8)
