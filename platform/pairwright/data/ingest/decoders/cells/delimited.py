"""Decoder for CSV and TSV: yields rows as chunks of JSON text; the header names the fields, a row is a record.

It uses the standard library's reader, which alone goes on after a bad row and knows which one it was; pyarrow's is
five times as fast, but guesses types (``007`` becomes 7). A cell is text: the layout of the record decides whether it
is read as JSON. An empty cell is no field. Quoted cells may hold line ends, so a row has a number of its own.
"""

import csv
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import IO, Any, cast

from pairwright.data.ingest.decoders import chunks
from pairwright.data.ingest.decoders.arrow_rows import encode_records
from pairwright.data.ingest.decoders.cells.delimiters import BY_NAME, NAMES, recognised_delimiter
from pairwright.data.ingest.decoders.cells.text_encodings import as_utf8, encoding_of
from pairwright.data.ingest.decoders.chunks import KEPT_BYTES, Chunk, too_long
from pairwright.data.ingest.decoders.json_records import checked_start
from pairwright.data.ingest.sources.source import SourceRef
from pairwright.data.ingest.sources.source_bytes import READ_BYTES, BlockFile, text_blocks
from pairwright.errors import SourceError, one_line
from pairwright.terminal import counted

_DELIMITERS = {"csv": ",", "tsv": "\t"}
_INDEX = "Unnamed: 0"
MAX_ROW_LINES = 200_000
"""Lines of one row: a quoted cell may have several."""
_ROW_BYTES = 100
"""What a row costs beside its text."""


def delimited_chunks(source: SourceRef) -> Iterator[Chunk]:
    """Yield the rows after the header, in chunks of about 2 MB and in order; a bad row comes alone, with its reason.

    Raises:
        SourceError: if the source cannot be read to its end, has no header, or has a quote that does not end.
    """
    delimiter, blocks = _opened(source)
    binary = io.BufferedReader(BlockFile(blocks), READ_BYTES)
    text = io.TextIOWrapper(cast("IO[bytes]", binary), encoding="utf-8", errors="surrogateescape", newline="")
    rows = _Rows(source, text, delimiter)
    header = checked_header(source, rows.header())
    records: list[dict[str, Any]] = []
    first, num_characters = 1, 0
    header_characters = sum(map(len, header)) + _ROW_BYTES  # each record repeats the names
    for number, (cells, problem) in enumerate(rows, start=1):
        is_alone = bool(problem := problem or shape_problem(header, cells)) or not cells
        if is_alone or num_characters > READ_BYTES:
            if records:
                yield Chunk(first, encode_records(records))
            records, first, num_characters = [], number, 0
        if is_alone:
            yield Chunk(number, rows.text.encode("utf-8", "surrogateescape") if problem else b"\n", problem=problem)
            first = number + 1
            continue
        records.append({name: cell for name, cell in zip(header, cells, strict=False) if cell})
        num_characters += len(rows.text) + header_characters
    if records:
        yield Chunk(first, encode_records(records))


def delimiter_note(source: SourceRef) -> str | None:
    """Return what a reader should know of a file that is not as its name says; None where it is.

    Raises:
        SourceError: if the source cannot be read.
    """
    delimiter, _ = _opened(source)
    if delimiter == _DELIMITERS[source.file_format] or source.cells.delimiter is not None:
        return None
    return f"its cells are separated by {NAMES[delimiter]}s; cells.delimiter says another"


def _opened(source: SourceRef) -> tuple[str, Iterator[bytes]]:
    """Return the delimiter of a source, and its text in UTF-8."""
    blocks = text_blocks(source)
    first = next(blocks, b"")
    blocks = chain([first], blocks)
    if (encoding := encoding_of(source, first)) is not None:
        blocks = as_utf8(source, blocks, encoding)
    head, blocks = checked_start(source, blocks)
    default = _DELIMITERS[source.file_format]
    if source.cells.delimiter is not None:
        return BY_NAME[source.cells.delimiter], blocks
    return recognised_delimiter(head[: chunks.KEPT_BYTES].decode("utf-8", "replace"), default), blocks


class _OverlongError(Exception):
    """A line is too long; its length."""


class _Rows:
    """Rows as (cells, why they are none), with the text of the last one."""

    def __init__(self, source: SourceRef, file: io.TextIOWrapper, delimiter: str) -> None:
        self._most = source.limits.max_record_bytes
        self._within = f" within {self._most:,} characters (limits.max_record_bytes) and {MAX_ROW_LINES:,} lines"
        csv.field_size_limit(self._most + 1)
        self._source = source
        self._file = file
        self._delimiter = delimiter
        self._lines: list[str] = []
        self._num_characters = 0
        self._number = -1
        self._reader = self._new_reader()

    @property
    def text(self) -> str:
        """The lines of the row that was read last, of one that is too long the beginning."""
        return "".join(self._lines).rstrip("\r\n")

    def _new_reader(self) -> Any:
        return csv.reader(self._kept_lines(), delimiter=self._delimiter, strict=True)

    def header(self) -> Sequence[str]:
        """Return the cells of the first row; none where there is none."""
        cells, problem = next(iter(self), ([], ""))
        if problem:
            raise SourceError(f"{self._source.uri}: the header cannot be read: {problem}")
        return cells

    def __iter__(self) -> Iterator[tuple[Sequence[str], str]]:
        while True:
            self._number += 1
            self._lines = []
            self._num_characters = 0
            try:
                cells = next(self._reader)
            except StopIteration:
                return
            except _OverlongError as length:
                self._reader = self._new_reader()
                yield [], too_long(int(str(length)), self._most)
            except csv.Error as error:
                if "end of data" in str(error) or "field limit" in str(error):
                    raise self._not_closed("" if "end of data" in str(error) else self._within) from None
                yield [], one_line(f"expected a row of cells, got {error}")
            else:
                yield cells, ""

    def _kept_lines(self) -> Iterator[str]:
        readline, most = self._file.readline, self._most
        while line := readline(most + 1):
            lines = self._lines
            if lines or len(line) > most:
                self._check_row(line)
            lines.append(line)
            yield line

    def _check_row(self, line: str) -> None:
        """Refuse a line that is too long, or one with which its row is."""
        if len(line) > self._most:
            self._pass_over(line, is_first=not self._lines)
        self._num_characters += len(line)
        if self._num_characters > self._most or len(self._lines) >= MAX_ROW_LINES:
            raise self._not_closed(self._within)

    def _pass_over(self, line: str, *, is_first: bool) -> None:
        """Read to the end of a line that is too long; a quote in it may have opened what other lines go on with."""
        self._lines.append(line[:KEPT_BYTES])
        num_characters, num_quotes = len(line), line.count('"')
        while not line.endswith(("\r", "\n")) and (line := self._file.readline(READ_BYTES)):
            num_characters += len(line)
            num_quotes += line.count('"')
        if num_quotes % 2 or not is_first:
            raise self._not_closed(self._within)
        raise _OverlongError(num_characters)

    def _not_closed(self, within: str) -> SourceError:
        return SourceError(
            f"{self._source.uri}: a quote that opens in row {self._number} does not close{within}; "
            'write a quote within a cell as ""'
        )


def checked_header(source: SourceRef, header: Sequence[str]) -> list[str]:
    """Return the names of the columns.

    Raises:
        SourceError: if they are none, too many, or not one each.
    """
    names = [name.strip() for name in header]
    if len(names) > 1 and not names[0] and _INDEX not in names:
        names[0] = _INDEX  # pandas writes its index so, and calls it so when it reads it
    if not names and source.size == 0:
        return names
    if len(names) > source.limits.max_columns:
        raise SourceError(
            f"{source.uri}: has {counted(len(names), 'column')}, expected at most {source.limits.max_columns:,}; "
            "leave out what is not needed, or set limits.max_columns"
        )
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if not all(names) or twice or not names:
        found = f"`{one_line(twice[0])}` twice" if twice else "a column without a name"
        raise SourceError(f"{source.uri}: expected a first row that names each column once, got {found}")
    return names


def shape_problem(header: Sequence[str], cells: Sequence[str]) -> str:
    """Return why a row is none of the table that a header begins; empty where it is one."""
    # A blank line has no cells: it comes as a blank line, to be counted as one.
    if not cells or len(cells) == len(header):
        return ""
    return f"expected one cell a column, got {len(cells)} for {counted(len(header), 'column')}"
