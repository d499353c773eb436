"""Groups as an evaluation sees them, without a model and without texts: ranks and rewards in, `PairArrays` out."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from pairwright.evaluation.statistics.pair_arrays import PairArrays
from pairwright.evaluation.text_features import FEATURES


@dataclass
class Judged:
    """One group: the annotators' ranks of its completions, and the model's rewards."""

    prompt: int
    rankings: Sequence[Sequence[int]]
    rewards: Sequence[float]
    lengths: Sequence[int] | None = None
    authors: Sequence[str] | None = None
    texts: Sequence[int] | None = None
    """A code for each completion's text; each has its own by default."""
    features: Sequence[Sequence[str]] | None = None
    subsets: Sequence[str] = ("(none)",)
    annotators: Sequence[str] = ()
    margins: dict[tuple[int, int], float] = field(default_factory=dict)
    prompt_characters: int = 10


def arrays_of(groups: Sequence[Judged]) -> PairArrays:
    """Return the arrays: each annotation's pairs weigh 1 / C(K, 2), by the number of annotations; ties give none."""
    rows, starts = [], np.cumsum([0, *(len(group.rewards) for group in groups)])
    for number, group in enumerate(groups):
        size = len(group.rewards)
        weight = 1 / (size * (size - 1) / 2) / len(group.rankings)
        votes: dict[tuple[int, int], float] = {}
        for ranks in group.rankings:
            for i, j in itertools.permutations(range(size), 2):
                if ranks[i] < ranks[j]:
                    votes[i, j] = votes.get((i, j), 0.0) + weight
        for (i, j), total in sorted(votes.items()):
            margin = group.margins.get((i, j), np.nan)
            rows.append((number, starts[number] + i, starts[number] + j, np.float32(total), margin))
    columns = list(zip(*rows, strict=True)) if rows else [()] * 5
    names = sorted({author for group in groups for author in group.authors or ()})
    prompts = sorted({group.prompt for group in groups})
    every = list(itertools.chain.from_iterable(range(len(group.rewards)) for group in groups))
    return PairArrays(
        group_ids=[f"{number:032x}" for number in range(len(groups))],
        prompt_ids=[f"{prompt:032x}" for prompt in prompts],
        prompt_G=np.array([prompts.index(group.prompt) for group in groups], np.int64),
        repeats_G=np.array([len(group.subsets) for group in groups], np.int64),
        subsets_G=[tuple(group.subsets) for group in groups],
        annotators_G=[tuple(group.annotators) for group in groups],
        prompt_characters_G=np.array([group.prompt_characters for group in groups], np.int64),
        group_N=np.repeat(np.arange(len(groups)), np.diff(starts)),
        index_N=np.array(every, np.int64),
        reward_N=np.array([reward for group in groups for reward in group.rewards], np.float64),
        characters_N=np.array([n for g in groups for n in g.lengths or [10] * len(g.rewards)], np.int64),
        author_N=np.array(
            [
                names.index(author) if author is not None else -1
                for group in groups
                for author in group.authors or [None] * len(group.rewards)
            ],
            np.int64,
        ),
        authors=names,
        text_N=np.array(
            [
                code
                for start, group in zip(starts, groups, strict=False)
                for code in group.texts or range(10_000 + start, 10_000 + start + len(group.rewards))
            ],
            np.int64,
        ),
        features_NF=np.array(
            [
                [name in has for name in FEATURES]
                for group in groups
                for has in group.features or [()] * len(group.rewards)
            ],
            dtype=bool,
        ).reshape(-1, len(FEATURES)),
        features=list(FEATURES),
        group_P=np.array(columns[0], np.int64),
        chosen_P=np.array(columns[1], np.int64),
        rejected_P=np.array(columns[2], np.int64),
        weight_P=np.array(columns[3], np.float64),
        margin_P=np.array(columns[4], np.float64),
    )


def drawn_groups(
    rng: np.random.Generator, num_groups: int, *, groups_per_prompt: int = 1, skill: float = 2.0, max_k: int = 9
) -> list[Judged]:
    """Return random groups of a model of some skill: its rewards are the annotators' utilities, plus noise."""
    found = []
    for number in range(num_groups):
        size = int(rng.integers(2, max_k + 1))
        utility = rng.normal(size=size)
        rankings = []
        for _ in range(1 + number % 3):
            seen = np.round(utility + rng.normal(size=size) * 0.7, 0 if number % 2 else 1)
            seen[0] += 10 * (len(set(seen.tolist())) == 1)  # never all ties
            rankings.append([1 + int((seen > one).sum()) for one in seen])
        found.append(
            Judged(
                prompt=number // groups_per_prompt,
                rankings=rankings,
                rewards=(skill * utility + rng.normal(size=size)).round(2).tolist(),
                lengths=rng.integers(5, 500, size).tolist(),
                authors=[f"model-{k}" for k in rng.integers(0, 6, size)],
                subsets=["easy", "hard"][number % 2 : number % 2 + 1] if number % 7 else ["easy", "hard"],
                annotators=[f"annotator-{k}" for k in range(len(rankings))],
                prompt_characters=int(rng.integers(10, 2000)),
            )
        )
    return found
