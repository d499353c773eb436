"""Reads the files of benchmarks, and files of rewards that somebody else computed.

Rewards come as ``{"model": [[...], ...]}`` with a list for each item in order, as records ``{"id", "rewards": [...]}``,
as RewardBench's ``{"scores_chosen", "scores_rejected"}``, or within the benchmark's own records (JudgeBench). A
RewardMATH file of rewards needs no other: each of its lists of ten begins with the right solution's.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from pairwright.data.ingest.adapters import RecordError
from pairwright.data.ingest.sources.listing import list_sources
from pairwright.data.ingest.sources.splits import InputSplit, read_chunks
from pairwright.errors import DataError
from pairwright.evaluation.benchmarks.benchmark_layouts import (
    REWARD_MATH,
    BenchmarkItem,
    joined_solutions,
    read_item,
)
from pairwright.records import UNREADABLE_JSON

Rewards = Sequence[Sequence[float]]
_SOLUTIONS = 10


def read_benchmarks(names: Sequence[str]) -> tuple[dict[str, list[BenchmarkItem]], int]:
    """Return the items of all files by benchmark, and how many records are ties, which no rule scores.

    Raises:
        SourceError: if a file is missing or cannot be read.
        DataError: if a record has the layout of no benchmark; names its line.
    """
    items, num_ties = [], 0
    for where, record in _records(names):
        try:
            item = read_item(record, len(items) + 1)
        except RecordError as error:
            raise DataError(f"{where}: {error}") from None
        items += [] if item is None else [item]
        num_ties += item is None
    by_name: dict[str, list[BenchmarkItem]] = {}
    for item in joined_solutions(items):
        if not 0 < item.num_right < len(item.completions):
            raise DataError(
                f"{item.benchmark} {item.id}: {item.num_right} right ones of {len(item.completions)} completions, "
                "expected at least one right and one wrong; the file is not whole"
            )
        by_name.setdefault(item.benchmark, []).append(item)
    return by_name, num_ties


def read_scores(name: str, items: Mapping[str, Sequence[BenchmarkItem]]) -> dict[str, dict[str, Rewards]]:
    """Return the rewards of a file: benchmark -> model -> rewards of each item.

    Raises:
        SourceError: if the file is missing or cannot be read.
        DataError: if it holds no rewards of these benchmarks, or not one for each completion.
    """
    records = [record for _, record in _records([name])]
    if len(records) == 1 and all(isinstance(value, list) for value in records[0].values()):
        return _of_lists(name, records[0], items)
    if not items:
        raise DataError(
            f"{name}: rewards of a benchmark that is not given; name its file too: "
            "`pairwright benchmark FILE --scores SCORES`"
        )
    return {benchmark: _of_records(name, records, of_it) for benchmark, of_it in items.items()}


def inline_scores(items: Mapping[str, Sequence[BenchmarkItem]]) -> dict[str, dict[str, Rewards]]:
    """Return the rewards that the records of benchmarks hold themselves."""
    found: dict[str, dict[str, Rewards]] = {}
    for benchmark, of_it in items.items():
        for model in of_it[0].rewards if of_it else ():
            if all(model in item.rewards for item in of_it):
                found.setdefault(benchmark, {})[model] = [item.rewards[model] for item in of_it]
    return found


def items_of_scores(rewards: Rewards) -> list[BenchmarkItem]:
    """Return RewardMATH's items without their texts, for lists of ten rewards."""
    return [BenchmarkItem(REWARD_MATH, str(n), "", None, [""] * len(row), 1) for n, row in enumerate(rewards)]


def _of_lists(
    name: str, record: Mapping[str, Any], items: Mapping[str, Sequence[BenchmarkItem]]
) -> dict[str, dict[str, Rewards]]:
    found: dict[str, dict[str, Rewards]] = {}
    for model, rows in record.items():
        sizes = [len(row) if isinstance(row, list) else 0 for row in rows]
        if not items and set(sizes) == {_SOLUTIONS}:
            found.setdefault(REWARD_MATH, {})[model] = rows
            continue
        fitting = [one for one, of_it in items.items() if sizes == [len(item.completions) for item in of_it]]
        if len(fitting) != 1:
            raise DataError(
                f"{name}: {model}: {len(rows):,} lists of rewards of {min(sizes, default=0)} to {max(sizes, default=0)}"
                f" fit no benchmark that is given ({', '.join(items) or 'none'}); expected one list for each item, in "
                "its order, with one reward for each completion, the right ones first"
            )
        found.setdefault(fitting[0], {})[model] = rows
    return found


def _of_records(name: str, records: Sequence[Mapping[str, Any]], items: Sequence[BenchmarkItem]) -> dict[str, Rewards]:
    found: dict[str, dict[str, Sequence[float]]] = {}
    for record in records:
        rewards, model = _rewards_of(record), str(record.get("model", name.rpartition("/")[2]))
        if rewards is not None and "id" in record:
            found.setdefault(model, {})[str(record["id"])] = rewards
    missing = next((item.id for of_it in found.values() for item in items if item.id not in of_it), None)
    if not found or missing is not None:
        what = 'no record of the form {"id", "rewards": [...]}' if not found else f"no rewards for item {missing}"
        raise DataError(f"{name}: {what}; expected one record for each of {len(items):,} items of {items[0].benchmark}")
    return {model: [of_it[item.id] for item in items] for model, of_it in found.items()}


def _rewards_of(record: Mapping[str, Any]) -> Sequence[float] | None:
    if isinstance(given := record.get("rewards", record.get("scores")), list):
        return [float(one[0] if isinstance(one, list) else one) for one in given]
    if "scores_chosen" in record and "scores_rejected" in record:
        sides = (record["scores_chosen"], record["scores_rejected"])
        return [float(one) for side in sides for one in (side if isinstance(side, list) else [side])]
    return None


def _records(names: Sequence[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield each record of some files with where it is."""
    for source in list_sources(names):
        chunks = read_chunks(InputSplit(source, 0, source.size, 0))
        for chunk in chunks:
            if chunk.problem:
                raise DataError(f"{source.uri}:{chunk.first_line}: {chunk.problem}")
            for number, line in enumerate(chunk.text.split(b"\n"), start=chunk.first_line):
                if not line or line.isspace():
                    continue
                try:
                    yield f"{source.uri}:{number}", msgspec.json.decode(line, type=dict[str, Any])
                except UNREADABLE_JSON as error:
                    raise DataError(f"{source.uri}:{number}: not a JSON object: {error}") from None
