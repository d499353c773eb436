"""Renders the metrics of a report as one HTML page without scripts, fonts, images or network access. Pure.

Charts are CSS boxes beside the numbers that they show, in the rows of real tables. So the page is small, prints,
follows light and dark mode, and says the same to a screen reader. Lists show their first rows, fold the next ones, and
say how many are left out, so that the size of the page has a bound. All data is escaped, and a content security policy
forbids whatever would slip through.
"""

import math
from pathlib import Path

import jinja2
from markupsafe import Markup

from pairwright.data.profile.highlights import percent
from pairwright.data.profile.profile_schema import RankLengths, Scores, TableMetrics
from pairwright.terminal import escaped

TEMPLATE = "page.html.j2"
SHOWN_ROWS = 12
FOLDED_ROWS = 88
CHART_COLUMNS = 60
MARK = '<meta name="generator" content="pairwright report">'
"""In the head of every page."""


def render(metrics: TableMetrics) -> str:
    """Return the page."""
    environment = page_environment(Path(__file__).parent)
    return environment.get_template(TEMPLATE).render(
        report=metrics,
        totals=metrics.totals,
        shown_rows=SHOWN_ROWS,
        folded_rows=FOLDED_ROWS,
        growth_columns=_evenly(len(metrics.growth)),
        length_positions=_length_positions(metrics.lengths_by_rank),
        flagged=_flagged(metrics.scores),
    )


def page_environment(folder: Path) -> jinja2.Environment:
    """Return what renders the templates of a folder: every value is escaped, and ``page_style.css`` can be included."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, Path(__file__).parent]),
        autoescape=True,
        finalize=_shown,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"count": _count, "percent": _percent, "size": _size, "time": _time, "number": _number}
    return environment


def is_page(content: bytes) -> bool:
    """Return whether a file is such a page, which a newer one may replace."""
    return MARK.encode() in content[:4096]


def _shown(value: object) -> object:
    """Return a string with control characters and marks of direction escaped; newlines do no harm here."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return "\n".join(map(escaped, value.split("\n")))
    return value


def _count(number: float) -> str:
    return f"{number:,.0f}"


def _number(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else percent(share)


def _size(number: int) -> str:
    if number < 1_000_000:
        return f"{number / 1000:,.1f} kB"
    return f"{number / 1e6:,.1f} MB" if number < 1e9 else f"{number / 1e9:,.1f} GB"


def _time(stamp: str) -> str:
    return stamp[:16].replace("T", " ") + " UTC" if stamp else "-"


def _evenly(number: int) -> list[int]:
    """Return indices of at most CHART_COLUMNS items at even distances, the first and the last among them."""
    if number <= CHART_COLUMNS:
        return list(range(number))
    return [column * (number - 1) // (CHART_COLUMNS - 1) for column in range(CHART_COLUMNS)]


def _length_positions(lengths: list[RankLengths]) -> list[tuple[float, float, float]]:
    """Return (left end, width, median) of each rank's lengths in percent of a logarithmic axis over all ranks."""
    if not lengths:
        return []
    low, high = min(row.tenth for row in lengths), max(row.ninetieth for row in lengths)
    span = math.log(high / low) or 1.0

    def position(characters: float) -> float:
        return 100 * math.log(characters / low) / span

    return [
        (position(row.tenth), position(row.ninetieth) - position(row.tenth), position(row.median)) for row in lengths
    ]


def _flagged(scores: Scores) -> set[int]:
    """Return the columns of the histogram that hold an outlier."""
    columns = range(len(scores.histogram))
    return {min(columns, key=lambda column: abs(scores.histogram[column].value - one.value)) for one in scores.outliers}
