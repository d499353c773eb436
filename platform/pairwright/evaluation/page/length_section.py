"""The section on length, form and authors: what a model prefers beyond what annotators do. Pure."""

import msgspec

from pairwright.evaluation.page.page_tables import ends, parts_table
from pairwright.evaluation.reports.report_schema import Report
from pairwright.evaluation.reports.report_text import percent, plain, points
from pairwright.pages.page_sections import DataTable, Section
from pairwright.pages.svg_charts import Axis, interval_row


def length(report: Report) -> Section:
    """Return accuracy and reward margin by length, correlations, and preferences for forms and authors."""
    by_length = {key.replace("_", " "): part for key, part in msgspec.structs.asdict(report.by_length).items()}
    ratio = report.slices.get("length_difference", {})
    margins = [part.reward_margin for part in ratio.values()]
    known = [end for one in margins for end in (one.value, *(one.interval or ())) if end is not None]
    axis = Axis.around(known, rooted=True)
    rows = [
        [name, f"{part.pairs:,}", plain(one.value, 3), ends(one), interval_row(one, axis, [0.0])]
        for (name, part), one in zip(ratio.items(), margins, strict=True)
    ]
    picture = f"{axis.text(axis.low)} to {axis.text(axis.high)}; dashed at 0"
    margin = DataTable("Reward margin by length", ("Length of the chosen text", "Pairs", "Mean", "95 %", picture), rows)
    bias = report.length
    within = [
        [name, plain(one.value, 3), ends(one), interval_row(one, Axis(-1, 1), [0.0])]
        for name, one in (
            ("reward and length", bias.reward_and_length),
            ("annotation and length", bias.annotation_and_length),
            ("reward and annotation", bias.reward_and_annotation),
            ("reward and length, at equal annotation", bias.partial),
        )
    ]
    return Section(
        "length",
        "Is it only length?",
        "What a model gets where the shorter text is better was not won by length. A margin that falls below 0 there "
        "means that it takes length for merit.",
        tables=[
            *parts_table("By which text is the longer one", by_length, report.overall),
            *([margin] if rows else []),
            DataTable("Correlation within groups", ("Of", "Correlation", "95 %", "-1 to 1; dashed at 0"), within),
            *_preferences(report),
        ],
    )


def _preferences(report: Report) -> list[DataTable]:
    head = ("", "Pairs", "Model", "Annotators", "Excess, points", "-50 to 50 points; dashed at 0")
    span = Axis(-0.5, 0.5)
    forms = [
        [
            row.feature.replace("_", " "),
            f"{row.pairs:,}",
            percent(row.model_prefers.value),
            percent(row.annotators_prefer.value),
            points(row.excess),
            interval_row(row.excess, span, [0.0]),
        ]
        for row in report.features
    ]
    authors = [
        [
            row.author,
            f"{row.pairs:,}",
            percent(row.model_wins.value),
            percent(row.annotator_wins.value),
            points(row.excess),
            interval_row(row.excess, span, [0.0]),
        ]
        for row in report.authors
    ]
    tables = [
        DataTable("How often a form is preferred", ("Form", *head[1:]), forms, is_folded=True),
        DataTable("How often an author wins", ("Author", *head[1:]), authors, is_folded=True),
    ]
    return [table for table in tables if table.rows]
