"""A Parquet file that checks each page's header as pyarrow reads it, and fails before a page that unpacks to too much.

What a row group takes is not in the footer: pyarrow decompresses a page as a whole, whatever the footer said of its
size, and a text that a dictionary holds once becomes as many texts as there are rows that use it. Page headers are
Thrift's compact protocol (parquet-format's parquet.thrift), of which only the needed fields are read.
"""

import io
import struct
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pairwright.data.ingest.decoders.parquet_text_sizes import num_text_bytes
from pairwright.data.ingest.decoders.thrift import DAMAGED, Cursor
from pairwright.data.ingest.sources.source import SourceRef
from pairwright.data.ingest.sources.source_bytes import check_ratio
from pairwright.errors import SourceError

DENSE_BYTES = 64 * 1024 * 1024
"""How much text the values of dictionaries may make in a row group before they are read as dictionaries."""
VALUE_BYTES = 8
MAX_HEADER_BYTES = 16 * 1024 * 1024
_HEADER_BYTES = 4096
_WALKED_BYTES = 4 * 1024 * 1024
"""A larger dictionary is not searched: its longest value may be all of it."""
_DICTIONARY_PAGE = 2
_DICTIONARY_ENCODINGS = (2, 8)
_DELTA_BYTE_ARRAY = 7


class UnwatchedError(Exception):
    """A page was asked for before anything is known of it."""


class RepeatedValuesError(Exception):
    """The values of a column are named so often that it has to be read as a dictionary; its path."""


@dataclass(slots=True)
class _Column:
    """One column of a row group, and how far its pages are known."""

    path: str
    next_page: int
    end: int
    stored_bytes: int
    num_values_left: int
    footer_bytes: int
    """Bytes of its pages, unpacked, as the footer says."""
    codec: str
    width: int
    """Bytes of a value of fixed length."""
    is_text: bool
    is_dictionary: bool
    """Whether it is read as a dictionary."""
    num_values: int = 0
    unpacked_bytes: int = 0
    largest_page: int = 0
    longest_value: int = 0
    """Of its dictionary."""
    dense_bytes: int = 0
    """What the values that its dictionary holds come to."""
    has_levels: tuple[bool, bool] = (False, False)
    """Whether its pages hold repetition levels, and definition levels."""


@dataclass(frozen=True, slots=True)
class _Page:
    header_bytes: int
    kind: int
    unpacked_bytes: int
    stored_bytes: int
    num_values: int
    encoding: int
    level_bytes: int | None
    """Of a page of version 2, where the levels are not compressed; None of one of version 1."""
    is_compressed: bool


class CheckedPages(io.RawIOBase):
    """The stored bytes of a Parquet file; reading them raises ``SourceError`` where a page is out of proportion."""

    def __init__(self, file: pa.NativeFile, source: SourceRef) -> None:
        self._file = file
        self._source = source
        self._columns: list[_Column] = []
        self._unpacked_before = 0
        self._delta_bytes = 0

    def stop(self) -> None:
        """Let nothing be read until a row group is watched."""
        self._columns = []

    def watch(self, metadata: pq.FileMetaData, group: int, dictionaries: list[str]) -> None:
        """Look at the pages of a row group from here on.

        Args:
            metadata: the footer.
            group: number of the row group.
            dictionaries: paths of the columns that are read as dictionaries.
        """
        described = metadata.row_group(group)
        self._columns = [
            _column(described.column(index), metadata.schema.column(index), dictionaries)
            for index in range(described.num_columns)
        ]

    def finish(self) -> None:
        """Count what was unpacked of a row group that was read to its end."""
        self._unpacked_before += sum(column.unpacked_bytes for column in self._columns)
        self.stop()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def read(self, size: int = -1, /) -> bytes:
        if not self._columns:
            raise UnwatchedError
        position = self._file.tell()
        block = self._file.read(size)
        end = position + len(block)
        for column in self._columns:
            if position < column.end and end > column.next_page:
                self._look(column, position, block)
                self._file.seek(end)
        return block

    def _look(self, column: _Column, position: int, block: bytes) -> None:
        """Look at the headers of a column's pages up to the end of a block."""
        end = min(position + len(block), column.end)
        while column.next_page < end and column.num_values_left > 0:
            page = self._page(column.next_page, position, block)
            payload = column.next_page + page.header_bytes
            if page.unpacked_bytes < 0 or page.stored_bytes < 0 or page.num_values < 0:
                raise pa.ArrowInvalid(DAMAGED)
            column.unpacked_bytes += page.unpacked_bytes
            column.largest_page = max(column.largest_page, page.unpacked_bytes)
            self._check_sizes(column)
            if page.kind == _DICTIONARY_PAGE:
                if column.is_text and not column.is_dictionary:
                    self._file.seek(payload)
                    column.longest_value = _longest(self._file.read(page.stored_bytes), page, column.codec)
            else:
                column.num_values += page.num_values
                column.num_values_left -= page.num_values
                self._check_values(column, page)
                if page.encoding == _DELTA_BYTE_ARRAY:
                    self._file.seek(payload)
                    text_bytes = _delta_bytes(self._file.read(page.stored_bytes), page, column)
                    column.largest_page = max(column.largest_page, text_bytes)
                    self._delta_bytes += text_bytes
                    self._check_sizes(column)
            column.next_page = payload + page.stored_bytes

    def _check_sizes(self, column: _Column) -> None:
        if column.unpacked_bytes > 2 * column.footer_bytes + DENSE_BYTES // 64:
            raise pa.ArrowInvalid(f"the pages of column {column.path} hold more than the footer says")
        unpacked = self._unpacked_before + sum(column.unpacked_bytes for column in self._columns)
        check_ratio(self._source, unpacked + self._delta_bytes, self._source.size, "Parquet pages")
        at_once = 2 * sum(column.largest_page for column in self._columns)
        if at_once > (most := self._source.limits.max_batch_bytes):
            raise SourceError(
                f"{self._source.uri}: its pages need {at_once:,} bytes at a time, expected at most {most:,}; write it "
                "with smaller pages, or set limits.max_batch_bytes"
            )

    def _check_values(self, column: _Column, page: _Page) -> None:
        limits = self._source.limits
        value_bytes = column.num_values * max(VALUE_BYTES, column.width)
        stored = column.stored_bytes
        if value_bytes > limits.max_batch_bytes and value_bytes > limits.max_text_ratio * stored:
            raise SourceError(
                f"{self._source.uri}: column {column.path} names {column.num_values:,} values in {stored:,} bytes, "
                "more than fit into memory; write it with smaller row groups, or set limits.max_batch_bytes"
            )
        if page.encoding in _DICTIONARY_ENCODINGS and not column.is_dictionary:
            column.dense_bytes += page.num_values * column.longest_value
            if sum(column.dense_bytes for column in self._columns) > DENSE_BYTES:
                raise RepeatedValuesError(max(self._columns, key=lambda column: column.dense_bytes).path)

    def _page(self, header: int, position: int, block: bytes) -> _Page:
        """Return the header of a page, out of a block at a position where it lies in there as a whole."""
        if header >= position:
            try:
                return _parsed(block[header - position : header - position + _HEADER_BYTES])
            except IndexError:
                pass
        size = _HEADER_BYTES
        while True:
            self._file.seek(header)
            try:
                return _parsed(self._file.read(size))
            except IndexError:
                if size > MAX_HEADER_BYTES:
                    raise pa.ArrowInvalid(DAMAGED) from None
            size *= 16


def _column(chunk: pq.ColumnChunkMetaData, described: pq.ColumnSchema, dictionaries: list[str]) -> _Column:
    start = chunk.data_page_offset
    if chunk.has_dictionary_page and 0 < (chunk.dictionary_page_offset or 0) < start:
        start = chunk.dictionary_page_offset
    return _Column(
        path=chunk.path_in_schema,
        next_page=start,
        end=start + chunk.total_compressed_size,
        stored_bytes=chunk.total_compressed_size,
        num_values_left=chunk.num_values,
        footer_bytes=chunk.total_uncompressed_size,
        codec=chunk.compression,
        width=described.length if described.physical_type == "FIXED_LEN_BYTE_ARRAY" else 0,
        is_text=described.physical_type == "BYTE_ARRAY",
        is_dictionary=chunk.path_in_schema in dictionaries,
        has_levels=(described.max_repetition_level > 0, described.max_definition_level > 0),
    )


def _longest(payload: bytes, page: _Page, codec: str) -> int:
    """Return the length of a dictionary's longest text; that of all of it, where it cannot be searched."""
    if page.unpacked_bytes > _WALKED_BYTES:
        return page.unpacked_bytes
    try:
        values = payload if codec == "UNCOMPRESSED" else _unpacked(payload, page, codec)
    except (pa.ArrowException, OSError, ValueError):
        return page.unpacked_bytes
    position = longest = 0
    for _ in range(page.num_values):
        if position + 4 > len(values):
            return page.unpacked_bytes
        (length,) = struct.unpack_from("<I", values, position)
        longest = max(longest, length)
        position += 4 + length
    return longest


def _unpacked(payload: bytes, page: _Page, codec: str) -> bytes:
    return pa.Codec(codec.lower()).decompress(payload, page.unpacked_bytes, asbytes=True)


def _delta_bytes(payload: bytes, page: _Page, column: _Column) -> int:
    """Return how much text a page of DELTA_BYTE_ARRAY holds."""
    if page.level_bytes is not None:
        values = payload[page.level_bytes :]
        size = page.unpacked_bytes - page.level_bytes
        if column.codec != "UNCOMPRESSED" and page.is_compressed and size > 0:
            values = pa.Codec(column.codec.lower()).decompress(values, size, asbytes=True)
    else:
        values = payload if column.codec == "UNCOMPRESSED" else _unpacked(payload, page, column.codec)
        for has_level in column.has_levels:
            if has_level:
                values = values[4 + int.from_bytes(values[:4], "little") :]
    return num_text_bytes(values)


def _parsed(text: bytes) -> _Page:
    """Return a page's header.

    Raises:
        IndexError: if the text ends within it.
    """
    cursor = Cursor(text)
    fields = cursor.fields(1)
    data, dictionary, data_v2 = (_struct(fields, number) for number in (5, 7, 8))
    head = data or dictionary or data_v2
    encoding = _number(head, 4 if head is data_v2 else 2)
    kind, unpacked, stored = (_number(fields, number) for number in (1, 2, 3))
    is_compressed = head is not data_v2 or bool(data_v2.get(7, 1))
    level_bytes = _number(data_v2, 5) + _number(data_v2, 6) if head is data_v2 and data_v2 else None
    return _Page(cursor.position, kind, unpacked, stored, _number(head, 1), encoding, level_bytes, is_compressed)


def _struct(fields: dict[int, Any], number: int) -> dict[int, Any]:
    value = fields.get(number)
    return value if isinstance(value, dict) else {}


def _number(fields: dict[int, Any], number: int) -> int:
    value = fields.get(number)
    return value if isinstance(value, int) else 0
