"""The sections on how good a model is: accuracy, slices, poison and annotators. Pure."""

from pairwright.evaluation.page.page_tables import HEAD, axis_of, parts_table, shares, span
from pairwright.evaluation.reports.report_schema import Report
from pairwright.evaluation.reports.report_text import p_value, percent
from pairwright.pages.page_sections import LISTED_ROWS, DataTable, Section
from pairwright.pages.svg_charts import SHARES, interval_row


def accuracy(report: Report) -> Section:
    """Return the accuracy beside what else could order the pairs, by subset and by size."""
    overall, top = report.overall, report.ceiling
    values = [
        ("this model", overall.accuracy),
        ("this model, each prompt alike", overall.accuracy_by_prompt),
        ("the longer text wins", overall.longer_wins),
    ]
    if top is not None:
        values += [
            (f"this model, on the {top.groups:,} groups of several annotators", top.model),
            ("another annotator, on these groups", top.other_annotator),
            ("the majority of annotators, on these groups", top.majority),
        ]
    axis = axis_of([value for _, value in values])
    rows = [[name, *shares(value), interval_row(value, axis, [0.5])] for name, value in values]
    blocks = [DataTable("Beside what else could be used", ("Who orders the pairs", *HEAD, span(axis)), rows)]
    for title, parts in (
        ("By subset", report.by_subset),
        ("By number of completions", report.by_num_completions),
    ):
        blocks += parts_table(title, parts, overall)
    return Section(
        "accuracy",
        "Accuracy",
        "The share of pairs, by weight, in which the better completion has the higher reward. A model is worth what it "
        "has above the length rule; nothing can be far above what annotators know of each other.",
        tables=blocks,
        notes=[] if top is not None else [f"How far annotators agree is unknown: {report.ceiling_unknown}."],
    )


def slices(report: Report) -> Section:
    """Return the worst slices, and all slices."""
    rows = [
        [
            f"{row.kind.replace('_', ' ')}: {row.name}",
            percent(row.accuracy),
            percent(row.accuracy_of_rest),
            f"{row.prompts:,}",
            f"{row.pairs:,}",
            p_value(row.p_value),
        ]
        for row in report.worst_slices
    ]
    worst = DataTable("Surely worse than the rest", ("Slice", "Accuracy", "The rest", "Prompts", "Pairs", "p"), rows)
    parts = [
        table
        for kind, of_kind in report.slices.items()
        for table in parts_table(f"By {kind.replace('_', ' ')}", of_kind, report.overall)
    ]
    return Section(
        "slices",
        "Where it fails",
        f"{report.slices_tested:,} slices were tested against all other pairs, and p is adjusted for that many. Slices "
        "overlap, so two names may be one cause.",
        tables=[*([worst] if rows else []), *parts],
        notes=[] if rows else ["No slice is surely worse than the rest."],
    )


def poison(report: Report) -> Section:
    """Return texts that the model likes under any prompt."""
    repeated = [
        [
            row.text.strip() or "(empty)",
            f"{row.metrics.prompts:,}",
            *shares(row.metrics.model_worth),
            percent(row.metrics.annotated_worth.value),
            interval_row(row.metrics.model_worth, SHARES, [0.5]),
        ]
        for row in report.repeated_texts
    ]
    tried = [
        [
            row.kind,
            f"{row.prompts:,}",
            *shares(row.worth),
            percent(row.above_best.value),
            interval_row(row.worth, SHARES, [0.5]),
        ]
        for row in report.degenerate_texts
    ]
    head, picture = ("Text", "Prompts", "Above", "95 %"), "0 % to 100 %; dashed at 50 %"
    tables = [
        DataTable("Texts that answer nothing", (*head, "Above the best", picture), tried, id="degenerate"),
        DataTable("Texts under several prompts", (*head, "By annotators", picture), repeated),
    ]
    return Section(
        "poison",
        "Can it be gamed?",
        "A text that answers nothing should be below nearly all real completions, and no text is the best answer to "
        "everything: what is trained against this model will find such a text.",
        tables=[table for table in tables if table.rows],
        notes=[] if repeated else ["No text stands under three prompts or more."],
    )


def annotators(report: Report) -> Section | None:
    """Return how well each annotator is explained; None where nobody is named."""
    if not report.annotators:
        return None
    axis = axis_of([row.accuracy for row in report.annotators[:LISTED_ROWS]])
    marks = [value for value in (0.5, report.overall.accuracy.value) if value is not None]
    rows = [
        [
            row.annotator,
            f"{row.annotations:,}",
            *shares(row.accuracy),
            percent(row.other_annotators.value),
            interval_row(row.accuracy, axis, marks),
        ]
        for row in report.annotators
    ]
    head = ("Annotator", "Annotations", "Model", "95 %", "Other annotators", span(axis))
    return Section(
        "annotators",
        "Annotators",
        "How well the model predicts each annotator, the least first, and how well the others do. One whom nobody "
        "predicts may judge carelessly, or see what nobody else sees.",
        tables=[DataTable("How well each is explained", head, rows)],
    )
