"""The sections with curves: calibration, best-of-N and the training of the model. Pure."""

from collections.abc import Iterable, Sequence
from typing import Literal

from pairwright.evaluation.page.page_tables import HEAD, ends, shares
from pairwright.evaluation.page.run_history import RunHistory
from pairwright.evaluation.reports.report_schema import Report
from pairwright.evaluation.reports.report_text import percent, plain
from pairwright.evaluation.statistics.calibration import CalibrationMetrics
from pairwright.pages.page_sections import Cell, DataTable, Section
from pairwright.pages.svg_charts import Axis, Curve, curves, thinned
from pairwright.terminal import counted

MAX_CAUSES = 20


def calibration(report: Report) -> Section:
    """Return the reliability curve, and losses with and without the temperature."""
    found = report.calibration
    parts = [_reliability("as it is", "first", found.whole)]
    if found.after is not None:
        parts.append(_reliability("at the fitted temperature", "second", found.after))
    ideal = Curve("as sure as right", [(0.5, 0.5), (1.0, 1.0)], "reference", has_dots=False)
    up = Axis.around([0.5, *(end for line, _ in parts for ends in line.intervals for end in ends)])
    picture = curves(
        "Reliability: how often the model is right, by how sure it is",
        [ideal, *(line for line, _ in parts)],
        Axis(0.5, 1.0, "{:.0%}", "how sure the model is"),
        Axis(max(0.0, up.low), 1.0, "{:.0%}"),
    )
    rows = [row for _, rows in parts for row in rows]
    return Section(
        "calibration",
        "How sure it is, and whether it should be",
        "On the dashed line a model is right as often as it says. Below the line it is too sure, and its reward "
        "differences should be divided by the temperature.",
        pictures=[picture],
        tables=[
            DataTable("Log loss, Brier score and error", ("At", "Log loss", "Brier", "Error"), _losses(report)),
            DataTable("Reliability", ("How sure it is", "Pairs", "In the mean", *HEAD), rows, is_folded=True),
        ],
    )


def _reliability(
    name: str, kind: Literal["first", "second"], at: CalibrationMetrics
) -> tuple[Curve, list[Sequence[Cell]]]:
    """Return a reliability curve, and its rows."""
    points, intervals, rows = [], [], []
    for one in at.bins:
        if one.confidence is None or one.accuracy.value is None:
            continue
        points.append((one.confidence, one.accuracy.value))
        intervals.append(one.accuracy.interval or (one.accuracy.value, one.accuracy.value))
        sure = f"{name}: {100 * one.low:.0f} to {100 * one.high:.0f} %"
        rows.append([sure, f"{one.pairs:,}", percent(one.confidence), *shares(one.accuracy)])
    return Curve(name, points, kind, intervals), rows


def _losses(report: Report) -> list[list[Cell]]:
    found = report.calibration
    return [
        [
            name,
            f"{plain(at.log_loss.value, 4)} {ends(at.log_loss)}".strip(),
            plain(at.brier.value, 3),
            percent(at.expected_calibration_error),
        ]
        for name, at in (
            ("all pairs, temperature 1", found.whole),
            ("other half of the prompts, temperature 1", found.before),
            (f"the same, temperature {plain(found.temperature, 2)}", found.after),
        )
        if at is not None and at.pairs
    ]


def best_of_n(report: Report) -> Section | None:
    """Return what the model's choice out of N is worth; None where no group says so."""
    rows = [row for row in report.best_of_n if row.groups and row.model.value is not None]
    if not rows:
        return None
    lines = [
        Curve("best", _points_of((row.n, row.best.value) for row in rows), "third"),
        Curve(
            "this model",
            _points_of((row.n, row.model.value) for row in rows),
            "first",
            [row.model.interval or (0.0, 0.0) for row in rows] if all(row.model.interval for row in rows) else (),
        ),
        Curve("the longest", _points_of((row.n, row.longest.value) for row in rows), "second"),
        Curve("random", [(row.n, row.random) for row in rows], "reference", has_dots=False),
    ]
    low, high = rows[0].n, max(rows[-1].n, rows[0].n + 1)
    picture = curves(
        "What the choice out of N completions is worth",
        lines,
        Axis(low, high, "{:.0f}", "N, completions to choose from"),
        Axis(min(0.4, *(y for line in lines for _, y in line.points)), 1.0, "{:.0%}"),
    )
    cells = [
        [
            f"{row.n}",
            f"{row.groups:,}",
            *shares(row.model),
            percent(row.longest.value),
            percent(row.best.value),
            percent(row.gained.value),
        ]
        for row in rows
    ]
    return Section(
        "use",
        "What its choice is worth",
        "Of N completions to a prompt the model picks one; its worth is the share of the group's other completions "
        "that annotators put below it. Random is 50 %. Groups differ from one N to the next: compare within a row.",
        pictures=[picture],
        tables=[DataTable("Best of N", ("N", "Groups", "Model", "95 %", "Longest", "Best", "Gained"), cells)],
    )


def _points_of(values: Iterable[tuple[int, float | None]]) -> list[tuple[float, float]]:
    return [(x, y) for x, y in values if y is not None]


def training(history: RunHistory | None) -> Section | None:
    """Return the learning curves of a run, with its restarts; None where no log is."""
    if history is None or not (history.loss or history.validation_loss):
        return None
    uprights = [(float(step), f"resumed from step {step}") for step in history.resumes]
    every = [history.loss, history.validation_loss, history.accuracy, history.validation_accuracy]
    last = max((step for points in every for step, _ in points), default=1.0)
    across = Axis(0.0, max(last, 1.0), "{:,.0f}", "step")
    losses = [thinned(history.loss), history.validation_loss]
    shares = [thinned(history.accuracy), history.validation_accuracy]
    pictures = [
        curves(
            title,
            [
                Curve(f"training {what}", points[0], "second", has_dots=False),
                Curve(f"held-out {what}", points[1], "first"),
            ],
            across,
            axis,
            uprights,
        )
        for title, what, points, axis in (
            ("Loss by step", "loss", losses, Axis.around([y for points in losses for _, y in points], rooted=True)),
            ("Accuracy by step", "accuracy", shares, Axis(0.0, 1.0, "{:.0%}")),
        )
    ]
    evaluated = dict(history.validation_accuracy)
    rows = [[f"{step:,.0f}", plain(loss, 4), percent(evaluated.get(step))] for step, loss in history.validation_loss]
    resumed = (
        f"The run was resumed {counted(len(history.resumes), 'time')}" if history.resumes else "The run was not resumed"
    )
    causes = [f"Workers were lost: {cause}" for cause in history.causes[:MAX_CAUSES]]
    return Section(
        "training",
        "Learning curves",
        "Held-out loss that rises while training loss falls is overfitting. Vertical lines are restarts: a curve that "
        "jumps there was not resumed as it should be.",
        pictures=pictures,
        tables=[DataTable("Held-out metrics", ("Step", "Log loss", "Accuracy"), rows, is_folded=True)],
        notes=[f"{resumed}.", *causes],
    )
