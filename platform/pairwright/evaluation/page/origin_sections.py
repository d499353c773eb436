"""The sections on the origin of a model and its metrics: lineage and method. Pure."""

from collections.abc import Sequence

from pairwright.evaluation.page.lineage import Ancestor
from pairwright.evaluation.page.run_history import RunHistory
from pairwright.evaluation.reports.report_schema import Report
from pairwright.pages.page_sections import LISTED_ROWS, Cell, DataTable, Section


def lineage(report: Report, history: RunHistory | None, made_from: Sequence[Ancestor]) -> Section:
    """Return what was trained and evaluated on what, by digest."""
    rows: list[list[Cell]] = [["model", report.model.path, report.model.dtype, report.model.digest]]
    notes = []
    facts = None if history is None else history.facts
    if facts is None:
        notes.append("The model lies in no folder of a run, so what it was trained on is not known.")
    else:
        at = f"version {facts.pairs_version}"
        rows.append(["starting model", str(facts.config.get("model", {}).get("path", "")), "", facts.model_digest])
        rows.append(["trained on", facts.pairs_url, at, facts.pairs_digest])
        rows.append(["tokens", "", "", facts.tokens_digest])
        notes.append(_same_data(report, facts.pairs_digest))
    pairs = report.pairs
    if made_from:
        rows += [[f"evaluated on: {one.kind}", one.url, one.detail, one.digest] for one in made_from]
    else:
        rows.append(["evaluated on", pairs.url, f"version {pairs.version}", pairs.digest])
    return Section(
        "lineage",
        "What was trained on what",
        f"Split {pairs.split} of the pairs was evaluated. Digests are over content, so equal digests are equal data.",
        tables=[DataTable("Lineage", ("What", "Where", "Which", "Digest"), rows, is_text=True)],
        notes=notes,
    )


def _same_data(report: Report, digest: str) -> str:
    if not digest:
        return "The run does not say by digest which pairs it was trained on."
    if digest != report.pairs.digest:
        return (
            "The model was trained on another version or table than it is evaluated on: whether it has seen these "
            "prompts is not known from here."
        )
    if report.pairs.split == "train":
        return "These are the very pairs that it was trained on."
    return "The same table version was trained on, in its training split: no prompt of these pairs is in it."


def how(report: Report) -> Section:
    """Return how the figures were measured."""
    method, dropped = report.method, report.pairs.tokens
    rows = [
        ["confidence of the intervals", f"{100 * method.interval:.0f} %"],
        ["resampled", f"{method.prompts:,} prompts in {method.clusters:,} clusters, {method.resamples:,} times"],
        ["seed", f"{method.seed}"],
        ["equal rewards", "count half"],
        ["longest prompt and completion", f"{report.model.max_length:,} tokens; longer ones: {report.model.overlong}"],
        ["special tokens in texts", report.model.special_in_text],
        *([name.replace("_", " "), f"{value:,.0f}"] for name, value in list(dropped.items())[:LISTED_ROWS]),
        ["evaluated", f"{report.created_at}, by Pairwright {report.code_version}"],
    ]
    return Section(
        "how",
        "How it was measured",
        "Pairs of one prompt are not independent, so intervals come from resampling prompts. Totals of tokens are "
        "those of all splits.",
        tables=[DataTable("Method", ("What", "Value"), rows, is_folded=True, is_text=True)],
    )
