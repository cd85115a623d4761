"""Random resized crops come from the whole image, are antialiased, and depend on seed and position alone."""

import json
import math
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from ldae.data import DataConfig, ImageLoader, open_images, prepare_images
from ldae.data.augment import TRIALS, RandomCrop, draw_boxes
from ldae.data.batch import Decoder
from tests.data.image_files import encode, random_pixels


SCALE = (0.2, 1.0)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def folder(tmp_path):
    """Twenty-two images of many shapes in two files, two of them broken."""
    rows = tmp_path / "rows"
    rows.mkdir()
    for shard in range(2):
        numbers = range(shard * 11, shard * 11 + 11)
        files = [encode(Image.fromarray(random_pixels(8 + i % 5, 30 - i, seed=i))) for i in numbers]
        files[4] = b"no image"
        images = pa.array([{"bytes": file, "path": None} for file in files])
        pq.write_table(pa.table({"image": images}), rows / f"{shard}.parquet")
    return rows


def make_loader(folder, *, micro=4, world=1, rank=0, workers=0, start=None, total=8, **fields):
    config = DataConfig(
        str(folder), num_workers=workers, random_resized_crop=True, crop_scale=SCALE, image_column="image", **fields
    )
    sizes = {"image_size": 6, "num_channels": 3, "micro_batch_size": micro, "total_batch_size": total}
    return ImageLoader(open_images(config), config, **sizes, rank=rank, world_size=world, seed=5, start=start)


def read(loader, batches):
    found = {}
    for _ in range(batches):
        batch = next(loader)
        found |= {p: image.numpy().tobytes() for p, image in zip(batch.positions.tolist(), batch.images, strict=True)}
    return found


def test_boxes_reach_beyond_the_middle_square_of_a_wide_image():
    """Of 60 x 20 pixels, the outer thirds are white: a crop of the middle square would never see them."""
    pixels = np.zeros((20, 60, 3), np.uint8)
    pixels[:, :20] = pixels[:, 40:] = 255
    decoder, file = Decoder(3, 8, RandomCrop(0, (0.05, 0.15))), encode(Image.fromarray(pixels))
    bright = [decoder(file, Counter(), position).mean() for position in range(60)]
    assert sum(value > 250 for value in bright) > 15 and sum(value < 5 for value in bright) > 5
    assert Decoder(3, 8)(file, Counter()).max() < 50  # the edges, through the filter


@pytest.mark.parametrize(("width", "height"), [(60, 20), (20, 60), (33, 32), (500, 1)])
def test_boxes_of_any_shape_lie_inside_with_the_allowed_ratio(width, height):
    uniform = torch.rand(4000, 2 * TRIALS + 2, generator=torch.Generator().manual_seed(0))
    left, top, w, h = draw_boxes(uniform, width, height, SCALE).unbind(1)
    assert (left >= 0).all() and (top >= 0).all()
    assert (left + w <= width * (1 + 1e-6)).all() and (top + h <= height * (1 + 1e-6)).all()
    assert (w / h).log().abs().max() <= math.log(4 / 3) + 1e-4
    crop = RandomCrop(0, SCALE)
    decoder, file, counts = Decoder(3, 4, crop), encode(Image.new("RGB", (width, height))), Counter()
    assert all(decoder(file, counts, position) is not None for position in range(200)) and not counts


def test_where_no_trial_fits_the_box_is_the_largest_in_the_middle():
    uniform = torch.full((1, 2 * TRIALS + 2), 0.999)
    assert draw_boxes(uniform, 40, 15, (1.0, 1.0))[0].tolist() == pytest.approx([10, 0, 20, 15])
    assert draw_boxes(uniform, 15, 40, (1.0, 1.0))[0].tolist() == pytest.approx([0, 10, 15, 20])


@pytest.mark.parametrize("decoded", [16, 40], ids=["enlarged", "reduced"])
def test_a_square_image_is_cropped_alike_while_decoding_and_afterwards(decoded):
    """The two differ by the rounding to 8 bits alone, also where a box is made smaller, which is antialiased."""
    images = torch.stack(
        [torch.from_numpy(random_pixels(decoded, decoded, seed=i)).permute(2, 0, 1) for i in range(12)]
    )
    positions = torch.arange(100, 112)
    after = prepare_images(images, positions, 3, image_size=16, random_resized_crop=True, crop_scale=SCALE)
    decoder = Decoder(3, 16, RandomCrop(3, SCALE))
    files = [encode(Image.fromarray(image.permute(1, 2, 0).numpy())) for image in images]
    during = np.stack([decoder(f, Counter(), p) for f, p in zip(files, positions.tolist(), strict=True)])
    torch.testing.assert_close(torch.from_numpy(during) / 127.5 - 1, after, atol=1.1 / 127.5, rtol=0)


def test_a_reduced_crop_is_antialiased():
    """Stripes of one pixel become grey; samples without a filter would be black and white."""
    stripes = torch.zeros(4, 3, 64, 64, dtype=torch.uint8)
    stripes[..., ::2] = 255
    found = prepare_images(stripes, torch.arange(4), 0, image_size=8, random_resized_crop=True, crop_scale=(0.9, 1.0))
    assert found.abs().max() < 0.15


def test_a_box_needs_a_position():
    with pytest.raises(ValueError, match="position=None must be"):
        Decoder(3, 8, RandomCrop(0, SCALE))(encode(Image.new("RGB", (9, 9))), Counter())


@pytest.mark.parametrize("streaming", [False, True])
def test_workers_and_resumes_change_no_pixel(folder, streaming):
    """Five steps are two epochs; of a stream the order, and so the image at a position, depends on the workers."""
    for workers in (0, 2):
        whole = read(make_loader(folder, workers=workers, streaming=streaming, micro=8), 5)
        assert len(set(whole.values())) > 30  # the second epoch crops the same images otherwise
        if not streaming:
            assert whole == read(make_loader(folder, micro=8), 5)
        loader = make_loader(folder, workers=workers, streaming=streaming, micro=8)
        found = read(loader, 3)
        state = json.loads(json.dumps(loader.state_dict()))
        loader.close()
        found |= read(make_loader(folder, workers=workers, streaming=streaming, micro=8, start=state), 2)
        assert found == whole


def test_processes_and_micro_batches_change_no_pixel(folder):
    whole = read(make_loader(folder, micro=8), 5)
    for world, micro in ((1, 2), (2, 4), (4, 1)):
        divided = {}
        for rank in range(world):
            divided |= read(make_loader(folder, micro=micro, world=world, rank=rank), 40 // (micro * world))
        assert divided == whole


def test_with_decode_size_images_come_whole_and_are_cropped_afterwards(folder):
    assert next(make_loader(folder, decode_size=9)).images.shape[-2:] == (9, 9)
    assert next(make_loader(folder)).images.shape[-2:] == (6, 6)
    assert DataConfig("digits", random_resized_crop=True).crops_whole_images
    assert not DataConfig("digits", random_resized_crop=True, decode_size=9).crops_whole_images
