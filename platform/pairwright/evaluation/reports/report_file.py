"""The files of an evaluation's report: where they lie, and what may be replaced there. Imports no torch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from pairwright.data.storage.object_store import absolute_url
from pairwright.data.storage.outputs import check_output, put_output
from pairwright.records import UNREADABLE_JSON

REPORT_NAME = "report.json"


class _AnyReport(msgspec.Struct, frozen=True):
    """The fields of a report of any version of Pairwright."""

    format_version: int
    created_at: str
    code_version: str
    model: dict[str, Any]
    pairs: dict[str, Any]
    overall: dict[str, Any]
    by_num_completions: dict[str, Any]


def report_in(output: str) -> str:
    """Return the URL of a report in an output: the output itself if it ends in .json, else ``report.json`` in it."""
    return absolute_url(output) if output.endswith(".json") else f"{absolute_url(output)}/{REPORT_NAME}"


def report_url(model: str, output: str | None) -> str:
    """Return the URL of the report that ``evaluate`` writes.

    Args:
        model: directory or URL of the model.
        output: URL of the report if it ends in .json, else of a directory for it; None: beside the model.
    """
    if output is None:
        return f"{absolute_url(model).rpartition('/')[0]}/{REPORT_NAME}"
    return report_in(output)


def page_url(url: str) -> str:
    """Return the URL of the page beside a report: NAME.html for NAME.json."""
    return f"{url.removesuffix('.json')}.html"


def _is_report(content: bytes) -> bool:
    try:
        msgspec.json.decode(content, type=_AnyReport)
    except UNREADABLE_JSON:
        return False
    return True


@dataclass(frozen=True)
class ReportKind:
    """A kind of report with its page beside it: a newer one may replace its own kind alone.

    Attributes:
        verb: of the command line, which writes it.
        what: its JSON.
        is_ours: tells from a file's content whether it is such a JSON.
    """

    verb: str
    what: str
    is_ours: Callable[[bytes], bool]

    @property
    def mark(self) -> str:
        """What stands in the head of every page of this kind."""
        return f'<meta name="generator" content="pairwright {self.verb}">'

    def check(self, url: str, *, overwrite: bool) -> None:
        """Refuse a place where a report, or the page beside it, cannot go.

        Raises:
            StoreError: if something is there that may not be replaced, or nothing can be written.
        """
        check_output(url, self.is_ours, what=self.what, overwrite=overwrite)
        check_output(page_url(url), self._is_page, what=self._what_page, overwrite=overwrite)

    def put(self, url: str, content: bytes, page: Callable[[], str], *, overwrite: bool) -> None:
        """Write a report, and then render and write the page beside it; raises as ``check``."""
        put_output(url, content, self.is_ours, what=self.what, overwrite=overwrite)
        put_output(page_url(url), page().encode(), self._is_page, what=self._what_page, overwrite=overwrite)

    @property
    def _what_page(self) -> str:
        return f"a page of `pairwright {self.verb}`"

    def _is_page(self, content: bytes) -> bool:
        return self.mark.encode() in content[:4096]


REPORT = ReportKind("evaluate", "a report of `pairwright evaluate`", _is_report)
