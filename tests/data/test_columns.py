import pytest
from datasets import ClassLabel, Features, Image, List, Value

from ldae.data.columns import find_image_column, find_label_column


def test_image_column_by_type():
    assert find_image_column(Features({"a": Value("binary"), "photo": Image(), "b": Value("int64")})) == "photo"
    assert find_image_column(Features({"raw": Value("binary"), "b": Value("int64")})) == "raw"
    struct = {"bytes": Value("binary"), "path": Value("string")}
    assert find_image_column(Features({"packed": struct, "b": Value("int64")})) == "packed"
    assert find_image_column(Features({"x": Image(), "y": Image()}), "y") == "y"


@pytest.mark.parametrize(
    ("features", "name", "message"),
    [
        ({"x": Image(), "y": Image()}, None, r"several .* \(x, y\)"),
        ({"x": Value("string"), "y": List(Image())}, None, "no column holds images"),
        ({"x": Image(), "y": Value("string")}, "z", "image_column='z': no such column"),
        ({"x": Image(), "y": Value("string")}, "y", "image_column='y' holds no images"),
    ],
)
def test_image_column_errors_list_the_columns(features, name, message):
    with pytest.raises(ValueError, match=message) as error:
        find_image_column(Features(features), name)
    assert "the columns are: x (" in str(error.value)


def test_label_column_by_type():
    assert find_label_column(Features({"image": Image(), "animal": ClassLabel(names=["a", "b"])})) == "animal"
    assert find_label_column(Features({"image": Image(), "id": Value("int64"), "cls": Value("int32")})) == "cls"
    fine = {"coarse_label": ClassLabel(names=["a"]), "fine_label": ClassLabel(names=["a", "b"])}
    assert find_label_column(Features(fine)) == "fine_label"
    assert find_label_column(Features({"image": Image(), "id": Value("int64"), "label": Value("string")})) is None


def test_label_column_errors_list_the_columns():
    two = Features({"colour": ClassLabel(names=["a"]), "shape": ClassLabel(names=["b"]), "text": Value("string")})
    assert find_label_column(two, "shape") == "shape"
    for name, message in ((None, r"\(colour, shape\)"), ("text", "class_encode_column"), ("size", "no such column")):
        with pytest.raises(ValueError, match=message) as error:
            find_label_column(two, name)
        assert "the columns are: colour" in str(error.value)
