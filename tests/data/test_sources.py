import json
import os
import subprocess
import sys

import pytest

from ldae.data import DataConfig, ImageLoader, iterate_once, list_splits, open_images, open_probe_images
from ldae.evaluation.images import fixed_subset
from tests.data.image_files import numbered_image, numbers, write_odd_folder, write_parquet, write_tars
from tests.hub.hub_server import TestHub


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def read(source):
    batches = list(iterate_once(source, image_size=4, batch_size=7))
    labels = None if batches[0].labels is None else [label for batch in batches for label in batch.labels.tolist()]
    return [number for batch in batches for number in numbers(batch.images)], labels


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["folder", "glob", "tar_folder", "tar_glob"])
def test_files_of_rows(tmp_path, kind, streaming):
    if kind.startswith("tar"):
        folder = write_tars(tmp_path / "tars", [9, 6])
        dataset = str(folder / "*.tar") if kind == "tar_glob" else str(folder)
    else:
        folder = write_parquet(tmp_path / "rows", [9, 6])
        dataset = str(folder / "data" / "*.parquet") if kind == "glob" else str(folder)
    source = open_images(DataConfig(dataset, streaming=streaming))
    assert read(source) == (list(range(15)), [i % 10 for i in range(15)])
    assert source.image_column == ("png" if kind.startswith("tar") else "image")
    assert source.label_column == ("cls" if kind.startswith("tar") else "label")
    assert source.streaming == streaming and "(train)" in source.description
    if not streaming:
        assert source.num_examples == 15


def write_class_folders(root, classes=("ant", "bee"), count=3):
    for c, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(count):
            (root / name / f"{i}.png").write_bytes(numbered_image(10 * c + i))
    return root


@pytest.mark.parametrize("streaming", [False, True])
def test_image_folder_with_labels(tmp_path, streaming):
    # "test" in a file name, or a class of that name among others, makes no split
    root = write_class_folders(tmp_path / "images", ("ant", "bee", "test"))
    (root / "ant" / "train_test.png").write_bytes(numbered_image(3))
    source = open_images(DataConfig(str(root), streaming=streaming))
    found, labels = read(source)
    assert dict(zip(found, labels, strict=True)) == {i: i // 10 for i in (0, 1, 2, 3, 10, 11, 12, 20, 21, 22)}
    assert source.class_names == ["ant", "bee", "test"]
    assert list_splits(DataConfig(str(root))) == ["train"]


@pytest.mark.parametrize("streaming", [False, True])
def test_image_folder_with_splits(tmp_path, streaming):
    write_class_folders(tmp_path / "images" / "train")
    write_class_folders(tmp_path / "images" / "val", count=1)
    config = DataConfig(str(tmp_path / "images"), streaming=streaming)
    assert list_splits(config) == ["train", "validation"]
    train, evaluation = open_probe_images(config)
    assert sorted(read(train)[0]) == [0, 1, 2, 10, 11, 12]
    assert read(evaluation) == ([0, 10], [0, 1])
    assert train.class_names == evaluation.class_names == ["ant", "bee"]


@pytest.mark.parametrize("streaming", [False, True])
def test_flat_image_folder_has_no_labels_and_survives_broken_files(tmp_path, streaming):
    folder = write_odd_folder(tmp_path / "images", plain=2)
    (folder / "notes.txt").write_text("not an image, and not named as one")
    source = open_images(DataConfig(str(folder), streaming=streaming))
    assert source.label_column is None and source.class_names is None
    (batch,) = iterate_once(source, image_size=8, batch_size=20)
    assert batch.labels is None and len(batch.images) == 9 + 2


@pytest.mark.parametrize("streaming", [False, True])
def test_hold_out_where_there_is_one_split(tmp_path, streaming):
    config = DataConfig(str(write_parquet(tmp_path / "rows", [12, 13])), streaming=streaming, num_workers=0)
    train, evaluation = open_probe_images(config)
    held = [9, 20] if streaming else [9, 19]  # of each shard of a stream, the second of which begins one row earlier
    rest = [i for i in range(25) if i not in held]
    assert read(evaluation)[0] == held and read(train)[0] == rest
    assert ("(index + shard) % 10 == 9" if streaming else "index % 10 == 9") in evaluation.description
    assert read(open_images(config))[0] == list(range(25))
    # whichever way the rows are read, training never sees those that are held out
    sizes = {"image_size": 4, "num_channels": 3, "micro_batch_size": 1, "total_batch_size": 1}
    loader = ImageLoader(train, config, **sizes, rank=0, world_size=1, seed=0)
    assert sorted(numbers(next(loader).images)[0] for _ in rest) == rest
    assert set(read(fixed_subset(evaluation, 2, seed=1))[0]) == set(held)


@pytest.mark.parametrize("streaming", [False, True])
def test_linked_folders_and_names_of_any_kind_are_read(tmp_path, streaming):
    root = write_class_folders(tmp_path / "photos", ("ant", "__none__"))
    write_class_folders(tmp_path / "elsewhere", ("cat",), count=2)
    (tmp_path / "elsewhere" / "cat" / "back").symlink_to(root)
    (root / "bee").symlink_to(tmp_path / "elsewhere" / "cat")
    (root / "ant" / "loop").symlink_to(root)
    (root / "__MACOSX").mkdir()
    (root / "__MACOSX" / "._0.png").write_bytes(b"")
    source = open_images(DataConfig(str(root), streaming=streaming))
    assert source.class_names == ["__none__", "ant", "bee"]
    found, labels = read(source)
    assert sorted(zip(labels, found, strict=True)) == [
        (0, 10),
        (0, 11),
        (0, 12),
        *((1, i) for i in range(3)),
        (2, 0),
        (2, 1),
    ]
    rows = write_parquet(tmp_path / "rows [1]", [3]) / "data"
    assert read(open_images(DataConfig(str(tmp_path / "rows*" / "*" / "*"), streaming=streaming)))[0] == [0, 1, 2]
    (tmp_path / "link").symlink_to(rows)
    for dataset in (tmp_path / "link", rows, *rows.iterdir()):
        with pytest.raises(ValueError, match="for a pattern; rename the folder"):
            open_images(DataConfig(str(dataset), streaming=streaming))


def test_evaluation_split_by_name_and_by_default(tmp_path):
    folder = write_parquet(tmp_path / "rows", [12])
    write_parquet(folder, [3], split="test")
    write_parquet(folder, [4], split="validation")
    assert sorted(list_splits(DataConfig(str(folder)))) == ["test", "train", "validation"]
    assert open_probe_images(DataConfig(str(folder)))[1].num_examples == 3
    assert open_probe_images(DataConfig(str(folder), eval_split="validation"))[1].num_examples == 4
    for split, eval_split in (("train", "train"), ("train[:5]", "train"), ("train+test", "test[:1]")):
        with pytest.raises(ValueError, match="and scores on training rows show nothing"):
            open_probe_images(DataConfig(str(folder), split=split, eval_split=eval_split))
    halves = open_probe_images(DataConfig(str(folder), split="train[:5]", eval_split="train[5:]"))
    assert [read(half)[0] for half in halves] == [list(range(5)), list(range(5, 12))]
    assert open_probe_images(DataConfig(str(folder), split="train+test"))[1].split == "validation"
    assert read(open_images(DataConfig(str(folder)), "train[:5]"))[0] == list(range(5))


@pytest.mark.parametrize("streaming", [False, True])
def test_wrong_split_lists_the_splits(tmp_path, streaming):
    folder = write_parquet(tmp_path / "rows", [2])
    with pytest.raises(ValueError, match=r"split='evaluation' .*; the splits are train"):
        open_images(DataConfig(str(folder), streaming=streaming), "evaluation")
    with pytest.raises(ValueError, match="the splits are train, test"):
        open_images(DataConfig("digits", streaming=streaming), "validation")


def test_wrong_column_lists_the_columns(tmp_path):
    folder = write_parquet(tmp_path / "rows", [2])
    with pytest.raises(ValueError, match=r"image_column='photo'.*image \(.*label \(int64\)"):
        open_images(DataConfig(str(folder), image_column="photo"))


def test_what_is_not_there_is_a_clear_error(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.csv").write_text("x\n1\n")
    for dataset, message in (
        (tmp_path / "missing", "does not exist; give digits"),
        (tmp_path / "empty", "holds no image"),
        (tmp_path / "*.parquet", "matches no file"),
        (tmp_path / "*.csv", "files of .csv"),
        ("someone/unreachable", "cannot be opened"),
    ):
        with pytest.raises(ValueError, match=message):
            open_images(DataConfig(str(dataset)))


@pytest.mark.parametrize("streaming", [False, True])
def test_bytes_without_an_image_type(tmp_path, streaming):
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"jpg": pa.array([numbered_image(i) for i in range(5)], pa.binary()), "name": ["a"] * 5})
    pq.write_table(table, tmp_path / "rows.parquet")
    source = open_images(DataConfig(str(tmp_path / "rows.parquet"), streaming=streaming))
    assert (source.image_column, source.label_column) == ("jpg", None)
    assert read(source) == (list(range(5)), None)


def test_streamed_digits_are_the_digits():
    stored = open_images(DataConfig("digits"), "test")
    streamed = open_images(DataConfig("digits", streaming=True), "test")
    for first, second in zip(
        iterate_once(stored, image_size=16, batch_size=100),
        iterate_once(streamed, image_size=16, batch_size=100),
        strict=True,
    ):
        assert (first.images == second.images).all() and (first.labels == second.labels).all()


# The Hub's address is read when its client is imported, so this needs a process of its own.
READ_FROM_HUB = """
import json, sys
from huggingface_hub import HfApi
from ldae.data import DataConfig, ImageLoader, iterate_once, list_splits, open_images
from tests.data.image_files import numbers
HfApi().create_repo("tester/numbers", repo_type="dataset")
HfApi().upload_folder(repo_id="tester/numbers", repo_type="dataset", folder_path=sys.argv[1])
found = {"splits": list_splits(DataConfig("tester/numbers"))}
for streaming in (False, True):
    config = DataConfig("tester/numbers", streaming=streaming, num_workers=0)
    source = open_images(config)
    batches = list(iterate_once(source, image_size=4, batch_size=8))
    sizes = dict(image_size=4, num_channels=3, micro_batch_size=15, total_batch_size=15)
    loader = ImageLoader(source, config, **sizes, rank=0, world_size=1, seed=0)
    found[f"streaming={streaming}"] = [number for batch in batches for number in numbers(batch.images)]
    found[f"shuffled, streaming={streaming}"] = sorted(numbers(next(loader).images))
for dataset, split in (("tester/missing", "train"), ("tester/numbers", "test")):
    try:
        open_images(DataConfig(dataset), split)
    except ValueError as error:
        found[dataset] = str(error)
print(json.dumps(found))
"""


def test_hub_id(tmp_path):
    folder = write_parquet(tmp_path / "rows", [9, 6])
    with TestHub() as hub:
        environment = {**os.environ, **hub.environment(tmp_path / "hf_home"), "PYTHONPATH": os.pathsep.join(sys.path)}
        environment.pop("HF_HUB_OFFLINE", None)
        done = subprocess.run(
            [sys.executable, "-c", READ_FROM_HUB, str(folder)], env=environment, capture_output=True, text=True
        )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert "tester/missing" in found.pop("tester/missing")
    assert "the splits are train" in found.pop("tester/numbers")
    assert found.pop("splits") == ["train"]
    assert len(found) == 4 and all(rows == list(range(15)) for rows in found.values())
