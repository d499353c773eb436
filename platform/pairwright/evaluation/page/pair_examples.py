"""The worst errors of a model and the pairs that it is least sure of, with both texts side by side.

Both lists are bounded, in number and in the length of their texts, whatever the evaluation holds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pairwright.evaluation.evaluation_report import ReadTexts
from pairwright.evaluation.statistics.pair_arrays import PairArrays
from pairwright.evaluation.statistics.suspects import least_sure, likely_wrong
from pairwright.pages.page_sections import Example, Side
from pairwright.pages.word_differences import Piece, different_words
from pairwright.terminal import escaped, percent

NUM_ERRORS, NUM_DOUBTFUL = 60, 30
MAX_PROMPT, MAX_TEXT, MAX_NAME = 800, 1600, 80
"""Characters of a text that are shown."""
MAX_NAMES = 8
MAX_SUMMARY = 110


@dataclass(frozen=True, slots=True)
class PairExample:
    """A pair, as the page shows it.

    Attributes:
        kind: error or doubtful.
        group_id: its group in the pairs table.
        prompt: the beginning of the conversation.
        chosen: pieces of the text that annotators prefer.
        rejected: of the other one.
        num_hidden: characters that are not shown of prompt, chosen and rejected text.
        rewards: of chosen and rejected.
        authors: who wrote them, where known.
        probability: what the model gives the chosen one, at the fitted temperature.
        slices: names to filter by.
    """

    kind: str
    group_id: str
    prompt: str
    chosen: Sequence[Piece]
    rejected: Sequence[Piece]
    num_hidden: tuple[int, int, int]
    rewards: tuple[float, float]
    authors: tuple[str | None, str | None]
    probability: float
    slices: Sequence[str]


@dataclass(frozen=True, slots=True)
class _Found:
    """A pair to show: its row in P, and why."""

    kind: str
    pair: int
    probability: float


def pair_examples(arrays: PairArrays, temperature: float | None, read_texts: ReadTexts) -> list[PairExample]:
    """Return the worst errors, the surest first, and then the most doubtful pairs."""
    found = [*_errors(arrays, temperature or 1.0), *_doubtful(arrays, temperature or 1.0)]
    texts = read_texts(sorted({arrays.group_ids[int(arrays.group_P[one.pair])] for one in found})) if found else {}
    rows = ((one, texts.get(arrays.group_ids[int(arrays.group_P[one.pair])])) for one in found)
    return [_example(one, row, arrays) for one, row in rows if row is not None]


def shown_example(one: PairExample) -> Example:
    """Return an example as the page shows it."""
    if one.kind == "error":
        summary = f"{percent(1 - one.probability)} sure of the rejected one"
    else:
        summary = f"{percent(one.probability)} for the chosen one"
    sides = [
        Side(title, f"reward {reward:.4g}", author, pieces, hidden)
        for title, reward, author, pieces, hidden in zip(
            ("Annotators prefer", "Annotators reject"),
            one.rewards,
            one.authors,
            (one.chosen, one.rejected),
            one.num_hidden[1:],
            strict=True,
        )
    ]
    return Example(
        summary=f"{summary}: {beginning(one.prompt)}",
        prompt=one.prompt,
        is_cut=one.num_hidden[0] > 0,
        sides=(sides[0], sides[1]),
        slices=one.slices,
        source=f"group {one.group_id}",
    )


def conversation(turns: Sequence[Mapping[str, str]]) -> str:
    """Return the turns of a prompt as one text."""
    return "\n\n".join(f"{turn['role'][:MAX_NAME]}: {turn['content']}" for turn in turns)


def beginning(prompt: str) -> str:
    """Return the beginning of a prompt, for the line that opens an example."""
    return prompt if len(prompt) <= MAX_SUMMARY else f"{prompt[:MAX_SUMMARY].rsplit(' ', 1)[0]}..."


def _errors(arrays: PairArrays, temperature: float) -> list[_Found]:
    position = {name: number for number, name in enumerate(arrays.group_ids)}
    found = []
    for one in likely_wrong(arrays, temperature, least=0.5)[:NUM_ERRORS]:
        start = arrays.starts_G[position[one.group_id]]
        kept = np.arange(start, arrays.starts_G[position[one.group_id] + 1])
        chosen = kept[arrays.index_N[kept] == one.chosen][0]
        rejected = kept[arrays.index_N[kept] == one.rejected][0]
        pair = np.flatnonzero((arrays.chosen_P == chosen) & (arrays.rejected_P == rejected))[0]
        if one.reward_rejected > one.reward_chosen:
            found.append(_Found("error", int(pair), 1.0 - one.confidence))
    return found


def _doubtful(arrays: PairArrays, temperature: float) -> list[_Found]:
    """Return the closest pair of each of the groups that the model is least sure of."""
    position = {name: number for number, name in enumerate(arrays.group_ids)}
    found = []
    for one in least_sure(arrays, temperature)[:NUM_DOUBTFUL]:
        pairs = np.flatnonzero(arrays.group_P == position[one.group_id])
        closest = int(pairs[np.argmin(np.abs(arrays.difference_P[pairs]))])
        probability = 1 / (1 + np.exp(-np.clip(arrays.difference_P[closest] / temperature, -700, 700)))
        found.append(_Found("doubtful", closest, float(probability)))
    return found


def _example(one: _Found, row: Mapping[str, Any], arrays: PairArrays) -> PairExample:
    sides = [int(arrays.chosen_P[one.pair]), int(arrays.rejected_P[one.pair])]
    completions = [row["completions"][int(arrays.index_N[side])] for side in sides]
    texts = [completion["text"] for completion in completions]
    prompt = conversation(row["prompt"])
    chosen, rejected = different_words(*(text[:MAX_TEXT] for text in texts))
    authors = [completion["model"] for completion in completions]
    return PairExample(
        kind=one.kind,
        group_id=row["group_id"],
        prompt=prompt[-MAX_PROMPT:],
        chosen=chosen,
        rejected=rejected,
        num_hidden=(
            max(0, len(prompt) - MAX_PROMPT),
            max(0, len(texts[0]) - MAX_TEXT),
            max(0, len(texts[1]) - MAX_TEXT),
        ),
        rewards=(float(arrays.reward_N[sides[0]]), float(arrays.reward_N[sides[1]])),
        authors=(authors[0] and authors[0][:MAX_NAME], authors[1] and authors[1][:MAX_NAME]),
        probability=one.probability,
        slices=_slices(one, arrays),
    )


def _slices(one: _Found, arrays: PairArrays) -> list[str]:
    group, longer_by = int(arrays.group_P[one.pair]), int(arrays.longer_by_P[one.pair])
    length = "chosen longer" if longer_by > 0 else "chosen shorter" if longer_by < 0 else "equal length"
    return [
        "errors" if one.kind == "error" else "doubtful pairs",
        length,
        f"{int(arrays.num_completions_G[group])} completions",
        *(f"subset {escaped(name[:MAX_NAME])}" for name in arrays.subsets_G[group][:MAX_NAMES]),
        *(f"annotator {escaped(name[:MAX_NAME])}" for name in arrays.annotators_G[group][:MAX_NAMES]),
    ]
