"""Spreadsheets and CSV files as people save them: sheets, delimiters, encodings, and workbooks made to do harm."""

import csv
import datetime
import io
import json
import sqlite3
import sys
import tracemalloc
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openpyxl import Workbook
from typer.testing import CliRunner

from pairwright.cli.main import app
from pairwright.config import CellConfig, IngestConfig, SourceLimits
from pairwright.data.ingest.decoders.cells.delimiters import recognised_delimiter
from pairwright.data.ingest.ingest import ingest
from pairwright.data.ingest.sources.listing import list_sources
from pairwright.data.ingest.sources.splits import InputSplit, read_chunks
from pairwright.errors import SourceError

HEADER = ["prompt", "chosen", "rejected"]
ROWS = [["Name a lake.", "Lake Como.", "A puddle."], ["Name a sea.", "The Baltic.", "The Rhine."]]


def workbook(path: Path, sheets: dict[str, Sequence[Sequence[Any]]]) -> Path:
    made = Workbook()
    made.remove(made.worksheets[0])
    for name, rows in sheets.items():
        sheet = made.create_sheet(name)
        for row in rows:
            sheet.append(list(row))
    made.save(path)
    return path


def read(path: Path, limits: SourceLimits | None = None, **cells: Any) -> list[Any]:
    """Return the records of a file, and the reason in place of each that is none."""
    [source] = list_sources([str(path)], limits or SourceLimits(), CellConfig(**cells))
    found = []
    for chunk in read_chunks(InputSplit(source, 0, source.size, 0)):
        assert chunk.first_line == len(found) + 1
        lines = chunk.text.removesuffix(b"\n").split(b"\n")
        found += [chunk.problem] if chunk.problem else [json.loads(line) if line else None for line in lines]
    return found


# ------------------------------------------------------------------------------------------------ workbooks


def test_the_first_sheet_is_read_and_the_others_are_named(tmp_path: Path) -> None:
    path = workbook(tmp_path / "a.xlsx", {"Ratings": [HEADER, *ROWS], "Notes": [["x"]], "More": [HEADER, ROWS[0]]})
    summary = ingest([str(path)], str(tmp_path / "t"), IngestConfig())
    assert [(source.accepted, source.refused) for source in summary.sources] == [(2, 0)]
    assert "its first sheet `Ratings` alone, not `Notes`, `More`; cells.sheet names another one" in summary.text()
    assert read(path, sheet="More") == [dict(zip(HEADER, ROWS[0], strict=True))]
    with pytest.raises(SourceError, match="has no sheet `Other`, expected one of `Ratings`, `Notes`, `More`"):
        read(path, sheet="Other")


def test_cells_are_text_as_in_a_csv_file(tmp_path: Path) -> None:
    day = datetime.datetime(2026, 11, 29, 10, 30)  # noqa: DTZ001 - Excel has no time zones
    row = [7, 2.5, 3.0, True, day, None, '["a", "b"]', "  kept\nas it is "]
    path = workbook(tmp_path / "a.xlsx", {"S": [[f"c{k}" for k in range(8)], row, [], [None] * 9, [1, None, "#REF!"]]})
    first = {"c0": "7", "c1": "2.5", "c2": "3", "c3": "true", "c4": "2026-11-29T10:30:00", "c6": row[6], "c7": row[7]}
    assert read(path) == [first, None, None, "expected a value in each cell, got the error #REF! at `c2`"]


def test_a_row_with_a_cell_too_many_is_refused_alone(tmp_path: Path) -> None:
    path = workbook(tmp_path / "a.xlsx", {"S": [[*HEADER, None], ROWS[0], [*ROWS[1], None, "beside"], ROWS[1]]})
    assert [isinstance(one, str) for one in read(path)] == [False, True, False]


CELL = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=8) | st.integers(-(10**6), 10**6)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(CELL, min_size=3, max_size=3), min_size=1, max_size=6))
def test_a_workbook_gives_the_records_of_the_same_csv_file(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[Any]]
) -> None:
    folder = tmp_path_factory.mktemp("same")
    rows = [[None if cell == "" or str(cell).startswith("=") else cell for cell in row] for row in rows]
    path = workbook(folder / "a.xlsx", {"S": [HEADER, *rows]})
    with (folder / "a.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([HEADER, *rows])

    def without_blank(records: list[Any]) -> list[Any]:
        return [{k: v for k, v in one.items() if v.strip()} if isinstance(one, dict) else one for one in records]

    blank = [{} if one is None else one for one in without_blank(read(path))]
    assert blank == [{} if one is None else one for one in without_blank(read(folder / "a.csv", delimiter="comma"))]


def repacked(path: Path, changes: dict[str, bytes]) -> Path:
    """Write a workbook anew with other parts."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()} | changes
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return path


SHEET = "xl/worksheets/sheet1.xml"
NAMESPACE = b'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'


def sheet_of(rows: bytes, dimension: bytes = b"") -> bytes:
    return b"<worksheet " + NAMESPACE + b">" + dimension + b"<sheetData>" + rows + b"</sheetData></worksheet>"


ROW = b'<row r="%d"><c r="A%d" t="inlineStr"><is><t>x</t></is></c></row>'


@pytest.mark.parametrize(
    ("part", "content", "message"),
    [
        (SHEET, sheet_of(ROW % (1, 1) + b"<row>" + b" " * 60_000_000 + b"</row>"), "limits.max_text_ratio"),
        ("xl/styles.xml", b"<a>" + b"<b/>" * 2_500_000 + b"</a>", "styles.xml has 10,000,007 bytes, expected at most"),
        (SHEET, sheet_of(ROW % (1, 1) + ROW % (10**12, 2)), "has a row beyond 1,048,576"),
        (SHEET, sheet_of(ROW % (1, 1) + ROW % (2, 2), b'<dimension ref="A1:XFD1048576"/>'), ""),
        (SHEET, sheet_of(b'<row r="1"><c r="ZZZ1" t="inlineStr"><is><t>x</t></is></c></row>'), "has 18,278 columns"),
        (SHEET, sheet_of(ROW % (1, 1))[:-30], "not a whole .xlsx workbook"),
        (SHEET, b'<!DOCTYPE a [<!ENTITY b "xxxxxxxxxx">' + b"".join(
            b'<!ENTITY c%d "%s">' % (k, b"&c%d;" % (k - 1) * 10 if k else b"&b;" * 10) for k in range(9)
        ) + b"]>" + sheet_of(ROW % (1, 1)).replace(b"<t>x</t>", b"<t>&c8;</t>"), "not a whole .xlsx workbook"),
        ("xl/workbook.xml", b"<workbook/>", "workbook"),
    ],
    ids=["zip bomb", "styles", "row number", "dimension", "columns", "cut", "entities", "no sheets"],
)  # fmt: skip
def test_workbooks_made_to_do_harm_fail_in_bounded_memory(
    tmp_path: Path, part: str, content: bytes, message: str
) -> None:
    path = repacked(workbook(tmp_path / "a.xlsx", {"S": [HEADER, *ROWS]}), {part: content})
    assert path.stat().st_size < 100_000
    tracemalloc.start()
    try:
        if message:
            with pytest.raises(SourceError, match=message):
                read(path)
        else:
            assert read(path) == [{"x": "x"}]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 150_000_000


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no archive", b"\xd0\xcf\x11\xe0" + b"x" * 100, b"plain text"])
def test_what_is_no_workbook_says_so_in_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.xlsx").write_bytes(content)
    with pytest.raises(SourceError, match=r"a.xlsx: (is an old Excel file|not a whole .xlsx workbook)") as caught:
        read(tmp_path / "a.xlsx")
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------ CSV


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_the_delimiter_is_recognised_and_said(tmp_path: Path, delimiter: str, name: str) -> None:
    rows = [["Name a lake, or a sea; at once.", "Como; in Italy, north", "x|y"], *ROWS]
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter).writerows([HEADER, *rows])
    (tmp_path / name).write_text(text.getvalue())
    assert read(tmp_path / name) == [dict(zip(HEADER, row, strict=True)) for row in rows]
    summary = ingest([str(tmp_path / name)], str(tmp_path / "t"), IngestConfig())
    assert [source.accepted for source in summary.sources] == [3]
    is_said = "its cells are separated by" in summary.text()
    assert is_said == (delimiter != {"a.csv": ",", "a.tsv": "\t"}[name])


def test_a_key_says_the_delimiter_where_a_file_could_be_read_in_two_ways(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a;b,c\n1;2,3\n")
    assert read(tmp_path / "a.csv") == [{"a;b": "1;2", "c": "3"}]
    assert read(tmp_path / "a.csv", delimiter="semicolon") == [{"a": "1", "b,c": "2,3"}]
    assert recognised_delimiter("a\n1\n", ",") == ","
    assert recognised_delimiter("", "\t") == "\t"


@pytest.mark.parametrize(
    ("encoding", "named"),
    [("utf-8", None), ("utf-8-sig", None), ("utf-16", None), ("cp1252", "cp1252"), ("latin-1", "latin-1"),
     ("utf-16-le", "utf-16-le"), ("shift_jis", "shift_jis")],
)  # fmt: skip
def test_encodings(tmp_path: Path, encoding: str, named: str | None) -> None:
    texts = ["Wie heißt der größte See?", "Müritz", "Pfütze"] if encoding != "shift_jis" else ["湖は?", "琵琶湖", "水"]
    (tmp_path / "a.csv").write_bytes(f"{','.join(HEADER)}\r\n{','.join(texts)}\r\n".encode(encoding))
    assert read(tmp_path / "a.csv", encoding=named) == [dict(zip(HEADER, texts, strict=True))]


def test_a_wrong_encoding_is_refused_with_byte_line_and_key(tmp_path: Path) -> None:
    text = f"{','.join(HEADER)}\nplain,a,b\nMüritz,a,b\n"
    path = tmp_path / "a.csv"
    path.write_bytes(text.encode("cp1252"))
    refused = ingest([str(path)], str(tmp_path / "t"), IngestConfig()).rejections
    assert [(one.line, "byte 0xfc at byte" in one.reason, "cells.encoding" in one.reason) for one in refused] == [
        (2, True, True)
    ]
    path.write_bytes(text.encode("cp1252").replace(b"\xfc", b"\x81"))
    with pytest.raises(SourceError, match=r"expected cp1252, got byte 0x81 at byte 34, in line 3; set cells\.encoding"):
        read(path, encoding="cp1252")
    with pytest.raises(ValueError, match="encoding 'klingon' is not known"):
        CellConfig(encoding="klingon")


# ------------------------------------------------------------------------------------------------ what is no source


@pytest.mark.parametrize("name", ["a.xls", "a.ods", "a.numbers", "a.docx", "a.pdf", "a.zip"])
def test_other_files_say_what_they_are_and_what_to_do(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    (tmp_path / "b.jsonl").write_text("{}\n")
    with pytest.raises(SourceError, match=r"is an? [\w ]+; (open it|copy its table|unpack it)"):
        list_sources([str(tmp_path / name)])
    result = CliRunner().invoke(app, ["validate", str(tmp_path)])
    assert f"{name}" not in result.output or "it is a" in result.output


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "labels.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE judged (prompt TEXT, chosen TEXT, rejected TEXT)")
        connection.executemany("INSERT INTO judged VALUES (?, ?, ?)", ROWS)
    connection.close()
    monkeypatch.chdir(tmp_path)
    return path


def test_a_sqlite_file_is_read_by_a_relative_path_without_ray(database: Path) -> None:
    result = CliRunner().invoke(app, ["ingest", "labels.db", "--output", "t"])
    assert result.exit_code == 1
    assert f"is a SQLite database; name a table of it as sqlite:///{database}?table=judged" in str(result.exception)
    before = "ray" in sys.modules
    relative = CliRunner().invoke(app, ["ingest", "sqlite:///labels.db?table=judged", "--output", "t"])
    assert (relative.exit_code, "accepted 2 and refused 0" in relative.output) == (0, True)
    absolute = CliRunner().invoke(app, ["ingest", f"sqlite:///{database}?table=judged", "--output", "t"])
    assert f"skipped sqlite:///{database}?table=judged: it is in the table already" in absolute.output
    assert ("ray" in sys.modules) == before


def test_three_slashes_before_an_absolute_path_are_explained(database: Path) -> None:
    where = str(database).removeprefix("/")
    result = CliRunner().invoke(app, ["ingest", f"sqlite:///{where}?table=judged", "--output", "t"])
    assert result.exit_code == 1
    assert f"{database} is there: an absolute path has four slashes, sqlite:///{database}" in str(result.exception)
