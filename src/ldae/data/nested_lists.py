"""Tensors as Arrow columns of nested lists of fixed length."""

from typing import Any

import numpy as np
import pyarrow as pa
from datasets import List, Value


def nested_feature(shape: tuple[int, ...], dtype: str) -> Any:
    """Return the type that `datasets` has for a column of tensors of one shape."""
    feature: Any = Value(dtype)
    for length in reversed(shape):
        feature = List(feature, length=length)
    return feature


def nested_column(values: np.ndarray, missing: np.ndarray | None = None) -> pa.FixedSizeListArray:
    """Build a column from tensors without a copy.

    Args:
        values (`np.ndarray` of shape `(b, *shape)`): The tensors, a row each.
        missing (`np.ndarray` of shape `(b,)`, *optional*): `True` where a row has none.

    Returns:
        `pa.FixedSizeListArray` of b rows.
    """
    column = pa.array(values.reshape(-1))
    for length in values.shape[:1:-1]:
        column = pa.FixedSizeListArray.from_arrays(column, length)
    mask = None if missing is None else pa.array(missing)
    return pa.FixedSizeListArray.from_arrays(column, values.shape[1], mask=mask)


def nested_arrays(column: pa.ChunkedArray) -> list[np.ndarray | None]:
    """Read the rows of a column as arrays that share its memory; a missing row is `None`."""
    shape, kind = [], column.type
    while pa.types.is_fixed_size_list(kind):
        shape.append(kind.list_size)
        kind = kind.value_type
    arrays: list[np.ndarray | None] = []
    for chunk in column.chunks:
        for i in range(len(chunk)):
            values = chunk.slice(i, 1)
            if values.null_count:
                arrays.append(None)
                continue
            for _ in shape:
                values = values.flatten()
            arrays.append(values.to_numpy().reshape(shape))
    return arrays
