"""Decoder for Excel workbooks: yields the rows of one sheet as chunks of JSON text, as those of a CSV file.

openpyxl streams a sheet row by row. Everything else of a workbook (names, styles, shared texts) it holds as a whole, so
the sizes that the archive declares are checked before; zipfile unpacks no part beyond its declared size. A cell is
text, as in CSV: a formula is the value that was saved with it, a date ISO 8601.
"""

import datetime
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import IO, TYPE_CHECKING, Any, cast

from pairwright.data.ingest.decoders.arrow_rows import encode_records
from pairwright.data.ingest.decoders.cells.delimited import checked_header, shape_problem
from pairwright.data.ingest.decoders.chunks import KEPT_BYTES, Chunk, too_long
from pairwright.data.ingest.sources.source import SourceRef
from pairwright.data.ingest.sources.source_bytes import READ_BYTES, check_ratio, open_file
from pairwright.errors import SourceError, one_line
from pairwright.terminal import counted

if TYPE_CHECKING:
    from openpyxl.workbook import Workbook

MAX_ROWS = 1_048_576
"""Rows of a sheet, as Excel has them: a row number beyond it would give as many blank rows."""
MAX_PART_BYTES = 8 * 1024 * 1024
"""Largest part of a workbook beside sheets and texts: openpyxl holds it as a tree, some 20 times as large."""
_ROWS_AT_ONCE = 256
_OLD_EXCEL = b"\xd0\xcf\x11\xe0"
_NAMES_SHOWN = 8


def sheet_chunks(source: SourceRef) -> Iterator[Chunk]:
    """Yield the rows after the header, in chunks of about 2 MB and in order; a bad row comes alone, with its reason.

    Raises:
        SourceError: if the source is no workbook, has no such sheet or no header, or is larger than its limits.
    """
    rows = _rows(source, _workbook(source))
    header = checked_header(source, _without_blank_end([text for text, _ in next(rows, [])]))
    lines: list[bytes] = []
    first, num_bytes = 1, 0
    for number, cells in enumerate(rows, start=1):
        texts = _without_blank_end([text for text, _ in cells], len(header))
        problem = _problem(source, header, cells, texts)
        if (problem or num_bytes > READ_BYTES) and lines:
            yield Chunk(first, b"".join(lines))
            lines, first, num_bytes = [], number, 0
        if problem:
            yield Chunk(number, "\t".join(texts).encode("utf-8", "replace")[:KEPT_BYTES], problem=problem)
            first = number + 1
            continue
        record = {name: text for name, text in zip(header, texts, strict=False) if text}
        lines.append(encode_records([record]) if record else b"\n")
        num_bytes += len(lines[-1])
    if lines:
        yield Chunk(first, b"".join(lines))


def sheet_note(source: SourceRef) -> str | None:
    """Return which sheets of a workbook are not read; None where there is one, or one was named.

    Raises:
        SourceError: if the source is no workbook.
    """
    first, *others = _workbook(source).sheetnames or [""]
    if not others or source.cells.sheet is not None:
        return None
    more = f" and {len(others) - _NAMES_SHOWN} more" if len(others) > _NAMES_SHOWN else ""
    listed = ", ".join(f"`{name[:100]}`" for name in others[:_NAMES_SHOWN])
    return f"its first sheet `{first[:100]}` alone, not {listed}{more}; cells.sheet names another one"


def _problem(source: SourceRef, header: Sequence[str], cells: Sequence[tuple[str, bool]], texts: Sequence[str]) -> str:
    """Return why a row is no record; empty where it is one, or blank."""
    num_bytes = sum(map(len, texts))
    if num_bytes > source.limits.max_record_bytes:
        return too_long(num_bytes, source.limits.max_record_bytes)
    wrong = next((index for index, (_, is_error) in enumerate(cells) if is_error), None)
    if wrong is not None:
        name = header[wrong] if wrong < len(header) else f"column {wrong + 1}"
        return one_line(f"expected a value in each cell, got the error {cells[wrong][0]} at `{name[:100]}`")
    return shape_problem(header, texts) if any(texts) else ""


def _without_blank_end(texts: list[str], least: int = 0) -> list[str]:
    """Return cells without blank ones at the end, which formats of whole rows leave; blank ones up to ``least``."""
    while len(texts) > least and not texts[-1].strip():
        texts.pop()
    return texts + [""] * (least - len(texts))


# ------------------------------------------------------------------------------------------------ openpyxl


def _workbook(source: SourceRef) -> "Workbook":
    """Return the workbook, its sheets not read yet, once its parts are known to have sizes that can be read."""
    file = open_file(source)
    start = bytes(file.read(4))
    if start == _OLD_EXCEL:
        raise SourceError(
            f"{source.uri}: is an old Excel file or has a password; save it without one as .xlsx, or as CSV in UTF-8"
        )
    file.seek(0)
    try:
        with zipfile.ZipFile(cast("IO[bytes]", file)) as archive:
            parts = archive.infolist()
        _check_sizes(source, parts)
        with warnings.catch_warnings(action="ignore"):
            from openpyxl import load_workbook

            file.seek(0)
            return load_workbook(cast("IO[bytes]", file), read_only=True, data_only=True, keep_links=False)
    except SourceError:
        raise
    except Exception as error:  # whatever the parsers of a zip archive and of XML meet in what may be anything
        raise SourceError(_unreadable(source, error)) from None


def _check_sizes(source: SourceRef, parts: Sequence[zipfile.ZipInfo]) -> None:
    check_ratio(source, sum(part.file_size for part in parts), source.size, "XML")
    for part in parts:
        is_streamed = "/worksheets/" in part.filename or part.filename.endswith("sharedStrings.xml")
        is_read = part.filename.endswith((".xml", ".rels")) and not is_streamed
        if is_read and part.file_size > MAX_PART_BYTES:
            raise SourceError(
                f"{source.uri}: its part {one_line(part.filename[:100])} has {part.file_size:,} bytes, expected at "
                f"most {MAX_PART_BYTES:,}; save it as CSV in UTF-8"
            )


def _rows(source: SourceRef, workbook: "Workbook") -> Iterator[list[tuple[str, bool]]]:
    """Yield the cells of each row of the sheet as text, and whether they are errors such as #REF!."""
    sheet = _sheet(source, workbook)
    sheet.reset_dimensions()  # what a file says of its size may be wrong, or meant to cost memory
    rows = sheet.iter_rows()
    number = 0
    while True:
        try:
            with warnings.catch_warnings(action="ignore"):
                some = list(islice(rows, _ROWS_AT_ONCE))
        except SourceError:
            raise
        except Exception as error:
            raise SourceError(_unreadable(source, error)) from None
        if not some:
            return
        number += len(some)
        if number > MAX_ROWS + _ROWS_AT_ONCE:
            raise SourceError(
                f"{source.uri}: has a row beyond {MAX_ROWS:,}, which no sheet has; save it as CSV in UTF-8"
            )
        for row in some:
            if len(row) > source.limits.max_columns and any(cell.value is not None for cell in row[-1:]):
                raise SourceError(
                    f"{source.uri}: has {counted(len(row), 'column')}, expected at most "
                    f"{source.limits.max_columns:,}; leave out what is not needed, or set limits.max_columns"
                )
            yield [(_text(cell.value), cell.data_type == "e") for cell in row]


def _sheet(source: SourceRef, workbook: "Workbook") -> Any:
    name = source.cells.sheet
    sheets = {sheet.title: sheet for sheet in workbook.worksheets}
    if not sheets:
        raise SourceError(f"{source.uri}: has no sheet with cells")
    if name is None:
        return next(iter(sheets.values()))
    if name not in sheets:
        known = ", ".join(f"`{one[:100]}`" for one in list(sheets)[:_NAMES_SHOWN])
        raise SourceError(f"{source.uri}: has no sheet `{name[:100]}`, expected one of {known}; set cells.sheet")
    return sheets[name]


def _text(value: Any) -> str:
    """Return a cell as text, as a CSV file would hold it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    return str(value)


def _unreadable(source: SourceRef, error: Exception) -> str:
    return one_line(
        f"{source.uri}: not a whole .xlsx workbook: {type(error).__name__}: {error}; copy it again, or save it as CSV "
        "in UTF-8"
    )
