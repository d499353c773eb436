"""A global batch becomes the same number of micro-batches on every rank, within the budget, and nothing is lost."""

import itertools
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pairwright.data.tokens.token_group import GroupSizes
from pairwright.errors import ConfigError
from pairwright.model.batching.cost_model import MICRO_BATCH_OVERHEAD_TOKENS, ModelShape
from pairwright.model.batching.plan import (
    GroupPart,
    Plan,
    PlannedMicroBatch,
    Rules,
    plan_micro_batches,
    quality_of,
)
from pairwright.model.collate import Layout

BUDGET = 4096
# Without attention a cost is tokens times two, so that an oracle can count tokens.
TOKENS_ALONE = ModelShape(linear_parameters=1, attention_width=0)
SMALL = ModelShape(linear_parameters=4 * 12 * 256**2, attention_width=4 * 256)

Group = tuple[int, list[int]]
"""Tokens of the prompt, and of each completion."""

LAYOUTS = get_args(Layout)
GROUP = st.tuples(st.integers(0, 300), st.lists(st.integers(1, 400), min_size=2, max_size=9))
GROUPS = st.lists(GROUP, max_size=60)


def _sizes(groups: list[Group]) -> GroupSizes:
    return GroupSizes(
        num_completions_G=np.array([len(completions) for _, completions in groups], np.int64),
        prompt_tokens_G=np.array([prompt for prompt, _ in groups], np.int64),
        completion_tokens_G=np.array([sum(completions) for _, completions in groups], np.int64),
        longest_row_tokens_G=np.array([prompt + max(completions) for prompt, completions in groups], np.int64),
    )


def _rules(layout: Layout, world_size: int, budget: int = BUDGET, shape: ModelShape = SMALL) -> Rules:
    return Rules(layout=layout, shape=shape, world_size=world_size, micro_batch_tokens=budget)


def _plan(groups: list[Group], rules: Rules) -> Plan:
    return plan_micro_batches(_sizes(groups), lambda position: groups[position][1], rules)


def _tokens(parts: tuple[GroupPart, ...], groups: list[Group], layout: Layout) -> int:
    """Return what these parts compute in one micro-batch, counted text by text."""
    texts = [(groups[p][0], groups[p][1][first:last]) for p, first, last in parts]
    rows = [prompt + completion for prompt, completions in texts for completion in completions]
    if layout == "shared":
        return sum(prompt + sum(completions) for prompt, completions in texts)
    return sum(rows) if layout == "packed" else len(rows) * max(rows, default=0)


def _batches(plan: Plan) -> list[PlannedMicroBatch]:
    return [batch for ranks in (plan.split, plan.unsplit) for rank in ranks for batch in rank]


def _instructgpt(num_groups: int, seed: int) -> list[Group]:
    """Groups of 4 to 9 completions, prompts and completions of lognormal length."""
    rng = np.random.default_rng(seed)

    def lengths(median: int, num: int) -> list[int]:
        return np.clip(rng.lognormal(np.log(median), 0.5, num), 8, 900).astype(int).tolist()

    return [(lengths(200, 1)[0], lengths(150, int(rng.integers(4, 10)))) for _ in range(num_groups)]


@settings(deadline=None)
@given(groups=GROUPS, world_size=st.integers(1, 12), layout=st.sampled_from(LAYOUTS), budget=st.integers(700, 6000))
def test_every_completion_is_computed_once_and_under_the_budget(groups, world_size, layout, budget):
    plan = _plan(groups, _rules(layout, world_size, budget))
    computed = sorted(
        (part.position, completion)
        for batch in _batches(plan)
        for part in batch.parts
        for completion in range(part.first, part.last)
    )
    assert computed == [(g, k) for g, (_, completions) in enumerate(groups) for k in range(len(completions))]
    for batch in _batches(plan):
        tokens = _tokens(batch.parts, groups, layout)
        assert batch.num_tokens + batch.num_padding == tokens <= budget
        assert batch.num_padding == 0 or layout == "padded"


@settings(deadline=None)
@given(groups=GROUPS, world_size=st.integers(1, 12), layout=st.sampled_from(LAYOUTS))
def test_every_rank_has_the_same_number_of_micro_batches(groups, world_size, layout):
    plan = _plan(groups, _rules(layout, world_size))
    for ranks in (plan.split, plan.unsplit):
        assert len(ranks) == world_size
        assert len({len(rank) for rank in ranks}) == 1


@settings(deadline=None)
@given(groups=GROUPS, world_size=st.integers(1, 5), layout=st.sampled_from(LAYOUTS), budget=st.integers(700, 6000))
def test_the_groups_over_the_budget_are_split_and_no_others(groups, world_size, layout, budget):
    plan = _plan(groups, _rules(layout, world_size, budget))
    over = [g for g in range(len(groups)) if _tokens((GroupPart(g, 0, len(groups[g][1])),), groups, layout) > budget]
    assert plan.split_positions() == over
    whole = {part for rank in plan.unsplit for batch in rank for part in batch.parts}
    assert whole == {GroupPart(g, 0, len(groups[g][1])) for g in range(len(groups)) if g not in over}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_group_over_the_budget_is_split_into_the_fewest_parts(layout: Layout):
    groups: list[Group] = [(100, [100] * 9)]
    in_a_part = {"shared": 3, "packed": 2, "padded": 2}[layout]
    plan = _plan(groups, _rules(layout, 1, budget=450))
    parts = sorted(part for batch in plan.split[0] for part in batch.parts)
    assert len(parts) == -(-9 // in_a_part)
    assert max(part.last - part.first for part in parts) <= in_a_part


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ranks_without_groups_still_run(layout: Layout):
    plan = _plan([(50, [50, 50])], _rules(layout, world_size=3))
    assert [[batch.parts for batch in rank] for rank in plan.unsplit] == [[(GroupPart(0, 0, 2),)], [()], [()]]


@settings(deadline=None)
@given(groups=GROUPS.filter(len), world_size=st.integers(1, 12), layout=st.sampled_from(LAYOUTS))
def test_no_rank_has_more_of_a_round_than_a_greedy_assignment_can_give(groups, world_size, layout):
    plan = _plan(groups, _rules(layout, world_size, budget=10**6, shape=TOKENS_ALONE))
    alone = [_tokens((GroupPart(g, 0, len(groups[g][1])),), groups, layout) for g in range(len(groups))]
    for in_round in zip(*plan.unsplit, strict=True):
        costs = [[alone[part.position] for part in batch.parts] for batch in in_round]
        total, largest = sum(map(sum, costs)), max(max(part) for part in costs if part)
        # Graham 1966: the bound of any assignment to the least loaded rank.
        assert max(map(sum, costs)) <= total / world_size + (1 - 1 / world_size) * largest + 1e-6


@settings(deadline=None)
@given(shapes=st.lists(st.tuples(st.integers(2, 9), st.integers(2, 400)), min_size=1, max_size=8))
def test_one_rank_computes_the_least_padded_tokens_of_all_partitions_in_order_of_length(shapes):
    by_length = sorted(shapes, key=lambda shape: -shape[1])
    costs = []
    for num_cuts in range(len(shapes)):
        for cuts in itertools.combinations(range(1, len(shapes)), num_cuts):
            parts = [by_length[a:b] for a, b in itertools.pairwise([0, *cuts, len(shapes)])]
            tokens = [sum(rows for rows, _ in part) * max(width for _, width in part) for part in parts]
            if max(tokens) <= BUDGET:
                costs.append(sum(tokens) + MICRO_BATCH_OVERHEAD_TOKENS * len(parts))
    groups = [(0, [width] * rows) for rows, width in shapes]
    plan = _plan(groups, _rules("padded", 1, shape=TOKENS_ALONE))
    cost = sum(_tokens(batch.parts, groups, "padded") + MICRO_BATCH_OVERHEAD_TOKENS for batch in plan.unsplit[0])
    assert cost == min(costs)


@pytest.mark.parametrize(
    ("layout", "world_size", "most_idle"),
    [("shared", 2, 0.005), ("shared", 8, 0.03), ("packed", 2, 0.005), ("packed", 8, 0.03), ("padded", 2, 0.05)],
)
def test_ranks_hardly_wait_for_each_other_in_any_round(layout: Layout, world_size: int, most_idle: float):
    """InstructGPT's 64 prompts a step; the share of all ranks' time, mean over 20 steps."""
    rules = _rules(layout, world_size, budget=16384)
    idle = [quality_of(_plan(_instructgpt(64, seed), rules), rules).idle_share for seed in range(20)]
    print(f"{layout}, {world_size} ranks: idle {np.mean(idle):.3f}")
    assert np.mean(idle) < most_idle


def test_quality_counts_what_ranks_wait_for_and_pad():
    """Two ranks, two groups: rows of 10 and 20 tokens in one round, so that one rank waits half of it."""
    rules = _rules("padded", 2, shape=TOKENS_ALONE)
    quality = quality_of(_plan([(5, [5, 5]), (5, [15, 10])], rules), rules)
    assert quality.num_forwards == 1
    assert quality.idle_share == pytest.approx(1 - (20 + 40) / (2 * 40))
    assert quality.padding_share == pytest.approx(5 / 60)
    # A forward and a backward of twice its cost, two FLOPs a token and parameter.
    assert quality.time == pytest.approx(3 * 2 * (40 + MICRO_BATCH_OVERHEAD_TOKENS))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_plan_is_a_function_of_its_arguments(layout: Layout):
    groups = _instructgpt(64, seed=3)
    assert _plan(groups, _rules(layout, 3)) == _plan(groups, _rules(layout, 3))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_completion_over_the_budget_is_named_with_its_tokens_and_the_remedy(layout: Layout):
    with pytest.raises(ConfigError, match=r"group 1 of the global batch .* 5000 tokens .* is 4096; .*least 5000"):
        _plan([(4, [10, 10]), (4000, [1000, 10])], _rules(layout, 2))
