"""Runs benchmarks: the rewards of a model on their items, or rewards from a file, into one table."""

from collections.abc import Mapping, Sequence
from io import StringIO

import msgspec
import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pairwright.data.extras import reply_of, turns_of
from pairwright.data.ingest.adapters import RecordError
from pairwright.data.ingest.fields.conversation_turns import read_conversation
from pairwright.data.tokens.conversation_tokens import TokenSpec
from pairwright.errors import DataError
from pairwright.evaluation.benchmarks.benchmark_files import (
    Rewards,
    inline_scores,
    items_of_scores,
    read_benchmarks,
    read_scores,
)
from pairwright.evaluation.benchmarks.benchmark_layouts import REWARD_MATH, BenchmarkItem
from pairwright.evaluation.benchmarks.benchmark_rules import BenchmarkResult, score_benchmark
from pairwright.evaluation.load_exported import LoadedModel, load_exported, open_exported
from pairwright.evaluation.requests import ScoreRequest
from pairwright.evaluation.score import score_requests
from pairwright.progress_bar import progress_bar
from pairwright.records import Message
from pairwright.terminal import counted, escaped, one_per_line

ITEMS_AT_ONCE = 256
LENGTH_RULE = "(longer wins)"
TABLE_COLUMNS = 100


class BenchmarkTable(msgspec.Struct, frozen=True, kw_only=True):
    """What `pairwright benchmark` found."""

    results: list[BenchmarkResult]
    excluded: dict[str, int]
    """Benchmark -> items with a completion over the model's limit, or that its template refuses."""
    ties: int
    """Records whose annotators call it a tie: no rule scores them."""


def run_benchmarks(
    files: Sequence[str], *, model: str | None, scores: str | None, micro_batch_tokens: int, use_gpu: bool
) -> BenchmarkTable:
    """Return the results of a model, or of rewards that somebody else computed, on the benchmarks of some files.

    The rule that the longer text wins stands beside them.

    Raises:
        DataError: if a record or a file of rewards does not fit; if no item is left.
        ModelError: if the model cannot be used.
        SourceError: if a file is missing or cannot be read.
    """
    items, num_ties = read_benchmarks(files) if files else ({}, 0)
    results, excluded = [], {}
    if model is not None:
        loaded = load_exported(exported := open_exported(model), torch.device("cuda" if use_gpu else "cpu"))
        spec = TokenSpec.of(loaded.tokenizer, exported.rules.tokens_config())
        for benchmark, of_it in items.items():
            kept, rewards = rewards_of_items(loaded, spec, of_it, micro_batch_tokens=micro_batch_tokens)
            excluded[benchmark] = len(of_it) - len(kept)
            results += [score_benchmark(kept, rewards, model), *length_rule(kept)] if kept else []
    else:
        given = inline_scores(items) if scores is None or scores in files else read_scores(scores, items)
        results = _of_scores(given, items)
    if not results:
        raise DataError(
            f"{', '.join(files)}: no item to score: " + ("all are over the model's limit" if excluded else "no rewards")
        )
    return BenchmarkTable(results=results, excluded={k: n for k, n in excluded.items() if n}, ties=num_ties)


def rewards_of_items(
    loaded: LoadedModel, spec: TokenSpec, items: Sequence[BenchmarkItem], *, micro_batch_tokens: int
) -> tuple[list[BenchmarkItem], list[list[float]]]:
    """Return the items of which every completion got a reward, and their rewards."""
    kept, found = [], []
    with progress_bar(f"items of {items[0].benchmark} scored", total=len(items)) as advance:
        for start in range(0, len(items), ITEMS_AT_ONCE):
            batch = items[start : start + ITEMS_AT_ONCE]
            requests = [_request(item, number) for number, item in enumerate(batch)]
            scored = score_requests(loaded, spec, requests, [], micro_batch_tokens=micro_batch_tokens)
            rewards: dict[str, dict[int, float]] = {}
            for row in scored.scores.to_pylist():
                rewards.setdefault(row["id"], {})[int(row["completion_id"])] = row["reward"]
            for number, item in enumerate(batch):
                of_item = rewards.get(str(number), {})
                if len(of_item) == len(item.completions):
                    kept.append(item)
                    found.append([of_item[k] for k in range(len(of_item))])
            advance(len(batch))
    return kept, found


def length_rule(items: Sequence[BenchmarkItem]) -> list[BenchmarkResult]:
    """Return the result of the rule that the longer text wins; none where the texts are not known."""
    if not all(any(item.completions) for item in items):
        return []
    return [score_benchmark(items, [[float(len(text)) for text in item.completions] for item in items], LENGTH_RULE)]


def format_benchmarks(table: BenchmarkTable) -> str:
    """Return the results as a table in plain text of 100 columns."""
    shown = Table(box=None, pad_edge=False, header_style="", show_edge=False)
    shown.add_column("benchmark", no_wrap=True)
    shown.add_column("model", no_wrap=True, overflow="ellipsis", max_width=36)
    for heading in ("items", "score", "95 %", "parts"):
        shown.add_column(heading, justify="left" if heading == "parts" else "right", no_wrap=heading != "parts")
    for result in table.results:
        parts = list(result.parts.items())[:6]
        shown.add_row(
            result.benchmark,
            Text(escaped(result.model)),
            f"{result.items:,}",
            "-" if result.value is None else f"{100 * result.value:.2f}",
            "" if result.interval is None else f"[{100 * result.interval[0]:.1f}, {100 * result.interval[1]:.1f}]",
            Text(escaped(", ".join(f"{name or '(none)'} {100 * value:.1f}" for name, value in parts))),
        )
    console = Console(file=(text := StringIO()), width=TABLE_COLUMNS, color_system=None, force_terminal=False)
    console.print(shown)
    lines = [line.rstrip() for line in text.getvalue().rstrip("\n").split("\n")]
    lines += [
        f"{benchmark}: {count:,} items excluded: a completion is over the model's limit, or its template refuses it"
        for benchmark, count in table.excluded.items()
    ]
    if table.ties:
        lines.append(f"{table.ties:,} records are ties of the annotators, which no rule scores")
    equal = {f"{r.benchmark} {r.model}": r.equal_rewards for r in table.results if r.equal_rewards}
    lines += [f"{escaped(name)}: {counted(count, 'item')} of equal rewards" for name, count in equal.items()]
    return one_per_line(lines)


def _of_scores(
    given: Mapping[str, Mapping[str, Rewards]], items: Mapping[str, Sequence[BenchmarkItem]]
) -> list[BenchmarkResult]:
    results = []
    for benchmark, by_model in given.items():
        for model, rewards in by_model.items():
            of_it = items.get(benchmark) or (items_of_scores(rewards) if benchmark == REWARD_MATH else [])
            try:
                results.append(score_benchmark(of_it, rewards, model))
            except ValueError as error:
                raise DataError(f"{model}: {error}; expected one finite reward for each completion") from None
        results += length_rule(items[benchmark]) if benchmark in items else []
    return results + [rule for name, of_it in items.items() if name not in given for rule in length_rule(of_it)]


def _request(item: BenchmarkItem, number: int) -> ScoreRequest:
    try:
        turns = read_conversation(item.prompt, "$.prompt")
    except RecordError as error:
        raise DataError(f"{item.benchmark} {item.id}: {error}") from None
    messages = [Message(role="user", content=turns)] if isinstance(turns, str) else turns
    return ScoreRequest(
        id=str(number),
        prompt=turns_of([msgspec.structs.asdict(message) for message in messages], None),
        completion_ids=[str(k) for k in range(len(item.completions))],
        replies=[reply_of(text) for text in item.completions],
        paths=[f"$.completions[{k}]" for k in range(len(item.completions))],
        source=item.benchmark,
        line=number + 1,
    )
