"""A global batch becomes the same number of micro-batches on every rank, within the budget, and nothing is lost."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pairwright.errors import ConfigError
from pairwright.model.planning import MICRO_BATCH_OVERHEAD_TOKENS, check_budget, plan_micro_batches

BUDGET = 4096
SHAPES = st.lists(st.tuples(st.integers(2, 9), st.integers(2, BUDGET // 9)), min_size=0, max_size=80)


def _plan(shapes: list[tuple[int, int]], world_size: int, budget: int = BUDGET) -> list[list[list[int]]]:
    rows, tokens = [k for k, _ in shapes], [t for _, t in shapes]
    return plan_micro_batches(rows, tokens, world_size=world_size, micro_batch_tokens=budget)


def _padded_tokens(micro_batch: list[int], shapes: list[tuple[int, int]]) -> int:
    if not micro_batch:
        return 0
    return sum(shapes[g][0] for g in micro_batch) * max(shapes[g][1] for g in micro_batch)


@settings(deadline=None)
@given(shapes=SHAPES, world_size=st.integers(1, 12))
def test_every_group_is_in_exactly_one_micro_batch_under_the_budget(shapes, world_size):
    plan = _plan(shapes, world_size)
    positions = sorted(g for rank in plan for micro_batch in rank for g in micro_batch)
    assert positions == list(range(len(shapes)))
    assert all(_padded_tokens(micro_batch, shapes) <= BUDGET for rank in plan for micro_batch in rank)


@settings(deadline=None)
@given(shapes=SHAPES, world_size=st.integers(1, 12))
def test_every_rank_has_the_same_number_of_micro_batches(shapes, world_size):
    plan = _plan(shapes, world_size)
    assert len(plan) == world_size
    assert len({len(rank) for rank in plan}) == 1


def test_ranks_without_groups_still_run():
    plan = _plan([(4, 100)], world_size=3)
    assert plan == [[[0]], [[]], [[]]]


@settings(deadline=None)
@given(shapes=SHAPES.filter(len), world_size=st.integers(1, 12))
def test_no_rank_is_dealt_more_of_a_round_than_a_greedy_deal_can_give(shapes, world_size):
    for in_round in zip(*_plan(shapes, world_size), strict=True):
        costs = [[shapes[g][0] * shapes[g][1] for g in micro_batch] for micro_batch in in_round]
        total, largest = sum(map(sum, costs)), max(max(part) for part in costs if part)
        # Graham 1966: what any deal to the least loaded rank stays under.
        assert max(map(sum, costs)) <= total / world_size + (1 - 1 / world_size) * largest + 1e-6


@settings(deadline=None)
@given(shapes=st.lists(st.tuples(st.integers(2, 9), st.integers(2, 400)), min_size=1, max_size=8))
def test_one_rank_computes_the_least_of_all_cuts_in_order_of_length(shapes):
    by_length = sorted(shapes, key=lambda shape: -shape[1])
    costs = []
    for num_cuts in range(len(shapes)):
        for cuts in itertools.combinations(range(1, len(shapes)), num_cuts):
            parts = [by_length[a:b] for a, b in itertools.pairwise([0, *cuts, len(shapes)])]
            tokens = [sum(rows for rows, _ in part) * max(width for _, width in part) for part in parts]
            if max(tokens) <= BUDGET:
                costs.append(sum(tokens) + MICRO_BATCH_OVERHEAD_TOKENS * len(parts))
    (planned,) = _plan(shapes, world_size=1)
    cost = sum(_padded_tokens(part, shapes) + MICRO_BATCH_OVERHEAD_TOKENS for part in planned)
    assert cost == min(costs)


@pytest.mark.parametrize(("world_size", "most_idle", "most_waiting"), [(2, 0.01, 0.05), (8, 0.05, 0.20)])
def test_ranks_end_together_and_hardly_wait_in_between(world_size, most_idle, most_waiting):
    """InstructGPT's 64 prompts a step, lognormal lengths; shares of the time of all ranks, means over 20 steps."""
    idle, waiting = [], []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        tokens = np.clip(rng.lognormal(np.log(350), 0.5, 64), 16, 1800).astype(int)
        shapes = list(zip(rng.integers(4, 10, 64).tolist(), tokens.tolist(), strict=True))
        plan = _plan(shapes, world_size, budget=16384)
        costs = np.array([[_padded_tokens(micro_batch, shapes) for micro_batch in rank] for rank in plan])
        idle.append(1 - costs.sum(1).mean() / costs.sum(1).max())
        waiting.append(1 - costs.mean(0).sum() / costs.max(0).sum())
    assert np.mean(idle) < most_idle
    assert np.mean(waiting) < most_waiting


def test_the_plan_is_a_function_of_its_arguments():
    shapes = [(4, 100)] * 10 + [(9, 50)] * 10
    assert _plan(shapes, 3) == _plan(shapes, 3)


def test_a_group_over_the_budget_is_named_with_its_tokens_and_the_remedy():
    with pytest.raises(
        ConfigError, match=r"group 1 of the global batch takes 9 completions x 1000 tokens = 9000 tokens"
    ):
        _plan([(4, 10), (9, 1000)], world_size=2)
    with pytest.raises(ConfigError, match=r"micro_batch_tokens is 4096 \(2 of 3 groups .*at least 9000.*max_length"):
        check_budget([4, 9, 9], [10, 1000, 900], micro_batch_tokens=BUDGET, name_group=str)
