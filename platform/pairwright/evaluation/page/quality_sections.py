"""The sections on how good a model is: accuracy, slices, poison, annotators and influence. Pure."""

from pairwright.evaluation.influence.leave_out import InfluenceOf
from pairwright.evaluation.page.page_tables import HEAD, axis_of, ends, parts_table, shares, span
from pairwright.evaluation.reports.report_schema import Report
from pairwright.evaluation.reports.report_text import p_value, percent, plain, points, points_interval, share
from pairwright.pages.page_sections import LISTED_ROWS, DataTable, Section
from pairwright.pages.svg_charts import SHARES, Axis, interval_row


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


def influence(report: Report) -> Section | None:
    """Return what leaving out each annotator and author changes; None where it was not asked for."""
    found = report.influence
    if found is None:
        return None
    tables = []
    if found.annotators is not None:
        tables.append(_influence_table("Annotators, the most harmful first", found.annotators, by_others=True))
    if found.authors is not None:
        title = "Authors of completions, those first that are known from their own pairs alone"
        tables.append(_influence_table(title, found.authors, by_others=False))
    trained = [
        f"trained on {name} it has {share(of.accuracy)}"
        for name, of in (("single annotations", found.annotators), ("groups", found.authors))
        if of is not None
    ]
    return Section(
        "influence",
        "Who taught it?",
        f"A small judge, linear over tokens and length, was trained on {found.train_groups:,} training groups, again "
        f"without each source in turn, and measured on {found.held_out_groups:,} held-out groups. A log loss on the "
        "pairs of others that falls without a source means that the source did harm. Accuracy on a source's own pairs "
        "that falls without it means that nothing else in the data speaks for them: an author far below the others "
        "there is a text that was learned by heart.",
        tables=[table for table in tables if table.rows],
        notes=[
            *(
                [f"The judge has {found.features:,} features; {'; '.join(trained)} of held-out pairs right."]
                if trained
                else []
            ),
            *([f"Annotators: unknown, {found.annotators_unknown}."] if found.annotators is None else []),
            *(["Authors: fewer than two are named."] if found.authors is None else []),
        ],
    )


def _influence_table(title: str, found: InfluenceOf, *, by_others: bool) -> DataTable:
    shown = [row.others_log_loss if by_others else row.own_accuracy for row in found.rows]
    known = [end for one in shown for end in (one.value, *(one.interval or ())) if end is not None]
    axis = Axis.around(known, rooted=True)
    rows = [
        [
            row.source,
            f"{row.train_pairs:,}",
            *(
                (plain(one.value, 4), ends(one), p_value(row.others_p), points(row.others_accuracy))
                if by_others
                else (percent(row.own_accuracy_with.value), points(one), points_interval(one), p_value(row.own_p))
            ),
            interval_row(one, axis, [0.0]),
        ]
        for row, one in zip(found.rows, shown, strict=True)
    ]
    low, high = (axis.text(end) for end in (axis.low, axis.high))
    what = (
        ("Change of the log loss on others", "95 %", "p", "Their accuracy, points")
        if by_others
        else ("Own accuracy with", "Change, points", "95 %", "p")
    )
    return DataTable(title, ("Left out", "Pairs", *what, f"change, {low} to {high}; dashed at 0"), rows)
