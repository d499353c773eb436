"""The groups of an evaluation as flat arrays: what every metric is computed from, and what follows from it at once.

Shapes: Q prompts, G groups, N completions of all groups one after the other, P pairs of all groups. Groups are sorted
by id and prompts by theirs, so equal data are equal arrays, whoever computed the rewards.
"""

# ruff: noqa: N815 - shape suffixes, as above

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


def sums_by(index: Ints, values: NDArray[Any], size: int) -> Floats:
    """Return the sum of the values of each index, shape (size,)."""
    return np.bincount(index, values, size).astype(np.float64)


@dataclass(frozen=True)
class PairArrays:
    """Rewards, pairs and what is known of the texts.

    Attributes:
        group_ids: of each group, sorted.
        prompt_ids: of each prompt, sorted.
        prompt_G: index of each group's prompt.
        repeats_G: how often a group counts overall: once for each of its subsets, at least once.
        subsets_G: the subsets of each group, at least one.
        annotators_G: who ranked each group, sorted; empty where nobody is named.
        prompt_characters_G: length of the prompt's texts.
        group_N: index of each completion's group, not decreasing.
        index_N: index of each completion in the pairs table's group.
        reward_N: the model's reward.
        characters_N: length of the text.
        author_N: index into ``authors`` of the model that wrote it; -1 where nobody is named.
        authors: names, sorted.
        text_N: a code of the text: equal text, equal code, whatever the prompt.
        features_NF: whether the text has each feature.
        features: names.
        group_P: index of each pair's group, not decreasing.
        chosen_P: index into N of the preferred completion.
        rejected_P: index into N of the other one.
        weight_P: how much each pair counts, above 0.
        margin_P: wanted reward difference; NaN where there is none.
    """

    group_ids: list[str]
    prompt_ids: list[str]
    prompt_G: Ints
    repeats_G: Ints
    subsets_G: Sequence[tuple[str, ...]]
    annotators_G: Sequence[tuple[str, ...]]
    prompt_characters_G: Ints
    group_N: Ints
    index_N: Ints
    reward_N: Floats
    characters_N: Ints
    author_N: Ints
    authors: list[str]
    text_N: Ints
    features_NF: Bools
    features: list[str]
    group_P: Ints
    chosen_P: Ints
    rejected_P: Ints
    weight_P: Floats
    margin_P: Floats

    @property
    def num_groups(self) -> int:
        return len(self.group_ids)

    @property
    def num_prompts(self) -> int:
        return len(self.prompt_ids)

    @cached_property
    def num_completions_G(self) -> Ints:
        """Completions of each group."""
        return np.bincount(self.group_N, minlength=self.num_groups)

    @cached_property
    def starts_G(self) -> Ints:
        """Where each group's completions start in N, and N at the end, shape (G + 1,)."""
        return np.concatenate([[0], np.cumsum(self.num_completions_G)])

    @cached_property
    def prompt_P(self) -> Ints:
        """Index of each pair's prompt."""
        return self.prompt_G[self.group_P]

    @cached_property
    def repeats_P(self) -> Ints:
        """How often each pair counts overall."""
        return self.repeats_G[self.group_P]

    @cached_property
    def difference_P(self) -> Floats:
        """Reward of the chosen completion minus that of the rejected one."""
        return self.reward_N[self.chosen_P] - self.reward_N[self.rejected_P]

    @cached_property
    def longer_by_P(self) -> Ints:
        """Characters of the chosen completion minus those of the rejected one."""
        return self.characters_N[self.chosen_P] - self.characters_N[self.rejected_P]

    @cached_property
    def is_fitted_Q(self) -> Bools:
        """Whether a prompt is in the half that the temperature is fitted on: every other one, in order of their ids."""
        return np.arange(self.num_prompts) % 2 == 0

    @cached_property
    def votes(self) -> tuple[Ints, Ints, Floats]:
        """Return each compared pair of completions once: two indices into N, the first smaller, and the net weight.

        The net weight is above 0 where the annotations prefer the first, below 0 where the second, and 0 where they
        are split evenly.
        """
        low_P, high_P = np.minimum(self.chosen_P, self.rejected_P), np.maximum(self.chosen_P, self.rejected_P)
        signed_P = np.where(self.chosen_P < self.rejected_P, self.weight_P, -self.weight_P)
        keys, inverse_P = np.unique(low_P * (len(self.group_N) + 1) + high_P, return_inverse=True)
        net = sums_by(inverse_P, signed_P, len(keys))
        size = sums_by(inverse_P, self.weight_P, len(keys))
        net[np.abs(net) <= 1e-6 * size] = 0.0  # weights are float32: votes that cancel out leave a rest
        return keys // (len(self.group_N) + 1), keys % (len(self.group_N) + 1), net

    @cached_property
    def worth_N(self) -> Floats:
        """Share of the group's other completions that the annotations put below each one; a tie is half."""
        low, high, net = self.votes
        wins_N = np.bincount(low, np.sign(net), len(self.group_N)) - np.bincount(high, np.sign(net), len(self.group_N))
        others_N = np.maximum(self.num_completions_G[self.group_N] - 1, 1)
        return 0.5 + 0.5 * wins_N / others_N

    @cached_property
    def rank_N(self) -> Ints:
        """Rank of each completion by ``worth_N``: 1 = best, equal = tie, without gaps.

        These are the ranks of the annotation where a group has one, less the completions that were left out.
        """
        order = np.lexsort((-self.worth_N, self.group_N))
        group, worth = self.group_N[order], self.worth_N[order]
        is_new_group = np.diff(group, prepend=-1) != 0
        steps = np.cumsum(is_new_group | (np.abs(np.diff(worth, prepend=np.nan)) > 1e-9))
        first = steps[np.flatnonzero(is_new_group)]
        rank_N = np.empty(len(order), np.int64)
        rank_N[order] = steps - first[np.cumsum(is_new_group) - 1] + 1
        return rank_N

    @cached_property
    def prompt_N(self) -> Ints:
        """Index of each completion's prompt."""
        return self.prompt_G[self.group_N]
