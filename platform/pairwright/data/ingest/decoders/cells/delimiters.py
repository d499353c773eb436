"""Recognises what separates the cells of a CSV file. Pure.

The delimiter is the one with most columns among those by which the first rows have as many cells as the header; what
the name says (commas in .csv, tabs in .tsv) wins where another one is only as good.
"""

import csv
from collections.abc import Sequence

NAMES = {",": "comma", ";": "semicolon", "\t": "tab", "|": "pipe"}
BY_NAME = {name: delimiter for delimiter, name in NAMES.items()}
_NUM_ROWS = 20
_FITTING = 0.8
"""Share of the first rows that must have a cell for each column: single rows may be broken."""


def recognised_delimiter(head: str, default: str) -> str:
    """Return the delimiter of a file.

    Args:
        head: its beginning; the last line may be cut off.
        default: what its name says, which is the answer where nothing else fits.
    """
    best, most = default, _num_columns(head, default)
    for delimiter in NAMES:
        if (columns := _num_columns(head, delimiter)) > max(most, 1):
            best, most = delimiter, columns
    return best


def _num_columns(head: str, delimiter: str) -> int:
    """Return the number of columns where the first rows agree on it, else 0."""
    rows = _first_rows(head, delimiter)
    if not rows:
        return 0
    columns = len(rows[0])
    fitting = sum(len(row) == columns for row in rows[1:])
    return columns if fitting >= _FITTING * len(rows[1:]) else 0


def _first_rows(head: str, delimiter: str) -> Sequence[Sequence[str]]:
    rows: list[list[str]] = []
    try:
        for row in csv.reader(head.splitlines(keepends=True), delimiter=delimiter):
            if row:
                rows.append(row)
            if len(rows) > _NUM_ROWS:
                return rows
    except csv.Error:
        return rows[:-1]
    is_cut = len(rows) > 1 and not head.endswith(("\n", "\r"))
    return rows[:-1] if is_cut else rows
