"""Compact rows: what a report counts of an annotation, without its texts, a few hundred bytes each.

A completion's text becomes its length and a hash. The completions of a row are sorted by these hashes, so that all
annotations of a group list the same completions in the same order. Of a text itself three things are kept: the template
tokens and transcript marks in it, its beginning if it completes several prompts, and whether it is listed as the best.
"""

import re
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pairwright.data.identity import hash_ids
from pairwright.data.pairs.build_pairs import flat_scores
from pairwright.data.table.arrow_io import list_lengths, one_array

PROMPT_CHARACTERS = 160
BEGINNING_CHARACTERS = 80

TOKENS = (
    *("<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|begin_of_text|>"),
    *("<|end_of_text|>", "<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<start_of_turn>"),
    *("<end_of_turn>", "[INST]", "[/INST]", "<<SYS>>", "</s>", "<bos>", "<eos>", "<pad>", "<\uff5cUser\uff5c>"),
    "<\uff5cAssistant\uff5c>",
)
"""Tokens that chat templates write around turns and at ends of texts; not ``<s>``, HTML for struck-out text."""
MARKS = {token: re.escape(token) for token in TOKENS} | {
    "Human:": r"(?:^|\n\n)Human:",
    "Assistant:": r"(?:^|\n\n)Assistant:",
    "### Instruction:": r"(?:^|\n)### Instruction:",
    "### Response:": r"(?:^|\n)### Response:",
}
"""Name of a mark -> regular expression (RE2); a speaker of a transcript counts only at the beginning of a paragraph."""

COMPACT_ROWS = pa.schema(
    [
        pa.field("id", pa.string()),
        pa.field("group_id", pa.string()),
        pa.field("prompt_id", pa.string()),
        pa.field("prompt", pa.string()),
        pa.field("annotator", pa.string()),
        pa.field("subset", pa.string()),
        pa.field("source", pa.string()),
        pa.field("version", pa.int64()),
        pa.field("ranks", pa.list_(pa.int32())),
        pa.field("scores", pa.list_(pa.float64())),
        pa.field("lengths", pa.list_(pa.int32())),
        pa.field("texts", pa.list_(pa.uint64())),
        pa.field("models", pa.list_(pa.string())),
        pa.field("beginnings", pa.list_(pa.string())),
        pa.field("best", pa.int32()),
        pa.field("marks", pa.list_(pa.string())),
    ]
)
"""Lists have one value a completion, in the order of ``texts`` (64-bit hashes). ``scores`` are NaN if there are none;
``beginnings`` are null but for texts under several prompts; ``version`` is the first one that had the row's source;
``best`` is the index of the only best completion as the record lists them, or -1; ``marks`` are names of MARKS."""


def compact_rows(annotations: pa.Table, versions: Mapping[str, int]) -> pa.Table:
    """Return COMPACT_ROWS of some annotations, in their order.

    Args:
        annotations: rows in ANNOTATIONS_SCHEMA.
        versions: URI of a source -> first version of the table that had it; 0 for one that is not there.
    """
    rows = annotations.combine_chunks()
    completions = one_array(rows["completions"])
    size_A = list_lengths(completions)
    items = completions.flatten()
    texts_N = _text_hashes(items)
    order_N = np.lexsort((texts_N, np.repeat(np.arange(len(size_A)), size_A)))
    in_order = pa.array(order_N)
    prompt_N = np.repeat(one_array(rows["prompt_id"]).dictionary_encode().indices.to_numpy(), size_A).astype(np.int64)
    values = {
        "ranks": one_array(rows["ranks"]).flatten().take(in_order),
        "scores": pa.array(flat_scores(rows, size_A)[order_N]),
        "lengths": pc.call_function("utf8_length", [items.field("text")]).take(in_order),
        "texts": pa.array(texts_N[order_N]),
        "models": items.field("model").take(in_order),
        "beginnings": _beginnings(items.field("text").dictionary_encode(), prompt_N).take(in_order),
    }
    offsets = pa.array(np.concatenate([[0], np.cumsum(size_A)]).astype(np.int32))
    columns: dict[str, pa.Array] = {
        name: pa.ListArray.from_arrays(offsets, value.cast(COMPACT_ROWS.field(name).type.value_type))
        for name, value in values.items()
    }
    columns["prompt"] = _last_turns(rows)
    columns["best"] = pa.array(_only_best(one_array(rows["ranks"])))
    columns["marks"] = _marks(one_array(rows["prompt"]), completions)
    columns["version"] = pa.array([versions.get(uri, 0) for uri in rows["source"].to_pylist()], pa.int64())
    arrays = [columns[field.name] if field.name in columns else one_array(rows[field.name]) for field in COMPACT_ROWS]
    return pa.Table.from_arrays(arrays, schema=COMPACT_ROWS)


def _text_hashes(completions: pa.StructArray) -> NDArray[np.uint64]:
    """Return a 64-bit hash of each completion's text and extra fields."""
    texts, extras = completions.field("text"), completions.field("extra")
    if extras.null_count < len(extras):
        pairs = zip(texts.to_pylist(), extras.to_pylist(), strict=True)
        texts = pa.array([text if extra is None else f"{text}\0{extra}" for text, extra in pairs], pa.string())
    encoded = texts.dictionary_encode()
    return hash_ids(encoded.dictionary.to_pylist())[encoded.indices.to_numpy()]


def _last_turns(rows: pa.Table) -> pa.Array:
    """Return the start of each prompt's last turn, by which a person can recognise it."""
    prompts = one_array(rows["prompt"])
    size_A = list_lengths(prompts)
    last_A = np.cumsum(size_A) - 1
    texts = prompts.flatten().field("content").take(pa.array(last_A, mask=size_A == 0))
    options = pc.SliceOptions(0, PROMPT_CHARACTERS)
    return pc.call_function("utf8_slice_codeunits", [texts], options)


def _marks(prompts: pa.ListArray, completions: pa.ListArray) -> pa.Array:
    """Return the names of the marks in each row's prompt and completions, list of string."""
    found: dict[int, set[str]] = {}
    for lists, name in ((prompts, "content"), (completions, "text")):
        encoded = lists.flatten().field(name).dictionary_encode()
        row_N = np.repeat(np.arange(len(lists)), np.diff(lists.offsets.to_numpy()))
        marked = np.flatnonzero(_matches(encoded.dictionary, "|".join(MARKS.values())))
        some = encoded.dictionary.take(pa.array(marked, pa.int64()))
        for mark, pattern in MARKS.items() if len(marked) else ():
            holds = np.zeros(len(encoded.dictionary), dtype=bool)
            holds[marked] = _matches(some, pattern)
            for row in np.unique(row_N[holds[encoded.indices.to_numpy()]]).tolist():
                found.setdefault(row, set()).add(mark)
    return pa.array([sorted(found.get(row, ())) for row in range(len(prompts))], pa.list_(pa.string()))


def _matches(texts: pa.Array, pattern: str) -> NDArray[np.bool_]:
    options = pc.MatchSubstringOptions(pattern)
    return pc.call_function("match_substring_regex", [texts], options).to_numpy(zero_copy_only=False).astype(bool)


def _beginnings(texts: pa.DictionaryArray, prompt_N: NDArray[np.int64]) -> pa.Array:
    """Return the beginning of each completion whose text completes several prompts here, null for the others."""
    codes_N = texts.indices.to_numpy().astype(np.int64)
    distinct = np.unique(np.stack([codes_N, prompt_N]), axis=1)
    repeated = np.bincount(distinct[0], minlength=len(texts.dictionary)) > 1
    options = pc.SliceOptions(0, BEGINNING_CHARACTERS)
    shown = pc.call_function("utf8_slice_codeunits", [texts.dictionary], options)
    return shown.take(pa.array(codes_N, mask=~repeated[codes_N]))


def _only_best(ranks: pa.ListArray) -> NDArray[np.int32]:
    """Return the index of each row's best completion, as the record lists them; -1 where several are best."""
    ranks_N, starts_A = ranks.flatten().to_numpy(), ranks.offsets.to_numpy()
    if not len(ranks):
        return np.empty(0, np.int32)
    size_A = np.diff(starts_A)
    best_N = ranks_N == np.repeat(np.minimum.reduceat(ranks_N, starts_A[:-1]), size_A)
    index_N = np.arange(len(ranks_N)) - np.repeat(starts_A[:-1], size_A)
    sums = [np.add.reduceat(values, starts_A[:-1]) for values in (best_N, best_N * index_N)]
    return np.where(sums[0] == 1, sums[1], -1).astype(np.int32)
