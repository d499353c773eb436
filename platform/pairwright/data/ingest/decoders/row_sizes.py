"""Estimates how many bytes of JSON each row of an Arrow array becomes, before anything is decoded.

Types that refer to a value more than once (dictionaries, run-end encoding, views) hold rows of any size in a few
bytes, so that the memory of an array says nothing about its text.
"""

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

VALUE_BYTES = 24
"""Of a number, a time or a truth value, with its punctuation."""

Int64s = NDArray[np.int64]


def row_bytes(array: pa.Array) -> Int64s:
    """Return the size of each row's value, int64, shape (rows,); what is null counts as if it were there.

    Raises:
        pa.ArrowNotImplementedError: if the type is one that no record has.
    """
    kind = array.type
    if isinstance(array, pa.ExtensionArray):
        return row_bytes(array.storage)
    if isinstance(array, pa.DictionaryArray):
        return _taken(row_bytes(array.dictionary), array.indices.fill_null(0).to_numpy(zero_copy_only=False))
    if isinstance(array, pa.RunEndEncodedArray):
        rows = np.arange(array.offset, array.offset + len(array))
        ends = array.run_ends.to_numpy(zero_copy_only=False)
        return _taken(row_bytes(array.values), np.searchsorted(ends, rows, side="right"))
    if isinstance(array, pa.StructArray):
        names = sum(len(field.name) + 4 for field in kind)
        parts = (row_bytes(array.field(index)) for index in range(kind.num_fields))
        return sum(parts, np.full(len(array), names, np.int64))
    if isinstance(array, pa.MapArray | pa.ListArray | pa.LargeListArray):
        offsets = array.offsets.to_numpy(zero_copy_only=False)
        return _summed(_items_of(array), offsets[:-1], offsets[1:])
    if pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind):
        views: Any = array
        starts = views.offsets.to_numpy(zero_copy_only=False).astype(np.int64)
        return _summed(row_bytes(views.values), starts, starts + views.sizes.to_numpy(zero_copy_only=False))
    if isinstance(array, pa.FixedSizeListArray):
        starts = (np.arange(len(array), dtype=np.int64) + array.offset) * kind.list_size
        return _summed(row_bytes(array.values), starts, starts + kind.list_size)
    return _plain(array)


def _items_of(array: Any) -> Int64s:
    if isinstance(array, pa.MapArray):
        return row_bytes(array.keys) + row_bytes(array.items)
    return row_bytes(array.values)


def _plain(array: pa.Array) -> Int64s:
    kind = array.type
    if pa.types.is_union(kind) or pa.types.is_interval(kind):
        raise pa.ArrowNotImplementedError(f"a column of type {str(kind)[:60]}, which no record has")
    if pa.types.is_string_view(kind) or pa.types.is_binary_view(kind):
        return _view_lengths(array) + VALUE_BYTES
    if pa.types.is_fixed_size_binary(kind) and not pa.types.is_decimal(kind):
        return np.full(len(array), kind.byte_width + VALUE_BYTES, np.int64)
    if _is_text(kind):
        width = np.int64 if kind in (pa.large_string(), pa.large_binary()) else np.int32
        buffer = array.buffers()[1]
        if buffer is None or not len(array):
            return np.full(len(array), VALUE_BYTES, np.int64)
        offsets = np.frombuffer(buffer, width, len(array) + 1, array.offset * np.dtype(width).itemsize)
        return np.diff(offsets).astype(np.int64) + VALUE_BYTES
    return np.full(len(array), VALUE_BYTES, np.int64)


def _is_text(kind: pa.DataType) -> bool:
    return kind in (pa.string(), pa.large_string(), pa.binary(), pa.large_binary())


def _view_lengths(array: pa.Array) -> Int64s:
    """Return the lengths in an array of views: the first four of each sixteen bytes."""
    buffer = array.buffers()[1]
    if buffer is None:
        return np.zeros(len(array), np.int64)
    words = np.frombuffer(buffer, np.int32, 4 * (array.offset + len(array)))
    return words[4 * array.offset :: 4].astype(np.int64)


def _taken(sizes: Int64s, indices: Any) -> Int64s:
    return sizes[indices] if len(sizes) else np.zeros(len(indices), np.int64)


def _summed(sizes: Int64s, starts: Any, ends: Any) -> Int64s:
    """Return the sum of sizes in each slice, and a little for its brackets."""
    before = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
    return np.maximum(before[ends] - before[starts], 0) + 2
