"""Arrow tables -> the bytes of immutable files, and bytes -> whether they are what was written.

256 rows a batch and no trace of how the table was chunked, so that equal rows are equal bytes. A column that a later
version of the contract added is written where it holds a value: files without one are those of the version before, to
the last byte, and such files are read with nulls in its place. The hash over the whole
file means that a few columns cost a read of all of it, at 1 GB/s and more; in return no damaged byte is ever used.
"""

import hashlib

import pyarrow as pa

from pairwright.data.manifest import DataFile
from pairwright.errors import StoreError
from pairwright.records import ANNOTATIONS_SCHEMA, PAIRS_SCHEMA, TOKENS_SCHEMA

SCHEMAS = {"annotations": ANNOTATIONS_SCHEMA, "pairs": PAIRS_SCHEMA, "tokens": TOKENS_SCHEMA}
ROWS_PER_BATCH = 256
REPAIR = "restore it from a copy, or make the table again from its sources"


def ipc_bytes(table: pa.Table, schema: pa.Schema, *, compress: bool) -> pa.Buffer:
    """Return a table as an Arrow IPC file: equal rows, equal bytes, however the table was chunked."""
    whole = with_added_columns(table, schema).select(schema.names).cast(schema).combine_chunks()
    schema = pa.schema([field for field in schema if not _is_empty(whole, field)], schema.metadata)
    whole = whole.select(schema.names)
    options = pa.ipc.IpcWriteOptions(compression="zstd" if compress else None)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema, options=options) as writer:
        writer.write_table(whole, max_chunksize=ROWS_PER_BATCH)
    return sink.getvalue()


def with_added_columns(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return a table with nulls in each column that a later version of its contract added and that it has not got."""
    for field in added_columns(schema):
        if field.name not in table.schema.names:
            table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    return table


def added_columns(schema: pa.Schema) -> list[pa.Field]:
    """Return the columns that a later version of a contract added to the first one."""
    return [field for field in schema if b"since" in (field.metadata or {})]


def is_of_contract(found: pa.Schema, schema: pa.Schema) -> bool:
    """Return whether a file's columns are those of a contract, of this version or an earlier one."""
    optional = added_columns(schema)
    return found.equals(pa.schema([field for field in schema if field not in optional or field.name in found.names]))


def _is_empty(table: pa.Table, field: pa.Field) -> bool:
    return field in added_columns(table.schema) and table[field.name].null_count == table.num_rows


def check_types(found: pa.Schema, kind: str, where: str) -> None:
    """Check that each column is of the type that its kind of table says: others would run code when a value is read.

    Raises:
        StoreError: if one is not, or if there is no such column.
    """
    known = {field.name: field.type for field in SCHEMAS[kind]}
    for field in found:
        expected = known.get(field.name)
        if expected is None or not field.type.equals(expected):
            raise StoreError(
                f"{where}: column {field.name!r} is {field.type}, expected {expected or 'no such column'} in {kind}; "
                f"{REPAIR}"
            )


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
