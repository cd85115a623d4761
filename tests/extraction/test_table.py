"""A table is every readable image once, with its metadata, whatever stopped the run in between."""

import hashlib
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import load_dataset

from ldae.data import DataConfig, iterate_once, open_images
from ldae.evaluation.features import extract_features
from ldae.extraction.folder import IDENTITY_FILE, choose_rows_per_shard
from ldae.extraction.reader import FeatureReader
from ldae.extraction.source import open_feature_tables
from ldae.extraction.table import extract_table
from tests.data.image_files import numbered_image, write_odd_folder, write_parquet
from tests.models.small_models import draw_images


class Killed(Exception):
    pass


@pytest.fixture
def reader(encoder):
    return FeatureReader(encoder, draw_images(1))


@pytest.fixture
def digits():
    return open_images(DataConfig("digits"), "test")


def table_of(folder):
    return load_dataset(str(folder), cache_dir=f"{folder}.cache")


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (folder / "data").iterdir()}


def killed_after(images):
    """Stops a run at some point, as a kill would, with files half written."""

    def count(rows):
        count.rows += rows
        if count.rows >= images:
            raise Killed

    count.rows = 0
    return count


def test_a_table_holds_the_probes_features_and_the_labels_in_order(reader, digits, encoder, tmp_path):
    done = extract_table(reader, digits, tmp_path / "table", batch_size=50, rows_per_shard=64)
    assert done.images == 360 and done.noted["rows"] == 360
    table = table_of(tmp_path / "table")["test"]
    assert table.column_names == ["row", "label", "features"]
    assert table["row"][:] == list(range(360))
    assert table.features["label"].names == [str(i) for i in range(10)]
    expected = extract_features(encoder, iterate_once(digits, image_size=16, batch_size=90))
    assert table["label"][:] == expected.labels.tolist()
    found = table.with_format("torch")["features"][:]
    torch.testing.assert_close(found, expected.flat[:, 0], atol=1e-5, rtol=0)


def test_streamed_or_not_and_on_workers_the_features_are_the_same(reader, tmp_path):
    folder = write_parquet(tmp_path / "images", [9, 4, 6], broken=(3, 18))
    tables = []
    for streaming in (False, True):
        source = open_images(DataConfig(str(folder), streaming=streaming))
        place = tmp_path / f"streamed {streaming}"
        done = extract_table(reader, source, place, batch_size=4, rows_per_shard=5, num_workers=2)
        assert len(done.noted["skipped"]) == 2 and done.noted["counts"] == {"skipped not an image": 2}
        tables.append(table_of(place)["train"])
    stored, streamed = tables
    assert streamed["shard"][:] == [0] * 8 + [1] * 4 + [2] * 5
    assert streamed["row"][8:12] == [0, 1, 2, 3]
    assert streamed["label"][:] == stored["label"][:] == [i % 10 for i in range(19) if i not in (3, 18)]
    values = [torch.tensor(table["features"][:]) for table in tables]
    torch.testing.assert_close(*values, atol=1e-5, rtol=0)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_run_that_was_killed_three_times_leaves_the_same_files(reader, tmp_path, streaming):
    folder = write_parquet(tmp_path / "images", [19, 8, 6, 7], broken=(20,))
    source = open_images(DataConfig(str(folder), streaming=streaming))
    sizes = {"batch_size": 4, "rows_per_shard": 8}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    extract_table(reader, source, whole, **sizes)
    for images in (6, 10, 10):
        with pytest.raises(Killed):
            extract_table(reader, source, killed, **sizes, on_images=killed_after(images))
        (killed / "data" / ".train-00000.parquet.0000").write_bytes(b"half of a file")  # what SIGKILL leaves
        assert "rows" not in json.loads((killed / IDENTITY_FILE).read_text())
    done = extract_table(reader, source, killed, **sizes)
    assert 8 < done.images < 24
    assert digests(killed) == digests(whole)
    assert (killed / IDENTITY_FILE).read_text() == (whole / IDENTITY_FILE).read_text()
    before = {path: path.stat().st_mtime_ns for path in killed.rglob("*")}
    assert extract_table(reader, source, killed, batch_size=3).images == 0
    assert {path: path.stat().st_mtime_ns for path in killed.rglob("*")} == before


def test_other_settings_in_the_same_folder_are_refused(reader, encoder, digits, tmp_path):
    extract_table(reader, digits, tmp_path / "table", settings={"by": "me"})

    def refused(match, reader=reader, source=digits, folder="table", **options):
        with pytest.raises(ValueError, match=match):
            extract_table(reader, source, tmp_path / folder, **({"settings": {"by": "me"}} | options))

    pixels = draw_images(1)
    refused(r"timesteps was \[10\] and is \[11\]", FeatureReader(encoder, pixels, timesteps=[11]))
    refused("pool was mean and is none", FeatureReader(encoder, pixels, pool="none"))
    refused("by was me and is you", settings={"by": "you"})
    refused("rows_per_shard was 256 and is 100", rows_per_shard=100)
    refused("columns differ", dtype="float16")
    refused("split was test and is train", source=open_images(DataConfig("digits"), "train"))
    with torch.no_grad():
        encoder.layers[0].mlp.fc1.weight.mul_(1.01)
    refused(r"model was \w{16} and is \w{16}.*give another folder, or the former settings")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    refused(r"holds other files \(thesis.tex\); give an empty folder", folder="full")
    refused("batch_size=0 must be at least 1", batch_size=0)
    refused("dtype='int8' does not exist", dtype="int8")


def test_other_columns_and_file_names_are_kept(reader, tmp_path):
    images = [{"bytes": numbered_image(i), "path": f"{i}.png"} for i in range(3)]
    columns = {
        "image": pa.array(images, pa.struct({"bytes": pa.binary(), "path": pa.string()})),
        "caption": ["a cat", None, "a dog"],
        "row": ["x", "y", "z"],
        "boxes": [[1, 2], [3, 4], [5, 6]],
    }
    (tmp_path / "images").mkdir()
    pq.write_table(pa.table(columns), tmp_path / "images" / "train.parquet")
    config = DataConfig(str(tmp_path / "images"))
    extract_table(reader, open_images(config, other_columns=None), tmp_path / "plain")
    table = table_of(tmp_path / "plain")["train"]
    assert table.column_names == ["row", "file_name", "caption", "source_row", "features"]
    assert table.remove_columns("features")[2] == {
        "row": 2,
        "file_name": "2.png",
        "caption": "a dog",
        "source_row": "z",
    }
    extract_table(reader, open_images(config, other_columns=["boxes"]), tmp_path / "named")
    assert table_of(tmp_path / "named")["train"]["boxes"][:] == [[1, 2], [3, 4], [5, 6]]
    with pytest.raises(ValueError, match="columns='titel': no such column; the columns are: image"):
        open_images(config, other_columns=["titel"])


def test_unreadable_images_are_noted_with_row_name_and_reason(reader, tmp_path):
    folder = write_odd_folder(tmp_path / "odd", plain=2)
    source = open_images(DataConfig(str(folder)))
    done = extract_table(reader, source, tmp_path / "table", root=str(folder))
    names = {skip["file_name"] for skip in done.noted["skipped"]}
    assert done.noted["rows"] == 11 and names == {"empty.png", "text.png", "truncated.jpg"}
    (tmp_path / "none").mkdir()
    for i in range(2):
        (tmp_path / "none" / f"{i}.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="none of its images can be read"):
        extract_table(reader, open_images(DataConfig(str(tmp_path / "none"))), tmp_path / "empty")


def test_half_precision_of_storage_and_maps(encoder, digits, tmp_path):
    reader = FeatureReader(encoder, draw_images(1), pool="none")
    extract_table(reader, digits, tmp_path / "table", dtype="float16")
    table = table_of(tmp_path / "table")["test"]
    assert table.with_format("numpy")[0]["features"].shape == (32, 4, 4)
    batch = next(iterate_once(digits, image_size=16, batch_size=3))
    expected = reader(batch.images / 127.5 - 1, batch.positions)["features"]
    found = torch.tensor(table[:3]["features"])
    assert 0 < (found - expected).abs().max() < 2e-3  # a float16 has 11 bits


def test_a_table_written_without_the_command_is_read_by_probes_too(reader, digits, tmp_path):
    extract_table(reader, digits, f"file://{tmp_path}/table")
    train, test = open_feature_tables([tmp_path / "table"])
    assert train.description == f"features={tmp_path}/table of digits (test) (test, rows with index % 10 != 9)"
    assert (train.name, test.split) == ("digits (test)", "test, rows with index % 10 == 9")


def test_shards_are_few_and_small_enough():
    def rows(shape, num_examples, dtype="float32"):
        return choose_rows_per_shard({"features": shape}, dtype, num_examples)

    assert rows((768,), None) == 8192
    assert rows((768,), 100) == 256
    assert rows((768,), 1_281_167) == 8192
    assert rows((768,), 64_000) == 1000
    assert rows((768, 16, 16), None) == 2**28 // (768 * 256 * 4)
    assert rows((768, 16, 16), None, "float16") == 2**28 // (768 * 256 * 2)
