"""Packs groups, or parts of groups, into micro-batches under a token budget, so that ranks finish together.

Ranks compute their i-th micro-batches at the same time, which takes as long as the costliest of them; such a set is
called a round here. In a packed sequence costs add up and any parts may share a micro-batch, so the parts of all rounds
are packed at once, by longest processing time first (LPT). Padded rows cost as much as the longest, so a round takes
parts of similar length, and dynamic programming finds the rounds: filling each to the budget instead takes up to 1.07
times as long at 8,192 or 16,384 tokens, and up to 1.8 times at 65,536
(benchmarks/results/plan_alternatives_2cpu_2026-11-29.md).
"""

import heapq
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from pairwright.model.batching.cost_model import Floats, ModelShape, PartSizes, overhead, padded_cost
from pairwright.model.collate import Layout

# The dynamic program tries this many of the nearest starts of a round, then ever fewer of the earlier ones.
NEAREST_STARTS = 8


class PackedMicroBatch(NamedTuple):
    """One micro-batch."""

    cost: float
    """Of a forward pass, in FLOPs of a linear layer."""
    items: list[int]
    """Indices of the parts inside."""


def pack_micro_batches(
    parts: PartSizes, layout: Layout, shape: ModelShape, *, world_size: int, micro_batch_tokens: int
) -> list[list[PackedMicroBatch]]:
    """Return [rank][round] -> micro-batch, the costliest rounds first, equally many on every rank; none without parts.

    Args:
        parts: none of them alone over the budget.
        layout: of the micro-batches.
        shape: of the model.
        world_size: number of ranks.
        micro_batch_tokens: most tokens of a micro-batch, padding included.
    """
    if layout == "padded":
        rounds = _pack_padded_rows(parts, shape, world_size, micro_batch_tokens)
    else:
        rounds = _pack_sequences(parts, layout, shape, world_size, micro_batch_tokens)
    return _assign_ranks(rounds, world_size)


def _assign_ranks(rounds: Sequence[Sequence[PackedMicroBatch]], world_size: int) -> list[list[PackedMicroBatch]]:
    """Give the costliest micro-batch of a round to the rank with the least load so far."""
    ranks: list[list[PackedMicroBatch]] = [[] for _ in range(world_size)]
    loads = [0.0] * world_size
    for micro_batches in rounds:
        by_load = sorted(range(world_size), key=lambda rank: (loads[rank], rank))
        for rank, micro_batch in zip(by_load, sorted(micro_batches, reverse=True), strict=True):
            ranks[rank].append(micro_batch)
            loads[rank] += micro_batch.cost
    return ranks


# ------------------------------------------------------------------------------------------ packed sequences


def _pack_sequences(
    parts: PartSizes, layout: Layout, shape: ModelShape, world_size: int, budget: int
) -> list[list[PackedMicroBatch]]:
    """Return the rounds of least time that LPT gives, over all numbers of rounds that may be faster."""
    tokens, costs = parts.tokens_I(layout), parts.costs_I(layout, shape)
    at_least = max(float(costs.sum()) / world_size, float(costs.max(initial=0.0)))
    best: list[list[PackedMicroBatch]] = []
    least = math.inf
    num_rounds = -(-int(tokens.sum()) // (world_size * budget))
    while at_least + num_rounds * overhead(shape) < least:
        bins = _longest_first(costs, tokens.tolist(), world_size * num_rounds, budget)
        if bins is not None:
            bins.sort(reverse=True)
            rounds = [bins[first : first + world_size] for first in range(0, len(bins), world_size)]
            time = sum(micro_batches[0].cost + overhead(shape) for micro_batches in rounds)
            if time < least:
                best, least = rounds, time
        num_rounds += 1
    return best


def _longest_first(costs: Floats, tokens: list[int], num_bins: int, budget: int) -> list[PackedMicroBatch] | None:
    """Return the parts in bins, the costliest part first, each in the cheapest bin with room; None if one fits nowhere.

    Source: Graham 1969 (longest processing time first), with a token budget.
    """
    bins: list[list[int]] = [[] for _ in range(num_bins)]
    used = [0] * num_bins
    heap = [(0.0, number) for number in range(num_bins)]
    for item in np.argsort(-costs, kind="stable").tolist():
        full = []
        while heap and used[heap[0][1]] + tokens[item] > budget:
            full.append(heapq.heappop(heap))
        if not heap:
            return None
        load, number = heap[0]
        heapq.heapreplace(heap, (load + float(costs[item]), number))
        bins[number].append(item)
        used[number] += tokens[item]
        for entry in full:
            heapq.heappush(heap, entry)
    return [PackedMicroBatch(load, bins[number]) for load, number in heap]


# ---------------------------------------------------------------------------------------------- padded rows


def _pack_padded_rows(
    parts: PartSizes, shape: ModelShape, world_size: int, budget: int
) -> list[list[PackedMicroBatch]]:
    """Return the rounds of least time among all partitions of the parts in order of length (dynamic programming)."""
    by_length = np.argsort(-parts.longest_I, kind="stable")
    rows, longest = parts.rows_I[by_length].tolist(), parts.longest_I[by_length].tolist()
    tokens_before = np.concatenate([[0], np.cumsum(parts.tokens_I("padded")[by_length])]).tolist()
    # Bounds between rounds, at multiples of the world size: one part for each rank always fits the budget.
    bounds = [*range(0, len(rows), world_size), len(rows)]
    # best[i]: least time up to bound i, the bound at which the last round of that solution starts, and that round.
    best: list[tuple[float, int, list[PackedMicroBatch]]] = [(0.0, 0, [])]
    for end in range(1, len(bounds)):
        options = []
        for start in _starts(end):
            if tokens_before[bounds[end]] - tokens_before[bounds[start]] > world_size * budget:
                break
            by_rank = _rows_by_rank(range(bounds[start], bounds[end]), rows, longest, world_size)
            if max(by_rank)[0] <= budget:
                packed = [PackedMicroBatch(padded_cost(num, width, shape), items) for _, num, width, items in by_rank]
                options.append((best[start][0] + max(packed)[0] + overhead(shape), start, packed))
        best.append(min(options))
    rounds, end = [], len(bounds) - 1
    while end:
        _, end, packed = best[end]
        rounds.append([PackedMicroBatch(cost, by_length[items].tolist()) for cost, items in packed])
    return rounds[::-1]


def _starts(end: int) -> Iterator[int]:
    """Yield the bounds at which a round that ends at this one may start: all near ones, ever fewer of the others."""
    back = 1
    while back <= end:
        yield end - back
        back += 1 + back // NEAREST_STARTS


def _rows_by_rank(
    items: Sequence[int], rows: list[int], longest: list[int], world_size: int
) -> list[tuple[int, int, int, list[int]]]:
    """Return (tokens with padding, rows, longest, items) of each rank: the costliest part first, to the least loaded.

    Source: Graham 1969 (longest processing time first).
    """
    items_of: list[list[int]] = [[] for _ in range(world_size)]
    loads = [(0, rank) for rank in range(world_size)]
    for item in sorted(items, key=lambda i: (-rows[i] * longest[i], i)):
        load, rank = loads[0]
        items_of[rank].append(item)
        heapq.heapreplace(loads, (load + rows[item] * longest[item], rank))
    sums = [(sum(rows[i] for i in mine), max((longest[i] for i in mine), default=0), mine) for mine in items_of]
    return [(num * width, num, width, mine) for num, width, mine in sums]
