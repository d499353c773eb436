"""Parquet and Arrow IPC -> chunks of rows as JSON text, so that a table's rows pass the rules that lines pass.

A range owns the row groups (Parquet) or record batches (Arrow file) that start in it, as a range of JSON Lines owns
lines; where a group starts is reckoned from its number, which needs no look at the file. An Arrow stream belongs to the
first range as a whole. Columns are read through a buffer, so that a row group of any size costs a few MB.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq

from pairwright.data.blocks import READ_BYTES, open_file
from pairwright.data.layouts.chunks import Chunk
from pairwright.data.layouts.rows import encode_rows
from pairwright.data.sources import SourceRef
from pairwright.errors import SourceError

MAX_ROWS = 4096
COLUMN_BUFFER_BYTES = 2 * 1024 * 1024
"""What is read of a column at a time, so that a row group need not fit into memory; remote, that is one request."""
_ARROW_MAGIC = b"ARROW1"


def table_chunks(source: SourceRef, start: int, end: int, rows_before: int) -> Iterator[Chunk]:
    """Yield the rows of a range, in chunks of about 2 MB and in order.

    Raises:
        SourceError: if the source cannot be read, or is no such table.
    """
    row = rows_before + 1
    for batch in _batches(source, start, end):
        for first in range(0, batch.num_rows, step := _rows_at_once(batch)):
            piece = batch.slice(first, step)
            try:
                text = encode_rows(piece)
            except SourceError as error:
                raise SourceError(f"{source.uri}: {error}") from None
            yield Chunk(row, text)
            row += piece.num_rows


def count_rows(source: SourceRef, start: int, end: int) -> int:
    """Return how many rows a range owns.

    Raises:
        SourceError: if the source cannot be read, or is no such table.
    """
    if source.layout == "parquet":
        with _reading(source, "Parquet"), open_file(source) as file:
            metadata = pq.ParquetFile(file).metadata
            groups = _owned(metadata.num_row_groups, source, start, end)
            return sum(metadata.row_group(group).num_rows for group in groups)
    return sum(batch.num_rows for batch in _arrow_batches(source, start, end))


def _batches(source: SourceRef, start: int, end: int) -> Iterator[pa.RecordBatch]:
    return (_parquet_batches if source.layout == "parquet" else _arrow_batches)(source, start, end)


def _parquet_batches(source: SourceRef, start: int, end: int) -> Iterator[pa.RecordBatch]:
    with _reading(source, "Parquet"), open_file(source) as file:
        parquet = pq.ParquetFile(file, buffer_size=COLUMN_BUFFER_BYTES, pre_buffer=False)
        for group in _owned(parquet.metadata.num_row_groups, source, start, end):
            described = parquet.metadata.row_group(group)
            row_bytes = max(1, described.total_byte_size // max(1, described.num_rows))
            rows = max(1, min(MAX_ROWS, READ_BYTES // row_bytes))
            yield from parquet.iter_batches(batch_size=rows, row_groups=[group], use_threads=False)


def _arrow_batches(source: SourceRef, start: int, end: int) -> Iterator[pa.RecordBatch]:
    with _reading(source, "Arrow"), open_file(source) as file:
        magic = file.read(len(_ARROW_MAGIC))
        file.seek(0)
        if magic == _ARROW_MAGIC:
            reader = pa.ipc.open_file(file)
            for number in _owned(reader.num_record_batches, source, start, end):
                yield _checked(reader.get_batch(number))
        elif start == 0:
            yield from map(_checked, pa.ipc.open_stream(file))


def _checked(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return a batch whose every offset lies within it: reading past one of a damaged file ends the process.

    Text is checked as bytes, since a row whose text is not UTF-8 is refused by itself.

    Raises:
        pa.ArrowInvalid: if one does not.
    """
    batch.validate()
    for column in batch.columns:
        column.view(_without_text(column.type)).validate(full=True)
    return batch


def _without_text(kind: pa.DataType) -> pa.DataType:
    """Return a type with bytes for the text in it, which are laid out alike."""
    match kind:
        case pa.StructType():
            return pa.struct([field.with_type(_without_text(field.type)) for field in kind])
        case pa.ListType():
            return pa.list_(kind.value_field.with_type(_without_text(kind.value_type)))
        case pa.LargeListType():
            return pa.large_list(kind.value_field.with_type(_without_text(kind.value_type)))
        case _ if pa.types.is_string(kind):
            return pa.binary()
        case _ if pa.types.is_large_string(kind):
            return pa.large_binary()
    return kind


def _owned(num_groups: int, source: SourceRef, start: int, end: int) -> list[int]:
    """Return the numbers of the row groups or batches that start in [start, end), taking them as equally long."""
    return [group for group in range(num_groups) if start <= group * source.size // num_groups < end]


def _rows_at_once(batch: pa.RecordBatch) -> int:
    row_bytes = max(1, batch.nbytes // max(1, batch.num_rows))
    return max(1, min(MAX_ROWS, READ_BYTES // row_bytes))


@contextmanager
def _reading(source: SourceRef, kind: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, EOFError) as error:
        what = "".join(c if c.isprintable() else "?" for c in str(error).partition("\n")[0].rstrip("."))
        raise SourceError(
            f"{source.uri}: not a whole {kind} file: {what}; copy it again, or name it as what it is"
        ) from None
