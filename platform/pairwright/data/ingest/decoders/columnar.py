"""Decoder for Parquet and Arrow IPC: yields rows as chunks of JSON text, so that tables pass the rules that lines pass.

An input split owns the row groups (Parquet) or record batches (Arrow file) that start in it, as a split of JSON Lines
owns lines; where a group starts is computed from its number, without reading the file. An Arrow stream belongs to the
first split as a whole. Columns are read through a buffer, so that a row group of any size costs a few MB, and the
decompressed size of a page or a batch is checked before it is decompressed.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pairwright.data.ingest.decoders.arrow_rows import encode_rows
from pairwright.data.ingest.decoders.chunks import KEPT_BYTES, Chunk, too_long
from pairwright.data.ingest.decoders.ipc_messages import MAGIC, MessageSize, file_messages, stream_messages
from pairwright.data.ingest.decoders.parquet_pages import CheckedPages, RepeatedValuesError, UnwatchedError
from pairwright.data.ingest.decoders.row_sizes import Int64s, row_bytes
from pairwright.data.ingest.sources.source import SourceRef
from pairwright.data.ingest.sources.source_bytes import FREE_TEXT_BYTES, READ_BYTES, check_ratio, open_file
from pairwright.errors import SourceError, one_line
from pairwright.terminal import counted

MAX_ROWS = 4096
COLUMN_BUFFER_BYTES = 2 * 1024 * 1024
"""What is read of a column at a time, so that a row group need not fit into memory; remote, that is one request."""
MAX_FOOTER_ITEMS = 100_000
"""Row groups, columns or other items of a list in a Parquet footer, for each of which memory is made at once."""
_DAMAGE = (
    pa.ArrowException, ArithmeticError, EOFError, LookupError, MemoryError, NotImplementedError, OSError,
    RuntimeError, SystemError, TypeError, ValueError,
)  # fmt: skip
"""What pyarrow raises on damaged bytes: among others UnicodeDecodeError for a column's name."""


def table_chunks(source: SourceRef, start: int, end: int, rows_before: int) -> Iterator[Chunk]:
    """Yield the rows of a split, in chunks of about 2 MB and in order; a row that is too long comes alone.

    Raises:
        SourceError: if the source cannot be read, is no such table, or takes more than its limits.
    """
    row = rows_before + 1
    with _reading(source):
        for batch in _batches(source, start, end):
            yield from _chunks_of(batch, row, source.limits.max_record_bytes)
            row += batch.num_rows


def count_rows(source: SourceRef, start: int, end: int) -> int:
    """Return how many rows a split owns.

    Raises:
        SourceError: if the source cannot be read, or is no such table.
    """
    with _reading(source), open_file(source) as file:
        if source.file_format == "parquet":
            metadata = _opened(file, None, []).metadata
            groups = _owned(metadata.num_row_groups, source, start, end)
            return sum(metadata.row_group(group).num_rows for group in groups)
        if not _is_ipc_file(file):
            return sum(message.num_rows for message in stream_messages(file, source.size) if not message.is_dictionary)
        batches = [message for message in file_messages(file, source.size) if not message.is_dictionary]
        return sum(batches[number].num_rows for number in _owned(len(batches), source, start, end))


def _batches(source: SourceRef, start: int, end: int) -> Iterator[pa.RecordBatch]:
    return (_parquet_batches if source.file_format == "parquet" else _arrow_batches)(source, start, end)


def _chunks_of(batch: pa.RecordBatch, row: int, max_record_bytes: int) -> Iterator[Chunk]:
    """Yield the rows of a batch, whose first one has the number ``row``."""
    columns = [
        row_bytes(column) + len(name) + 4 for name, column in zip(batch.schema.names, batch.columns, strict=True)
    ]
    size_of: Int64s = sum(columns, np.ones(batch.num_rows, np.int64))
    ends = np.cumsum(size_of)
    overlong = np.flatnonzero(size_of > max_record_bytes)
    first = 0
    while first < batch.num_rows:
        if size_of[first] > max_record_bytes:
            short = [index for index, column in enumerate(columns) if column[first] <= KEPT_BYTES]
            text = encode_rows(batch.slice(first, 1).select(short))
            yield Chunk(row + first, text, problem=too_long(int(size_of[first]), max_record_bytes))
            first += 1
            continue
        full = int(np.searchsorted(ends, ends[first] - size_of[first] + READ_BYTES)) + 1
        following = overlong[np.searchsorted(overlong, first) :][:1].tolist()
        last = max(first + 1, min([batch.num_rows, first + MAX_ROWS, full, *following]))
        yield Chunk(row + first, encode_rows(batch.slice(first, last - first)))
        first = last


# ------------------------------------------------------------------------------------------------- Parquet


def _parquet_batches(source: SourceRef, start: int, end: int) -> Iterator[pa.RecordBatch]:
    with open_file(source) as file:
        metadata = _opened(file, None, []).metadata
        _check_columns(source, metadata.num_columns)
        pages = CheckedPages(file, source)
        for group in _owned(metadata.num_row_groups, source, start, end):
            described = metadata.row_group(group)
            check_ratio(source, described.total_byte_size, source.size, "Parquet pages")
            _check_footer(pages, metadata, group)
            num_done, dictionaries = 0, list[str]()
            while True:
                pages.watch(metadata, group, dictionaries)
                try:
                    for batch in _group_batches(pages, metadata, group, dictionaries, num_done):
                        yield batch
                        num_done += batch.num_rows
                    break
                except RepeatedValuesError as column:
                    dictionaries.append(str(column))
            pages.finish()
            if num_done != described.num_rows:  # by which the rows of other splits are numbered
                raise pa.ArrowInvalid(
                    f"row group {group} has {counted(num_done, 'row')}, its footer says {described.num_rows:,}"
                )


def _check_footer(pages: CheckedPages, metadata: pq.FileMetaData, group: int) -> None:
    """Refuse a row group whose columns are damaged in the footer: asking pyarrow for one of them would end the process.

    Opening its columns raises an error instead (pyarrow 26.0.1), before the first page is read.
    """
    pages.stop()
    with suppress(UnwatchedError):
        next(_group_batches(pages, metadata, group, [], 0), None)


def _opened(file: pa.NativeFile, metadata: pq.FileMetaData | None, dictionaries: list[str]) -> pq.ParquetFile:
    return pq.ParquetFile(
        file,
        metadata=metadata,
        read_dictionary=dictionaries,
        buffer_size=COLUMN_BUFFER_BYTES,
        pre_buffer=False,
        thrift_container_size_limit=MAX_FOOTER_ITEMS,
    )


def _group_batches(
    pages: CheckedPages, metadata: pq.FileMetaData, group: int, dictionaries: list[str], num_done: int
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a row group after the first ``num_done``."""
    described = metadata.row_group(group)
    size = max(1, described.total_byte_size // max(1, described.num_rows))
    file = pa.PythonFile(cast("IO[bytes]", pages), mode="r")
    parquet = _opened(file, metadata, dictionaries)
    position = 0
    for batch in parquet.iter_batches(max(1, min(MAX_ROWS, READ_BYTES // size)), row_groups=[group], use_threads=False):
        position += batch.num_rows
        if position > num_done:
            yield batch.slice(max(0, num_done - position + batch.num_rows))


# --------------------------------------------------------------------------------------------------- Arrow


def _arrow_batches(source: SourceRef, start: int, end: int) -> Iterator[pa.RecordBatch]:
    with open_file(source) as file:
        if _is_ipc_file(file):
            _check_messages(source, file_messages(file, source.size))
            reader = pa.ipc.open_file(file)
            _check_columns(source, _num_leaves(reader.schema))
            for number in _owned(reader.num_record_batches, source, start, end):
                yield _checked(reader.get_batch(number))
        elif start == 0:
            _check_messages(source, stream_messages(file, source.size))
            file.seek(0)
            stream = pa.ipc.open_stream(file)
            _check_columns(source, _num_leaves(stream.schema))
            yield from map(_checked, stream)


def _is_ipc_file(file: pa.NativeFile) -> bool:
    magic = file.read(len(MAGIC))
    file.seek(0)
    if magic.startswith(b"FEA1"):
        raise pa.ArrowInvalid("Feather version 1, which is older than Arrow's format; write it as version 2")
    return magic == MAGIC


def _check_messages(source: SourceRef, messages: Iterator[MessageSize]) -> None:
    """Refuse batches that unpack to more than fits into memory; dictionaries stay, so that they add up."""
    most = source.limits.max_batch_bytes
    dictionaries = total = 0
    for message in messages:
        total += message.unpacked_bytes
        check_ratio(source, total, source.size, "record batches")
        at_once = dictionaries + message.unpacked_bytes
        if at_once > most and message.unpacked_bytes > FREE_TEXT_BYTES:
            raise SourceError(
                f"{source.uri}: a record batch unpacks to {at_once:,} bytes, expected at most {most:,}; write it in "
                "smaller batches, or set limits.max_batch_bytes"
            )
        dictionaries += message.unpacked_bytes if message.is_dictionary else 0


def _num_leaves(schema: pa.Schema) -> int:
    def leaves(kind: pa.DataType) -> int:
        return sum(leaves(kind.field(index).type) for index in range(kind.num_fields)) or 1

    return sum(leaves(field.type) for field in schema)


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
    """Return a type with bytes for the text in it, which have the same layout."""
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


# ---------------------------------------------------------------------------------------------------- both


def _check_columns(source: SourceRef, num_columns: int) -> None:
    if num_columns > source.limits.max_columns:
        raise SourceError(
            f"{source.uri}: has {counted(num_columns, 'column')}, expected at most {source.limits.max_columns:,}; "
            "leave out what is not needed, or set limits.max_columns"
        )


def _owned(num_groups: int, source: SourceRef, start: int, end: int) -> list[int]:
    """Return the numbers of the row groups or batches that start in [start, end), taking them as equally long."""
    return [group for group in range(num_groups) if start <= group * source.size // num_groups < end]


@contextmanager
def _reading(source: SourceRef) -> Iterator[None]:
    kind = "Parquet" if source.file_format == "parquet" else "Arrow"
    try:
        yield
    except SourceError as error:  # some are about a column, and know no source
        raise SourceError(str(error) if str(error).startswith(source.uri) else f"{source.uri}: {error}") from None
    except _DAMAGE as error:
        what = one_line(str(error).partition("\n")[0].rstrip(".") or type(error).__name__)
        raise SourceError(
            f"{source.uri}: not a whole {kind} file: {what}; copy it again, or name it as what it is"
        ) from None
