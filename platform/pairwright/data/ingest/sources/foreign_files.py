"""What to do with a file that is no source: databases, old spreadsheets and documents, by name or by first bytes."""

import sqlite3
from contextlib import closing
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from pairwright.errors import one_line

_SQLITE = b"SQLite format 3\x00"
_SHEET = "open it in a spreadsheet program and save it as .xlsx, or as CSV in UTF-8"
_DOCUMENT = "copy its table into a spreadsheet and save that as .xlsx, or as CSV in UTF-8"
_BY_NAME = {
    ".xls": f"an old Excel workbook; {_SHEET}",
    ".xlsb": f"a binary Excel workbook; {_SHEET}",
    ".ods": f"an OpenDocument spreadsheet; {_SHEET}",
    ".numbers": f"a Numbers spreadsheet; {_SHEET}",
    ".docx": f"a Word document; {_DOCUMENT}",
    ".doc": f"a Word document; {_DOCUMENT}",
    ".odt": f"a text document; {_DOCUMENT}",
    ".pdf": f"a PDF document; {_DOCUMENT}",
    ".zip": "a zip archive; unpack it and name what is in it",
    ".tar": "a tar archive; unpack it and name what is in it",
    ".tgz": "a tar archive; unpack it and name what is in it",
}
_BY_START = {
    b"\xd0\xcf\x11\xe0": _BY_NAME[".xls"],
    b"%PDF": _BY_NAME[".pdf"],
    b"PK\x03\x04": "a zip archive, or an office file by another name; unpack it, or name a workbook .xlsx",
    b"PAR1": "a Parquet file; name it .parquet",
    b"ARROW1": "an Arrow file; name it .arrow",
    b"\x1f\x8b": "a gzip file; name it .jsonl.gz, .json.gz or .csv.gz",
}
_TABLES_SHOWN = 8


def foreign_file_advice(path: str, head: bytes) -> str | None:
    """Return what a file that is no source is, and what to do with it; None where it is nothing known.

    Args:
        path: its absolute path or URL.
        head: its first bytes; empty where they were not read.
    """
    if head.startswith(_SQLITE):
        return f"a SQLite database; name a table of it as sqlite:///{quote(path)}?table={_tables(path)}"
    by_start = next((what for start, what in _BY_START.items() if head.startswith(start)), None)
    return _BY_NAME.get(PurePosixPath(path.lower()).suffix) or by_start


def file_head(path: str) -> bytes:
    """Return the first bytes of a local file; none where it cannot be read."""
    try:
        with Path(path).open("rb") as file:
            return file.read(len(_SQLITE))
    except OSError:
        return b""


def _tables(path: str) -> str:
    """Return the names of a database's tables, or NAME where they cannot be read."""
    try:
        with closing(sqlite3.connect(f"{Path(path).as_uri()}?mode=ro", uri=True)) as connection:
            connection.execute("PRAGMA trusted_schema = OFF")
            rows = connection.execute(
                "SELECT name FROM sqlite_master WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite_%' LIMIT ?",
                (_TABLES_SHOWN,),
            ).fetchall()
    except (sqlite3.Error, ValueError, OSError):
        return "NAME"
    names = [one_line(str(name)[:100]) for (name,) in rows]
    return names[0] if len(names) == 1 else f"NAME (it has {', '.join(names)})" if names else "NAME"
