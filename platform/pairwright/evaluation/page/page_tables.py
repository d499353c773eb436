"""Tables of metrics with pictures in their rows, which the sections of the page are made of. Pure."""

from collections.abc import Iterable, Mapping

from pairwright.evaluation.reports.report_text import percent, percent_interval
from pairwright.evaluation.statistics.intervals import Estimate
from pairwright.evaluation.statistics.pair_metrics import PartMetrics
from pairwright.pages.page_sections import DataTable
from pairwright.pages.svg_charts import Axis, interval_row

HEAD = ("Share", "95 %")


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
    return "" if estimate.interval is None else "[{:z.3f}, {:z.3f}]".format(*estimate.interval)


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
