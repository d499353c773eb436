"""Which prompts are alike, held to all pairs compared one by one with sets built here."""

import itertools
import random
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from annotation_tables import annotation_row, annotations_table
from pairwright.config import ExpandConfig
from pairwright.data.ingest.sources.splits import number_splits, plan_byte_ranges
from pairwright.data.pairs.build_pairs import expand_groups
from pairwright.data.pairs.near_duplicates.evaluation_sets import find_evaluation_sets, prompts_in_source
from pairwright.data.pairs.near_duplicates.exclude_similar import EXCLUDED, drop_similar
from pairwright.data.pairs.near_duplicates.key_index import build_index
from pairwright.data.pairs.near_duplicates.minhash import MIN_SHARED, NUM_HASHES, band_keys, banding, recall
from pairwright.data.pairs.near_duplicates.normalize import comparable, ngram_hashes, shingle_hashes, shingles, words
from pairwright.data.pairs.near_duplicates.verify import (
    MAX_CHECKED,
    MAX_NGRAM_OWNERS,
    SimilarityConfig,
    find_ngram_overlaps,
    find_similar,
    index_keys,
    index_ngrams,
    jaccard,
)
from pairwright.errors import DataError

LIKENESS = SimilarityConfig(shingle_size=5, threshold=0.7, ngram_size=13)
ALPHABETS = {
    "English": "the of and to in is you that it he was for on are as with his they at be this have from or one had by",
    "Russian": "и в не на я быть он с что а по это она этот к но они мы весь который из у за свой ты год так",  # noqa: RUF001
    "Chinese": "的 一 是 不 了 人 我 在 有 他 这 中 大 来 上 国 个 到 说 们 为 子 和 你 地 出 道 也 时 年",
    "emoji": "🙂 😀 🚀 🎉 👍 ❤ 🔥 🤖 🌍 🍎 🐶 🐱 🏠 🚗 📚 💡 ⚽ 🎵 ☀ 🌧",
}


def sentence(rng: random.Random, alphabet: str, num_words: int) -> str:
    between = "" if alphabet in ("Chinese", "emoji") else " "
    return between.join(rng.choice(ALPHABETS[alphabet].split()) for _ in range(num_words))


def edited(rng: random.Random, text: str, num_edits: int) -> str:
    for _ in range(num_edits):
        place = rng.randrange(len(text))
        text = text[:place] + rng.choice("abcdefgh的是人") + text[place + rng.randrange(3) :]
    return text


def by_hand(text: str, size: int) -> set[str]:
    """Return a text's shingles, found with another method than the code's: by category of each character."""
    spelled = "".join(
        character * (3 if unicodedata.category(character) in ("Lo", "So") and ord(character) > 0xE00 else 1)
        for character in text
    )
    if len(spelled) <= size:
        return {spelled}
    return {"".join(window) for window in zip(*(spelled[i:] for i in range(size)), strict=False)}


def share(one: set[str], other: set[str]) -> float:
    return len(one & other) / len(one | other)


# ------------------------------------------------------------------------------------------------ text


def test_prompts_that_differ_in_case_spacing_or_composition_alone_are_compared_as_one() -> None:
    one = comparable([{"role": "user", "content": "  Caf\u00e9 \uff21\n bar "}])
    other = comparable([{"role": "user", "content": "CAFE\u0301 A"}, {"role": "assistant", "content": "bar"}])
    assert one == other == "caf\u00e9 a bar"


def test_a_system_prompt_is_compared_only_where_it_is_all_there_is() -> None:
    system = {"role": "system", "content": "You are helpful. " * 100}
    assert comparable([system, {"role": "user", "content": "Hi"}]) == "hi"
    assert comparable([system]) == comparable([system, {"role": "user", "content": " "}]) != ""


def test_short_texts_have_one_shingle_and_wordlike_characters_count_three() -> None:
    assert shingles("ab", 5) == {"ab\0\0\0"}
    assert shingles("abcdef", 5) == {"abcde", "bcdef"}
    assert shingles("中国", 5) == {"中中中国国", "中中国国国"}
    assert shingles("🙂", 5) == {"🙂🙂🙂\0\0"}
    assert jaccard(shingles("a", 5), shingles("b", 5)) == 0.0


def test_words_are_those_of_every_script() -> None:
    assert words("don't stop, it's 3.5 km — go!") == ["don", "t", "stop", "it", "s", "3", "5", "km", "go"]
    assert words("中国 ok。東京タワー") == [*"中国", "ok", *"東京タワー"]
    assert words("हिन्दी में") == ["हिन्दी", "में"]
    assert words("go 🚀🚀 now") == ["go", "🚀", "🚀", "now"]


@pytest.mark.parametrize("size", [1, 3, 5, 9])
def test_hashed_shingles_are_the_shingles(size: int) -> None:
    rng = random.Random(size)
    texts = [sentence(rng, rng.choice([*ALPHABETS]), rng.randint(1, 30)) for _ in range(300)]
    hashes, starts = shingle_hashes(texts, size)
    text_of: dict[int, str] = {}
    for text, start, end in zip(texts, starts, starts[1:], strict=False):
        own = shingles(text, size)
        assert own == {one.ljust(size, "\0") for one in by_hand(text, size)}
        assert len(set(hashes[start:end].tolist())) == len(own)
        # One hash, one shingle: whatever shares a hash with an earlier text shares as many shingles.
        for value in set(hashes[start:end].tolist()):
            text_of.setdefault(value, text)
    assert len(text_of) == len(set().union(*(shingles(text, size) for text in texts)))


def test_hashed_runs_are_the_runs() -> None:
    rng = random.Random(0)
    texts = [sentence(rng, rng.choice([*ALPHABETS]), rng.randint(1, 12)) for _ in range(300)]
    hashes, owners = ngram_hashes(texts, 4)
    for number, text in enumerate(texts):
        found = words(text)
        distinct = {tuple(found[i : i + 4]) for i in range(len(found) - 3)}
        assert len(set(hashes[owners == number].tolist())) == len(distinct)


# ----------------------------------------------------------------------------------------------- index


@pytest.mark.parametrize("keep_full", [False, True])
def test_candidates_are_those_of_a_loop_over_keys(*, keep_full: bool) -> None:
    rng = random.Random(1)
    theirs = [{rng.randrange(40) for _ in range(rng.randrange(8))} for _ in range(60)]
    ours = [{rng.randrange(50) for _ in range(8)} for _ in range(30)]
    holders = {key: [owner for owner, keys in enumerate(theirs) if key in keys] for key in range(50)}
    known = {key: owners[:6] for key, owners in holders.items() if keep_full or len(owners) <= 6}
    expected = []
    for query, keys in enumerate(ours):
        shared = Counter(owner for key in keys for owner in known.get(key, []))
        ranked = sorted((owner for owner in shared if shared[owner] >= 2), key=lambda owner: (-shared[owner], owner))
        expected += [(query, owner) for owner in ranked[:4]]
    index = build_index(*flat(theirs), 6, keep_full=keep_full)
    queries, owners = index.candidates(*flat(ours), min_shared=2, num_most=4)
    assert list(zip(queries.tolist(), owners.tolist(), strict=True)) == expected


def flat(keys: list[set[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Return the keys in random order, and whose each is."""
    pairs = [(key, owner) for owner, own in enumerate(keys) for key in own]
    random.Random(2).shuffle(pairs)
    return np.array([key for key, _ in pairs], np.uint64), np.array([owner for _, owner in pairs], np.int64)


def test_nothing_is_like_an_empty_set() -> None:
    index = index_keys(band_keys([], 5, 0.7))
    assert list(find_similar(["a text"], index, lambda _: "", LIKENESS)) == []
    assert list(find_similar([], index, lambda _: "", LIKENESS)) == []


# ---------------------------------------------------------------------------------------------- alike


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.9, 1.0])
def test_what_is_found_is_what_all_pairs_say(threshold: float) -> None:
    """Precision 1; of those above the threshold at least what the bands promise is found (all, at this size)."""
    rng = random.Random(3)
    theirs = [sentence(rng, rng.choice([*ALPHABETS]), rng.randint(3, 40)) for _ in range(150)]
    ours = [edited(rng, rng.choice(theirs), rng.randrange(5)) for _ in range(300)]
    likeness = SimilarityConfig(5, threshold, 13)
    index = index_keys(band_keys(theirs, 5, threshold))
    found = {one.query: one for one in find_similar(ours, index, theirs.__getitem__, likeness)}
    expected = 0
    for query, text in enumerate(ours):
        similarities = [share(by_hand(text, 5), by_hand(other, 5)) for other in theirs]
        expected += max(similarities) >= threshold
        if query in found:
            assert found[query].similarity == pytest.approx(similarities[found[query].owner])
            assert found[query].similarity >= threshold
    assert expected > 20
    assert len(found) >= expected * 0.995


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.9])
def test_recall_at_the_threshold_is_what_the_bands_promise(threshold: float) -> None:
    """Pairs of random texts made to be exactly as alike as the threshold: the hardest that must be found."""
    rng = random.Random(4)
    num_pairs, size = 3000, 57
    shared = round(2 * threshold * size / (1 + threshold))
    both = []
    for _ in range(num_pairs):
        units = [chr(0x10000 + rng.randrange(0x800)) for _ in range(2 * size)]
        common = units[:shared]
        both.append(("".join(common + units[shared:size]), "".join(common + units[size : 2 * size - shared])))
    similarity = np.mean([jaccard(shingles(one, 1), shingles(other, 1)) for one, other in both])
    assert similarity == pytest.approx(threshold, abs=0.02)
    keys = [band_keys([pair[side] for pair in both], 1, threshold) for side in (0, 1)]
    measured = float(((keys[0] == keys[1]).sum(axis=1) >= MIN_SHARED).mean())
    assert recall(threshold, *banding(threshold)) >= 0.995
    assert measured >= 0.995


@pytest.mark.parametrize(("num_bands", "num_rows"), [(2, 1), (3, 2), (8, 3)])
def test_recall_is_the_sum_over_all_outcomes(num_bands: int, num_rows: int) -> None:
    one = 0.6**num_rows
    outcomes = itertools.product([True, False], repeat=num_bands)
    expected = sum(
        one ** sum(outcome) * (1 - one) ** (num_bands - sum(outcome)) for outcome in outcomes if sum(outcome) >= 2
    )
    assert recall(0.6, num_bands, num_rows) == pytest.approx(expected)


def test_every_threshold_has_bands_that_fit() -> None:
    for threshold in np.linspace(0.01, 1.0, 100):
        num_bands, num_rows = banding(float(threshold))
        assert MIN_SHARED <= num_bands * num_rows <= NUM_HASHES


def test_a_text_is_found_among_thousands_from_its_template() -> None:
    """All share bands; each text is compared with a bounded number of the others, and its twin is among them."""
    rng = random.Random(5)
    template = "Write a short, friendly and original product description of a {} for our spring catalogue, please."
    theirs = [template.format(sentence(rng, "English", 12)) for _ in range(4000)]
    index = index_keys(band_keys(theirs, 5, 0.9))
    keys = band_keys(theirs[::40], 5, 0.9)
    queries = np.repeat(np.arange(len(keys)), keys.shape[1])
    pairs = index.candidates(keys.reshape(-1), queries, min_shared=MIN_SHARED, num_most=MAX_CHECKED)
    assert np.bincount(pairs[0]).max() <= MAX_CHECKED
    ours = [edited(rng, text, 1) for text in theirs[::40]]
    found = {
        one.query: one.owner for one in find_similar(ours, index, theirs.__getitem__, SimilarityConfig(5, 0.9, 13))
    }
    expected = [
        query for query, text in enumerate(ours) if share(by_hand(text, 5), by_hand(theirs[40 * query], 5)) >= 0.9
    ]
    assert len(expected) > 50
    assert set(found) >= set(expected)


# ----------------------------------------------------------------------------------------------- runs


def test_an_evaluation_prompt_within_a_longer_one_is_found_by_its_words() -> None:
    rng = random.Random(6)
    theirs = [sentence(rng, alphabet, 30) for alphabet in ("English", "Russian", "Chinese") for _ in range(50)]
    ours = [f"Answer: {theirs[number]}; think first. {sentence(rng, 'English', 60)}" for number in range(0, 150, 10)]
    index = index_ngrams(*ngram_hashes(theirs, 13))
    found = list(find_ngram_overlaps(ours, index, theirs.__getitem__, LIKENESS))
    assert [(one.query, one.owner) for one in found] == [(place, 10 * place) for place in range(15)]
    for one in found:
        assert one.ngram.replace(" ", "") in theirs[one.owner].replace(" ", "")
    assert (
        list(find_ngram_overlaps([text[: len(text) // 9] for text in theirs], index, theirs.__getitem__, LIKENESS))
        == []
    )


def test_words_that_many_evaluation_prompts_begin_with_do_not_count() -> None:
    opening = "read the text below and then say in one word which of the two is meant "
    theirs = [f"{opening} number {number}" for number in range(MAX_NGRAM_OWNERS + 1)]
    assert (
        len(list(find_ngram_overlaps([opening], index_ngrams(*ngram_hashes(theirs, 13)), theirs.__getitem__, LIKENESS)))
        == 0
    )
    fewer = index_ngrams(*ngram_hashes(theirs[:-1], 13))
    assert [one.owner for one in find_ngram_overlaps([opening], fewer, theirs.__getitem__, LIKENESS)] == [0]


# -------------------------------------------------------------------------------------------- groups


def test_groups_of_a_prompt_go_whole_and_are_accounted_for() -> None:
    rows = [
        annotation_row(f"{prompt}{group}{n}", [f"x{group}", "y", "z"], [1, 2, 2 + n], prompt=prompt, line=n + 1)
        for prompt in ("a", "b", "c")
        for group in range(2)
        for n in range(2)
    ]
    ids = {row["prompt"][0]["content"]: row["prompt_id"] for row in rows}
    kinds = {ids["a"]: "near_duplicate", ids["c"]: "contaminated", "0" * 32: "contaminated"}
    columns = {"prompt_id": sorted(kinds), "kind": [kinds[k] for k in sorted(kinds)], "reason": ["why"] * 3}
    left_out = pa.table(columns, schema=EXCLUDED)
    kept, rejections, totals = drop_similar(annotations_table(rows[::-1]), left_out, ExpandConfig())
    assert {row["prompt_id"] for row in kept.to_pylist()} == {ids["b"]}
    _, lost = expand_groups(annotations_table([row for row in rows if row["prompt_id"] != ids["b"]]), ExpandConfig())
    assert totals == {
        "groups_near_duplicate": 2,
        "groups_contaminated": 2,
        "annotations_excluded": 8,
        "pairs_excluded": lost["pairs"],
    }
    assert (
        sorted((one.source, one.line, one.path, one.reason) for one in rejections)
        == [("file.jsonl", 1, "$.prompt", "why")] * 4
    )


# ------------------------------------------------------------------------------------ evaluation sets


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"question": "Why?"}', "missing field `prompt`"),
        ('{"prompt": " "}', "empty prompt"),
        ('{"prompt": [{"content": "no role"}]}', "missing field `role`"),
        ("not JSON", "malformed"),
    ],
)
def test_a_record_without_a_prompt_stops_the_command_and_says_where(tmp_path: Path, line: str, expected: str) -> None:
    path = tmp_path / "bench.jsonl"
    path.write_text('{"prompt": "fine", "answer": 5}\n\n' + line + "\n")
    _, _, sources = find_evaluation_sets([str(path)])
    (unit,) = number_splits(sources[0], plan_byte_ranges(sources[0], 1 << 20), [])
    with pytest.raises(DataError, match=rf"bench\.jsonl:3: .*{expected}"):
        list(prompts_in_source(unit))
