"""Encodes Arrow tables as immutable files, and verifies files against their manifest.

256 rows a batch and no trace of how the table was chunked, so that equal rows are equal bytes. The hash over the whole
file means that reading a few columns costs a read of all of it, at 1 GB/s and more; in return no damaged byte is ever
used. A file whose rows use nothing that version 2 added is written in the first version of its contract, byte for byte
as before; whichever version a file has, its rows are read in the newest.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pairwright.data.table.manifest import DataFile
from pairwright.errors import StoreError
from pairwright.records import (
    ANNOTATIONS_SCHEMA,
    ANNOTATIONS_SCHEMA_V1,
    PAIRS_SCHEMA,
    PAIRS_SCHEMA_V1,
    TOKENS_SCHEMA,
    TOKENS_SCHEMA_V1,
)

SCHEMAS = {"annotations": ANNOTATIONS_SCHEMA, "pairs": PAIRS_SCHEMA, "tokens": TOKENS_SCHEMA}
"""The newest version of each kind of table: what its rows are in memory."""
EARLIER = {"annotations": ANNOTATIONS_SCHEMA_V1, "pairs": PAIRS_SCHEMA_V1, "tokens": TOKENS_SCHEMA_V1}
"""The first version of each, which files may have."""
ROWS_PER_BATCH = 256
REPAIR = "restore it from a copy, or make the table again from its sources"


def ipc_bytes(table: pa.Table, kind: str, *, compress: bool) -> pa.Buffer:
    """Return a table of a kind as an Arrow IPC file: equal rows, equal bytes, however the table was chunked."""
    newest = SCHEMAS[kind]
    whole = in_schema(table.select([name for name in newest.names if name in table.schema.names]), newest)
    schema = EARLIER[kind] if kind in EARLIER and is_without_extras(whole) else newest
    whole = in_schema(whole, schema).combine_chunks()
    options = pa.ipc.IpcWriteOptions(compression="zstd" if compress else None)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema, options=options) as writer:
        writer.write_table(whole, max_chunksize=ROWS_PER_BATCH)
    return sink.getvalue()


def in_schema(table: pa.Table, schema: pa.Schema, columns: Sequence[str] | None = None) -> pa.Table:
    """Return some columns of a table, all by default, as another version of its schema has them: nulls for new fields.

    Raises:
        KeyError: if a column is missing that is not new and may not be null.
    """
    names = schema.names if columns is None else list(columns)
    arrays = []
    for name in names:
        field = schema.field(name)
        if name not in table.schema.names and field.nullable:
            arrays.append(pa.chunked_array([pa.nulls(table.num_rows, field.type)]))
        else:
            arrays.append(_in_type(table.column(name), field.type))
    return pa.table(arrays, schema=pa.schema([schema.field(name) for name in names]))


def _in_type(column: pa.ChunkedArray, type_: pa.DataType) -> pa.ChunkedArray:
    """Return a column in another type; lists of structs by the names of their fields."""
    if column.type.equals(type_):
        return column
    if not (isinstance(type_, pa.ListType) and isinstance(type_.value_type, pa.StructType)):
        return column.cast(type_)
    return pa.chunked_array([_with_fields(chunk, type_) for chunk in column.chunks], type_)


def _with_fields(lists: pa.ListArray, type_: pa.ListType) -> pa.ListArray:
    items, fields = lists.values, list(type_.value_type)
    known = {field.name for field in items.type}
    arrays = [
        items.field(field.name).cast(field.type) if field.name in known else pa.nulls(len(items), field.type)
        for field in fields
    ]
    return pa.ListArray.from_arrays(lists.offsets, pa.StructArray.from_arrays(arrays, fields=fields), type=type_)


def is_without_extras(table: pa.Table) -> bool:
    """Return whether no turn, no completion and no row of a table has what the first version cannot hold."""
    lists = [name for name in ("prompt", "completions") if name in table.schema.names]
    items = [chunk.values for name in lists for chunk in table.column(name).chunks]
    added = [field.name for field in table.schema if b"since" in (field.metadata or {})]
    return all(table.column(name).null_count == table.num_rows for name in added) and all(
        array.field("extra").null_count == len(array) for array in items
    )


def check_types(found: pa.Schema, kind: str, where: str) -> None:
    """Check that each column is of a type that its kind of table says: others would run code when a value is read.

    Raises:
        StoreError: if one is not, or if there is no such column.
    """
    schemas = [SCHEMAS[kind], *([EARLIER[kind]] if kind in EARLIER else [])]
    for field in found:
        known = [schema.field(field.name).type for schema in schemas if field.name in schema.names]
        if not any(field.type.equals(type_) for type_ in known):
            expected = known[0] if known else "no such column"
            raise StoreError(f"{where}: column {field.name!r} is {field.type}, expected {expected} in {kind}; {REPAIR}")


def verify(buffer: pa.Buffer, file: DataFile, where: str) -> None:
    """Check a file's content against what its manifest says of it.

    Raises:
        StoreError: if size or SHA-256 differ.
    """
    if buffer.size != file.bytes:
        raise StoreError(f"{where}: damaged: {buffer.size} bytes, expected {file.bytes}; {REPAIR}")
    found = hashlib.sha256(memoryview(buffer)).hexdigest()
    if found != file.sha256:
        raise StoreError(f"{where}: damaged: sha256 {found[:12]}..., expected {file.sha256[:12]}...; {REPAIR}")


def one_array(column: pa.ChunkedArray) -> Any:
    """Return a column as one array, without a copy if it is one already."""
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks or [pa.array([], column.type)])


def list_lengths(lists: pa.ListArray) -> NDArray[np.int64]:
    """Return the length of each list."""
    return np.diff(lists.offsets.to_numpy()).astype(np.int64)
