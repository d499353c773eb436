"""Texts with common prefixes are grouped so that the fewest tokens are computed, and each is computed once."""

from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np
import pytest

from pairwright.model.batching.prefix_groups import MIN_PREFIX, PrefixGroup, fill_micro_batches, prefix_groups
from pairwright.serving.text_tokens import Int32s


def cuts(items: Sequence[int]) -> Iterator[list[list[int]]]:
    """Yield every way to cut a list into groups of neighbours."""
    for cut in product((False, True), repeat=max(0, len(items) - 1)):
        parts = [[items[0]]]
        for is_cut, item in zip(cut, items[1:], strict=True):
            parts.append([item]) if is_cut else parts[-1].append(item)
        yield parts


def cost(row_ids: Sequence[Int32s], rows: Sequence[int]) -> int:
    """Return the tokens of a group, counted token by token."""
    texts = [row_ids[row].tolist() for row in rows]
    shared = 0
    while all(len(text) > shared + 1 and text[shared] == texts[0][shared] for text in texts):
        shared += 1
    shared = shared if len(texts) > 1 and shared >= MIN_PREFIX else 0
    return shared + sum(len(text) - shared for text in texts)


def random_texts(seed: int) -> list[Int32s]:
    """Return a few texts that share prefixes of several lengths, some of them equal."""
    rng = np.random.default_rng(seed)
    stems = [rng.integers(0, 3, 30) for _ in range(3)]
    texts = []
    for _ in range(rng.integers(1, 7)):
        stem = stems[rng.integers(3)][: rng.integers(1, 31)]
        base = stems[0][: rng.integers(0, 20)]
        texts.append(np.concatenate([base, stem, rng.integers(0, 2, rng.integers(0, 3))]).astype(np.int32))
    return texts


@pytest.mark.parametrize("seed", range(60))
def test_no_other_cut_of_the_sorted_texts_computes_fewer_tokens(seed: int) -> None:
    row_ids = random_texts(seed)
    groups = prefix_groups(row_ids)
    assert sorted(row for group in groups for row in group.rows) == list(range(len(row_ids)))
    by_tokens = sorted(range(len(row_ids)), key=lambda row: row_ids[row].tolist())
    best = min(sum(cost(row_ids, part) for part in parts) for parts in cuts(by_tokens))
    assert sum(group.num_tokens for group in groups) == best
    for group in groups:
        prefixes = {row_ids[row][: group.prefix].tobytes() for row in group.rows}
        assert len(prefixes) == 1
        assert all(len(row_ids[row]) > group.prefix for row in group.rows)


@pytest.mark.parametrize("budget", [1, 40, 100, 10_000])
def test_micro_batches_hold_every_text_once_and_stay_within_the_budget(budget: int) -> None:
    row_ids = [text for seed in range(20) for text in random_texts(seed)]
    batches = fill_micro_batches(row_ids, prefix_groups(row_ids), micro_batch_tokens=budget, filled_tokens=budget)
    assert sorted(row for batch in batches for group in batch for row in group.rows) == list(range(len(row_ids)))
    for batch in batches:
        num_tokens = sum(group.num_tokens for group in batch)
        assert num_tokens <= budget or [len(group.rows) for group in batch] == [1]
        assert all(group.num_tokens == group.prefix + own_tokens(row_ids, group) for group in batch)


def own_tokens(row_ids: Sequence[Int32s], group: PrefixGroup) -> int:
    return sum(len(row_ids[row]) - group.prefix for row in group.rows)
