"""Generates synthetic rankings whose true reward is known: native annotations, a function of a seed.

Every word has a value; the reward of a completion is the average over its words plus a little for each word: the
longer one wins 57 % of the pairs, so that length alone is a weak predictor. An annotator ranks by that reward plus
Gumbel noise, which is Plackett-Luce: ties aside, any two completions compare as Bradley-Terry says. No model can be
expected to beat the true reward's own accuracy on such noisy pairs (91 %). Additive on purpose: a two-layer model 64
wide comes within a point of it in 230 steps of 16 groups, but stays 9 below if words can also turn each other around.
"""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pairwright.data.storage.outputs import new_file

# Worth per word from the first (+2) to the last (-2) in equal steps; each worth has its counterpart of opposite sign.
_BEST_TO_WORST = (
    "flawless superb precise lucid insightful thorough honest elegant accurate careful vivid helpful clear warm apt "
    "concise relevant sound kind fair calm neat polite useful tidy steady plain brief simple mild even usual "
    "formal long loose slow dry vague bland stiff noisy odd dull cold blunt messy weak wordy shallow clumsy careless "
    "tedious muddled rude biased evasive wrong sloppy hollow false absurd hostile useless harmful"
)
_WORDS = _BEST_TO_WORST.split()
_VALUES = dict(zip(_WORDS, np.linspace(2.0, -2.0, len(_WORDS)).tolist(), strict=True))
_SCALE = 8.0
_BONUS_PER_WORD = 0.2
_TOPICS = "bridges tides violins bread glaciers orchids trains maps clocks volcanoes looms kites".split()  # noqa: SIM905
_SUBSETS = ("advice", "facts", "style")
_TASKS = {"advice": "How should one care for {}?", "facts": "What is known of {}?", "style": "Write a line about {}."}


def true_reward(text: str) -> float:
    """Return the reward of a completion that the rankings were drawn from; unknown words are worth nothing."""
    worth = [_VALUES[word] for word in text.rstrip(".").split() if word in _VALUES]
    return _SCALE * sum(worth) / max(1, len(worth)) + _BONUS_PER_WORD * len(worth)


def true_accuracy(pairs: pa.Table) -> float:
    """Return the weighted share of pairs that the truth orders as they are; equal rewards count half.

    Args:
        pairs: rows in PAIRS_SCHEMA whose completions come from ``make_rankings``.

    Raises:
        ValueError: if there is no pair.
    """
    right = total = 0.0
    for group in pairs.select(["completions", "pairs"]).to_pylist():
        rewards = [true_reward(completion["text"]) for completion in group["completions"]]
        for pair in group["pairs"]:
            difference = rewards[pair["chosen"]] - rewards[pair["rejected"]]
            right += pair["weight"] * (0.5 if difference == 0 else float(difference > 0))
            total += pair["weight"]
    if total == 0:
        raise ValueError("the table holds no pair, so nothing can be right or wrong; expand rankings with other ties")
    return right / total


def write_rankings(path: Path, num_groups: int, *, seed: int) -> int:
    """Write ``make_rankings`` as JSON Lines, making the directory; return the number of annotations.

    A file of the same content may be there already.

    Raises:
        StoreError: if a file of other content is there, or it cannot be written.
    """
    num_annotations = 0
    with new_file(str(path)) as file, file.open("w", encoding="utf-8") as lines:
        for annotation in make_rankings(num_groups, seed=seed):
            lines.write(json.dumps(annotation) + "\n")
            num_annotations += 1
    return num_annotations


def write_sheet(path: Path, num_groups: int, *, seed: int) -> int:
    """Write pairs of ``make_rankings`` as a spreadsheet, CSV, one judgement a row; return the number of rows.

    Its columns are those of nobody's format in particular: prompt, answer_a, answer_b, preference (A, B or tie) and
    annotator.

    Raises:
        StoreError: if a file of other content is there, or it cannot be written.
    """
    num_rows = 0
    with new_file(str(path)) as file, file.open("w", encoding="utf-8", newline="") as lines:
        rows = csv.writer(lines)
        rows.writerow(["prompt", "answer_a", "answer_b", "preference", "annotator"])
        for annotation in make_rankings(num_groups, seed=seed, completions_per_group=(2, 2)):
            prompt, (first, second) = annotation["prompt"], annotation["ranks"]
            preference = "tie" if first == second else "A" if first < second else "B"
            text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
            answers = [completion["text"] for completion in annotation["completions"]]
            rows.writerow([text, *answers, preference, annotation["annotator"]])
            num_rows += 1
    return num_rows


def make_rankings(
    num_groups: int,
    *,
    seed: int,
    completions_per_group: tuple[int, int] = (4, 9),
    words_per_completion: tuple[int, int] = (4, 16),
    tie_gap: float = 0.3,
    extra_annotators: float = 0.2,
) -> Iterator[dict[str, Any]]:
    """Yield native annotations of ``num_groups`` groups, those of one group one after another.

    Group ``i`` depends on (seed, i) alone: a larger set begins with the smaller one. Prompts come back in other groups
    with other completions, as in real data, so that a split by group would leak.

    Args:
        num_groups: how many.
        seed: of everything.
        completions_per_group: least and most completions that are ranked together.
        words_per_completion: least and most words of a completion, drawn evenly.
        tie_gap: completions that an annotator perceives as closer than this are tied; 0 for no ties.
        extra_annotators: probability that a second annotator ranks a group too, and then a third, and so on.
    """
    for number in range(num_groups):
        random = np.random.default_rng([seed, number])
        subset = _SUBSETS[random.integers(len(_SUBSETS))]
        prompt = _prompt(random, subset)
        low, high = completions_per_group
        texts = [_completion(random, words_per_completion) for _ in range(random.integers(low, high + 1))]
        rewards = np.array([true_reward(text) for text in texts])
        num_annotators = random.geometric(1.0 - extra_annotators)
        for annotator in range(num_annotators):
            yield {
                "id": f"synthetic-{seed}-{number:06d}-{annotator}",
                "prompt": prompt,
                "completions": [{"text": text, "id": str(k)} for k, text in enumerate(texts)],
                "ranks": _ranks(rewards + random.gumbel(size=len(texts)), tie_gap),
                "annotator": f"annotator-{(number + annotator) % 7}",
                "subset": subset,
            }


def _prompt(random: np.random.Generator, subset: str) -> str | list[dict[str, str]]:
    first, second = random.choice(_TOPICS, size=2, replace=False)
    question = _TASKS[subset].format(f"{first} and {second}")
    if random.random() < 0.9:
        return question
    opening = {"role": "user", "content": f"Let us talk about {first}."}
    return [opening, {"role": "assistant", "content": "Gladly."}, {"role": "user", "content": question}]


def _completion(random: np.random.Generator, words_per_completion: tuple[int, int]) -> str:
    low, high = words_per_completion
    return " ".join(random.choice(_WORDS, size=random.integers(low, high + 1))) + "."


def _ranks(perceived: np.ndarray, tie_gap: float) -> list[int]:
    """Return ranks, 1 = best, dense; a completion within the gap of the next better one is tied with it."""
    order = np.argsort(-perceived)
    apart = -np.diff(perceived[order]) >= tie_gap
    ranks = np.empty(len(perceived), dtype=np.int64)
    ranks[order] = np.concatenate([[1], 1 + np.cumsum(apart)])
    return ranks.tolist()
