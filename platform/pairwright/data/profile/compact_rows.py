"""Rows of an annotations table -> rows without texts: what a report counts, a few hundred bytes an annotation.

A completion's text becomes its length and a hash, and the completions of a row go in the order of these hashes: so the
annotations of one group list the same completions in the same order wherever they lay, without ever meeting a text.
"""

import hashlib
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pairwright.data.ingest.shards import hash_ids
from pairwright.data.profile.text_marks import beginnings_of, marks_of, only_best

COLUMNS = (
    "id",
    "group_id",
    "prompt_id",
    "prompt",
    "completions",
    "ranks",
    "scores",
    "annotator",
    "subset",
    "source",
)
"""What a report reads of an annotations table."""

PROMPT_CHARACTERS = 160

REPORT_ROWS = pa.schema(
    [
        pa.field("id", pa.string()),
        pa.field("group_id", pa.string()),
        pa.field("prompt_id", pa.string()),
        pa.field("prompt", pa.string()),
        pa.field("annotator", pa.string()),
        pa.field("subset", pa.string()),
        pa.field("source", pa.string()),
        pa.field("version", pa.int64()),
        pa.field("digest", pa.uint64()),
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
"""Lists have one value a completion, in the order of ``texts`` (64-bit hashes); ``scores`` are NaN where there are
none, ``beginnings`` null but for texts that stand under several prompts of the file; ``version`` is the first version
that had the row's source; ``digest`` is equal for equal judgements; ``best`` and ``marks`` as in marks.py."""


def report_rows(annotations: pa.Table, versions: Mapping[str, int]) -> pa.Table:
    """Return REPORT_ROWS of some annotations, in their order.

    Args:
        annotations: the COLUMNS of ANNOTATIONS_SCHEMA.
        versions: URI of a source -> first version of the table that had it; 0 for one that is not there.
    """
    rows = annotations.combine_chunks()
    completions = _array(rows["completions"])
    size_A = lengths_of(completions)
    items = completions.flatten()
    texts_N = _text_hashes(items)
    order_N = np.lexsort((texts_N, np.repeat(np.arange(len(size_A)), size_A)))
    in_order = pa.array(order_N)
    prompt_N = np.repeat(_array(rows["prompt_id"]).dictionary_encode().indices.to_numpy(), size_A).astype(np.int64)
    values = {
        "ranks": _array(rows["ranks"]).flatten().take(in_order),
        "scores": pa.array(_scores(rows, size_A)[order_N]),
        "lengths": pc.call_function("utf8_length", [items.field("text")]).take(in_order),
        "texts": pa.array(texts_N[order_N]),
        "models": items.field("model").take(in_order),
        "beginnings": beginnings_of(items.field("text").dictionary_encode(), prompt_N).take(in_order),
    }
    offsets = pa.array(np.concatenate([[0], np.cumsum(size_A)]).astype(np.int32))
    columns: dict[str, pa.Array] = {
        name: pa.ListArray.from_arrays(offsets, value.cast(REPORT_ROWS.field(name).type.value_type))
        for name, value in values.items()
    }
    columns["prompt"] = _last_turns(rows)
    columns["best"] = pa.array(only_best(_array(rows["ranks"])))
    columns["marks"] = marks_of(_array(rows["prompt"]), completions)
    columns["version"] = pa.array([versions.get(uri, 0) for uri in rows["source"].to_pylist()], pa.int64())
    columns["digest"] = pa.array(_digests(rows, columns, size_A))
    arrays = [columns[field.name] if field.name in columns else _array(rows[field.name]) for field in REPORT_ROWS]
    return pa.Table.from_arrays(arrays, schema=REPORT_ROWS)


def _text_hashes(completions: pa.StructArray) -> NDArray[np.uint64]:
    """Return a 64-bit hash of each completion's text, and of what stands beside it."""
    texts, extras = completions.field("text"), completions.field("extra")
    if extras.null_count < len(extras):
        pairs = zip(texts.to_pylist(), extras.to_pylist(), strict=True)
        texts = pa.array([text if extra is None else f"{text}\0{extra}" for text, extra in pairs], pa.string())
    encoded = texts.dictionary_encode()
    return hash_ids(encoded.dictionary.to_pylist())[encoded.indices.to_numpy()]


def lengths_of(lists: pa.ListArray) -> NDArray[np.int64]:
    """Return the length of each list, int64."""
    return np.diff(lists.offsets.to_numpy()).astype(np.int64)


def _scores(rows: pa.Table, size_A: NDArray[np.int64]) -> NDArray[np.float64]:
    scores = _array(rows["scores"])
    scores_N = np.full(int(size_A.sum()), np.nan)
    given_A = scores.is_valid().to_numpy(zero_copy_only=False)
    scores_N[np.repeat(given_A, size_A)] = scores.drop_null().flatten().to_numpy(zero_copy_only=False)
    return scores_N


def _last_turns(rows: pa.Table) -> pa.Array:
    """Return the start of each prompt's last turn, for a person to recognise it by."""
    prompts = _array(rows["prompt"])
    size_A = lengths_of(prompts)
    last_A = np.cumsum(size_A) - 1
    texts = prompts.flatten().field("content").take(pa.array(last_A, mask=size_A == 0))
    options = pc.SliceOptions(0, PROMPT_CHARACTERS)
    return pc.call_function("utf8_slice_codeunits", [texts], options)


def _digests(rows: pa.Table, columns: Mapping[str, pa.Array], size_A: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return a 64-bit hash of each annotation: id, annotator and judgement of which texts."""
    ranks_N, texts_N = columns["ranks"].values.to_numpy(), columns["texts"].values.to_numpy()
    scores_N = columns["scores"].values.to_numpy()
    ends_A = np.cumsum(size_A).tolist()
    digests, start = [], 0
    for name, annotator, end in zip(rows["id"].to_pylist(), rows["annotator"].to_pylist(), ends_A, strict=True):
        content = hashlib.blake2b(f"{name}\0{annotator}".encode(), digest_size=8)
        for values in (ranks_N, scores_N, texts_N):
            content.update(values[start:end].tobytes())
        digests.append(content.digest())
        start = end
    return np.frombuffer(b"".join(digests), dtype="<u8")


def _array(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks or [pa.array([], column.type)])
