"""The report of an evaluation: ``report.json`` (schemas/report.v1.json), and the same as a table in plain text.

Every row has the accuracy of a baseline that prefers the longer text: accuracy alone does not show whether a model
learned more than that. The last block splits the pairs by which completion is longer.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from io import StringIO
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pairwright import __version__
from pairwright.data.tokens.tokenize_groups import EQUAL_IN_TEMPLATE, special_line
from pairwright.evaluation.evaluate import Evaluation
from pairwright.evaluation.load_exported import ModelIdentity
from pairwright.model.reward_metrics import Metrics, PairSums
from pairwright.terminal import counted, escaped, one_per_line, safe_json

FORMAT_VERSION = 1
TABLE_COLUMNS = 100
_UNKNOWN = "-"

KeyT = TypeVar("KeyT", str, int)

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Count = Annotated[int, msgspec.Meta(ge=0)]


class ReportMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """Metrics of some pairs; means are weighted over the pairs, and null if there is no weight."""

    groups: Annotated[Count, msgspec.Meta(description="groups with such pairs")]
    pairs: Annotated[Count, msgspec.Meta(description="pairs")]
    weight: Annotated[float, msgspec.Meta(description="sum of the pairs' weights")]
    accuracy: Annotated[Share | None, msgspec.Meta(description="share with the chosen's reward higher; equal is half")]
    log_loss: Annotated[float | None, msgspec.Meta(description="-log sigmoid(reward difference), no margins, nats")]
    reward_margin: Annotated[float | None, msgspec.Meta(description="reward of the chosen minus that of the rejected")]
    longer_wins: Annotated[
        Share | None,
        msgspec.Meta(description="accuracy of the baseline: longer text (characters) wins, equal length is half"),
    ]


class ByLength(msgspec.Struct, frozen=True, kw_only=True):
    """The model's metrics by which completion of a pair has the longer text."""

    chosen_longer: ReportMetrics
    chosen_shorter: ReportMetrics
    equal_length: ReportMetrics


class DataIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """The data of an evaluation."""

    url: str
    version: int
    digest: str
    split: str
    pairs: Annotated[Count, msgspec.Meta(description="of the split in the table; `overall` has those evaluated")]
    tokens: Annotated[
        dict[str, int | float],
        msgspec.Meta(description="totals of the whole tokens table, all splits: kept, truncated and dropped"),
    ]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The evaluation of a model on the pairs of a split."""

    format_version: Literal[1] = FORMAT_VERSION
    created_at: str
    code_version: str
    model: ModelIdentity
    pairs: DataIdentity
    overall: ReportMetrics
    by_subset: dict[str, ReportMetrics]
    by_num_completions: dict[str, ReportMetrics]
    by_length: ByLength
    pairs_again: Annotated[
        Count,
        msgspec.Meta(description="of the pairs in `overall`: counted again because their group is in another subset"),
    ] = 0


def build_report(evaluation: Evaluation, *, model: ModelIdentity, pairs: DataIdentity) -> dict[str, Any]:
    """Return the report as JSON-able values, in the shape of ``schemas/report.v1.json``."""
    sums, baseline = evaluation.model, evaluation.longer_wins
    report = Report(
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        code_version=__version__,
        model=model,
        pairs=pairs,
        overall=_metrics(sums.overall.metrics(), baseline.overall.metrics().get("accuracy")),
        by_subset=_with_baseline(sums.by_subset, baseline.by_subset),
        by_num_completions=_with_baseline(sums.by_num_completions, baseline.by_num_completions),
        by_length=ByLength(
            chosen_longer=_metrics(evaluation.chosen_longer.metrics(), 1.0),
            chosen_shorter=_metrics(evaluation.chosen_shorter.metrics(), 0.0),
            equal_length=_metrics(evaluation.equal_length.metrics(), 0.5),
        ),
        pairs_again=sums.pairs_again,
    )
    return msgspec.to_builtins(report)


def report_json(report: dict[str, Any]) -> bytes:
    """Return the content of ``report.json``, indented, with unprintable characters escaped."""
    return safe_json(msgspec.json.format(msgspec.json.encode(report).decode(), indent=2)).encode() + b"\n"


def _with_baseline(model: Mapping[KeyT, PairSums], baseline: Mapping[KeyT, PairSums]) -> dict[str, ReportMetrics]:
    return {str(key): _metrics(model[key].metrics(), baseline[key].metrics().get("accuracy")) for key in sorted(model)}


def _metrics(metrics: Metrics, longer_wins: float | None) -> ReportMetrics:
    known = "accuracy" in metrics
    return ReportMetrics(
        groups=int(metrics["groups"]),
        pairs=int(metrics["pairs"]),
        weight=metrics["weight"],
        accuracy=metrics.get("accuracy"),
        log_loss=metrics.get("log_loss"),
        reward_margin=metrics.get("reward_margin"),
        longer_wins=longer_wins if known else None,
    )


# ------------------------------------------------------------------------------------------------- table


def format_report(report: dict[str, Any]) -> str:
    """Return the report as a table in plain text of 100 columns, without colours, the same on every terminal."""
    found = msgspec.convert(report, Report)
    model, pairs = found.model, found.pairs
    table = Table(box=None, pad_edge=False, header_style="", show_edge=False)
    table.add_column("", no_wrap=True, overflow="ellipsis", max_width=32)
    for heading in ("groups", "pairs", "accuracy", "longer wins", "log loss", "reward margin"):
        table.add_column(heading, justify="right", no_wrap=True)
    _add_row(table, "all", found.overall)
    _add_block(table, "by subset", found.by_subset)
    _add_block(table, "by number of completions", found.by_num_completions)
    _add_block(table, "by length", msgspec.structs.asdict(found.by_length))
    console = Console(file=(text := StringIO()), width=TABLE_COLUMNS, color_system=None, force_terminal=False)
    console.print(table)
    lines = [
        f"model  {model.path}  ({model.dtype}, {model.digest[:12]})",
        f"pairs  {pairs.url} version {pairs.version}, split {pairs.split}: "
        f"{found.overall.pairs - found.pairs_again:,} of {counted(pairs.pairs, 'pair')}",
        *_counted_again(found),
        f"input  at most {model.max_length} tokens; {_dropped(pairs.tokens)}",
        *_special(pairs.tokens, model.special_in_text),
        "",
        *(line.rstrip() for line in text.getvalue().split("\n")),
        "accuracy: weighted, equal rewards count half. longer wins: what the longer text alone would get.",
        "",
    ]
    return one_per_line(lines)


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
    return (
        [f"       in all splits {counted(int(num_groups), 'group')} {special_line(totals, rule)}"] if num_groups else []
    )


def _add_block(table: Table, heading: str, rows: dict[str, ReportMetrics]) -> None:
    table.add_row()
    table.add_row(heading)
    for name, metrics in rows.items():
        _add_row(table, f"  {name.replace('_', ' ') if heading == 'by length' else name}", metrics)


def _add_row(table: Table, name: str, metrics: ReportMetrics) -> None:
    table.add_row(
        Text(escaped(name)),  # a plain string would be read as markup: [math] is a style then
        f"{metrics.groups:,}",
        f"{metrics.pairs:,}",
        _percent(metrics.accuracy),
        _percent(metrics.longer_wins),
        _UNKNOWN if metrics.log_loss is None else f"{metrics.log_loss:.4f}",
        _UNKNOWN if metrics.reward_margin is None else f"{metrics.reward_margin:+.3f}",
    )


def _percent(share: float | None) -> str:
    return _UNKNOWN if share is None else f"{100 * share:.1f} %"
