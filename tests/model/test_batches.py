"""Groups of a micro-batch lie in its tensors as the model and the loss expect them."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pairwright.data.tokens.tokenize_groups import TokenGroup
from pairwright.model.collate import Layout, MicroBatch, collate

MakeGroup = Callable[..., TokenGroup]


LAYOUTS: tuple[Layout, ...] = get_args(Layout)


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32),
    sizes=st.lists(st.integers(2, 9), min_size=1, max_size=6),
    layout=st.sampled_from(LAYOUTS),
    has_prompt=st.booleans(),
)
def test_a_layout_holds_every_text_whole_in_the_order_of_the_groups(
    random_group: MakeGroup, seed, sizes, layout, has_prompt
):
    rng = np.random.default_rng(seed)
    groups = [random_group(rng, num_completions=k) for k in sizes]
    groups[0] = groups[0] if has_prompt else dataclasses.replace(groups[0], prompt_ids=groups[0].prompt_ids[:0])
    batch = collate(groups, 3, layout)
    texts = [[*g.prompt_ids.tolist(), *ids.tolist()] for g in groups for ids in g.completion_ids]
    found = list(_texts_of(batch))
    assert [ids for ids, _ in found] == texts
    assert [positions for _, positions in found] == [list(range(len(text))) for text in texts]
    assert batch.group_ids == tuple(g.group_id for g in groups)
    shared = sum(g.prompt_ids.size * (len(g.completion_ids) - 1) for g in groups)
    assert batch.num_tokens == sum(map(len, texts)) - (shared if layout == "shared" else 0)
    assert batch.num_tokens == batch.input_ids_RT.numel() or layout == "padded"


def _texts_of(batch: MicroBatch) -> Iterator[tuple[list[int], list[int]]]:
    """Yield ids and positions of each text, read back from where the micro-batch says it stands."""
    if batch.segments is None:
        assert batch.attention_mask_RT is not None
        width = batch.input_ids_RT.shape[1]
        for row, mask in enumerate(batch.attention_mask_RT.bool()):
            assert int(batch.last_N[row]) == row * width + int(mask.sum()) - 1
            yield batch.input_ids_RT[row, mask].tolist(), batch.position_ids_RT[row, mask].tolist()
        return
    assert batch.attention_mask_RT is None
    ids, positions, start = batch.input_ids_RT[0].tolist(), batch.position_ids_RT[0].tolist(), 0
    last = iter(batch.last_N.tolist())
    for prompt, completions in zip(batch.segments.prompt_tokens_G, batch.segments.completion_tokens_G, strict=True):
        before = slice(start, start + prompt)
        start += prompt
        for num_tokens in completions:
            own = slice(start, start + num_tokens)
            start += num_tokens
            assert next(last) == start - 1
            yield ids[before] + ids[own], positions[before] + positions[own]


def test_pairs_point_at_their_own_texts_and_keep_their_margins(random_group: MakeGroup):
    rng = np.random.default_rng(0)
    groups = [random_group(rng, num_completions=k) for k in (5, 2, 4)]
    groups[0].margin_P[:] = np.nan  # what a look at the first group alone would take for "no margins" (pitfall 10)
    targets = collate(groups, 3, "shared").targets
    first = np.repeat([0, 5, 7], [g.chosen_P.size for g in groups])
    assert targets.chosen_P.tolist() == (np.concatenate([g.chosen_P for g in groups]) + first).tolist()
    assert targets.rejected_P.tolist() == (np.concatenate([g.rejected_P for g in groups]) + first).tolist()
    assert targets.weight_P.tolist() == [w for g in groups for w in g.weight_P.tolist()]
    expected = [0.0 if np.isnan(m) else m for g in groups for m in g.margin_P.tolist()]
    assert any(expected)
    assert targets.margin_P.tolist() == expected


def test_padding_holds_the_pad_token_and_is_no_wider_than_the_longest_text(random_group: MakeGroup):
    rng = np.random.default_rng(1)
    groups = [random_group(rng, num_completions=4) for _ in range(3)]
    batch = collate(groups, 3, "padded")
    assert batch.attention_mask_RT is not None
    assert bool((batch.input_ids_RT[batch.attention_mask_RT == 0] == 3).all())
    longest = max(g.prompt_ids.size + ids.size for g in groups for ids in g.completion_ids)
    assert batch.input_ids_RT.shape[1] == longest


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_empty_micro_batch_has_one_token_and_no_pairs(layout: Layout):
    batch = collate([], 3, layout)
    assert batch.input_ids_RT.tolist() == [[3]]
    assert batch.position_ids_RT.tolist() == batch.last_N[None].tolist() == [[0]]
    assert batch.targets.chosen_P.numel() == 0
    assert (batch.group_ids, batch.num_tokens) == ((), 0)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("num_groups", [0, 2])
def test_dtypes_are_those_that_models_and_loss_expect(random_group: MakeGroup, num_groups: int, layout: Layout):
    rng = np.random.default_rng(0)
    batch = collate([random_group(rng, num_completions=3) for _ in range(num_groups)], 3, layout).to("cpu")
    targets = batch.targets
    integers = (batch.input_ids_RT, batch.position_ids_RT, batch.last_N, targets.chosen_P, targets.rejected_P)
    assert {tensor.dtype for tensor in integers} == {torch.int64}
    assert batch.attention_mask_RT is None or batch.attention_mask_RT.dtype == torch.int64
    assert {targets.weight_P.dtype, targets.margin_P.dtype} == {torch.float32}
