"""The file of an evaluation's report: where it lies, and what may be replaced there. Imports no torch."""

from typing import Any

import msgspec

from pairwright.data.storage.object_store import absolute_url
from pairwright.data.storage.outputs import check_output, put_output
from pairwright.records import UNREADABLE_JSON

REPORT_NAME = "report.json"
_WHAT = "a report of `pairwright evaluate`"


class _AnyReport(msgspec.Struct, frozen=True):
    """The fields of a report of any version of Pairwright."""

    format_version: int
    created_at: str
    code_version: str
    model: dict[str, Any]
    pairs: dict[str, Any]
    overall: dict[str, Any]
    by_num_completions: dict[str, Any]


def report_url(model: str, output: str | None) -> str:
    """Return the URL of the report that ``evaluate`` writes.

    Args:
        model: directory or URL of the model.
        output: URL of the report if it ends in .json, else of a directory for it; None: beside the model.
    """
    if output is None:
        return f"{absolute_url(model).rpartition('/')[0]}/{REPORT_NAME}"
    return absolute_url(output) if output.endswith(".json") else f"{absolute_url(output)}/{REPORT_NAME}"


def check_report_file(url: str, *, overwrite: bool) -> None:
    """Refuse a place where a report cannot go.

    Raises:
        StoreError: if something is there that may not be replaced, or nothing can be written.
    """
    check_output(url, _is_report, what=_WHAT, overwrite=overwrite)


def put_report_file(url: str, content: bytes, *, overwrite: bool) -> None:
    """Write a report, whole or not at all; raises as ``check_report_file``."""
    put_output(url, content, _is_report, what=_WHAT, overwrite=overwrite)


def _is_report(content: bytes) -> bool:
    try:
        msgspec.json.decode(content, type=_AnyReport)
    except UNREADABLE_JSON:
        return False
    return True
