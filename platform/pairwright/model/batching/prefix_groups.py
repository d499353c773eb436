"""Finds texts that begin with the same tokens, and fills micro-batches with them: a shared prefix is computed once.

No client has to say which completions answer one prompt: whatever the protocol, texts that wait together are compared
by their tokens. Pure.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Int32s = NDArray[np.int32]

MIN_PREFIX = 8
"""Shorter common prefixes, such as a template's first tokens, are not worth a group."""


@dataclass(frozen=True, slots=True)
class PrefixGroup:
    """Texts with a common prefix, as indices."""

    rows: tuple[int, ...]
    prefix: int
    """Tokens that they have in common; each text has at least one token more."""
    num_tokens: int
    """Tokens to compute: the prefix once, then each text's own."""


def prefix_groups(row_ids: Sequence[Int32s]) -> list[PrefixGroup]:
    """Return the texts in groups, each text in exactly one, by the first text.

    The texts are sorted, so that those with long common prefixes are neighbours; of all ways to cut the sorted texts
    into groups, this is the one that computes the fewest tokens (dynamic programming; 20 ms for 2,000 texts).
    """
    order = sorted(range(len(row_ids)), key=lambda row: row_ids[row].astype(">i4").tobytes())
    common = [_common_prefix(row_ids[a], row_ids[b]) for a, b in pairwise(order)]
    starts = _best_starts(np.array([0, *common]))
    groups, end = [], len(order)
    while end:
        start = int(starts[end - 1])
        rows = tuple(sorted(order[start:end]))
        prefix = int(min(common[start : end - 1], default=0))
        groups.append(PrefixGroup(rows, prefix, _num_tokens(row_ids, rows, prefix)))
        end = start
    return sorted(groups, key=lambda group: group.rows[0])


def fill_micro_batches(
    row_ids: Sequence[Int32s], groups: Sequence[PrefixGroup], *, micro_batch_tokens: int, filled_tokens: int
) -> list[list[PrefixGroup]]:
    """Return the groups in micro-batches, in their order.

    Args:
        row_ids: the texts.
        groups: of them.
        micro_batch_tokens: a group over so many tokens is split; a text over them is a micro-batch of its own.
        filled_tokens: several groups are one micro-batch up to so many tokens together.
    """
    micro_batches: list[list[PrefixGroup]] = []
    num_tokens = 0
    for group in groups:
        for part in _parts(row_ids, group, micro_batch_tokens):
            if not micro_batches or num_tokens + part.num_tokens > filled_tokens:
                micro_batches.append([])
                num_tokens = 0
            micro_batches[-1].append(part)
            num_tokens += part.num_tokens
    return micro_batches


def _parts(row_ids: Sequence[Int32s], group: PrefixGroup, budget: int) -> list[PrefixGroup]:
    if group.num_tokens <= budget:
        return [group]
    parts: list[list[int]] = [[]]
    num_tokens = group.prefix
    for row in group.rows:
        own = len(row_ids[row]) - group.prefix
        if parts[-1] and num_tokens + own > budget:
            parts.append([])
            num_tokens = group.prefix
        parts[-1].append(row)
        num_tokens += own
    return [PrefixGroup(tuple(rows), group.prefix, _num_tokens(row_ids, rows, group.prefix)) for rows in parts]


def _num_tokens(row_ids: Sequence[Int32s], rows: Sequence[int], prefix: int) -> int:
    return prefix + sum(len(row_ids[row]) - prefix for row in rows)


def _common_prefix(one: Int32s, other: Int32s) -> int:
    """Return how many tokens two texts begin with in common, at least one less than either has; 0 for a few."""
    length = min(len(one), len(other)) - 1
    differ = np.flatnonzero(one[:length] != other[:length])
    found = int(differ[0]) if differ.size else length
    return found if found >= MIN_PREFIX else 0


def _best_starts(common: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return for each position where the last group of the best cut up to there starts.

    Args:
        common: common prefix of each text with the one before it, tokens; of the first: 0.
    """
    size = len(common)
    saved, starts = np.zeros(size + 1, np.int64), np.arange(size)
    shortest = np.zeros(size, np.int64)  # common prefix of the texts from each position up to this one
    for last in range(1, size):
        shortest[last - 1] = common[last]
        np.minimum(shortest[:last], common[last], out=shortest[:last])
        total = saved[:last] + shortest[:last] * (last - np.arange(last))
        best = int(total.argmax())
        saved[last + 1] = saved[last]
        if total[best] > saved[last]:
            saved[last + 1], starts[last] = total[best], best
    return starts
