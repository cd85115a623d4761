import pytest

from ldae.data import DataConfig


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dataset", ""),
        ("split", None),
        ("streaming", "perhaps"),
        ("shuffle_window", 0),
        ("num_workers", -1),
        ("num_workers", 1.5),
        ("decode_size", 0),
        ("crop_scale", (0.5, 0.2)),
        ("crop_scale", (0, 1)),
        ("crop_scale", 0.5),
        ("horizontal_flip", 1),
    ],
)
def test_error_names_the_field_and_the_value(field, value):
    with pytest.raises(ValueError, match=rf"^{field}="):
        DataConfig(**{"dataset": "digits", field: value})


def test_misspelt_field_is_refused():
    with pytest.raises(TypeError, match="num_worker"):
        DataConfig("digits", num_worker=2)
