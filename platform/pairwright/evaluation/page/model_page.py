"""Renders the page of an evaluation, ``report.html``: what its sections are, and in which order."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from pairwright.data.table.manifest import Manifest
from pairwright.evaluation.evaluation_report import ReadTexts
from pairwright.evaluation.page.curve_sections import best_of_n, calibration, training
from pairwright.evaluation.page.length_section import length
from pairwright.evaluation.page.lineage import Ancestor, ancestors
from pairwright.evaluation.page.origin_sections import how, lineage
from pairwright.evaluation.page.pair_examples import PairExample, pair_examples, shown_example
from pairwright.evaluation.page.quality_sections import accuracy, annotators, influence, poison, slices
from pairwright.evaluation.page.run_history import RunHistory, read_history
from pairwright.evaluation.page.verdict import verdict
from pairwright.evaluation.reports.report_file import REPORT
from pairwright.evaluation.reports.report_schema import Report
from pairwright.evaluation.reports.report_text import percent, plain
from pairwright.evaluation.statistics.pair_arrays import PairArrays
from pairwright.pages.html_pages import render_sections
from pairwright.pages.page_sections import Section

TEMPLATE = "model_page.html.j2"


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
    return render_sections(
        TEMPLATE,
        Path(__file__).parent,
        mark=REPORT.mark,
        verdict=verdict(found),
        tiles=_tiles(found),
        sections=_sections(found, content),
        examples=[shown_example(one) for one in content.examples],
        report=found,
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
        influence(report),
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
        has_examples=True,
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
