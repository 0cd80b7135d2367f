"""Arrays to and from the arrow columns that LeRobot writes."""

import json
from collections.abc import Mapping

import numpy as np

from vla_jax.data.formats.lerobot_extra import pa
from vla_jax.data.formats.specs import FeatureSpec


def flat_numbers(array: pa.ChunkedArray | pa.Array, shape: tuple[int, ...]) -> np.ndarray:
    """A column of numbers or (nested) lists of them as `[rows, *shape]`, by flattening. Raises ValueError."""
    rows = len(array)
    array = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
    array = array.storage if isinstance(array, pa.ExtensionArray) else array  # 2-D and larger tensors of `datasets`
    while pa.types.is_list(array.type) or pa.types.is_large_list(array.type) or pa.types.is_fixed_size_list(array.type):
        if array.null_count:
            raise ValueError("a row is null")
        lengths = _list_lengths(array)
        if lengths.size and (lengths != lengths[0]).any():
            raise ValueError(f"lists of {lengths.min()} to {lengths.max()} values in one column")
        array = array.flatten()
    if array.null_count:
        raise ValueError("a value is null")
    values = array.to_numpy(zero_copy_only=False)
    if values.dtype.kind not in "iufb" or values.size != rows * int(np.prod(shape)):
        raise ValueError(f"{values.size} values of {values.dtype} where {rows} rows of {list(shape)} are expected")
    return values.reshape(rows, *shape)


def _list_lengths(array: pa.Array) -> np.ndarray:
    if pa.types.is_fixed_size_list(array.type):
        return np.full(len(array), array.type.list_size)
    return np.diff(array.offsets.to_numpy())


def column(values: np.ndarray) -> pa.Array:
    """Numbers as LeRobot keeps them: one per step plain, vectors as lists of fixed size, matrices as nested lists."""
    array = pa.array(values.reshape(-1))
    if values.ndim == 1 or values.shape[1:] == (1,):
        return array
    if values.ndim == 2:
        return pa.FixedSizeListArray.from_arrays(array, values.shape[1])
    for size in reversed(values.shape[1:]):
        array = pa.ListArray.from_arrays(np.arange(0, len(array) + 1, size, dtype=np.int32), array)
    return array


def episode_type(spec: FeatureSpec) -> pa.DataType:
    if spec.kind == "text":
        return pa.string()
    kind = pa.from_numpy_dtype(spec.stored_dtype)
    for size in reversed(spec.shape):
        kind = pa.list_(kind, size)
    return kind


def task_table(tasks: Mapping[str, int]) -> pa.Table:
    """Texts and numbers; LeRobot reads it with pandas and looks texts up by the index of the frame."""
    table = pa.table({"task_index": pa.array(tasks.values(), pa.int64()), "task": pa.array(tasks, pa.string())})
    kinds = {"task_index": ("int64", "int64"), "task": ("unicode", "object")}
    pandas = {
        "index_columns": ["task"],
        "column_indexes": [],
        "columns": [
            {"name": name, "field_name": name, "pandas_type": a, "numpy_type": b, "metadata": None}
            for name, (a, b) in kinds.items()
        ],
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.2.0",
    }
    return table.replace_schema_metadata({"pandas": json.dumps(pandas)})
