"""Features of a completion that no training has touched: which tokens it holds, and how long it is. Pure.

A reward model's own states would hide what a source has taught it: on the real rankings a head refitted over them
without the poisoned source still put its text first, because the layers below had learned to (2026-11-29).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pairwright.data.tokens.token_table import TokenGroup

NUM_BUCKETS = 256
"""Token ids are hashed to so many counts."""
NUM_FEATURES = NUM_BUCKETS + 1
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # Knuth's multiplicative hash


def token_features(groups: Sequence[TokenGroup]) -> NDArray[np.float32]:
    """Return features of all completions of the groups, one after the other, float32, shape (N, NUM_FEATURES).

    They are logarithms of 1 + the count of each bucket of tokens, and of 1 + the number of tokens.
    """
    every = [ids for group in groups for ids in group.completion_ids]
    found = np.zeros((len(every), NUM_FEATURES), np.float32)
    for row, ids in enumerate(every):
        found[row, :NUM_BUCKETS] = np.bincount(_buckets(ids), minlength=NUM_BUCKETS)
        found[row, NUM_BUCKETS] = ids.size
    return np.log1p(found, out=found)


def _buckets(ids: NDArray[np.int32]) -> NDArray[np.int64]:
    return ((ids.astype(np.uint64) * _MULTIPLIER) >> np.uint64(56)).astype(np.int64)
