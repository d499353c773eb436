"""The files of an evaluation's report: where they lie, and what may be replaced there. Imports no torch."""

from typing import Any

import msgspec

from pairwright.data.storage.object_store import absolute_url
from pairwright.data.storage.outputs import check_output, put_output
from pairwright.records import UNREADABLE_JSON

REPORT_NAME = "report.json"
PAGE_MARK = '<meta name="generator" content="pairwright evaluate">'
"""In the head of every page."""
_WHAT = "a report of `pairwright evaluate`"
_WHAT_PAGE = "a page of `pairwright evaluate`"


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
    """Refuse a place where a report, or the page beside it, cannot go.

    Raises:
        StoreError: if something is there that may not be replaced, or nothing can be written.
    """
    check_output(url, _is_report, what=_WHAT, overwrite=overwrite)
    check_output(page_url(url), _is_page, what=_WHAT_PAGE, overwrite=overwrite)


def put_report_file(url: str, content: bytes, *, overwrite: bool) -> None:
    """Write a report, whole or not at all; raises as ``check_report_file``."""
    put_output(url, content, _is_report, what=_WHAT, overwrite=overwrite)


def page_url(url: str) -> str:
    """Return the URL of the page beside a report: NAME.html for NAME.json."""
    return f"{url.removesuffix('.json')}.html"


def put_page_file(url: str, page: str, *, overwrite: bool) -> None:
    """Write the page beside a report, whole or not at all; raises as ``check_report_file``."""
    put_output(page_url(url), page.encode(), _is_page, what=_WHAT_PAGE, overwrite=overwrite)


def _is_page(content: bytes) -> bool:
    return PAGE_MARK.encode() in content[:4096]


def _is_report(content: bytes) -> bool:
    try:
        msgspec.json.decode(content, type=_AnyReport)
    except UNREADABLE_JSON:
        return False
    return True
