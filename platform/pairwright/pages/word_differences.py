"""Which words of two texts differ: a pure function, linear in the length of the texts once they are cut.

What both have in common is found by difflib on words, so a moved sentence is marked in both texts.
"""

import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import NamedTuple

_WORDS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\s\u3040-\u30ff\u3400-\u9fff]+\s*|\s+")
"""Words with the spaces behind them; of Chinese and Japanese, characters."""
MAX_WORDS = 300
"""Of each text: difflib takes time that grows with the product of both."""


class Piece(NamedTuple):
    """A piece of a text, and whether the other text lacks it."""

    text: str
    differs: bool


def different_words(first: str, second: str) -> tuple[list[Piece], list[Piece]]:
    """Return both texts in pieces; joined again, each is the text as it was. What is behind MAX_WORDS is not marked."""
    words = [_WORDS.findall(text) for text in (first, second)]
    compared = [found[:MAX_WORDS] for found in words]
    matcher = SequenceMatcher(None, *compared, autojunk=False)
    sides: tuple[list[Piece], list[Piece]] = ([], [])
    for kind, low, high, other_low, other_high in matcher.get_opcodes():
        _add(sides[0], compared[0][low:high], differs=kind != "equal")
        _add(sides[1], compared[1][other_low:other_high], differs=kind != "equal")
    for side, found in zip(sides, words, strict=True):
        _add(side, found[MAX_WORDS:], differs=False)
    return sides


def _add(side: list[Piece], words: Sequence[str], *, differs: bool) -> None:
    if words:
        side.append(Piece("".join(words), differs))
