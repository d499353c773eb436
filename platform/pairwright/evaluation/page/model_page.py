"""Renders the page of an evaluation: one HTML file that works without network access.

What data say is escaped, shortened and isolated against marks of direction, and a content security policy forbids
whatever would slip through. One script of a few lines filters the examples: the policy allows it by its hash alone, and
without it all examples are shown.
"""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from markupsafe import Markup

from pairwright.data.profile.profile_page import page_environment
from pairwright.data.table.manifest import Manifest
from pairwright.evaluation.evaluation_report import ReadTexts
from pairwright.evaluation.page.curve_sections import best_of_n, calibration, training
from pairwright.evaluation.page.length_section import length
from pairwright.evaluation.page.lineage import Ancestor, ancestors
from pairwright.evaluation.page.origin_sections import how, lineage
from pairwright.evaluation.page.page_tables import LISTED_ROWS, SHOWN_ROWS, WIDE_COLUMNS, Section
from pairwright.evaluation.page.pair_examples import PairExample, pair_examples
from pairwright.evaluation.page.quality_sections import accuracy, annotators, poison, slices
from pairwright.evaluation.page.run_history import RunHistory, read_history
from pairwright.evaluation.page.verdict import verdict
from pairwright.evaluation.reports.report_file import PAGE_MARK
from pairwright.evaluation.reports.report_schema import Report
from pairwright.evaluation.reports.report_text import percent, plain
from pairwright.evaluation.statistics.pair_arrays import PairArrays

TEMPLATE, SCRIPT = "model_page.html.j2", "example_filter.js"
MAX_OPTIONS = 200


@dataclass(frozen=True, slots=True)
class PageContent:
    """What the page shows beside the report.

    Attributes:
        examples: errors and doubtful pairs.
        history: of the run that the model lies in; None where it lies in none.
        made_from: the pairs table, and what it was made from.
    """

    examples: Sequence[PairExample] = ()
    history: RunHistory | None = None
    made_from: Sequence[Ancestor] = ()


def page_content(report: dict[str, Any], manifest: Manifest, arrays: PairArrays, read_texts: ReadTexts) -> PageContent:
    """Return what the page of a report shows beside it.

    Args:
        report: in the shape of ``schemas/report.v1.json``.
        manifest: of the pairs table that it is on.
        arrays: what it was computed from.
        read_texts: reads groups of the pairs table.
    """
    return PageContent(
        examples=pair_examples(arrays, report["calibration"]["temperature"], read_texts),
        history=read_history(report["model"]["path"]),
        made_from=ancestors(report["pairs"]["url"], manifest),
    )


def render_page(report: dict[str, Any], content: PageContent) -> str:
    """Return the page of a report in the shape of ``schemas/report.v1.json``."""
    found = msgspec.convert(report, Report)
    script = (Path(__file__).parent / SCRIPT).read_text(encoding="utf-8")
    environment = page_environment(Path(__file__).parent)
    environment.tests["picture"] = lambda cell: isinstance(cell, Markup)
    return environment.get_template(
        TEMPLATE
    ).render(
        report=found,
        mark=Markup(PAGE_MARK),  # noqa: S704 - a constant
        verdict=verdict(found),
        tiles=_tiles(found),
        sections=_sections(found, content),
        examples=content.examples,
        slices=sorted({name for one in content.examples for name in one.slices})[:MAX_OPTIONS],
        shown_rows=SHOWN_ROWS,
        listed_rows=LISTED_ROWS,
        wide_columns=WIDE_COLUMNS,
        script=Markup(script),  # noqa: S704 - a file of ours
        script_hash=f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}",
    )


def _sections(report: Report, content: PageContent) -> list[Section]:
    """Return every section with something in it, in the order of the page."""
    found = [
        accuracy(report),
        slices(report),
        length(report),
        calibration(report),
        best_of_n(report),
        poison(report),
        annotators(report),
        _errors(content.examples),
        training(content.history),
        lineage(report, content.history, content.made_from),
        how(report),
    ]
    return [section for section in found if section is not None]


def _errors(examples: Sequence[PairExample]) -> Section:
    number = sum(one.kind == "error" for one in examples)
    return Section(
        "errors",
        "Errors and doubtful pairs",
        f"The {number:,} surest errors, one a group, and {len(examples) - number:,} pairs that it can hardly tell "
        "apart. Either the model or the annotation is wrong: read a few. Words that the other text has not got are "
        "marked; long texts are shortened.",
        notes=[] if examples else ["No texts were read."],
    )


def _tiles(report: Report) -> list[tuple[str, str]]:
    overall, top = report.overall, report.ceiling
    largest = next((row for row in reversed(report.best_of_n) if row.groups), None)
    return [
        ("Accuracy", percent(overall.accuracy.value)),
        ("Longer wins", percent(overall.longer_wins.value)),
        ("Annotators", percent(None if top is None else top.other_annotator.value)),
        ("Log loss", plain(overall.log_loss.value, 3)),
        *([(f"Best of {largest.n}", percent(largest.model.value))] if largest is not None else []),
        ("Pairs", f"{overall.pairs:,}"),
        ("Prompts", f"{report.method.prompts:,}"),
    ]
