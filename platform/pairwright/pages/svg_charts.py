"""Draws intervals, bars, columns and curves as SVG: pure functions of numbers, so equal data give equal bytes.

Widths are percentages and heights are pixels, so that a picture fills a phone's width and its words keep their size.
Colours are those of ``page_style.css``, in light and dark mode. Whatever a picture shows stands in a table beside it.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from markupsafe import Markup

from pairwright.terminal import escaped

ROW_HEIGHT = 18
CHART_HEIGHT = 240
_TOP, _BOTTOM = 10, 34
_LEFT, _RIGHT = 12.0, 97.0
"""Where the axes begin and end, percent of the width."""
_BAR = f'y="3" height="{ROW_HEIGHT - 6}" rx="3"'
_UNITS = 1000
"""Width of the plane of the curves, which is stretched to the width of the axes."""
MAX_TICKS = 5


class Measured(Protocol):
    """A value, and its interval if it has one."""

    @property
    def value(self) -> float | None: ...
    @property
    def interval(self) -> tuple[float, float] | None: ...


@dataclass(frozen=True, slots=True)
class Axis:
    """A range of values on a line, and how its values are written."""

    low: float
    high: float
    form: str = "{:,.4g}"
    title: str = ""

    @classmethod
    def around(cls, values: Sequence[float], *, form: str = "{:,.4g}", title: str = "", rooted: bool = False) -> "Axis":
        """Return an axis that holds all finite values, and 0 if ``rooted``; its ends are round numbers."""
        finite = [value for value in values if math.isfinite(value)] + ([0.0] if rooted else [])
        low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
        if high - low <= 1e-12 * max(abs(low), abs(high)):
            low, high = low - (abs(low) or 1.0) / 2, high + (abs(high) or 1.0) / 2
        step = _round_step((high - low) / MAX_TICKS)
        return cls(math.floor(low / step) * step, math.ceil(high / step) * step, form, title)

    def share(self, value: float) -> float:
        """Return where a value lies, between 0 and 1; what lies outside is at the end."""
        return min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))

    def ticks(self) -> list[float]:
        """Return round values of the axis, at most MAX_TICKS + 1 or so."""
        step = _round_step((self.high - self.low) / MAX_TICKS)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [number * step for number in range(first, last + 1)]

    def text(self, value: float) -> str:
        """Return a value as it is written at the axis."""
        return self.form.format(value if abs(value) > 1e-12 * (self.high - self.low) else 0.0).replace("%", " %")


SHARES = Axis(0.0, 1.0, "{:.0%}")


@dataclass(frozen=True, slots=True)
class Curve:
    """Points that a line joins, with intervals if they have any."""

    name: str
    points: Sequence[tuple[float, float]]
    kind: Literal["first", "second", "third", "reference"] = "first"
    intervals: Sequence[tuple[float, float]] = ()
    has_dots: bool = True


@dataclass(frozen=True, slots=True)
class Stack:
    """A column: what it shows, and a part on top that is bad."""

    name: str
    value: float
    bad: float = 0.0


def interval_row(estimate: Measured, axis: Axis, marks: Sequence[float] = (), runs: Sequence[float] = ()) -> Markup:
    """Return a value as a dot with its interval, for the cell of a table that says the same in figures.

    Args:
        estimate: the value.
        axis: of the whole column.
        marks: dashed uprights, such as chance.
        runs: smaller dots, such as the runs that the value is the mean of.
    """
    parts = _rail(axis, marks)
    if estimate.interval is not None:
        low, high = (100 * axis.share(end) for end in estimate.interval)
        parts.append(f'<rect class="band" x="{low:.2f}%" width="{max(high - low, 0.4):.2f}%" y="5" height="8" rx="2"/>')
    parts += [f'<circle class="run" cx="{100 * axis.share(one):.2f}%" cy="9" r="2.5"/>' for one in runs]
    if estimate.value is not None:
        parts.append(f'<circle class="first" cx="{100 * axis.share(estimate.value):.2f}%" cy="9" r="4"/>')
    return _row(parts)


def dot_row(value: float, axis: Axis, marks: Sequence[float] = ()) -> Markup:
    """Return a value as a dot, where it has no interval."""
    return _row([*_rail(axis, marks), f'<circle class="first" cx="{100 * axis.share(value):.2f}%" cy="9" r="4"/>'])


def bar_row(share: float | None, mark: float | None = None, *, is_bad: bool = False) -> Markup:
    """Return a share as a bar of a track that stands for 100 %, empty for none."""
    parts = [f'<rect class="track" x="0" width="100%" {_BAR}/>']
    if share:
        parts.append(f'<rect class="{"bad" if is_bad else "bar"}" x="0" width="{100 * min(1.0, share):.2f}%" {_BAR}/>')
    return _row(parts + ([] if mark is None else [_upright(100 * mark, 0, ROW_HEIGHT, "mark-line")]))


def range_row(low: float, middle: float, high: float) -> Markup:
    """Return a range with a value in it; all are shares of the width."""
    band = f'x="{100 * low:.2f}%" width="{100 * max(high - low, 0.004):.2f}%" y="5" height="8" rx="2"'
    dot = f'<circle class="first" cx="{100 * middle:.2f}%" cy="9" r="4"/>'
    return _row([*_rail(SHARES, ()), f'<rect class="band" {band}/>', dot])


def columns(label: str, stacks: Sequence[Stack], ends: tuple[str, str], up: Axis) -> Markup:
    """Return columns over an axis, each in two parts, such as a histogram or the growth of a table.

    Args:
        label: what the picture shows, for who cannot see it.
        stacks: from left to right.
        ends: what stands under the first and the last one.
        up: the vertical axis, from 0.
    """
    width = (_RIGHT - _LEFT) / max(1, len(stacks))
    parts = _levels(up)
    for number, stack in enumerate(stacks):
        at, below = _LEFT + number * width, 0.0
        for kind, value in (("bar", stack.value), ("bad", stack.bad)):
            if value:
                top, bottom = _y(up.share(below + value)), _y(up.share(below))
                parts.append(
                    f'<rect class="{kind}" x="{at + width / 20:.2f}%" width="{width * 0.9:.2f}%" y="{top:.1f}" '
                    f'height="{max(bottom - top, 1):.1f}"><title>{_escape(stack.name)}</title></rect>'
                )
                below += value
    bottom = CHART_HEIGHT - _BOTTOM + 15
    parts.append(f'<text x="{_LEFT}%" y="{bottom}">{_escape(ends[0])}</text>')
    parts.append(f'<text class="middle" x="{(_LEFT + _RIGHT) / 2}%" y="{bottom + 15}">{_escape(up.title)}</text>')
    parts.append(f'<text class="end" x="{_RIGHT}%" y="{bottom}">{_escape(ends[1])}</text>')
    return Markup(f"<figure>{_picture(label, parts)}</figure>")  # noqa: S704 - escaped above


def _rail(axis: Axis, marks: Sequence[float]) -> list[str]:
    line = f'<line class="rail" x1="0" x2="100%" y1="{ROW_HEIGHT // 2}" y2="{ROW_HEIGHT // 2}"/>'
    return [line, *(_upright(100 * axis.share(mark), 0, ROW_HEIGHT, "mark-line") for mark in marks)]


def _row(parts: Sequence[str]) -> Markup:
    return Markup(f'<svg class="row" width="100%" height="{ROW_HEIGHT}" aria-hidden="true">{"".join(parts)}</svg>')  # noqa: S704 - numbers alone


def _picture(label: str, parts: Sequence[str]) -> str:
    opening = f'<svg class="curves" width="100%" height="{CHART_HEIGHT}" role="img" aria-label="{_escape(label)}">'
    return f"{opening}{''.join(parts)}</svg>"


def curves(
    label: str, lines: Sequence[Curve], across: Axis, up: Axis, uprights: Sequence[tuple[float, str]] = ()
) -> Markup:
    """Return curves over axes, with a legend.

    Args:
        label: what the picture shows, for who cannot see it.
        lines: the curves; a reference is dashed.
        across: the horizontal axis.
        up: the vertical one.
        uprights: vertical lines, each with a word, such as restarts of a run.
    """
    plane = "".join(_path(line, across, up) for line in lines)
    bottom = CHART_HEIGHT - _BOTTOM
    parts = [
        *_grid(across, up),
        *(_upright(_x(across.share(at)), _TOP, bottom, "upright", name) for at, name in uprights),
        f'<svg x="{_LEFT}%" y="{_TOP}" width="{_RIGHT - _LEFT}%" height="{bottom - _TOP}" '
        f'viewBox="0 0 {_UNITS} {bottom - _TOP}" preserveAspectRatio="none" overflow="visible">{plane}</svg>',
        *(dot for line in lines for dot in _dots(line, across, up)),
    ]
    named = [line for line in lines if line.name]
    legend = "".join(f'<span class="{line.kind}"><i></i><bdi>{_escape(line.name)}</bdi></span>' for line in named)
    return Markup(f'<figure>{_picture(label, parts)}<figcaption class="legend">{legend}</figcaption></figure>')  # noqa: S704 - escaped above


def thinned(points: Sequence[tuple[float, float]], number: int = 300) -> list[tuple[float, float]]:
    """Return at most so many points: means of neighbours, so that a long run stays a small picture."""
    if len(points) <= number:
        return list(points)
    edges = [len(points) * i // number for i in range(number + 1)]
    parts = [points[low:high] for low, high in itertools.pairwise(edges)]
    return [(math.fsum(x for x, _ in part) / len(part), math.fsum(y for _, y in part) / len(part)) for part in parts]


def _path(line: Curve, across: Axis, up: Axis) -> str:
    height = CHART_HEIGHT - _BOTTOM - _TOP
    points = " ".join(f"{_UNITS * across.share(x):.1f},{height * (1 - up.share(y)):.1f}" for x, y in line.points)
    return f'<polyline class="{line.kind}" points="{points}"/>' if len(line.points) > 1 else ""


def _dots(line: Curve, across: Axis, up: Axis) -> list[str]:
    if not line.has_dots:
        return []
    found = []
    for number, (x, y) in enumerate(line.points):
        at = f"{_x(across.share(x)):.2f}%"
        if number < len(line.intervals):
            low, high = (_y(up.share(end)) for end in line.intervals[number])
            found.append(f'<line class="whisker {line.kind}" x1="{at}" x2="{at}" y1="{low:.1f}" y2="{high:.1f}"/>')
        found.append(f'<circle class="{line.kind}" cx="{at}" cy="{_y(up.share(y)):.1f}" r="3.5"/>')
    return found


def _grid(across: Axis, up: Axis) -> list[str]:
    bottom = CHART_HEIGHT - _BOTTOM
    found = _levels(up)
    for tick in across.ticks():
        x = _x(across.share(tick))
        found.append(f'<text class="middle" x="{x:.2f}%" y="{bottom + 15}">{_escape(across.text(tick))}</text>')
    middle = (_LEFT + _RIGHT) / 2
    found.append(f'<text class="middle soft-text" x="{middle}%" y="{bottom + 30}">{_escape(across.title)}</text>')
    return found


def _levels(up: Axis) -> list[str]:
    found = []
    for tick in up.ticks():
        y = _y(up.share(tick))
        found.append(f'<line class="grid" x1="{_LEFT}%" x2="{_RIGHT}%" y1="{y:.1f}" y2="{y:.1f}"/>')
        found.append(f'<text class="end" x="{_LEFT - 1}%" y="{y + 4:.1f}">{_escape(up.text(tick))}</text>')
    return found


def _upright(x: float, top: int, bottom: int, kind: str, name: str = "") -> str:
    title = f"<title>{_escape(name)}</title>" if name else ""
    return f'<line class="{kind}" x1="{x:.2f}%" x2="{x:.2f}%" y1="{top}" y2="{bottom}">{title}</line>'


def _x(share: float) -> float:
    return _LEFT + (_RIGHT - _LEFT) * share


def _y(share: float) -> float:
    return _TOP + (CHART_HEIGHT - _BOTTOM - _TOP) * (1 - share)


def _escape(text: str) -> str:
    return str(Markup.escape(escaped(text)))


def _round_step(least: float) -> float:
    """Return the smallest of 1, 2, 2.5 and 5 times a power of ten that is not below a number."""
    if not (math.isfinite(least) and least > 0):
        return 1.0
    power = 10.0 ** math.floor(math.log10(least))
    return next((factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= least * (1 - 1e-9)), 10 * power)
