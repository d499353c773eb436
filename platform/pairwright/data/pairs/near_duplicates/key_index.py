"""Index of LSH keys: finds the reference prompts that share most keys with a query. Pure numpy.

Sorted arrays instead of dictionaries: 12 bytes a key, shared by all processes of a machine without a copy. A key that
very many prompts have would make the search quadratic; the caller that builds the index says what becomes of one.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class KeyIndex:
    """Keys, sorted, with the prompt that has each; a prompt's number is its rank by prompt id.

    Attributes:
        keys_M: uint64, not decreasing.
        owners_M: uint32, increasing where the key stays the same.
    """

    keys_M: np.ndarray  # noqa: N815 - shape suffix: M keys
    owners_M: np.ndarray  # noqa: N815 - shape suffix: M keys

    def candidates(
        self, keys: np.ndarray, queries: np.ndarray, *, min_shared: int, num_most: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return pairs (query, owner) that share keys: by query, those with most keys in common first, then by owner.

        Args:
            keys: uint64; one that a query has twice counts twice.
            queries: which prompt has each key, int64.
            min_shared: how many keys a pair has to share.
            num_most: how many owners of each query to return.
        """
        starts = np.searchsorted(self.keys_M, keys, side="left")
        counts = np.searchsorted(self.keys_M, keys, side="right") - starts
        positions = np.repeat(starts - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
        pairs = np.repeat(queries, counts).astype(np.uint64) << np.uint64(32) | self.owners_M[positions]
        pairs, num_shared = np.unique(pairs, return_counts=True)
        pairs, num_shared = pairs[num_shared >= min_shared], num_shared[num_shared >= min_shared]
        query, owner = (pairs >> np.uint64(32)).astype(np.int64), (pairs & np.uint64(0xFFFFFFFF)).astype(np.int64)
        order = np.lexsort((owner, -num_shared, query))
        query, owner = query[order], owner[order]
        rank = np.arange(len(query)) - np.searchsorted(query, query)
        return query[rank < num_most], owner[rank < num_most]


def build_index(keys: np.ndarray, owners: np.ndarray, max_owners: int, *, keep_full: bool) -> KeyIndex:
    """Return the index of keys and the prompts that have them; a pair that comes twice counts once.

    Args:
        keys: uint64.
        owners: number of the prompt that has each, int64.
        max_owners: most prompts of one key that are kept.
        keep_full: what becomes of a key that more prompts have: its first ``max_owners`` stay, or all go.
    """
    order = np.lexsort((owners, keys))
    keys, owners = keys[order], owners[order]
    is_new = np.ones(len(keys), dtype=bool)
    is_new[1:] = (keys[1:] != keys[:-1]) | (owners[1:] != owners[:-1])
    keys, owners = keys[is_new], owners[is_new]
    first = np.searchsorted(keys, keys)
    kept = np.arange(len(keys)) - first < max_owners
    if not keep_full:
        kept = np.searchsorted(keys, keys, side="right") - first <= max_owners
    return KeyIndex(keys[kept], owners[kept].astype(np.uint32))
