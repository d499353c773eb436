"""Preference targets move to a device as a whole, and their rankings are those that loops over the pairs give."""

import dataclasses

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pairwright.data.tokens.tokenize_groups import TokenGroup
from pairwright.model.targets import PreferenceTargets
from ranked_groups import ranked_group


def test_all_of_the_targets_go_to_the_device() -> None:
    targets = PreferenceTargets.of([ranked_group([[1, 3, 2]]), ranked_group([[1, 1, 2, 2]], ties="half")])
    moved = targets.to("meta")
    for found, before in ((moved, targets), (moved.stages, targets.stages)):
        for field in dataclasses.fields(found):
            tensor, original = getattr(found, field.name), getattr(before, field.name)
            if isinstance(tensor, torch.Tensor):
                assert (tensor.device.type, tensor.shape, tensor.dtype) == ("meta", original.shape, original.dtype)
            else:
                assert field.name == "stages"


def _stages_by_loops(group: TokenGroup) -> list[tuple[int, frozenset[int], bool]]:
    """Return a group's stages: the chosen completion, those that it is chosen over, and whether they include itself.

    Borda count: i's net wins are the weights of its wins minus those of its losses; equal net wins make a level. The
    probability of a stage is exp(r_i) / sum of exp(r_j) over those that remain (Plackett 1975): all lower levels, and
    the whole level too for a tie that the pairs hold (Breslow 1974).
    """
    pairs = list(zip(group.chosen_P.tolist(), group.rejected_P.tolist(), group.weight_P.tolist(), strict=True))
    num = len(group.completion_ids)
    net = [sum(w for c, _, w in pairs if c == i) - sum(w for _, r, w in pairs if r == i) for i in range(num)]

    def equal(i: int, j: int) -> bool:
        return abs(net[i] - net[j]) < 1e-4

    stages = []
    for i in range(num):
        lower = {j for j in range(num) if net[j] < net[i] and not equal(i, j)}
        level = {j for j in range(num) if equal(i, j)}
        is_tied = any(c in level and r in level for c, r, _ in pairs)
        remaining = lower | level if is_tied else lower
        if remaining:
            stages.append((i, frozenset(remaining), is_tied))
    return sorted(stages)


@settings(deadline=None, max_examples=200)
@given(
    rankings=st.integers(2, 6).flatmap(
        lambda k: st.lists(st.lists(st.integers(1, k), min_size=k, max_size=k), min_size=1, max_size=4)
    ),
    ties=st.sampled_from(["drop", "half"]),
)
def test_stages_of_one_or_several_annotators_are_those_that_loops_find(rankings: list[list[int]], ties: str) -> None:
    group = ranked_group(rankings, ties=ties)
    other = ranked_group([[2, 1]])  # before it, so that indices differ from those of the group
    stages = PreferenceTargets.of([other, group]).stages
    worst_first_GK = stages.worst_first_GK.numpy()
    width, offset = worst_first_GK.shape[1], 2
    found = []
    for chosen, reach, tied, weight in zip(
        stages.chosen_S.tolist(), stages.reach_S.tolist(), stages.tied_S.tolist(), stages.weight_S.tolist(), strict=True
    ):
        row, last = divmod(reach, width)
        if row == 1:
            remaining = frozenset((worst_first_GK[1, : last + 1] - offset).tolist())
            found.append(((chosen - offset, remaining, tied), weight))
    assert sorted(stage for stage, _ in found) == _stages_by_loops(group)
    if found:
        total = float(group.weight_P.astype(np.float64).sum())
        np.testing.assert_allclose([weight for _, weight in found], total / len(found), rtol=1e-12)
