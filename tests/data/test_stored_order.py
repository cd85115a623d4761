from collections import Counter

import pytest

from ldae.data import DataConfig, iterate_once, open_images
from tests.data.image_files import numbers, write_parquet


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_stored_order_full_batches_and_counts(tmp_path, streaming, workers):
    folder = write_parquet(tmp_path / "rows", [9, 10], broken=(0, 1, 2, 3, 4, 9))
    source = open_images(DataConfig(str(folder), streaming=streaming))
    counts = Counter()
    batches = list(iterate_once(source, image_size=4, batch_size=5, num_workers=workers, counts=counts))
    assert [len(batch.images) for batch in batches] == [5, 5, 3]
    rows = [row for batch in batches for row in batch.positions.tolist()]
    assert rows == [i for i in range(19) if i > 4 and i != 9]
    assert [number for batch in batches for number in numbers(batch.images)] == rows
    assert [label for batch in batches for label in batch.labels.tolist()] == [row % 10 for row in rows]
    assert counts == {"skipped not an image": 6}


@pytest.mark.parametrize("streaming", [False, True])
def test_processes_share_the_rows_below_the_limit(tmp_path, streaming):
    source = open_images(DataConfig(str(write_parquet(tmp_path / "rows", [9, 10])), streaming=streaming))
    found = [
        [batch.positions.tolist() for batch in iterate_once(source, image_size=4, batch_size=3, limit=14, **part)]
        for part in ({"rank": 0, "world_size": 3}, {"rank": 1, "world_size": 3}, {"rank": 2, "world_size": 3})
    ]
    assert found == [[[0, 3, 6], [9, 12]], [[1, 4, 7], [10, 13]], [[2, 5, 8], [11]]]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_processes_share_whole_batches(tmp_path, streaming, workers):
    """A batch has the images that it has in one process."""
    folder = write_parquet(tmp_path / "rows", [9, 10], broken=(1, 6, 7, 8))
    source = open_images(DataConfig(str(folder), streaming=streaming))
    options = {"image_size": 4, "batch_size": 3, "limit": 14, "num_workers": workers, "whole_batches": True}
    found = [
        [batch.positions.tolist() for batch in iterate_once(source, **options, rank=rank, world_size=2)]
        for rank in (0, 1)
    ]
    assert found == [[[0, 2], [12, 13]], [[3, 4, 5], [9, 10, 11]]]
    whole = [batch.positions.tolist() for batch in iterate_once(source, **options)]
    assert whole == [[0, 2], [3, 4, 5], [9, 10, 11], [12, 13]]


@pytest.mark.parametrize("streaming", [False, True])
def test_nothing_readable_is_an_error(tmp_path, streaming):
    folder = write_parquet(tmp_path / "rows", [3], broken=(0, 1, 2))
    source = open_images(DataConfig(str(folder), streaming=streaming))
    with pytest.raises(ValueError, match="none of its images can be read"):
        list(iterate_once(source, image_size=4, batch_size=2))


def test_size_and_channels(tmp_path):
    source = open_images(DataConfig("digits"), "test")
    options = {"image_size": 16, "decode_size": 24, "num_channels": 1, "batch_size": 4, "limit": 4}
    (batch,) = iterate_once(source, **options)
    assert batch.images.shape == (4, 1, 24, 24)
    with pytest.raises(ValueError, match="batch_size=0"):
        iterate_once(source, image_size=16, batch_size=0)
