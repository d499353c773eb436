"""Renders the metrics of a report as one HTML page without scripts, fonts, images or network access. Pure.

Pictures are SVG beside the numbers that they show, in the rows of real tables. So the page is small, prints, follows
light and dark mode, and says the same to a screen reader. Lists show their first rows, fold the next ones, and say how
many are left out, so that the size of the page has a bound. All data is escaped, and a content security policy forbids
whatever would slip through.
"""

import math
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from pairwright.data.profile.profile_schema import Growth, RankLengths, Scores, TableMetrics
from pairwright.pages.html_pages import number_text, page_environment
from pairwright.pages.svg_charts import SHARES, Axis, Stack, bar_row, columns, dot_row, range_row

TEMPLATE = "page.html.j2"
SHOWN_ROWS = 12
FOLDED_ROWS = 88
CHART_COLUMNS = 60
MARK = '<meta name="generator" content="pairwright report">'
"""In the head of every page."""


def render(metrics: TableMetrics) -> str:
    """Return the page."""
    environment = page_environment(Path(__file__).parent)
    environment.globals |= {"bar": bar_row, "range": range_row, "strength": _strength}
    return environment.get_template(TEMPLATE).render(
        report=metrics,
        totals=metrics.totals,
        shown_rows=SHOWN_ROWS,
        folded_rows=FOLDED_ROWS,
        score_columns=_score_columns(metrics.scores),
        growth_columns=_growth_columns(metrics.growth),
        length_positions=_length_positions(metrics.lengths_by_rank),
    )


def is_page(content: bytes) -> bool:
    """Return whether a file is such a page, which a newer one may replace."""
    return MARK.encode() in content[:4096]


def _evenly(number: int) -> list[int]:
    """Return indices of at most CHART_COLUMNS items at even distances, the first and the last among them."""
    if number <= CHART_COLUMNS:
        return list(range(number))
    return [column * (number - 1) // (CHART_COLUMNS - 1) for column in range(CHART_COLUMNS)]


def _length_positions(lengths: list[RankLengths]) -> list[tuple[float, float, float]]:
    """Return (left end, median, right end) of each rank's lengths as shares of a logarithmic axis over all ranks."""
    if not lengths:
        return []
    low, high = min(row.tenth for row in lengths), max(row.ninetieth for row in lengths)
    span = math.log(high / low) or 1.0

    def position(characters: float) -> float:
        return math.log(characters / low) / span

    return [(position(row.tenth), position(row.median), position(row.ninetieth)) for row in lengths]


def _strength(share: float) -> Markup:
    return dot_row(share, SHARES, [0.5])


def _score_columns(scores: Scores) -> Markup | None:
    if scores.lowest is None or scores.highest is None:
        return None
    flagged = _flagged(scores)
    low, high = number_text(scores.lowest), number_text(scores.highest)
    each = "one column a value" if scores.num_values == len(scores.histogram) else "steps of equal width"
    return columns(
        f"Histogram of {scores.completions:,} scores from {low} to {high}; the table below holds its numbers",
        [
            Stack(
                f"{number_text(column.value)}: {column.completions:,}",
                *((0.0, column.completions) if number in flagged else (column.completions, 0.0)),
            )
            for number, column in enumerate(scores.histogram)
        ],
        (low, high),
        _counts([column.completions for column in scores.histogram], f"score, {each}; upright: completions"),
    )


def _growth_columns(growth: list[Growth]) -> Markup | None:
    if len(growth) < 2:
        return None
    held = [growth[index].held for index in _evenly(len(growth))]
    return columns(
        "Annotations and refused records in each version; the table below holds the numbers",
        [
            Stack(
                f"version {one.version}: {one.annotations:,} annotations, {one.refused:,} refused",
                one.annotations,
                one.refused,
            )
            for one in held
        ],
        (f"version {held[0].version}", f"version {held[-1].version}"),
        _counts([one.annotations + one.refused for one in held], "annotations, refused on top"),
    )


def _counts(values: Sequence[float], title: str) -> Axis:
    return Axis.around(values, form="{:,.0f}", title=title, rooted=True)


def _flagged(scores: Scores) -> set[int]:
    """Return the columns of the histogram that hold an outlier."""
    columns = range(len(scores.histogram))
    return {min(columns, key=lambda column: abs(scores.histogram[column].value - one.value)) for one in scores.outliers}
