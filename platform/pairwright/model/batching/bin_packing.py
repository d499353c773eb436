"""Parts of groups -> rounds of one micro-batch a rank, under the budget, of least time. Numbers in, lists out.

A round takes as long as its costliest micro-batch. Where rows lie flat, costs add up and any parts may share a
micro-batch: they are dealt to all micro-batches of all rounds at once, the costliest first. Padded rows cost what the
longest does: groups of like length share a round and are dealt within it.
"""

import heapq
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from pairwright.model.batching.cost_model import Floats, ModelShape, PartSizes, overhead, padded_cost
from pairwright.model.collate import Layout

# Cuts that a round of padded rows looks back at before it leaves some out.
ALL_CUTS_BACK = 8


class Packed(NamedTuple):
    """One micro-batch."""

    cost: float
    """Of a forward, in FLOPs of a linear layer."""
    items: list[int]
    """Numbers of the parts inside."""


def pack(
    parts: PartSizes, layout: Layout, shape: ModelShape, *, world_size: int, micro_batch_tokens: int
) -> list[list[Packed]]:
    """Return [rank][round] -> micro-batch, the costliest rounds first, as many on every rank; none without parts.

    Args:
        parts: none of them alone over the budget.
        layout: how they lie in a forward.
        shape: of the model.
        world_size: number of ranks.
        micro_batch_tokens: most tokens of a micro-batch, padding included.
    """
    if layout == "padded":
        rounds = _rounds_by_length(parts, shape, world_size, micro_batch_tokens)
    else:
        rounds = _rounds_of_bins(parts, layout, shape, world_size, micro_batch_tokens)
    return _assign(rounds, world_size)


def _assign(rounds: Sequence[Sequence[Packed]], world_size: int) -> list[list[Packed]]:
    """Give the costliest micro-batch of a round to the rank that has had least so far."""
    ranks: list[list[Packed]] = [[] for _ in range(world_size)]
    loads = [0.0] * world_size
    for micro_batches in rounds:
        by_load = sorted(range(world_size), key=lambda rank: (loads[rank], rank))
        for rank, micro_batch in zip(by_load, sorted(micro_batches, reverse=True), strict=True):
            ranks[rank].append(micro_batch)
            loads[rank] += micro_batch.cost
    return ranks


# ------------------------------------------------------------------------------------------------ flat rows


def _rounds_of_bins(
    parts: PartSizes, layout: Layout, shape: ModelShape, world_size: int, budget: int
) -> list[list[Packed]]:
    tokens, costs = parts.tokens_I(layout), parts.costs_I(layout, shape)
    at_least = max(float(costs.sum()) / world_size, float(costs.max(initial=0.0)))
    best: list[list[Packed]] = []
    least = math.inf
    num_rounds = -(-int(tokens.sum()) // (world_size * budget))
    while at_least + num_rounds * overhead(shape) < least:
        bins = _deal(costs, tokens.tolist(), world_size * num_rounds, budget)
        if bins is not None:
            bins.sort(reverse=True)
            rounds = [bins[first : first + world_size] for first in range(0, len(bins), world_size)]
            time = sum(micro_batches[0].cost + overhead(shape) for micro_batches in rounds)
            if time < least:
                best, least = rounds, time
        num_rounds += 1
    return best


def _deal(costs: Floats, tokens: list[int], num_bins: int, budget: int) -> list[Packed] | None:
    """Return the parts in so many bins, the costliest first, each to the cheapest with room; None if one finds none.

    Source: Graham 1969 (longest processing time first), with a limit of tokens.
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
    return [Packed(load, bins[number]) for load, number in heap]


# ---------------------------------------------------------------------------------------------- padded rows


def _rounds_by_length(parts: PartSizes, shape: ModelShape, world_size: int, budget: int) -> list[list[Packed]]:
    """Return the rounds of least time that cuts of the parts in order of length give."""
    by_length = np.argsort(-parts.longest_I, kind="stable")
    rows, longest = parts.rows_I[by_length].tolist(), parts.longest_I[by_length].tolist()
    tokens_before = np.concatenate([[0], np.cumsum(parts.tokens_I("padded")[by_length])]).tolist()
    # At multiples of the world size: one part a rank always fits.
    cuts = [*range(0, len(rows), world_size), len(rows)]
    # best[i]: least time up to cut i, the cut at which the last round of that solution starts, and that round.
    best: list[tuple[float, int, list[Packed]]] = [(0.0, 0, [])]
    for end in range(1, len(cuts)):
        options = []
        for start in _starts(end):
            if tokens_before[cuts[end]] - tokens_before[cuts[start]] > world_size * budget:
                break
            dealt = _deal_rows(range(cuts[start], cuts[end]), rows, longest, world_size)
            if max(dealt)[0] <= budget:
                packed = [Packed(padded_cost(num, width, shape), items) for _, num, width, items in dealt]
                options.append((best[start][0] + max(packed)[0] + overhead(shape), start, packed))
        best.append(min(options))
    rounds, end = [], len(cuts) - 1
    while end:
        _, end, packed = best[end]
        rounds.append([Packed(cost, by_length[items].tolist()) for cost, items in packed])
    return rounds[::-1]


def _starts(end: int) -> Iterator[int]:
    """Yield cuts before this one at which its round may start: the nearest all, then one in ever more."""
    back = 1
    while back <= end:
        yield end - back
        back += 1 + back // ALL_CUTS_BACK


def _deal_rows(
    items: Sequence[int], rows: list[int], longest: list[int], world_size: int
) -> list[tuple[int, int, int, list[int]]]:
    """Return (tokens with padding, rows, longest, items) of each rank: the costliest first, each to the least loaded.

    Source: Graham 1969 (longest processing time first).
    """
    dealt: list[list[int]] = [[] for _ in range(world_size)]
    loads = [(0, rank) for rank in range(world_size)]
    for item in sorted(items, key=lambda i: (-rows[i] * longest[i], i)):
        load, rank = loads[0]
        dealt[rank].append(item)
        heapq.heapreplace(loads, (load + rows[item] * longest[item], rank))
    sums = [(sum(rows[i] for i in mine), max((longest[i] for i in mine), default=0), mine) for mine in dealt]
    return [(num * width, num, width, mine) for num, width, mine in sums]
