"""What a report notes of texts where it reads them: template tokens, transcript marks, beginnings; and who is best.

Of a text only this leaves the file that holds it (rows.py).
"""

import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

TOKENS = (
    *("<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|begin_of_text|>"),
    *("<|end_of_text|>", "<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<start_of_turn>"),
    *("<end_of_turn>", "[INST]", "[/INST]", "<<SYS>>", "</s>", "<bos>", "<eos>", "<pad>", "<\uff5cUser\uff5c>"),
    "<\uff5cAssistant\uff5c>",
)
"""What chat templates write around turns, and ends of texts; not ``<s>``, which is HTML for struck-out text."""
MARKS = {token: re.escape(token) for token in TOKENS} | {
    "Human:": r"(?:^|\n\n)Human:",
    "Assistant:": r"(?:^|\n\n)Assistant:",
    "### Instruction:": r"(?:^|\n)### Instruction:",
    "### Response:": r"(?:^|\n)### Response:",
}
"""Name of a mark -> regular expression (RE2); speakers of a transcript count where they begin a paragraph."""

BEGINNING_CHARACTERS = 80


def marks_of(prompts: pa.ListArray, completions: pa.ListArray) -> pa.Array:
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


def beginnings_of(texts: pa.DictionaryArray, prompt_N: NDArray[np.int64]) -> pa.Array:
    """Return the beginning of each completion whose text stands under several prompts here, null for the others."""
    codes_N = texts.indices.to_numpy().astype(np.int64)
    distinct = np.unique(np.stack([codes_N, prompt_N]), axis=1)
    repeated = np.bincount(distinct[0], minlength=len(texts.dictionary)) > 1
    options = pc.SliceOptions(0, BEGINNING_CHARACTERS)
    shown = pc.call_function("utf8_slice_codeunits", [texts.dictionary], options)
    return shown.take(pa.array(codes_N, mask=~repeated[codes_N]))


def only_best(ranks: pa.ListArray) -> NDArray[np.int32]:
    """Return the place of each row's best completion, as it is listed, from 0; -1 where several are best."""
    ranks_N, starts_A = ranks.flatten().to_numpy(), ranks.offsets.to_numpy()
    if not len(ranks):
        return np.empty(0, np.int32)
    size_A = np.diff(starts_A)
    best_N = ranks_N == np.repeat(np.minimum.reduceat(ranks_N, starts_A[:-1]), size_A)
    place_N = np.arange(len(ranks_N)) - np.repeat(starts_A[:-1], size_A)
    sums = [np.add.reduceat(values, starts_A[:-1]) for values in (best_N, best_N * place_N)]
    return np.where(sums[0] == 1, sums[1], -1).astype(np.int32)
