"""The survey of a data set: counts, sizes, kinds, labels, exact duplicates and unreadable files."""

import time

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image

from ldae.data import DataConfig, open_images, survey_images
from ldae.data.batch import Decoder
from ldae.data.survey import time_reading
from tests.data.image_files import encode, random_pixels, write_odd_folder, write_parquet


def survey(folder, **options):
    return survey_images(open_images(DataConfig(str(folder))), **options)


def test_odd_files_are_counted_by_kind_and_the_unreadable_ones_named(tmp_path):
    found = survey(write_odd_folder(tmp_path / "odd", plain=4))
    assert found.num_images == found.num_examined == 16
    assert dict(found.unreadable) == {
        "odd/truncated.jpg": "truncated or damaged",
        "odd/empty.png": "empty file",
        "odd/text.png": "not an image",
    }
    lines = "\n".join(found.lines())
    for text in (
        "Images: 16\n",
        "1 CMYK (8 bits)",
        "1 grey (16 bits)",
        "2 palette (8 bits)",
        "Labels: none",
        "3, which",
    ):
        assert text in lines
    assert {(fact.width, fact.height) for fact in found.facts} >= {(24, 20), (20, 24), (1, 40)}  # one lies on its side


def test_labels_duplicates_and_grey_pixels_in_three_channels_are_seen(tmp_path):
    for name, count in (("cats", 5), ("dogs", 3)):
        (tmp_path / name).mkdir()
        for number in range(count):
            grey = random_pixels(20, 30, 1, seed=number + 10 * count)
            content = encode(Image.fromarray(np.repeat(grey, 3, axis=2)), "JPEG")
            (tmp_path / name / f"{number}.jpg").write_bytes(content)
    (tmp_path / "dogs" / "again.jpg").write_bytes((tmp_path / "cats" / "0.jpg").read_bytes())
    found = survey(tmp_path)
    assert found.classes == {"cats": 5, "dogs": 4}
    assert [sorted(group) for group in found.duplicates] == [["cats/0.jpg", "dogs/again.jpg"]]
    assert not found.has_colour and found.shorter_side == 20
    lines = found.lines()
    assert lines[1] == "Sizes: all 30 x 20" and lines[2] == "Kinds: 9 RGB (8 bits); none shows colour"
    assert lines[3] == "Labels: 2 classes (cats, dogs), from 4 (dogs) to 5 (cats) images"
    assert lines[4].startswith("Duplicates: 1 exact copy of other files (cats/0.jpg = dogs/again.jpg")


def test_large_data_sets_are_examined_in_part_and_rows_without_a_path_are_numbered(tmp_path):
    folder = write_parquet(tmp_path, [60, 60], broken=(0,))
    found = survey(folder, examine=12)
    assert found.num_images == 120 and found.num_examined == 12
    assert found.unreadable == [("row 0", "not an image")]
    assert found.lines()[0].startswith("Images: 120, of which 12 were examined")


def test_reading_is_timed_at_the_size_of_the_model(tmp_path, monkeypatch):
    folder = write_parquet(tmp_path, [20], broken=(0,))
    asked = []
    monkeypatch.setattr(Decoder, "__call__", lambda self, record, counts: asked.append(self.size) or time.sleep(0.001))
    assert time_reading(open_images(DataConfig(str(folder))), 8, count=10) > 0.001
    assert asked == [8] * 10


def test_a_folder_without_a_readable_image_is_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"none of 1 images can be read .*a\.png: not an image"):
        survey(tmp_path)


def test_rows_without_a_label_belong_to_no_class(tmp_path):
    rows = [{"bytes": encode(Image.fromarray(random_pixels(8, 8, seed=i))), "path": None} for i in range(6)]
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["ant", "bee"])})
    for name, labels, said in (
        ("some", [1, 0, 0, -1, -1, -1], "2 classes (ant, bee), from 1 (bee) to 2 (ant) images"),
        ("none", [None] * 6, "none ("),
    ):
        path = tmp_path / f"{name}.parquet"
        Dataset.from_dict({"image": rows, "label": labels}, features=features).to_parquet(path)
        assert f"Labels: {said}" in "\n".join(survey(path).lines())
