"""Groups of a micro-batch lie in its tensors as the model and the loss expect them."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pairwright.data.tokens import TokenGroup
from pairwright.model.batches import collate

MakeGroup = Callable[..., TokenGroup]


@settings(deadline=None)
@given(seed=st.integers(0, 2**32), sizes=st.lists(st.integers(2, 9), min_size=1, max_size=6))
def test_rows_hold_prompt_and_completion_and_pairs_point_at_their_rows(random_group: MakeGroup, seed, sizes):
    rng = np.random.default_rng(seed)
    groups = [random_group(rng, num_completions=k, num_annotators=int(rng.integers(1, 4))) for k in sizes]
    batch = collate(groups, pad_token_id=3)

    texts = [[*g.prompt_ids.tolist(), *ids.tolist()] for g in groups for ids in g.completion_ids]
    rows = zip(batch.input_ids_NT.tolist(), batch.attention_mask_NT.tolist(), batch.last_N.tolist(), strict=True)
    for text, (ids, mask, last) in zip(texts, rows, strict=True):
        assert ids == text + [3] * (len(ids) - len(text))
        assert mask == [1] * len(text) + [0] * (len(ids) - len(text))
        assert last == len(text) - 1
    assert batch.input_ids_NT.shape[1] == max(map(len, texts))

    pairs = zip(batch.chosen_P.tolist(), batch.rejected_P.tolist(), batch.weight_P.tolist(), strict=True)
    named = [(texts[c], texts[r], weight) for c, r, weight in pairs]
    expected = [
        (
            [*g.prompt_ids.tolist(), *g.completion_ids[c].tolist()],
            [*g.prompt_ids.tolist(), *g.completion_ids[r].tolist()],
            w,
        )
        for g in groups
        for c, r, w in zip(g.chosen_P, g.rejected_P, g.weight_P.tolist(), strict=True)
    ]
    assert named == expected
    assert batch.group_ids == tuple(g.group_id for g in groups)


def test_a_margin_on_some_pairs_only_is_kept_where_it_is_and_zero_elsewhere(random_group: MakeGroup):
    rng = np.random.default_rng(0)
    groups = [random_group(rng, num_completions=5) for _ in range(4)]
    groups[0].margin_P[:] = np.nan  # what a look at the first group alone would take for "no margins"
    expected = [0.0 if np.isnan(m) else m for g in groups for m in g.margin_P.tolist()]
    assert any(expected)
    assert collate(groups, pad_token_id=3).margin_P.tolist() == expected


def test_the_empty_micro_batch_has_one_row_and_no_pairs():
    batch = collate([], pad_token_id=3)
    assert batch.input_ids_NT.tolist() == [[3]]
    assert batch.attention_mask_NT.tolist() == [[1]]
    assert batch.last_N.tolist() == [0]
    assert batch.chosen_P.numel() == batch.rejected_P.numel() == batch.weight_P.numel() == batch.margin_P.numel() == 0
    assert batch.group_ids == ()


@pytest.mark.parametrize("num_groups", [0, 2])
def test_dtypes_are_those_that_models_and_loss_expect(random_group: MakeGroup, num_groups: int):
    rng = np.random.default_rng(0)
    batch = collate([random_group(rng, num_completions=3) for _ in range(num_groups)], pad_token_id=3).to("cpu")
    integers = (batch.input_ids_NT, batch.attention_mask_NT, batch.last_N, batch.chosen_P, batch.rejected_P)
    assert {tensor.dtype for tensor in integers} == {torch.int64}
    assert {batch.weight_P.dtype, batch.margin_P.dtype} == {torch.float32}
