"""Arrow tables -> the bytes of immutable files, and bytes -> whether they are what was written.

256 rows a batch and no trace of how the table was chunked, so that equal rows are equal bytes. The hash over the whole
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
    whole = table.select(schema.names).cast(schema).combine_chunks()
    options = pa.ipc.IpcWriteOptions(compression="zstd" if compress else None)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema, options=options) as writer:
        writer.write_table(whole, max_chunksize=ROWS_PER_BATCH)
    return sink.getvalue()


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
