"""Guesses what each word of a judgement means: which side it prefers, a tie, or that both are bad. Pure."""

import re
from collections.abc import Mapping, Sequence

from pairwright.config import BOTH_BAD, TIE
from pairwright.data.ingest.fields.key_samples import normal

_TIES = frozenset(
    {"tie", "tied", "equal", "same", "both", "draw", "equally_good", "no_preference", "none", "neutral", "similar"}
    | {"even", "unsure", "gleich", "beide"}
)
_BOTH_BAD = frozenset({"both_bad", "bothbad", "neither", "tie_bothbad", "both_are_bad", "equally_bad", "keine"})
_ORDINALS = ["first", "second", "third", "fourth", "fifth", "sixth"]
_COMPARISON = re.compile(r"\s*(\w+)\s*(>+|<+|=+)\s*(\w+)\s*")


def suggested_words(words: Sequence[str], labels: Mapping[str, str]) -> tuple[dict[str, str], list[str], bool]:
    """Return word -> side, tie or both bad; the words that are not known; and whether nothing was guessed.

    Where a word names a side by its label, the same words of the other sides are there too, seen or not.

    Args:
        words: those that occur.
        labels: label of each side (``a``, ``1``, ``left``) -> its path.
    """
    known: dict[str, str] = {}
    unknown: list[str] = []
    for word in words:
        meaning = _meaning(word, labels)
        if meaning is None:
            unknown.append(word)
            continue
        known[word] = meaning
    numbers = _by_number(unknown, labels) if not set(known.values()) & set(labels.values()) else {}
    if numbers:
        known |= numbers
        unknown = [word for word in unknown if word not in numbers]
    for word, meaning in list(known.items()):
        for sibling, side in _siblings(word, meaning, labels):
            known.setdefault(sibling, side)
    if known and TIE not in known.values():
        known.setdefault("tie", TIE)
    order = [*labels.values(), TIE, BOTH_BAD]
    return dict(sorted(known.items(), key=lambda item: order.index(item[1]))), unknown, not numbers


def _meaning(word: str, labels: Mapping[str, str]) -> str | None:
    plain = normal(word)
    if plain in _BOTH_BAD:
        return BOTH_BAD
    if (match := _COMPARISON.fullmatch(word)) and match[2][0] != "=":
        return labels.get((match[1] if match[2][0] == ">" else match[3]).lower())
    if plain in _TIES or (match and match[2][0] == "="):
        return TIE
    for label, path in labels.items():
        if plain in (label, normal(path)):
            return path
    tokens = plain.split("_")
    sides = [path for label, path in labels.items() if label in tokens]
    if not sides:
        sides = [path for name, path in zip(_ORDINALS, labels.values(), strict=False) if name in tokens]
    return sides[0] if len(sides) == 1 else None


def _by_number(words: Sequence[str], labels: Mapping[str, str]) -> dict[str, str]:
    """Return the side of each number, counted from 0 or from 1, where all words are such numbers."""
    paths = list(labels.values())
    numbers = {word: int(float(word)) for word in words if re.fullmatch(r"\d{1,2}(\.0)?", word)}
    if len(numbers) < len(words) or not numbers or max(numbers.values()) > len(paths):
        return {}
    if max(numbers.values()) == len(paths) and min(numbers.values()) == 0:
        return {}  # from 0 on there is no such side, and from 1 on the 0 may be a tie
    first = 0 if 0 in numbers.values() else 1
    return {str(index + first): path for index, path in enumerate(paths)}


def _siblings(word: str, meaning: str, labels: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return the same word for the other sides: ``model_b`` beside ``model_a``, ``B`` beside ``A``."""
    own = next((label for label, path in labels.items() if path == meaning), None)
    if own is None or _COMPARISON.fullmatch(word):
        return []
    pattern = re.compile(rf"(?<![A-Za-z0-9]){re.escape(own)}(?![A-Za-z0-9])", re.IGNORECASE)
    found = list(pattern.finditer(word.replace("_", " ")))
    if len(found) != 1:
        return []
    start, end = found[0].span()
    is_upper = word[start:end].isupper()
    return [
        (word[:start] + (label.upper() if is_upper else label) + word[end:], path)
        for label, path in labels.items()
        if path != meaning
    ]
