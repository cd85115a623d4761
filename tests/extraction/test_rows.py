from itertools import product

import pytest
from datasets import Dataset, Features, Image, Value

from ldae.data import DataConfig, open_images
from ldae.extraction.rows import CroppedPixels, RowReader, StreamedPieces
from tests.data.image_files import numbered_image, numbers, write_odd_folder, write_parquet, write_tars


@pytest.fixture
def reader(tmp_path):
    folder = write_parquet(tmp_path / "images", [9, 4, 6])
    source = open_images(DataConfig(str(folder), streaming=True))
    return RowReader(source, CroppedPixels(3, 4), named=False)


def pieces_of(reader, shares=1, finished=(), parts=None, rows_per_shard=4, batch_size=3):
    parts = range(reader.source.dataset.num_shards) if parts is None else parts
    return [
        piece
        for i in range(shares)
        for piece in StreamedPieces(reader, rows_per_shard, batch_size, finished, parts, (i, shares))
    ]


@pytest.mark.parametrize(("shares", "rows_per_shard", "batch_size"), list(product([1, 2, 5], [4, 100], [3, 50])))
def test_a_stream_is_cut_into_the_same_shards_by_any_number_of_shares(reader, shares, rows_per_shard, batch_size):
    pieces = pieces_of(reader, shares, rows_per_shard=rows_per_shard, batch_size=batch_size)
    assert sorted(number for piece in pieces for number in numbers(piece.images)) == list(range(19))
    begins = {0: 0, 1: 9, 2: 13}
    for piece in pieces:
        part, number = piece.shard
        rows = piece.table.column("row").to_pylist()
        assert all(number == row // rows_per_shard for row in rows)
        assert piece.table.column("shard").to_pylist() == [part] * len(rows)
        assert numbers(piece.images) == [begins[part] + row for row in rows]
        assert len(rows) <= min(batch_size, rows_per_shard)
    ended = [piece.shard for piece in pieces if piece.ends_shard]
    assert sorted(ended) == sorted({piece.shard for piece in pieces})
    last = {0: 9, 1: 4, 2: 6}
    ends = [piece.shard for piece in pieces if piece.ends_part]
    assert sorted(ends) == [(part, (size - 1) // rows_per_shard) for part, size in last.items()]


def test_what_is_written_is_not_decoded_again(reader):
    pieces = pieces_of(reader, finished={(0, 1), (2, 0)}, parts=[0, 2])
    assert sorted({piece.shard for piece in pieces}) == [(0, 0), (0, 2), (2, 1)]
    assert sorted(number for piece in pieces for number in numbers(piece.images)) == [0, 1, 2, 3, 8, 17, 18]


def test_noise_is_keyed_on_part_and_row(reader):
    positions = [position for piece in pieces_of(reader) for position in piece.positions.tolist()]
    assert len(set(positions)) == 19


def test_tar_files_keep_their_keys(tmp_path):
    source = open_images(DataConfig(str(write_tars(tmp_path / "tars", [3, 2])), streaming=True), other_columns=None)
    reader = RowReader(source, CroppedPixels(3, 4), named=True)
    (first, second) = pieces_of(reader)
    assert first.table.column("__key__").to_pylist() == ["00000", "00001", "00002"]
    assert second.table.column("cls").to_pylist() == [3, 4]


def test_unreadable_images_are_named_and_left_out(tmp_path):
    folder = write_odd_folder(tmp_path / "odd" / "pictures", plain=1).parent
    source = open_images(DataConfig(str(folder)))
    reader = RowReader(source, CroppedPixels(3, 4), named=True, root=str(folder))
    piece = reader.piece((0, 0), 0, source.dataset[list(range(13))])
    skipped = {skip["file_name"]: skip["reason"] for skip in piece.skipped}
    assert skipped == {
        "pictures/empty.png": "empty file",
        "pictures/text.png": "not an image",
        "pictures/truncated.jpg": "truncated or damaged",
    }
    assert piece.num_rows == 13 and len(piece.images) == len(piece.table) == len(piece.positions) == 10
    names = piece.table.column("file_name").to_pylist()
    rows = piece.table.column("row").to_pylist()
    assert "pictures/plain_0.png" in names and not set(names) & set(skipped)
    assert sorted(rows + [skip["row"] for skip in piece.skipped]) == list(range(13))


def test_columns_with_the_names_of_our_own_are_kept_under_others(tmp_path):
    names = ("row", "source_row", "features", "features_of")
    images = [{"bytes": numbered_image(i), "path": None} for i in range(3)]
    kinds = Features({"image": Image(), **{name: Value("int64") for name in names}})
    columns = {name: [10 * k + i for i in range(3)] for k, name in enumerate(names)}
    Dataset.from_dict({"image": images, **columns}, features=kinds).to_parquet(tmp_path / "rows.parquet")
    source = open_images(DataConfig(str(tmp_path / "rows.parquet")), other_columns=None)
    reader = RowReader(source, CroppedPixels(3, 4), named=False)
    table = reader.piece((0, 0), 0, source.dataset[:]).table
    kept = ("source_source_row", "source_row", "source_features", "source_features_of")
    assert table.to_pydict() == {"row": [0, 1, 2], **dict(zip(kept, columns.values(), strict=True))}
