"""Plans the micro-batches of a global batch: which rank computes which completions when. Numbers in, lists out.

The plan depends on sizes alone, so every rank computes the whole plan and takes its own part: nothing is communicated,
nothing is measured, and a restart plans the same. The plan decides speed and memory, never the result.

The micro-batch schedule has the same length on every rank: ranks wait for each other in every micro-batch (ZeRO's
collectives), not once a step. A group stays in one micro-batch unless it exceeds the token budget. A group that does is
split: every part computes the prompt again, and runs its forward pass twice (training/step.py).
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, assert_never

import numpy as np

from pairwright.data.tokens.token_group import GroupSizes
from pairwright.errors import ConfigError
from pairwright.model.batching.bin_packing import PackedMicroBatch, pack_micro_batches
from pairwright.model.batching.cost_model import ModelShape, PartSizes, overhead
from pairwright.model.collate import Layout

# Passes, in forward passes: a backward pass costs two; a split group takes one more forward pass.
PASSES_UNSPLIT = 3
PASSES_SPLIT = 4

CompletionTokens = Callable[[int], Sequence[int]]
"""Position of a group in the global batch -> tokens of each of its completions; called for split groups only."""


@dataclass(frozen=True, slots=True)
class Rules:
    """The constraints of a plan, the same on every rank."""

    layout: Layout
    shape: ModelShape
    world_size: int
    micro_batch_tokens: int
    """Token budget of a forward pass, padding included."""


class GroupPart(NamedTuple):
    """A group's prompt with some of its completions, or all."""

    position: int
    """Of the group in the global batch."""
    first: int
    last: int
    """First of the completions, and one past the last."""


@dataclass(frozen=True, slots=True)
class PlannedMicroBatch:
    """One micro-batch of one rank; empty if it only keeps the rank in step with the others."""

    parts: tuple[GroupPart, ...]
    num_tokens: int
    """Tokens computed, without padding."""
    num_padding: int
    cost: float
    """Of one forward pass, in FLOPs of a linear layer."""


MicroBatchSchedule = list[list[PlannedMicroBatch]]
"""[rank][micro-batch]; equally many on every rank."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The micro-batch schedule of a step: first the parts of split groups, which run twice, then unsplit groups."""

    split: MicroBatchSchedule
    unsplit: MicroBatchSchedule

    def split_positions(self) -> list[int]:
        """Return the positions in the global batch of the split groups, ascending."""
        return sorted({part.position for rank in self.split for batch in rank for part in batch.parts})


def plan_micro_batches(sizes: GroupSizes, completion_tokens: CompletionTokens, rules: Rules) -> Plan:
    """Return the plan of a global batch; only groups over the token budget are split.

    Args:
        sizes: of the groups of the global batch.
        completion_tokens: of each group's completions.
        rules: the constraints of the plan.

    Raises:
        ConfigError: if one completion with its prompt is over the budget.
        ValueError: if the world size is not positive.
    """
    if rules.world_size < 1:
        raise ValueError(f"world_size is {rules.world_size}, expected at least 1")
    groups = _group_sizes(sizes)
    is_split_G = (groups.tokens_I(rules.layout) > rules.micro_batch_tokens) & (groups.rows_I > 1)
    parts = [
        part
        for g in np.flatnonzero(is_split_G).tolist()
        for part in _split_group(g, int(sizes.prompt_tokens_G[g]), completion_tokens(g), rules)
    ]
    unsplit_G = np.flatnonzero(~is_split_G)
    unsplit = [GroupPart(g, 0, int(sizes.num_completions_G[g])) for g in unsplit_G.tolist()]
    return Plan(
        split=_schedule(parts, _part_sizes(sizes, completion_tokens, parts), rules),
        unsplit=_schedule(unsplit, groups.take(unsplit_G), rules),
    )


def _group_sizes(sizes: GroupSizes) -> PartSizes:
    return PartSizes(
        rows_I=sizes.num_completions_G,
        prompt_I=sizes.prompt_tokens_G,
        completions_I=sizes.completion_tokens_G,
        longest_I=sizes.longest_row_tokens_G,
    )


def _part_sizes(sizes: GroupSizes, completion_tokens: CompletionTokens, parts: Sequence[GroupPart]) -> PartSizes:
    selected = [completion_tokens(part.position)[part.first : part.last] for part in parts]
    prompt_I = sizes.prompt_tokens_G[[part.position for part in parts]] if parts else np.zeros(0, np.int64)
    return PartSizes(
        rows_I=np.array([len(tokens) for tokens in selected], np.int64),
        prompt_I=prompt_I,
        completions_I=np.array([sum(tokens) for tokens in selected], np.int64),
        longest_I=prompt_I + np.array([max(tokens) for tokens in selected], np.int64),
    )


def _split_group(position: int, prompt: int, completions: Sequence[int], rules: Rules) -> list[GroupPart]:
    """Return the fewest parts within the budget, at least one completion each, and as even as that allows."""
    layout, budget = rules.layout, rules.micro_batch_tokens
    bounds = [0]
    for index in range(1, len(completions)):
        if _tokens(prompt, completions[bounds[-1] : index + 1], layout) > budget:
            bounds.append(index)
    num_parts = len(bounds)
    even = [len(completions) * number // num_parts for number in range(num_parts + 1)]
    even_parts = [GroupPart(position, first, last) for first, last in itertools.pairwise(even)]
    if all(_tokens(prompt, completions[part.first : part.last], layout) <= budget for part in even_parts):
        return even_parts
    return [GroupPart(position, first, last) for first, last in itertools.pairwise([*bounds, len(completions)])]


def _tokens(prompt: int, completions: Sequence[int], layout: Layout) -> int:
    """Return a part's tokens, padding included (``PartSizes.tokens_I`` of one part)."""
    match layout:
        case "shared":
            return prompt + sum(completions)
        case "packed":
            return len(completions) * prompt + sum(completions)
        case "padded":
            return len(completions) * (prompt + max(completions))
        case _:
            assert_never(layout)


def _schedule(parts: Sequence[GroupPart], sizes: PartSizes, rules: Rules) -> MicroBatchSchedule:
    """Return the micro-batches of all ranks, packed from parts within the budget."""
    tokens_I = sizes.tokens_I(rules.layout)
    if (tokens_I > rules.micro_batch_tokens).any():
        largest = int(tokens_I.argmax())
        raise ConfigError(
            f"group {parts[largest].position} of the global batch has a completion that takes {tokens_I[largest]} "
            f"tokens with its prompt, and batches.micro_batch_tokens is {rules.micro_batch_tokens}; raise it to at "
            f"least {tokens_I[largest]}, or lower tokens.max_length"
        )
    packed = pack_micro_batches(
        sizes,
        rules.layout,
        rules.shape,
        world_size=rules.world_size,
        micro_batch_tokens=rules.micro_batch_tokens,
    )
    texts = sizes.tokens_I("shared" if rules.layout == "shared" else "packed").tolist()
    rows, longest = sizes.rows_I.tolist(), sizes.longest_I.tolist()

    def planned(batch: PackedMicroBatch) -> PlannedMicroBatch:
        num_tokens = num_computed = sum(texts[item] for item in batch.items)
        if rules.layout == "padded" and batch.items:
            num_computed = sum(rows[item] for item in batch.items) * max(longest[item] for item in batch.items)
        parts_inside = tuple(parts[item] for item in batch.items)
        return PlannedMicroBatch(parts_inside, num_tokens, num_computed - num_tokens, batch.cost)

    return [[planned(batch) for batch in rank] for rank in packed]


# ------------------------------------------------------------------------------------------------ plan quality


@dataclass(frozen=True, slots=True)
class PlanQuality:
    """Quality of a training step's plan, by the cost model; the shares do not include fixed costs."""

    num_forwards: int
    """Forward passes of each rank; those of split groups count twice."""
    idle_share: float
    """Share of all ranks' time that they wait for the costliest micro-batch."""
    padding_share: float
    """Share of padding among the computed tokens."""
    num_split_groups: int
    time: float
    """Of the step, in FLOPs of a linear layer on one rank, fixed costs included."""


def quality_of(plan: Plan, rules: Rules) -> PlanQuality:
    """Return the quality of a plan, for any world size; nothing is computed and no rank is needed."""
    duration = busy = overheads = 0.0
    num_forwards = tokens = padding = 0
    for schedule, passes, forwards in ((plan.split, PASSES_SPLIT, 2), (plan.unsplit, PASSES_UNSPLIT, 1)):
        for simultaneous in zip(*schedule, strict=True):
            num_forwards += forwards
            overheads += passes * overhead(rules.shape)
            duration += passes * max(batch.cost for batch in simultaneous)
            busy += passes * sum(batch.cost for batch in simultaneous)
            tokens += forwards * sum(batch.num_tokens for batch in simultaneous)
            padding += forwards * sum(batch.num_padding for batch in simultaneous)
    return PlanQuality(
        num_forwards=num_forwards,
        idle_share=1 - busy / (rules.world_size * duration) if duration else 0.0,
        padding_share=padding / max(1, tokens + padding),
        num_split_groups=len(plan.split_positions()),
        time=duration + overheads,
    )
