"""Verifies candidate near-duplicates by exact comparison, and returns the first that is similar enough. Pure.

Candidates are checked in order of shared keys, at most ``MAX_CHECKED``, so that thousands of prompts from one template
cost no more than that each: two texts above the threshold share many keys (8 of 32 at 0.7), two at half of it nearly
none, so that a candidate beyond the limit is hardly ever similar.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from pairwright.data.pairs.near_duplicates.key_index import KeyIndex, build_index
from pairwright.data.pairs.near_duplicates.minhash import MIN_SHARED, band_keys
from pairwright.data.pairs.near_duplicates.normalize import ngram_hashes, shingles, word_ngrams

MAX_CHECKED = 64
MAX_KEY_OWNERS = 64
MAX_NGRAM_OWNERS = 10
"""An n-gram in more prompts of an evaluation set than this belongs to a template, and is ignored."""
_CACHED = 4096

TextOf = Callable[[int], str]


@dataclass(frozen=True, slots=True)
class SimilarityConfig:
    """When prompts count as similar: enough shingles in common, or a shared word n-gram."""

    shingle_size: int
    threshold: float
    ngram_size: int
    """0 where n-grams are not compared."""


@dataclass(frozen=True, slots=True)
class SimilarText:
    """A text that is similar to one of the indexed texts."""

    query: int
    owner: int
    similarity: float
    """Jaccard similarity of the shingles."""
    ngram: str = ""
    """The n-gram that they share, where that is what was found."""


def jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    """Return what share of the members of either set both have, 0 to 1; of two empty sets 1."""
    shared = len(one & other)
    total = len(one) + len(other) - shared
    return shared / total if total else 1.0


def index_keys(keys: np.ndarray) -> KeyIndex:
    """Return the index of the band keys of prompts, shape (prompts, bands), in the order of their ids."""
    owners = np.repeat(np.arange(len(keys)), keys.shape[1])
    return build_index(keys.reshape(-1), owners, MAX_KEY_OWNERS, keep_full=True)


def index_ngrams(hashes: np.ndarray, owners: np.ndarray) -> KeyIndex:
    """Return the index of the hashed word n-grams of prompts, without those of templates."""
    return build_index(hashes, owners, MAX_NGRAM_OWNERS, keep_full=False)


def find_similar(
    texts: Sequence[str], index: KeyIndex, text_of: TextOf, similarity_config: SimilarityConfig
) -> Iterator[SimilarText]:
    """Yield, for each text that has one, the first indexed text whose shingles are similar enough."""
    keys = band_keys(texts, similarity_config.shingle_size, similarity_config.threshold)
    queries = np.repeat(np.arange(len(texts)), keys.shape[1])
    cached = lru_cache(maxsize=_CACHED)(lambda owner: shingles(text_of(owner), similarity_config.shingle_size))
    candidates = index.candidates(keys.reshape(-1), queries, min_shared=MIN_SHARED, num_most=MAX_CHECKED)
    for query, owners in _grouped(*candidates):
        own = shingles(texts[query], similarity_config.shingle_size)
        for owner in owners:
            similarity = jaccard(own, cached(owner))
            if similarity >= similarity_config.threshold:
                yield SimilarText(query, owner, similarity)
                break


def find_ngram_overlaps(
    texts: Sequence[str], index: KeyIndex, text_of: TextOf, similarity_config: SimilarityConfig
) -> Iterator[SimilarText]:
    """Yield, for each text that has one, the indexed text with which it shares most word n-grams."""
    hashes, queries = ngram_hashes(texts, similarity_config.ngram_size)
    for query, owners in _grouped(*index.candidates(hashes, queries, min_shared=1, num_most=MAX_CHECKED)):
        own = word_ngrams(texts[query], similarity_config.ngram_size)
        for owner in owners:
            theirs = frozenset(word_ngrams(text_of(owner), similarity_config.ngram_size))
            shared = next((ngram for ngram in own if ngram in theirs), None)
            if shared is not None:
                both = (shingles(text, similarity_config.shingle_size) for text in (texts[query], text_of(owner)))
                similarity = jaccard(*both)
                yield SimilarText(query, owner, similarity, " ".join(shared))
                break


def _grouped(queries: np.ndarray, owners: np.ndarray) -> Iterator[tuple[int, list[int]]]:
    """Yield each query with its owners, in order."""
    starts = np.flatnonzero(np.diff(queries, prepend=-1)).tolist()
    for start, end in zip(starts, [*starts[1:], len(queries)], strict=False):
        yield int(queries[start]), owners[start:end].tolist()
