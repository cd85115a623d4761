"""Find the columns of a data set that hold images and labels, by their type or by name."""

from collections.abc import Sequence

from datasets import ClassLabel, Features, Image, Value


# If the type does not decide, the first of these names that exists.
LABEL_NAMES = ("label", "labels", "fine_label", "cls", "class", "target")


def find_image_column(features: Features, name: str | None = None) -> str:
    """Find the column of the images: the named one, or of type `datasets.Image`, or of bytes or `{"bytes", "path"}`.

    Raises:
        ValueError: If there is no such column, or several; the message lists the columns.
    """
    encoded = [column for column, feature in features.items() if _is_bytes(feature)]
    images = [column for column, feature in features.items() if isinstance(feature, Image)] or encoded
    if name is not None:
        if name not in features:
            raise ValueError(f"data.image_column={name!r}: no such column; {_listed(features)}")
        if not isinstance(features[name], Image) and name not in encoded:
            raise ValueError(f"data.image_column={name!r} holds no images; {_listed(features)}")
        return name
    if len(images) != 1:
        found = f"several columns may hold the images ({', '.join(images)})" if images else "no column holds images"
        raise ValueError(f"{found}; name one with data.image_column; {_listed(features)}")
    return images[0]


def find_label_column(features: Features, name: str | None = None) -> str | None:
    """Find the column of the labels: the named one, or of type `datasets.ClassLabel`, or integers of a usual name.

    Returns:
        `str` or `None`: The column's name; `None` if there are no labels.

    Raises:
        ValueError: If `name` is no column of integers or classes, or several columns qualify.
    """
    if name is not None:
        if name not in features:
            raise ValueError(f"data.label_column={name!r}: no such column; {_listed(features)}")
        if not isinstance(features[name], ClassLabel) and not _is_integer(features[name]):
            raise ValueError(
                f"data.label_column={name!r} is {features[name]}; labels must be classes or integers "
                f"(`Dataset.class_encode_column` makes classes of text); {_listed(features)}"
            )
        return name
    classes = [column for column, feature in features.items() if isinstance(feature, ClassLabel)]
    if len(classes) == 1:
        return classes[0]
    for usual in LABEL_NAMES:
        if usual in classes or (not classes and usual in features and _is_integer(features[usual])):
            return usual
    if classes:
        raise ValueError(
            f"several columns may hold the labels ({', '.join(classes)}); name one with data.label_column; "
            f"{_listed(features)}"
        )
    return None


def find_other_columns(features: Features, taken: Sequence[str], names: Sequence[str] | None) -> tuple[str, ...]:
    """Find columns beside those of images and labels, `taken`: by name, or all of one number, text or class a row.

    Raises:
        ValueError: If one does not exist.
    """
    if names is None:
        kept = [column for column, feature in features.items() if _is_scalar(feature)]
    else:
        missing = [name for name in names if name not in features]
        if missing:
            raise ValueError(f"columns={missing[0]!r}: no such column; {_listed(features)}")
        kept = list(dict.fromkeys(names))
    return tuple(column for column in kept if column not in taken)


def _is_scalar(feature: object) -> bool:
    return isinstance(feature, ClassLabel) or (isinstance(feature, Value) and not _is_bytes(feature))


def _is_integer(feature: object) -> bool:
    return isinstance(feature, Value) and feature.dtype.startswith(("int", "uint", "bool"))


def _is_bytes(feature: object) -> bool:
    if isinstance(feature, dict):
        return "bytes" in feature and _is_bytes(feature["bytes"])
    return isinstance(feature, Value) and feature.dtype in ("binary", "large_binary")


def _listed(features: Features) -> str:
    columns = ", ".join(f"{column} ({_type_name(feature)})" for column, feature in features.items())
    return f"the columns are: {columns}"


def _type_name(feature: object) -> str:
    return feature.dtype if isinstance(feature, Value) else type(feature).__name__
