"""Normalizes prompts for comparison: the compared text, its shingles and its word n-grams. Pure.

Both are sets of windows: shingles are ``n`` characters in a row, word n-grams are ``n`` words in a row. Each comes
twice: exactly, as strings, for one text, and hashed in numpy, for many texts at once (3 us a prompt).

Scripts that put no spaces between words (Chinese, Japanese, Thai, ...) and emoji say with one character what others say
with a word: in an n-gram each counts as a word, in a shingle as three characters.
"""

import hashlib
import re
import unicodedata
from collections.abc import Mapping, Sequence

import numpy as np

_WORDLIKE = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Myanmar, Khmer
    "\u3040-\u30ff\u31f0-\u31ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Japanese, Chinese
    "\u2190-\u2bff\U0001f000-\U0001faff"  # arrows, symbols, emoji
)
_PUNCTUATION = r"!-/:-@\[-`{-~\u00a1-\u00bf\u2000-\u206f\u3000-\u303f\ufe00-\ufe0f\ufe30-\ufe4f\uff00-\uff0f"
_WORD = re.compile(rf"[{_WORDLIKE}]|[^\s{_PUNCTUATION}{_WORDLIKE}]+")
_WORDLIKE_CHARACTER = re.compile(f"[{_WORDLIKE}]")
_PADDING = "\0"
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def comparable(messages: Sequence[Mapping[str, str]]) -> str:
    """Return what of a prompt is compared: the turns but the system's, in NFKC, case folded, white space as one space.

    A long system prompt would make all prompts of an application similar; where there is nothing else it counts.
    """
    spoken = [turn["content"] for turn in messages if turn["role"] not in ("system", "developer")]
    chosen = spoken if any(map(str.strip, spoken)) else [turn["content"] for turn in messages]
    text = " ".join(chosen)
    return " ".join((text if text.isascii() else unicodedata.normalize("NFKC", text)).casefold().split())


def shingles(text: str, shingle_size: int) -> frozenset[str]:
    """Return the distinct shingles of a compared text; a text shorter than one is a single shingle."""
    spelled = _spelled(text, shingle_size)
    return frozenset(spelled[i : i + shingle_size] for i in range(len(spelled) - shingle_size + 1))


def words(text: str) -> list[str]:
    """Return the words of a compared text, without punctuation."""
    return _WORD.findall(text)


def word_ngrams(text: str, ngram_size: int) -> list[tuple[str, ...]]:
    """Return the word n-grams of a compared text, in order; none where it has fewer words."""
    found = words(text)
    return [tuple(found[i : i + ngram_size]) for i in range(len(found) - ngram_size + 1)]


def shingle_hashes(texts: Sequence[str], shingle_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the hashes of each text's shingles, one text after the other, duplicates included, and their bounds.

    Returns:
        hashes: uint64, shape (H,).
        starts: where each text's hashes start in H, and H at the end, uint64, shape (len(texts) + 1,).
    """
    spelled = [_spelled(text, shingle_size) for text in texts]
    units = np.frombuffer("".join(spelled).encode("utf-32-le"), dtype="<u4")
    hashes, owners = _windows(units, [len(text) for text in spelled], shingle_size)
    counts = np.bincount(owners, minlength=len(texts))
    return hashes, np.concatenate([[0], np.cumsum(counts)]).astype(np.uint64)


def ngram_hashes(texts: Sequence[str], ngram_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the hashes of each text's word n-grams, uint64, and the index of the text of each, int64."""
    code_of: dict[str, int] = {}
    lengths, codes = [], []
    for text in texts:
        found = words(text)
        lengths.append(len(found))
        codes += [code_of[word] if word in code_of else code_of.setdefault(word, _code(word)) for word in found]
    return _windows(np.array(codes, dtype=np.uint64), lengths, ngram_size)


def _spelled(text: str, shingle_size: int) -> str:
    longer = text if text.isascii() else _WORDLIKE_CHARACTER.sub(lambda match: match[0] * 3, text)
    return longer.ljust(shingle_size, _PADDING)


def _code(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")


def _windows(units: np.ndarray, lengths: Sequence[int], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the hash of every ``size`` units in a row that lie in one text, and the index of that text."""
    num_windows = max(len(units) - size + 1, 0)
    hashes = np.zeros(num_windows, dtype=np.uint64)
    for position in range(size):
        hashes = hashes * _MULTIPLIER + units[position : position + num_windows]
    owners = np.repeat(np.arange(len(lengths)), lengths)
    inside = owners[:num_windows] == owners[size - 1 : size - 1 + num_windows]
    return mixed(hashes[inside]), owners[:num_windows][inside]


def mixed(values: np.ndarray) -> np.ndarray:
    """Return the values with their bits spread over all 64, so that neighbours are as far apart as any (splitmix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
