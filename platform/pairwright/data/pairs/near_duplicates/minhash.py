"""MinHash LSH: keys that texts above a similarity threshold very likely share. Pure; rensa computes the hashes.

rensa (Rust, no dependencies): 140,000 signatures of 60 words a second and core, datasketch 2.0 5,000, numpy 17,000
(2026-11-21); its estimates were as close as independent hashes make them, for sets of 5 to 350. A key only proposes a
pair, so that nothing depends on its hashes but what MIN_RECALL says.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import rensa

from pairwright.data.pairs.near_duplicates.normalize import mixed, shingle_hashes

NUM_HASHES = 128
MIN_SHARED = 2
"""Keys that two texts must share: two short bands tell more than one long one, at the same recall."""
MIN_RECALL = 0.995
"""Least probability that two texts right at the threshold share so many; it grows with similarity."""
BLOCK_CHARACTERS = 1 << 20
_SEED = 20261121


def banding(threshold: float) -> tuple[int, int]:
    """Return how many bands of how many hashes find texts at the threshold: the longest bands that MIN_RECALL allows.

    Longer bands propose fewer pairs that turn out not to be similar.
    """
    lengths = range(1, NUM_HASHES // MIN_SHARED + 1)
    allowed = [rows for rows in lengths if recall(threshold, NUM_HASHES // rows, rows) >= MIN_RECALL]
    num_rows = max(allowed, default=1)
    return NUM_HASHES // num_rows, num_rows


def recall(similarity: float, num_bands: int, num_rows: int) -> float:
    """Return the probability that two texts of a Jaccard similarity share MIN_SHARED = 2 bands or more.

    Source: Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, 3.4.2, which asks for one.
    """
    one = similarity**num_rows
    none_shared = (1.0 - one) ** num_bands
    return 1.0 - none_shared - num_bands * one * (1.0 - one) ** (num_bands - 1)


def band_keys(texts: Sequence[str], shingle_size: int, threshold: float) -> np.ndarray:
    """Return the keys of each text, uint64, shape (len(texts), num_bands); the same text has the same keys anywhere."""
    num_bands, num_rows = banding(threshold)
    blocks = [_signatures(block, shingle_size) for block in _blocks(texts)]
    signatures = np.concatenate([np.empty((0, NUM_HASHES), np.uint64), *blocks])
    rows = signatures[:, : num_bands * num_rows].reshape(-1, num_bands, num_rows)
    keys = np.broadcast_to(np.arange(num_bands, dtype=np.uint64), rows.shape[:2])
    for position in range(num_rows):
        keys = mixed(keys + rows[:, :, position] + np.uint64(0x9E3779B97F4A7C15))
    return keys


def _signatures(texts: Sequence[str], shingle_size: int) -> np.ndarray:
    hashes, starts = shingle_hashes(texts, shingle_size)
    sketch = rensa.RMinHash  # pyright: ignore[reportAttributeAccessIssue] (rensa has no stubs)
    matrix = sketch.digest_matrix_from_flat_token_hashes(hashes, starts, NUM_HASHES, _SEED)
    return np.array(matrix.to_rows(), dtype=np.uint64)


def _blocks(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yield the texts, as many at a time as have about a million characters: their hashes take 40 bytes each."""
    start, filled = 0, 0
    for position, text in enumerate(texts):
        if filled and filled + len(text) > BLOCK_CHARACTERS:
            yield texts[start:position]
            start, filled = position, 0
        filled += len(text)
    if start < len(texts):
        yield texts[start:]
