import json
from collections import Counter

import pytest

from ldae.data import DataConfig, ImageLoader, describe_counts, open_images
from tests.data.image_files import numbers, odd_images, write_odd_folder, write_parquet


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def make_loader(folder, *, micro=4, total=8, rank=0, world=1, workers=0, seed=0, start=None, size=4):
    config = DataConfig(str(folder), num_workers=workers)
    return ImageLoader(
        open_images(config),
        config,
        image_size=size,
        num_channels=3,
        micro_batch_size=micro,
        total_batch_size=total,
        rank=rank,
        world_size=world,
        seed=seed,
        start=start,
    )


def read(loader, batches):
    """What stands at each position."""
    found = {}
    for _ in range(batches):
        batch = next(loader)
        found |= dict(zip(batch.positions.tolist(), numbers(batch.images), strict=True))
        assert batch.labels.tolist() == [number % 10 for number in numbers(batch.images)]
    return found


def test_same_examples_at_the_same_positions_however_they_are_divided(tmp_path):
    folder = write_parquet(tmp_path / "rows", [11, 6], broken=(3, 4, 12))
    steps = 5  # 40 positions, more than two epochs of 17
    expected = read(make_loader(folder, micro=8), steps)
    assert sorted(expected) == list(range(8 * steps))
    assert read(make_loader(folder, micro=1), 8 * steps) == expected
    assert read(make_loader(folder, micro=8, workers=2), steps) == expected
    for world, micro in ((2, 4), (2, 2), (8, 1)):
        divided = {}
        for rank in range(world):
            part = read(make_loader(folder, micro=micro, world=world, rank=rank), steps * 8 // (micro * world))
            assert not divided.keys() & part.keys()
            divided |= part
        assert divided == expected


def test_an_epoch_reads_every_row_once_in_an_order_of_its_own(tmp_path):
    folder = write_parquet(tmp_path / "rows", [16])
    found = read(make_loader(folder, micro=8), 4)
    first, second = [found[i] for i in range(16)], [found[i] for i in range(16, 32)]
    assert sorted(first) == sorted(second) == list(range(16))
    assert first != second and first != list(range(16))
    assert found == read(make_loader(folder, micro=8), 4) != read(make_loader(folder, micro=8, seed=1), 4)


def test_unreadable_places_are_filled_with_the_next_readable_and_counted_once(tmp_path):
    whole = read(make_loader(write_parquet(tmp_path / "whole", [16]), micro=8), 2)
    broken = {whole[0], whole[1], whole[15]}
    folder = write_parquet(tmp_path / "broken", [16], broken=tuple(broken))
    loader = make_loader(folder, micro=8)
    found = read(loader, 4)
    assert [found[i] for i in range(2, 15)] == [whole[i] for i in range(2, 15)]
    assert found[0] == found[1] == found[15] == whole[2]  # 15 wraps to the beginning of its epoch
    assert loader.counts == {"skipped not an image": 3}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batches", [2, 3, 5])
def test_resume_is_exact_and_its_state_is_json(tmp_path, workers, batches):
    folder = write_parquet(tmp_path / "rows", [11, 6], broken=(5,))
    whole, found = read(make_loader(folder), 12), {}
    loader, done = make_loader(folder, workers=workers), 0
    while done < 12:
        count = min(batches, 12 - done)
        found |= read(loader, count)
        done += count
        state = json.loads(json.dumps(loader.state_dict()))
        loader.close()
        loader = make_loader(folder, workers=workers, start=state)
        assert loader.counts == state["counts"]
    assert found == whole
    assert loader.counts == {"skipped not an image": 1}


def test_resume_with_another_division_at_the_end_of_a_step(tmp_path):
    folder = write_parquet(tmp_path / "rows", [17])
    whole = read(make_loader(folder, micro=8), 4)
    loader = make_loader(folder, micro=4)
    found = read(loader, 2)
    for rank in range(2):
        found |= read(make_loader(folder, micro=2, world=2, rank=rank, start=loader.state_dict()), 6)
    assert found == whole
    read(loader, 1)
    with pytest.raises(ValueError, match="inside a step of 2 micro-batches"):
        make_loader(folder, micro=8, start=loader.state_dict())


def test_resume_with_another_order_is_refused(tmp_path):
    state = make_loader(write_parquet(tmp_path / "rows", [17])).state_dict()
    with pytest.raises(ValueError, match="seed was 0 and is 1"):
        make_loader(tmp_path / "rows", seed=1, start=state)
    with pytest.raises(ValueError, match="num_examples was 17 and is 9"):
        make_loader(write_parquet(tmp_path / "other", [9]), start=state)


def test_close_goes_on_with_new_workers(tmp_path):
    folder = write_parquet(tmp_path / "rows", [17])
    loader = make_loader(folder, workers=1)
    found = read(loader, 3)
    loader.close()
    assert found | read(loader, 3) == read(make_loader(folder), 6)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_the_twelve_odd_images_train_through_and_are_counted(tmp_path, streaming, workers):
    folder = write_odd_folder(tmp_path / "images", plain=1)
    config = DataConfig(str(folder), streaming=streaming, num_workers=workers)
    sizes = {"image_size": 16, "num_channels": 3, "micro_batch_size": 3, "total_batch_size": 3}
    loader = ImageLoader(open_images(config), config, **sizes, rank=0, world_size=1, seed=0)
    for _ in range(20):
        batch = next(loader)
        assert batch.images.shape == (3, 3, 16, 16) and batch.labels is None
    assert len(odd_images()) == 12
    assert loader.counts == Counter(
        {
            "converted transparency": 3,
            "converted CMYK": 1,
            "converted 16-bit": 1,
            "converted greyscale": 1,
            "converted animated": 1,
            "converted palette": 1,  # the animation's
            "converted very narrow": 1,
            "converted rotated by EXIF": 1,
            "skipped truncated or damaged": 1,
            "skipped empty file": 1,
            "skipped not an image": 1,
        }
    )
    assert "skipped 3 (1 " in describe_counts(loader.counts)


@pytest.mark.parametrize(("streaming", "workers"), [(False, 0), (True, 0), (True, 1)])
def test_nothing_readable_is_an_error_not_an_endless_loop(tmp_path, streaming, workers):
    folder = write_parquet(tmp_path / "rows", [3, 2], broken=(0, 1, 2, 3, 4))
    config = DataConfig(str(folder), streaming=streaming, num_workers=workers)
    sizes = {"image_size": 4, "num_channels": 3, "micro_batch_size": 2, "total_batch_size": 2}
    loader = ImageLoader(open_images(config), config, **sizes, rank=0, world_size=1, seed=0)
    with pytest.raises(ValueError, match=r"no readable image|can be read"):
        next(loader)


def test_impossible_sizes_are_refused(tmp_path):
    folder = write_parquet(tmp_path / "rows", [5])
    with pytest.raises(ValueError, match="total_batch_size=8 must be a multiple"):
        make_loader(folder, micro=3)
    with pytest.raises(ValueError, match="rank=2"):
        make_loader(folder, rank=2, world=2)
