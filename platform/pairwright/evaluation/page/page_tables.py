"""Tables with pictures in their rows, which the sections of the page are made of. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from pairwright.evaluation.page.svg_charts import Axis, interval_row
from pairwright.evaluation.reports.report_text import percent, percent_interval
from pairwright.evaluation.statistics.intervals import Estimate
from pairwright.evaluation.statistics.pair_metrics import PartMetrics

SHOWN_ROWS, LISTED_ROWS = 12, 100
HEAD = ("Share", "95 %")
WIDE_COLUMNS = frozenset(
    {"Above the best", "Annotations", "By annotators", "Groups", "In the mean", "Longer wins", "Other annotators"}
    | {"Pairs", "Prompts"}
)
"""Columns that a phone does not show, so that it shows the pictures."""

Cell = str | Markup


@dataclass(frozen=True, slots=True)
class DataTable:
    """A table: the first column names the row. A ``Markup`` cell is a picture."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    is_folded: bool = False
    is_text: bool = False
    """Whether its cells are words and not numbers."""
    id: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """A section of the page."""

    id: str
    title: str
    look: str
    """What to look for."""
    pictures: Sequence[Markup] = ()
    tables: Sequence[DataTable] = ()
    notes: Sequence[str] = ()


def parts_table(title: str, parts: Mapping[str, PartMetrics], overall: PartMetrics) -> list[DataTable]:
    """Return the table of parts of the pairs; none where there is but one part, which is all pairs."""
    known = {name: part for name, part in parts.items() if part.pairs}
    if len(known) < 2:
        return []
    axis = axis_of([part.accuracy for part in known.values()])
    marks = [value for value in (0.5, overall.accuracy.value) if value is not None]
    rows = [
        [
            name,
            f"{part.prompts:,}",
            f"{part.pairs:,}",
            *shares(part.accuracy),
            percent(part.longer_wins.value),
            interval_row(part.accuracy, axis, marks),
        ]
        for name, part in known.items()
    ]
    head = ("", "Prompts", "Pairs", "Accuracy", "95 %", "Longer wins", span(axis, with_overall=True))
    return [DataTable(title, head, rows)]


def shares(estimate: Estimate) -> tuple[str, str]:
    """Return the two cells of HEAD."""
    return percent(estimate.value), percent_interval(estimate)


def ends(estimate: Estimate) -> str:
    """Return an interval that is no share."""
    return "" if estimate.interval is None else "[{:.3f}, {:.3f}]".format(*estimate.interval)


def axis_of(estimates: Iterable[Estimate]) -> Axis:
    """Return an axis of shares up to 100 %, from below the lowest interval."""
    lows = [one.interval[0] if one.interval is not None else one.value for one in estimates if one.value is not None]
    lowest = min([0.5, *lows])
    return Axis(max(0.0, int(10 * lowest) / 10 - (0.1 if lowest < 0.5 else 0)), 1.0, "{:.0%}")


def span(axis: Axis, *, with_overall: bool = False) -> str:
    """Return the heading of a column of pictures: what their width stands for."""
    return (
        f"{axis.text(axis.low)} to {axis.text(axis.high)}; dashed at 50 %{' and at all pairs' if with_overall else ''}"
    )
