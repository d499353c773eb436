"""Rankings -> a tokenised group with the pairs that expansion makes of them, by plain loops; its tokens say nothing."""

import itertools
from collections.abc import Sequence

import numpy as np

from pairwright.data.tokens.tokenize_groups import TokenGroup


def ranked_group(
    rankings: Sequence[Sequence[int]], *, ties: str = "drop", kept: Sequence[int] | None = None
) -> TokenGroup:
    """Return a group as a tokens table holds it.

    Args:
        rankings: one an annotator, a rank for each completion, 1 = best, equal = tie.
        ties: "drop", or "half" for both directions at half weight.
        kept: completions that max_length left; the others are gone with their pairs. All by default.
    """
    num_completions = len(rankings[0])
    kept = range(num_completions) if kept is None else kept
    votes: dict[tuple[int, int], float] = {}
    for ranks in rankings:
        for (i, a), (j, b) in itertools.permutations(enumerate(kept), 2):
            if ranks[a] < ranks[b]:
                votes[i, j] = votes.get((i, j), 0.0) + 1.0
            elif ranks[a] == ranks[b] and ties == "half":
                votes[i, j] = votes.get((i, j), 0.0) + 0.5
    num_comparisons = len(rankings) * num_completions * (num_completions - 1) / 2
    return group_of_pairs(len(kept), [(i, j, vote / num_comparisons) for (i, j), vote in sorted(votes.items())])


def group_of_pairs(num_completions: int, pairs: Sequence[tuple[float, ...]]) -> TokenGroup:
    """Return a group of one-token completions with pairs (chosen, rejected, weight[, margin])."""
    return TokenGroup(
        group_id="g",
        subset=None,
        prompt_ids=np.array([1], np.int32),
        completion_ids=[np.array([2 + i], np.int32) for i in range(num_completions)],
        num_characters=np.ones(num_completions, np.int32),
        completion_index=np.arange(num_completions, dtype=np.int16),
        chosen_P=np.array([pair[0] for pair in pairs], np.int64),
        rejected_P=np.array([pair[1] for pair in pairs], np.int64),
        weight_P=np.array([pair[2] for pair in pairs], np.float32),
        margin_P=np.array([pair[3] if len(pair) > 3 else np.nan for pair in pairs], np.float32),
    )
