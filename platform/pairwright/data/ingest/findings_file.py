"""Writes the findings of a validation as CSV or JSON Lines: a row each, with the place, what was found and expected."""

import csv
import io
import re
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import Any

import msgspec

from pairwright.data.storage.outputs import check_output, new_file, put_output
from pairwright.errors import ConfigError
from pairwright.records import Rejection

COLUMNS = ("file", "line", "path", "reason", "found", "expected")
_EXPECTED = re.compile(r"expected (?P<expected>.*?)(?:, got .*|;.*)?", re.DOTALL)
_FOUND = re.compile(r", got (?P<found>.*?)(?:;.*)?", re.DOTALL)
_MISSING = re.compile(r"missing field (?P<name>`[^`]*`)")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_WHAT = "findings of `pairwright validate`"


class Finding(msgspec.Struct, frozen=True):
    """One finding: a refused judgement, or a source that cannot be read."""

    file: str
    line: int | None
    path: str
    reason: str
    found: str
    expected: str


def finding_of(rejected: Rejection) -> Finding:
    """Return a rejection as a finding; what was found and expected is read from its reason."""
    if missing := _MISSING.match(rejected.reason):
        found, expected = "no such field", missing["name"]
        return Finding(rejected.source, rejected.line, rejected.path, rejected.reason, found, expected)
    at = rejected.reason.find(", got ")
    found = _FOUND.fullmatch(rejected.reason[at:]) if at >= 0 else None
    expected = _EXPECTED.fullmatch(rejected.reason)
    return Finding(
        file=rejected.source,
        line=rejected.line,
        path=rejected.path,
        reason=rejected.reason,
        found=found["found"] if found else "",
        expected=expected["expected"] if expected else "",
    )


def check_findings_file(url: str, *, overwrite: bool) -> None:
    """Refuse, before the work, a file that findings cannot go to.

    Raises:
        ConfigError: if its name ends neither in .csv nor in .jsonl.
        StoreError: if something else is there, or older findings and ``overwrite`` is not set.
    """
    if PurePosixPath(url).suffix.lower() not in (".csv", ".jsonl"):
        raise ConfigError(f"--output {url}: expected a name that ends in .csv or .jsonl")
    check_output(url, _is_ours, what=_WHAT, overwrite=overwrite)


def write_findings(url: str, findings: Iterable[Finding], *, overwrite: bool) -> None:
    """Write findings to a path or URL, as its name says.

    Raises:
        StoreError: as ``check_findings_file``, and if it cannot be written.
    """
    lines = _csv_lines(findings) if url.lower().endswith(".csv") else _json_lines(findings)
    if overwrite:
        put_output(url, b"".join(lines), _is_ours, what=_WHAT, overwrite=True)
        return
    with new_file(url) as path, path.open("wb") as file:
        file.writelines(lines)


def _csv_lines(findings: Iterable[Finding]) -> Iterator[bytes]:
    yield _csv_line(COLUMNS)
    for finding in findings:
        yield _csv_line([_cell(getattr(finding, name)) for name in COLUMNS])


def _csv_line(cells: Iterable[Any]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode("utf-8", "replace")


def _cell(value: Any) -> str:
    """Return a cell that a spreadsheet shows: a text that it would run as a formula begins with an apostrophe."""
    text = "" if value is None else str(value)
    return f"'{text}" if text.startswith(_FORMULA) else text


def _json_lines(findings: Iterable[Finding]) -> Iterator[bytes]:
    encoder = msgspec.json.Encoder()
    for finding in findings:
        yield encoder.encode(finding) + b"\n"


def _is_ours(content: bytes) -> bool:
    return not content or content.startswith((_csv_line(COLUMNS), b'{"file":'))
