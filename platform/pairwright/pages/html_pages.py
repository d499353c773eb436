"""Renders pages: one HTML file each, that works without network access.

What data say is escaped, shortened and isolated against marks of direction, and a content security policy forbids
whatever would slip through. One script of a few lines filters examples: the policy allows it by its hash alone, and
without it all examples are shown.
"""

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from pairwright.pages.page_sections import LISTED_ROWS, SHOWN_ROWS, WIDE_COLUMNS, Example, Section, Verdict
from pairwright.terminal import escaped, percent

SCRIPT = "example_filter.js"
MAX_OPTIONS = 200
_FOLDER = Path(__file__).parent


def page_environment(folder: Path) -> jinja2.Environment:
    """Return what renders the templates of a folder and of this one: every value is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, _FOLDER]),
        autoescape=True,
        finalize=_shown,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"count": _count, "percent": _percent, "size": _size, "time": _time, "number": number_text}
    environment.tests["picture"] = lambda cell: isinstance(cell, Markup)
    return environment


def render_sections(
    template: str,
    folder: Path,
    *,
    mark: str,
    verdict: Verdict,
    tiles: Sequence[tuple[str, str]],
    sections: Sequence[Section],
    examples: Sequence[Example],
    **facts: Any,
) -> str:
    """Return a page that extends ``section_page.html.j2``.

    Args:
        template: its name.
        folder: where it lies.
        mark: the element in its head by which a newer page may replace it; a constant.
        verdict: what stands at the top.
        tiles: names and values of the figures below it.
        sections: in the order of the page.
        examples: of the section that has them.
        facts: what the template itself names.
    """
    script = (_FOLDER / SCRIPT).read_text(encoding="utf-8")
    return (
        page_environment(folder)
        .get_template(template)
        .render(
            mark=Markup(mark),  # noqa: S704 - a constant
            verdict=verdict,
            tiles=tiles,
            sections=sections,
            examples=examples,
            slices=sorted({name for one in examples for name in one.slices})[:MAX_OPTIONS],
            shown_rows=SHOWN_ROWS,
            listed_rows=LISTED_ROWS,
            wide_columns=WIDE_COLUMNS,
            script=Markup(script),  # noqa: S704 - a file of ours
            script_hash=f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}",
            **facts,
        )
    )


def number_text(value: float) -> str:
    """Return a number of four digits."""
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def _shown(value: object) -> object:
    """Return a string with control characters and marks of direction escaped; newlines do no harm here."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return "\n".join(map(escaped, value.split("\n")))
    return value


def _count(number: float) -> str:
    return f"{number:,.0f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else percent(share)


def _size(number: int) -> str:
    if number < 1_000_000:
        return f"{number / 1000:,.1f} kB"
    return f"{number / 1e6:,.1f} MB" if number < 1e9 else f"{number / 1e9:,.1f} GB"


def _time(stamp: str) -> str:
    return stamp[:16].replace("T", " ") + " UTC" if stamp else "-"
