"""A global batch's groups -> micro-batches under a token budget, the same number on every rank; lengths alone.

Planning sees lengths alone, so every rank computes the whole plan and takes its own part: nothing is sent. A group is
never split. The plan is made of rounds, one micro-batch a rank: ranks wait for each other in every round (ZeRO's
collectives), not once a step, so groups of like length share a round and are dealt by cost within it. Dealing a whole
step by cost and packing each rank by itself ends ranks together too, but has them wait in between: 64 groups of
lognormal length on 8 ranks took 1.46 times the ideal time, in rounds 1.22 (November 2026).
"""

import heapq
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from pairwright.errors import ConfigError

# What a micro-batch costs whatever its size (launches, ZeRO-3's gathers), in tokens of forward and backward.
MICRO_BATCH_OVERHEAD_TOKENS = 512

MicroBatchPlan = tuple[int, list[int]]
"""Tokens with padding, and positions of the groups in the global batch."""


def check_budget(
    num_completions_G: ArrayLike,
    longest_row_tokens_G: ArrayLike,
    *,
    micro_batch_tokens: int,
    name_group: Callable[[int], str],
) -> None:
    """Refuse groups that no micro-batch can hold; a run checks all of its groups before the first step.

    Raises:
        ConfigError: naming the largest group, its tokens and the budget that would hold it.
    """
    cost_G = np.asarray(num_completions_G, np.int64) * np.asarray(longest_row_tokens_G, np.int64)
    num_over = int((cost_G > micro_batch_tokens).sum())
    if num_over:
        largest = int(cost_G.argmax())
        rows, tokens = int(np.asarray(num_completions_G)[largest]), int(np.asarray(longest_row_tokens_G)[largest])
        raise ConfigError(
            f"group {name_group(largest)} takes {rows} completions x {tokens} tokens = {rows * tokens} tokens, and "
            f"batches.micro_batch_tokens is {micro_batch_tokens} ({num_over} of {cost_G.size} groups are over it); "
            f"raise it to at least {rows * tokens}, or lower tokens.max_length"
        )


def plan_micro_batches(
    num_completions_G: ArrayLike, longest_row_tokens_G: ArrayLike, *, world_size: int, micro_batch_tokens: int
) -> list[list[list[int]]]:
    """Return [rank][micro-batch] -> positions in the global batch of the groups inside.

    Every rank has the same number of micro-batches, since ZeRO's collectives stand in every forward and backward; some
    may be empty (``collate`` makes them runnable). The longest come first, so that memory runs out at once if it does.
    The plan decides speed and memory, never the result.

    Args:
        num_completions_G: completions of each group of the global batch, shape (G,).
        longest_row_tokens_G: prompt and longest completion of each group, tokens, shape (G,).
        world_size: number of ranks.
        micro_batch_tokens: most tokens of one micro-batch, padding included.

    Raises:
        ConfigError: if a group alone is over the budget.
        ValueError: if the world size is not positive.
    """
    if world_size < 1:
        raise ValueError(f"world_size is {world_size}, expected at least 1")
    rows_G = np.asarray(num_completions_G, np.int64)
    tokens_G = np.asarray(longest_row_tokens_G, np.int64)
    check_budget(rows_G, tokens_G, micro_batch_tokens=micro_batch_tokens, name_group="{} of the global batch".format)
    plan: list[list[list[int]]] = [[] for _ in range(world_size)]
    loads = [0] * world_size
    for micro_batches in _cheapest_rounds(rows_G.tolist(), tokens_G.tolist(), world_size, micro_batch_tokens):
        # The costliest of a round goes to the rank that has had least so far.
        by_load = sorted(range(world_size), key=lambda rank: (loads[rank], rank))
        for rank, (cost, positions) in zip(by_load, sorted(micro_batches, reverse=True), strict=True):
            plan[rank].append(positions)
            loads[rank] += cost
    return plan


def _cheapest_rounds(
    rows_G: list[int], tokens_G: list[int], world_size: int, micro_batch_tokens: int
) -> list[list[MicroBatchPlan]]:
    """Return rounds of one micro-batch a rank: of all cuts of the groups in order of length, those of least time.

    A round takes as long as its largest micro-batch. Cuts stand at multiples of the world size, which keeps the number
    of candidates small, and one group a rank always fits.
    """
    by_length = sorted(range(len(rows_G)), key=lambda g: (-tokens_G[g], g))
    cuts = [*range(0, len(by_length), world_size), len(by_length)]
    # best[i]: least time up to cut i, the cut at which the last round of that solution starts, and that round.
    best: list[tuple[int, int, list[MicroBatchPlan]]] = [(0, 0, [])]
    for end in range(1, len(cuts)):
        options, total = [], 0
        for start in range(end - 1, -1, -1):
            total += sum(rows_G[g] * tokens_G[g] for g in by_length[cuts[start] : cuts[start + 1]])
            if total > world_size * micro_batch_tokens:
                break
            dealt = _deal(by_length[cuts[start] : cuts[end]], rows_G, tokens_G, world_size)
            largest = max(tokens for tokens, _ in dealt)
            if largest <= micro_batch_tokens:
                options.append((best[start][0] + largest + MICRO_BATCH_OVERHEAD_TOKENS, start, dealt))
        best.append(min(options))
    rounds, end = [], len(cuts) - 1
    while end:
        _, end, dealt = best[end]
        rounds.append(dealt)
    return rounds[::-1]


def _deal(groups: Sequence[int], rows_G: list[int], tokens_G: list[int], world_size: int) -> list[MicroBatchPlan]:
    """Return one micro-batch a rank: the costliest group first, each to the rank with least so far (Graham 1969)."""
    dealt: list[list[int]] = [[] for _ in range(world_size)]
    loads = [(0, rank) for rank in range(world_size)]
    for group in sorted(groups, key=lambda g: (-rows_G[g] * tokens_G[g], g)):
        load, rank = heapq.heappop(loads)
        dealt[rank].append(group)
        heapq.heappush(loads, (load + rows_G[group] * tokens_G[group], rank))
    return [(_padded_tokens(positions, rows_G, tokens_G), positions) for positions in dealt]


def _padded_tokens(positions: Sequence[int], rows_G: list[int], tokens_G: list[int]) -> int:
    return sum(rows_G[g] for g in positions) * max((tokens_G[g] for g in positions), default=0)
