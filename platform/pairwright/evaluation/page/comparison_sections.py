"""The sections of a comparison's page: models with their seeds, paired differences, slices, lineage. Pure."""

from collections.abc import Iterator, Mapping, Sequence

from pairwright.evaluation.page.lineage import Ancestor
from pairwright.evaluation.page.page_tables import axis_of, shares, span
from pairwright.evaluation.page.run_history import RunHistory
from pairwright.evaluation.reports.comparison import Comparison, ModelDifference, SliceDifference
from pairwright.evaluation.reports.report_text import p_value, percent, points, points_interval
from pairwright.evaluation.statistics.intervals import Estimate
from pairwright.evaluation.statistics.slices import SIGNIFICANCE
from pairwright.pages.page_sections import Cell, DataTable, Section
from pairwright.pages.svg_charts import Axis, interval_row

MAX_DIFFERENCES = 45
"""Differences in the table: those of ten models."""
MAX_DETAILED = 6
"""Differences whose slices and examples are shown."""


def detailed(found: Comparison) -> list[ModelDifference]:
    """Return the differences whose slices and examples are shown: those with the best model, surest first."""
    best = max(found.models, key=lambda model: model.accuracy.value or 0.0, default=None)
    order = sorted(
        found.differences,
        key=lambda one: (best is None or best.name not in (one.first, one.second), one.p_value or 0.0),
    )
    return order[:MAX_DETAILED]


def models(found: Comparison, short: Mapping[str, str]) -> Section:
    """Return the accuracy of each model, the spread of its runs, and the length rule."""
    every = [model.accuracy for model in found.models] + [found.longer_wins]
    runs = [Estimate(value, None) for model in found.models for value in model.accuracy_of_runs]
    axis = axis_of([*every, *runs])
    rows: list[list[Cell]] = []
    for model in found.models:
        spread = model.spread
        seeds = (
            "one run"
            if spread.standard_deviation is None
            else f"{spread.runs} runs, {100 * spread.lowest:.1f} to {100 * spread.highest:.1f}, "
            f"standard deviation {100 * spread.standard_deviation:.2f}"
        )
        dots = model.accuracy_of_runs if spread.runs > 1 else ()
        picture = interval_row(model.accuracy, axis, [0.5], dots)
        rows.append([short[model.name], *shares(model.accuracy), seeds, picture])
    rows.append(["the longer text wins", *shares(found.longer_wins), "", interval_row(found.longer_wins, axis, [0.5])])
    return Section(
        "models",
        "The models",
        f"All are measured on the same {found.common_pairs:,} pairs of {found.common_prompts:,} prompts. The accuracy "
        "of several runs is their mean, and the small dots are the runs. Brackets are over prompts and say nothing of "
        "other seeds.",
        tables=[DataTable("Accuracy", ("Model", "Accuracy", "95 %", "Seeds", span(axis)), rows)],
    )


def differences(found: Comparison, short: Mapping[str, str]) -> Section | None:
    """Return the paired difference of every two models; None for one model."""
    if not found.differences:
        return None
    shown = found.differences[:MAX_DIFFERENCES]
    axis = _around_zero([one.result.difference for one in shown])
    rows = [
        [
            f"{short[one.second]} less {short[one.first]}",
            points(one.result.difference),
            points_interval(one.result.difference),
            p_value(one.p_value),
            percent(one.result.disagreement),
            interval_row(one.result.difference, axis, [0.0]),
        ]
        for one in shown
    ]
    head = ("Models", "Points", "95 %", "p", "Disagree", f"{_ends(axis)} points; dashed at 0")
    tables = [DataTable("Accuracy of the one less that of the other", head, rows)]
    hidden = len(found.differences) - len(shown)
    return Section(
        "differences",
        "Do they differ?",
        "Both models answer the same prompts, so a difference is surer than either accuracy: intervals above may "
        f"overlap and the models differ all the same. They do where p is below {SIGNIFICANCE:.2f}: it is of a "
        f"sign-flip test over prompts, adjusted for {len(found.differences):,} comparisons.",
        tables=tables,
        notes=[f"{hidden:,} more differences are in the JSON."] if hidden else [],
    )


def slices(found: Comparison, short: Mapping[str, str]) -> Section | None:
    """Return where the models differ; None where no slice has enough prompts."""
    tables = [table for one in detailed(found) for table in _slice_tables(one, short)]
    if not tables:
        return None
    return Section(
        "slices",
        "Where they differ",
        "Slices with enough prompts, by p, which is adjusted for their number. Slices overlap, so two names may be one "
        "cause.",
        tables=tables,
        notes=_hidden(found, "slices"),
    )


def _slice_tables(one: ModelDifference, short: Mapping[str, str]) -> Iterator[DataTable]:
    axis = _around_zero([row.result.difference for row in one.slices])
    name = f"{short[one.second]} less {short[one.first]}"
    head = ("Slice", "Prompts", "First", "Second", "Points", "95 %", "p", f"{_ends(axis)} points; dashed at 0")
    sure = [row for row in one.slices if row.p_value < SIGNIFICANCE]
    rest = [row for row in one.slices if row.p_value >= SIGNIFICANCE]
    if sure:
        yield DataTable(f"{name}: surely different", head, [_slice_row(row, axis) for row in sure])
    if rest:
        title = f"{name}: {len(rest)} slices without a sure difference"
        yield DataTable(title, head, [_slice_row(row, axis) for row in rest], is_folded=True)


def _slice_row(row: SliceDifference, axis: Axis) -> list[Cell]:
    result = row.result
    return [
        f"{row.kind.replace('_', ' ')}: {row.name}",
        f"{result.prompts:,}",
        percent(result.first.value),
        percent(result.second.value),
        points(result.difference),
        points_interval(result.difference),
        p_value(row.p_value),
        interval_row(result.difference, axis, [0.0]),
    ]


def disagreements(found: Comparison, number: int) -> Section | None:
    """Return the section of the pairs on which models disagree; None for one model."""
    if not found.differences:
        return None
    return Section(
        "disagreements",
        "Where they disagree most",
        f"{number:,} pairs that one model has right and the other wrong, the surest first, one a group. Read a few "
        "before you choose: the annotation may be wrong too. Words that the other text has not got are marked; long "
        "texts are shortened.",
        notes=([] if number else ["No pair divides the models."]) + _hidden(found, "pairs"),
        has_examples=True,
    )


def lineage(found: Comparison, histories: Mapping[str, RunHistory | None], made_from: Sequence[Ancestor]) -> Section:
    """Return what each run was trained on, and what all were compared on, by digest."""
    rows: list[list[Cell]] = []
    for model in found.models:
        for run in model.runs:
            rows.append(["model", run.path, f"{run.dtype}, at most {run.max_length:,} tokens", run.digest])
            history = histories.get(run.path)
            if history is None or history.facts is None:
                rows.append(["trained on", "not known: it lies in no folder of a run", "", ""])
                continue
            facts = history.facts
            seed = facts.config.get("training", {}).get("seed", "")
            start = str(facts.config.get("model", {}).get("path", ""))
            rows.append(["starting model", start, f"seed {seed}", facts.model_digest])
            rows.append(["trained on", facts.pairs_url, f"version {facts.pairs_version}", facts.pairs_digest])
    rows += [[f"compared on: {one.kind}", one.url, one.detail, one.digest] for one in made_from]
    return Section(
        "lineage",
        "What was trained on what",
        "Digests are over content, so equal digests are equal data.",
        tables=[DataTable("Lineage", ("What", "Where", "Which", "Digest"), rows, is_text=True)],
        notes=[f"Compared by Pairwright {found.code_version}, {found.created_at}; equal rewards count half."],
    )


def _hidden(found: Comparison, what: str) -> list[str]:
    number = len(found.differences) - MAX_DETAILED
    return [f"The {what} of {number:,} more pairs of models are in the JSON."] if number > 0 else []


def _around_zero(estimates: Sequence[Estimate]) -> Axis:
    ends = [abs(end) for one in estimates for end in (one.value, *(one.interval or ())) if end is not None]
    largest = Axis.around([0.0, *ends]).high
    return Axis(-largest, largest)


def _ends(axis: Axis) -> str:
    return f"{100 * axis.low:+.3g} to {100 * axis.high:+.3g}"
