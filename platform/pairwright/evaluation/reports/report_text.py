"""The report of an evaluation as plain text of 100 columns: what to know first, and where the model fails."""

import textwrap
from collections.abc import Iterator, Mapping
from io import StringIO
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pairwright.data.tokens.tokenize_groups import EQUAL_IN_TEMPLATE, special_line
from pairwright.evaluation.reports.report_schema import Report
from pairwright.evaluation.statistics.intervals import Estimate
from pairwright.evaluation.statistics.pair_metrics import PartMetrics
from pairwright.terminal import counted, escaped, one_per_line

TABLE_COLUMNS = 100
MAX_SUBSETS = 8
MAX_WORST = 5
MAX_TEXTS = 3
_UNKNOWN = "-"
_EXCERPT = 40


def format_report(report: dict[str, Any]) -> str:
    """Return the report without colours, the same on every terminal."""
    found = msgspec.convert(report, Report)
    model, pairs = found.model, found.pairs
    lines = [
        f"model  {model.path}  ({model.dtype}, {model.digest[:12]})",
        f"pairs  {pairs.url} version {pairs.version}, split {pairs.split}: "
        f"{found.overall.pairs - found.pairs_again:,} of {pairs.pairs:,} pairs, {found.method.prompts:,} prompts",
        *_counted_again(found),
        f"input  at most {model.max_length} tokens; {_dropped(pairs.tokens)}",
        *_special(pairs.tokens, model.special_in_text),
        "",
        *_wrapped(_headline(found), indent=13),
        "",
        *(line.rstrip() for line in _table(found).split("\n")),
        *_wrapped(_worst(found), indent=4),
        *_wrapped(_suspicious(found), indent=4),
        "brackets: 95 % intervals over prompts; equal rewards count half",
        "",
    ]
    return one_per_line(lines)


def _wrapped(lines: Iterator[str], *, indent: int) -> Iterator[str]:
    for line in lines:
        yield from textwrap.wrap(line, TABLE_COLUMNS, subsequent_indent=" " * indent, break_on_hyphens=False)


def _headline(found: Report) -> Iterator[str]:
    overall = found.overall
    yield (
        f"accuracy     {share(overall.accuracy)} of pairs by weight; "
        f"{share(overall.accuracy_by_prompt)} with each prompt alike"
    )
    yield f"longer wins  {share(overall.longer_wins)}: what the longer text alone would get"
    top = found.ceiling
    if top is None:
        yield f"annotators   how far they agree is unknown: {found.ceiling_unknown}"
    else:
        yield (
            f"annotators   {share(top.other_annotator)}: one predicts another, in {top.groups:,} groups; "
            f"the model has {percent(top.model.value)} there"
        )
    yield from _calibration(found)
    yield from _use(found)


def _calibration(found: Report) -> Iterator[str]:
    whole, before, after = found.calibration.whole, found.calibration.before, found.calibration.after
    yield (
        f"calibration  log loss {_number(whole.log_loss)}, Brier {plain(whole.brier.value, 3)}, "
        f"calibration error {percent(whole.expected_calibration_error)}"
    )
    if after is not None and after.pairs:
        yield (
            f"             at temperature {after.temperature:.2f}, other half of the prompts: log loss "
            f"{plain(before.log_loss.value, 4)} -> {plain(after.log_loss.value, 4)}, error "
            f"{percent(before.expected_calibration_error)} -> {percent(after.expected_calibration_error)}"
        )


def _use(found: Report) -> Iterator[str]:
    rows = [row for row in found.best_of_n if row.groups]
    shown = {row.n: row for row in rows if row.n in (2, 4, 8)}
    shown = shown or {row.n: row for row in rows[-1:]}
    for n, row in shown.items():
        yield (
            f"best of {n:<4} model {share(row.model)}, longest {percent(row.longest.value)}, "
            f"best {percent(row.best.value)}, random 50.0 %"
        )
    ranks = found.rank_correlation
    if ranks.groups:
        yield (
            f"ranking      Spearman {_number(ranks.spearman, 3)}, Kendall {_number(ranks.kendall, 3)}; "
            f"by length {plain(ranks.length_spearman.value, 3)}"
        )


def _table(found: Report) -> str:
    table = Table(box=None, pad_edge=False, header_style="", show_edge=False)
    table.add_column("", no_wrap=True, overflow="ellipsis", max_width=30)
    for heading in ("groups", "pairs", "accuracy", "", "longer wins", "log loss", "reward margin"):
        table.add_column(heading, justify="right", no_wrap=True)
    _add_row(table, "all", found.overall)
    _add_block(table, "by subset", found.by_subset)
    _add_block(table, "by length", msgspec.structs.asdict(found.by_length))
    console = Console(file=(text := StringIO()), width=TABLE_COLUMNS, color_system=None, force_terminal=False)
    console.print(table)
    return text.getvalue()


def _worst(found: Report) -> Iterator[str]:
    if not found.worst_slices:
        yield f"worst slices: none of {found.slices_tested:,} is surely worse than the rest"
        return
    yield f"worst slices, surely worse than the rest ({found.slices_tested:,} tested, p adjusted)"
    for row in found.worst_slices[:MAX_WORST]:
        yield (
            f"  {row.kind.replace('_', ' ')} {escaped(row.name)}: {100 * row.accuracy:.1f} %, the rest "
            f"{100 * row.accuracy_of_rest:.1f} %, in {row.prompts:,} prompts (p {p_value(row.p_value)})"
        )
    if (more := len(found.worst_slices) - MAX_WORST) > 0:
        yield f"  and {more:,} more in report.json"


def _suspicious(found: Report) -> Iterator[str]:
    """Yield what looks like a poisoned source or a model that can be gamed."""
    for row in [row for row in found.repeated_texts if row.metrics.is_suspect][:MAX_TEXTS]:
        metrics = row.metrics
        authors = f" of {', '.join(map(escaped, metrics.authors[:2]))}" if metrics.authors else ""
        worth = percent(metrics.model_worth.value)
        yield (
            f"warning: one text{authors} under {metrics.prompts:,} prompts is above {worth} of other completions: "
            f"{escaped(row.text.strip()[:_EXCERPT])}; without its pairs accuracy is "
            f"{percent(metrics.accuracy_without.value)}, longer wins {percent(metrics.longer_wins_without.value)}"
        )
    for row in found.degenerate_texts:
        if row.worth.interval is not None and row.worth.interval[0] > 0.5:
            yield (f"warning: {row.kind} is above {share(row.worth)} of real completions under {row.prompts:,} prompts")
    yield from _influential(found)
    if found.num_likely_wrong:
        yield f"{found.num_likely_wrong:,} groups have a pair that the model is over 90 % sure is the wrong way round"
    if found.unexplained_annotators:
        names = ", ".join(map(escaped, found.unexplained_annotators[:MAX_TEXTS]))
        yield f"annotators that the model explains surely worse than the others: {names}"


def _influential(found: Report) -> Iterator[str]:
    """Yield whom a model should not learn from, where that was asked for."""
    if found.influence is None:
        return
    annotators, authors = found.influence.annotators, found.influence.authors
    harmful = [] if annotators is None else annotators.harmful()
    memorized = [] if authors is None else authors.memorized()
    if annotators is not None and not harmful:
        yield f"influence: of {counted(len(annotators.rows), 'annotator')} none surely harms the pairs of others"
    if authors is not None and not memorized:
        yield f"influence: of {counted(len(authors.rows), 'author')} none is known from its own pairs alone"
    for row in harmful[:MAX_TEXTS]:
        yield (
            f"warning: without annotator {escaped(row.source)} a small judge is better on the pairs of others: log "
            f"loss {row.others_log_loss.value:+.4f} (p {p_value(row.others_p)})"
        )
    for row in memorized[:MAX_TEXTS]:
        yield (
            f"warning: {escaped(row.source)} is known from its own pairs alone: a small judge has "
            f"{percent(row.own_accuracy_with.value)} of them right, without them {points(row.own_accuracy)} points "
            f"(p {p_value(row.own_p)})"
        )


def _dropped(totals: dict[str, int | float]) -> str:
    parts = [
        f"{totals[key]:,.0f} {what}"
        for key, what in (
            ("completions_dropped", "completions over it dropped"),
            ("completions_truncated", "truncated"),
            ("pairs_identical", "pairs dropped as identical after that"),
            ("pairs_equal_in_template", f"of them {EQUAL_IN_TEMPLATE}"),
            ("pairs_dropped", "pairs dropped with them"),
            ("groups_dropped", "groups dropped"),
            ("groups_refused", "of them refused by the chat template"),
            ("completions_refused", "completions refused"),
        )
        if totals.get(key)
    ]
    return f"in all splits {', '.join(parts)}" if parts else "nothing was over it"


def _counted_again(found: Report) -> list[str]:
    if not found.pairs_again:
        return []
    return [
        f"       {found.pairs_again:,} of them count again, for a further subset of their group: "
        f"{found.overall.pairs:,} in all"
    ]


def _special(totals: dict[str, int | float], rule: str) -> list[str]:
    num_groups = totals.get("groups_with_special", 0)
    return [f"       in all splits {num_groups:,.0f} groups {special_line(totals, rule)}"] if num_groups else []


def _add_block(table: Table, heading: str, rows: Mapping[str, PartMetrics]) -> None:
    table.add_row()
    table.add_row(heading)
    is_length = heading == "by length"
    for name, metrics in list(rows.items())[: None if is_length else MAX_SUBSETS]:
        _add_row(table, f"  {name.replace('_', ' ') if is_length else name}", metrics)
    if not is_length and len(rows) > MAX_SUBSETS:
        table.add_row(f"  and {len(rows) - MAX_SUBSETS:,} more in report.json")


def _add_row(table: Table, name: str, metrics: PartMetrics) -> None:
    table.add_row(
        Text(escaped(name)),  # a plain string would be read as markup: [math] is a style then
        f"{metrics.groups:,}",
        f"{metrics.pairs:,}",
        percent(metrics.accuracy.value),
        Text(percent_interval(metrics.accuracy)),
        percent(metrics.longer_wins.value),
        plain(metrics.log_loss.value, 4),
        _UNKNOWN if metrics.reward_margin.value is None else f"{metrics.reward_margin.value:+.3f}",
    )


def share(estimate: Estimate) -> str:
    """Return a share with its interval."""
    interval = percent_interval(estimate)
    return f"{percent(estimate.value)} {interval}" if interval else percent(estimate.value)


def percent_interval(estimate: Estimate) -> str:
    """Return the interval of a share in brackets, empty if there is none."""
    if estimate.interval is None:
        return ""
    low, high = (f"{100 * end:.1f}" for end in estimate.interval)
    return f"[{low}, {high}]"


def _number(estimate: Estimate, digits: int = 4) -> str:
    if estimate.interval is None:
        return plain(estimate.value, digits)
    low, high = (f"{end:.{digits}f}" for end in estimate.interval)
    return f"{plain(estimate.value, digits)} [{low}, {high}]"


def plain(value: float | None, digits: int) -> str:
    """Return a number, a dash if there is none."""
    return _UNKNOWN if value is None else f"{value:z.{digits}f}"


def percent(share: float | None) -> str:
    """Return a share in percent, a dash if there is none."""
    return _UNKNOWN if share is None else f"{100 * share:.1f} %"


def points(estimate: Estimate) -> str:
    """Return a difference of shares in points, a dash if there is none."""
    return _UNKNOWN if estimate.value is None else f"{100 * estimate.value:+z.1f}"


def points_interval(estimate: Estimate) -> str:
    """Return the interval of a difference of shares in brackets, empty if there is none."""
    return "" if estimate.interval is None else "[{:+z.1f}, {:+z.1f}]".format(*(100 * end for end in estimate.interval))


def p_value(value: float | None) -> str:
    """Return a p-value of three digits, a dash if there is none."""
    return _UNKNOWN if value is None else "below 0.001" if value < 0.001 else f"{value:.3f}"
