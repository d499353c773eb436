"""Sizes of a global batch's groups -> a plan: which rank computes which completions when. Numbers in, lists out.

Planning sees sizes alone, so every rank computes the whole plan and takes its own part: nothing is sent, nothing is
timed, and a restart plans the same. The plan decides speed and memory, never the result.

A plan is made of rounds, one micro-batch a rank: ranks wait for each other in every round (ZeRO's collectives), not
once a step. A group is whole in one micro-batch, unless it is over the budget, or more ranks would stand idle than
dividing it costs: a prompt is computed again with every part, and every part twice (training/step.py).
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, assert_never

import numpy as np

from pairwright.data.tokens.group_sizes import GroupSizes
from pairwright.errors import ConfigError
from pairwright.model.batching.bin_packing import Packed, pack
from pairwright.model.batching.cost_model import ModelShape, PartSizes, overhead
from pairwright.model.collate import Layout

# In forwards: a backward takes two; a divided group has a forward more.
PASSES_WHOLE = 3
PASSES_DIVIDED = 4
# Dividing groups for balance alone must save this share of the step: the model of cost is no better than that.
LEAST_GAIN = 0.1
# Largest part tried, as shares of what each rank has in a perfect deal.
PART_SHARES = (1.0, 0.6, 0.35)

CompletionTokens = Callable[[int], Sequence[int]]
"""Position of a group in the global batch -> tokens of each of its completions; asked only of groups to be divided."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What a plan keeps to, the same on every rank."""

    layout: Layout
    shape: ModelShape
    world_size: int
    micro_batch_tokens: int
    """Most tokens that one forward may compute, padding included."""


class Part(NamedTuple):
    """A group's prompt and some of its completions, or all."""

    position: int
    """Of the group in the global batch."""
    first: int
    last: int
    """First of the completions, and one past the last."""


@dataclass(frozen=True, slots=True)
class PlannedMicroBatch:
    """What one rank computes in one round; nothing, where it only keeps step."""

    parts: tuple[Part, ...]
    num_tokens: int
    """Tokens computed, without padding."""
    num_padding: int
    cost: float
    """Of one forward, in FLOPs of a linear layer."""


Ranks = list[list[PlannedMicroBatch]]
"""[rank][round]; as many rounds on every rank."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A step: rounds of the parts of divided groups, which run twice, then rounds of whole groups."""

    divided: Ranks
    whole: Ranks

    def divided_positions(self) -> list[int]:
        """Return the positions in the global batch of the groups that are divided, ascending."""
        return sorted({part.position for rank in self.divided for batch in rank for part in batch.parts})


def plan_step(sizes: GroupSizes, completion_tokens: CompletionTokens, rules: Rules) -> Plan:
    """Return the plan of a training step: groups are divided also where that makes the step shorter.

    Args:
        sizes: of the groups of the global batch.
        completion_tokens: of each group's completions.
        rules: what the plan keeps to.

    Raises:
        ConfigError: if one completion with its prompt is over the budget.
        ValueError: if the world size is not positive.
    """
    plan = plan_forward(sizes, completion_tokens, rules)
    quality = quality_of(plan, rules)
    if quality.idle_share <= LEAST_GAIN:
        return plan
    num_tokens = sum(batch.num_tokens + batch.num_padding for rank in plan.whole for batch in rank)
    best, least = plan, (1 - LEAST_GAIN) * quality.time
    for share in PART_SHARES:
        division = _Division.of(sizes, completion_tokens, rules, int(share * num_tokens / rules.world_size))
        if division.least_time(rules) < least:
            candidate = division.plan(rules)
            time = quality_of(candidate, rules).time
            if time < least:
                best, least = candidate, time
    return best


def plan_forward(sizes: GroupSizes, completion_tokens: CompletionTokens, rules: Rules) -> Plan:
    """Return a plan that divides only groups over the budget: for an evaluation; arguments as of ``plan_step``."""
    return _Division.of(sizes, completion_tokens, rules, rules.micro_batch_tokens).plan(rules)


@dataclass(frozen=True, slots=True)
class _Division:
    """Which groups are divided, and into what."""

    parts: list[Part]
    part_sizes: PartSizes
    wholes: list[Part]
    whole_sizes: PartSizes

    @classmethod
    def of(cls, sizes: GroupSizes, completion_tokens: CompletionTokens, rules: Rules, largest: int) -> "_Division":
        """Divide the groups of more tokens than ``largest`` into parts of no more where that can be."""
        if rules.world_size < 1:
            raise ValueError(f"world_size is {rules.world_size}, expected at least 1")
        groups, largest = _whole(sizes), min(largest, rules.micro_batch_tokens)
        is_divided_G = (groups.tokens_I(rules.layout) > largest) & (groups.rows_I > 1)
        parts = [
            part
            for g in np.flatnonzero(is_divided_G).tolist()
            for part in _divide(g, int(sizes.prompt_tokens_G[g]), completion_tokens(g), rules.layout, largest)
        ]
        whole_G = np.flatnonzero(~is_divided_G)
        wholes = [Part(g, 0, int(sizes.num_completions_G[g])) for g in whole_G.tolist()]
        return cls(parts, _sizes_of_parts(sizes, completion_tokens, parts), wholes, groups.take(whole_G))

    def least_time(self, rules: Rules) -> float:
        """Return what no plan of these parts and wholes can be faster than."""
        time = 0.0
        for sizes, passes in ((self.part_sizes, PASSES_DIVIDED), (self.whole_sizes, PASSES_WHOLE)):
            if sizes.rows_I.size:
                cost_I = sizes.costs_I(rules.layout, rules.shape)
                time += passes * (max(cost_I.sum() / rules.world_size, cost_I.max()) + overhead(rules.shape))
        return time

    def plan(self, rules: Rules) -> Plan:
        return Plan(
            divided=_ranks(self.parts, self.part_sizes, rules), whole=_ranks(self.wholes, self.whole_sizes, rules)
        )


def _whole(sizes: GroupSizes) -> PartSizes:
    return PartSizes(
        rows_I=sizes.num_completions_G,
        prompt_I=sizes.prompt_tokens_G,
        completions_I=sizes.completion_tokens_G,
        longest_I=sizes.longest_row_tokens_G,
    )


def _sizes_of_parts(sizes: GroupSizes, completion_tokens: CompletionTokens, parts: Sequence[Part]) -> PartSizes:
    cut = [completion_tokens(part.position)[part.first : part.last] for part in parts]
    prompt_I = sizes.prompt_tokens_G[[part.position for part in parts]] if parts else np.zeros(0, np.int64)
    return PartSizes(
        rows_I=np.array([len(tokens) for tokens in cut], np.int64),
        prompt_I=prompt_I,
        completions_I=np.array([sum(tokens) for tokens in cut], np.int64),
        longest_I=prompt_I + np.array([max(tokens) for tokens in cut], np.int64),
    )


def _divide(position: int, prompt: int, completions: Sequence[int], layout: Layout, largest: int) -> list[Part]:
    """Return the fewest parts of at most ``largest`` tokens, a completion each at least; as even as that allows."""
    bounds = [0]
    for index in range(1, len(completions)):
        if _tokens(prompt, completions[bounds[-1] : index + 1], layout) > largest:
            bounds.append(index)
    num_parts = len(bounds)
    even = [len(completions) * number // num_parts for number in range(num_parts + 1)]
    even_parts = [Part(position, first, last) for first, last in itertools.pairwise(even)]
    if all(_tokens(prompt, completions[part.first : part.last], layout) <= largest for part in even_parts):
        return even_parts
    return [Part(position, first, last) for first, last in itertools.pairwise([*bounds, len(completions)])]


def _tokens(prompt: int, completions: Sequence[int], layout: Layout) -> int:
    """Return what a part computes, padding included (``PartSizes.tokens_I`` for one)."""
    match layout:
        case "shared":
            return prompt + sum(completions)
        case "packed":
            return len(completions) * prompt + sum(completions)
        case "padded":
            return len(completions) * (prompt + max(completions))
        case _:
            assert_never(layout)


def _ranks(parts: Sequence[Part], sizes: PartSizes, rules: Rules) -> Ranks:
    tokens_I = sizes.tokens_I(rules.layout)
    if (tokens_I > rules.micro_batch_tokens).any():
        largest = int(tokens_I.argmax())
        raise ConfigError(
            f"group {parts[largest].position} of the global batch has a completion that takes {tokens_I[largest]} "
            f"tokens with its prompt, and batches.micro_batch_tokens is {rules.micro_batch_tokens}; raise it to at "
            f"least {tokens_I[largest]}, or lower tokens.max_length"
        )
    packed = pack(
        sizes,
        rules.layout,
        rules.shape,
        world_size=rules.world_size,
        micro_batch_tokens=rules.micro_batch_tokens,
    )
    texts = sizes.tokens_I("shared" if rules.layout == "shared" else "packed").tolist()
    rows, longest = sizes.rows_I.tolist(), sizes.longest_I.tolist()

    def planned(batch: Packed) -> PlannedMicroBatch:
        num_tokens = num_computed = sum(texts[item] for item in batch.items)
        if rules.layout == "padded" and batch.items:
            num_computed = sum(rows[item] for item in batch.items) * max(longest[item] for item in batch.items)
        parts_inside = tuple(parts[item] for item in batch.items)
        return PlannedMicroBatch(parts_inside, num_tokens, num_computed - num_tokens, batch.cost)

    return [[planned(batch) for batch in rank] for rank in packed]


# ------------------------------------------------------------------------------------------------ evaluation


@dataclass(frozen=True, slots=True)
class PlanQuality:
    """How good a plan of a training step is, by the model of cost; no overhead of rounds is in the shares."""

    rounds: int
    """Forwards that each rank runs, those of divided groups counted twice."""
    idle_share: float
    """Of the time of all ranks, what they wait for the costliest in each round."""
    padding_share: float
    """Of the tokens computed, what is padding."""
    num_divided: int
    """Groups that are divided."""
    time: float
    """Of the step, in FLOPs of a linear layer on one rank, overhead of rounds included."""


def quality_of(plan: Plan, rules: Rules) -> PlanQuality:
    """Return how good a plan is, for any world size: nothing is computed, no rank is needed."""
    lasts = busy = overheads = 0.0
    rounds = tokens = padding = 0
    for ranks, passes, forwards in ((plan.divided, PASSES_DIVIDED, 2), (plan.whole, PASSES_WHOLE, 1)):
        for in_round in zip(*ranks, strict=True):
            rounds += forwards
            overheads += passes * overhead(rules.shape)
            lasts += passes * max(batch.cost for batch in in_round)
            busy += passes * sum(batch.cost for batch in in_round)
            tokens += forwards * sum(batch.num_tokens for batch in in_round)
            padding += forwards * sum(batch.num_padding for batch in in_round)
    return PlanQuality(
        rounds=rounds,
        idle_share=1 - busy / (rules.world_size * lasts) if lasts else 0.0,
        padding_share=padding / max(1, tokens + padding),
        num_divided=len(plan.divided_positions()),
        time=lasts + overheads,
    )
