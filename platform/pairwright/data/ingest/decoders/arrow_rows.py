"""Encodes Arrow rows as JSON text, one line a row, nested columns kept.

A column that is null in a row is left out of its record, since a table cannot tell null from absent; so is a null
field of a struct. Built from whole columns: pyarrow's own ``to_pylist`` goes through one scalar at a time.
"""

import datetime
import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from pairwright.errors import SourceError

_MISSING: Any = None
_EXTENSION = b"ARROW:extension:name"


def encode_rows(rows: pa.RecordBatch) -> bytes:
    """Return the rows as lines of JSON, each ended by a newline.

    Times are ISO 8601, decimals numbers; bytes are text where they are UTF-8 and base64 where not; NaN is null. Text
    that is not UTF-8 keeps its bytes, for the parser to refuse the line.
    """
    names = rows.schema.names
    records = _records(names, [values_of(column) for column in rows.columns], rows.num_rows)
    try:
        return _ENCODER.encode_lines(records)
    except UnicodeEncodeError:
        return b"".join(map(_encode_any, records))


def encode_records(records: Sequence[dict[str, Any]]) -> bytes:
    """Return plain objects as lines of JSON; a surrogate escape in text becomes the byte that it stands for."""
    try:
        return _ENCODER.encode_lines(records)
    except UnicodeEncodeError:
        return b"".join(map(_encode_any, records))


def values_of(array: pa.Array) -> list[Any]:
    """Return a column's values as plain Python objects; a struct without its null fields.

    An extension type is taken as what it is stored as: Ray's for pickled objects unpickles whatever is asked for by
    value, so no array that has one within it may ever be asked so.

    Raises:
        SourceError: if a union, or runs of equal values, have an extension type within them.
    """
    kind = array.type
    if isinstance(array, pa.ExtensionArray):
        return values_of(array.storage)
    if (pa.types.is_union(kind) or pa.types.is_run_end_encoded(kind)) and _holds_extension(kind):
        raise SourceError(f"a column is {str(kind)[:200]}, and no extension type is read out of such; store it as text")
    if pa.types.is_dictionary(kind):
        return values_of(array.dictionary_decode())
    if pa.types.is_struct(kind):
        assert isinstance(array, pa.StructArray)
        fields = [values_of(part) for part in array.flatten()]
        return _with_nulls(array, _records([field.name for field in kind], fields, len(array)))
    if pa.types.is_map(kind):
        assert isinstance(array, pa.MapArray)
        first = array.offsets[0].as_py() if len(array) else 0
        last = array.offsets[-1].as_py() if len(array) else 0
        keys, items = array.keys[first:last], array.items[first:last]
        return _with_nulls(array, _cut(list(zip(values_of(keys), values_of(items), strict=True)), array, dict))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        assert isinstance(array, pa.ListArray | pa.LargeListArray)
        return _with_nulls(array, _cut(values_of(array.values[_first(array) : _last(array)]), array, list))
    if pa.types.is_fixed_size_list(kind):
        return values_of(array.cast(pa.large_list(kind.value_type)))
    if pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind):
        return _with_nulls(array, _viewed(array))
    return _plain(array)


def _holds_extension(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.BaseExtensionType):
        return True
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return _holds_extension(kind.value_type)
    # A type that this process does not know is said in the metadata alone.
    fields = [kind.field(number) for number in range(kind.num_fields)]
    return any(_EXTENSION in (field.metadata or {}) or _holds_extension(field.type) for field in fields)


def _plain(array: pa.Array) -> list[Any]:
    kind = array.type
    if pa.types.is_timestamp(kind) and kind.unit == "ns":
        array = array.cast(pa.timestamp("us", kind.tz), safe=False)
    if pa.types.is_decimal(kind):
        return [
            None if value is None else int(value) if value == int(value) else float(value) for value in _list(array)
        ]
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return _text_if_utf8(array.to_pylist())
    return _list(array)


def _list(array: pa.Array) -> list[Any]:
    try:
        return array.to_pylist()
    except UnicodeDecodeError:
        values = array.cast(pa.large_binary()).to_pylist()
        return [None if value is None else value.decode("utf-8", "surrogateescape") for value in values]


def _text_if_utf8(values: list[bytes | None]) -> list[Any]:
    try:
        return [None if value is None else value.decode() for value in values]
    except UnicodeDecodeError:
        return values


def _records(names: Sequence[str], columns: Sequence[Sequence[Any]], num_rows: int) -> list[dict[str, Any]]:
    if not columns:
        return [{} for _ in range(num_rows)]
    rows = zip(*columns, strict=True)
    return [{name: value for name, value in zip(names, row, strict=True) if value is not _MISSING} for row in rows]


def _first(array: Any) -> int:
    return array.offsets[0].as_py() if len(array) else 0


def _last(array: Any) -> int:
    return array.offsets[-1].as_py() if len(array) else 0


def _cut(values: list[Any], array: Any, kind: type) -> list[Any]:
    """Return the slice of values that the lists of the array hold."""
    offsets = (array.offsets.to_numpy() - _first(array)).tolist() if len(array) else [0]
    return [kind(values[start:end]) for start, end in pairwise(offsets)]


def _viewed(array: Any) -> list[Any]:
    """Return the values that each view shows; a cast to a list loses them in silence (pyarrow 26.0.1)."""
    starts, sizes = (part.to_numpy(zero_copy_only=False).astype(np.int64) for part in (array.offsets, array.sizes))
    sizes = np.where(array.is_valid().to_numpy(zero_copy_only=False), sizes, 0)
    ends = np.cumsum(sizes)
    positions = np.arange(sizes.sum()) + np.repeat(starts - ends + sizes, sizes)
    values = values_of(array.values.take(pa.array(positions)))
    return [values[start:end] for start, end in pairwise([0, *ends.tolist()])]


def _with_nulls(array: pa.Array, values: list[Any]) -> list[Any]:
    if not array.null_count:
        return values
    return [value if valid else None for value, valid in zip(values, array.is_valid().to_pylist(), strict=True)]


def _other(value: Any) -> Any:
    """Return what JSON can say of a value that msgspec does not know."""
    if isinstance(value, datetime.datetime):
        return value.isoformat()
    return str(value)


def _encode_any(record: dict[str, Any]) -> bytes:
    """Return one line; text that is no Unicode comes out as the bytes that it was."""
    try:
        return _ENCODER.encode(record) + b"\n"
    except UnicodeEncodeError:
        plain = msgspec.to_builtins(record, enc_hook=_other)
        return json.dumps(plain, ensure_ascii=False).encode("utf-8", "surrogateescape") + b"\n"


_ENCODER = msgspec.json.Encoder(enc_hook=_other, decimal_format="number")
