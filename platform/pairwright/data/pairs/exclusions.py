"""Drops annotations and completions that a configuration excludes by name or text. Pure.

A group keeps its id whatever is dropped from it: the id says which group of the annotations table it was.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pairwright.config import ExpandConfig
from pairwright.data.identity import hash_ids
from pairwright.data.ingest.sources.listing import list_sources
from pairwright.data.ingest.sources.splits import InputSplit, read_chunks
from pairwright.data.table.arrow_io import list_lengths, one_array
from pairwright.errors import DataError
from pairwright.records import UNREADABLE_JSON

NAMED = {"leave_out_annotators": "annotator", "leave_out_subsets": "subset", "leave_out_models": "model"}
"""Key of the configuration -> what its names are names of."""
NAME_PREFIX = "excluded_{}:"
"""Of further totals: so many annotations, or completions, have the name behind it."""

TEXT_AND_PROMPT = np.dtype([("text", "<u8"), ("prompt", "<u8")])

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


class _Text(msgspec.Struct, frozen=True):
    text: str


_DECODER = msgspec.json.Decoder(str | _Text)


@dataclass(frozen=True, slots=True)
class Exclusions:
    """What a configuration excludes.

    Attributes:
        names: what its names are names of -> the names, sorted.
        texts: completions of exactly these texts.
        repeated: 64-bit hashes of the texts that stand under too many prompts, uint64, sorted.
    """

    names: Mapping[str, Sequence[str]]
    texts: Sequence[str]
    repeated: NDArray[np.uint64]


def has_exclusions(config: ExpandConfig) -> bool:
    """Return whether the configuration excludes anything by its name or its text."""
    return bool(any(getattr(config, key) for key in NAMED) or config.leave_out_texts or config.max_prompts_per_text)


def names_of(config: ExpandConfig) -> dict[str, list[str]]:
    """Return the names that a configuration excludes, by what they are names of."""
    return {what: sorted(set(getattr(config, key))) for key, what in NAMED.items()}


def unused_exclusions(totals: Mapping[str, int | float], config: Mapping[str, Any]) -> list[str]:
    """Return a line for each exclusion of a configuration that matched nothing."""
    found = []
    for key, what in NAMED.items():
        for name in config.get(key, []):
            if not totals.get(NAME_PREFIX.format(what) + name):
                found.append(f"{key}: nothing is of {what} {name!r}; `pairwright report` lists the names")
    if config.get("leave_out_texts") and not totals.get("excluded_by_text"):
        found.append("leave_out_texts: no completion has a text that they list, to the last character")
    if config.get("max_prompts_per_text") and not totals.get("excluded_by_prompts"):
        found.append(f"max_prompts_per_text: no text stands under more than {config['max_prompts_per_text']:,} prompts")
    return found


def no_totals(config: ExpandConfig) -> dict[str, int | float]:
    """Return totals of zero."""
    names = [NAME_PREFIX.format(what) + name for what, named in names_of(config).items() for name in named]
    causes = ["annotator", "subset", "model", "text", "prompts"]
    return dict.fromkeys([*(f"excluded_by_{cause}" for cause in causes), "groups_excluded", *names], 0)


def read_texts(names: Sequence[str]) -> list[str]:
    """Return the texts that sources list, sorted: each record is a text, or an object with a ``text``.

    Raises:
        SourceError: if a source is missing or cannot be read.
        DataError: if a record is no text.
    """
    return sorted({text for source in list_sources(names) for text in _texts_of(InputSplit(source, 0, source.size, 0))})


def _texts_of(split: InputSplit) -> Iterator[str]:
    for chunk in read_chunks(split):
        for number, line in enumerate(chunk.text.split(b"\n"), start=chunk.first_line):
            if line and not line.isspace():
                try:
                    found = _DECODER.decode(line)
                except UNREADABLE_JSON as error:
                    raise DataError(
                        f"{split.source.uri}:{number}: no text to leave out: {error}; expected a completion's text as "
                        'a JSON string, "...", or {"text": "..."}, in each line'
                    ) from None
                yield found if isinstance(found, str) else found.text


def texts_and_prompts(rows: pa.Table) -> NDArray[np.void]:
    """Return the distinct texts of completions with the prompts that they stand under, as TEXT_AND_PROMPT, sorted.

    Args:
        rows: the columns ``prompt_id`` and ``completions`` of annotations.
    """
    completions = one_array(rows["completions"])
    found = np.empty(len(completions.flatten()), TEXT_AND_PROMPT)
    found["text"] = _hashes(completions)
    found["prompt"] = np.repeat(_prompt_keys(rows["prompt_id"].to_pylist()), list_lengths(completions))
    return np.unique(found)


def repeated_texts(found: Iterable[NDArray[np.void]], max_prompts: int) -> NDArray[np.uint64]:
    """Return the hashes of the texts that stand under more than ``max_prompts`` prompts, sorted."""
    every = np.unique(np.concatenate([np.empty(0, TEXT_AND_PROMPT), *found]))
    texts, num_prompts = np.unique(every["text"], return_counts=True)
    return texts[num_prompts > max_prompts]


def drop_excluded(rows: pa.Table, exclusions: Exclusions) -> tuple[pa.Table, dict[str, int]]:
    """Return the rows without what is excluded, and totals that add over calls.

    A completion goes by its listed text, by the prompts that its text stands under, or by its model, and is counted
    under the first of these; an annotation by its annotator or its subset. A group with fewer than two completions, or
    without an annotation, goes.

    Args:
        rows: annotations; every group has all of its annotations here.
        exclusions: what goes.
    """
    rows = rows.combine_chunks()
    groups = rows["group_id"]
    by_annotator = _is_in(rows["annotator"], exclusions.names["annotator"])
    by_subset = _is_in(rows["subset"], exclusions.names["subset"]) & ~by_annotator
    totals = {"excluded_by_annotator": int(by_annotator.sum()), "excluded_by_subset": int(by_subset.sum())}
    for what in ("annotator", "subset"):
        totals |= _by_name(rows[what], what, exclusions)
    rows = rows.filter(pa.array(~(by_annotator | by_subset))).combine_chunks()
    rows, completion_totals = _without_completions(rows, exclusions)
    num_dropped = len(groups.unique()) - len(rows["group_id"].unique())
    return rows, totals | completion_totals | {"groups_excluded": num_dropped}


def _without_completions(rows: pa.Table, exclusions: Exclusions) -> tuple[pa.Table, dict[str, int]]:
    completions = one_array(rows["completions"])
    items, size_A = completions.flatten(), list_lengths(completions)
    model_N = items.field("model")
    by_text = _is_in(items.field("text"), exclusions.texts)
    by_prompts = np.isin(_hashes(completions), exclusions.repeated) & ~by_text
    by_model = _is_in(model_N, exclusions.names["model"]) & ~by_text & ~by_prompts
    if by_model.any():
        by_model |= _copies_to_drop(rows, items, size_A, by_model)
    totals = {
        "excluded_by_text": int(by_text.sum()),
        "excluded_by_prompts": int(by_prompts.sum()),
        "excluded_by_model": int(by_model.sum()),
        **_by_name(model_N, "model", exclusions),
    }
    kept_N = ~(by_text | by_prompts | by_model)
    if kept_N.all():
        return rows, totals
    row_N = np.repeat(np.arange(len(size_A)), size_A)
    left_A = np.bincount(row_N[kept_N], minlength=len(size_A))
    for name in ("completions", "ranks", "scores"):
        column = _filtered(one_array(rows[name]), kept_N, size_A, left_A)
        rows = rows.set_column(rows.schema.get_field_index(name), rows.schema.field(name), column)
    return rows.filter(pa.array(left_A >= 2)), totals


def _copies_to_drop(rows: pa.Table, items: pa.StructArray, size_A: Ints, by_model: Bools) -> Bools:
    """Return further completions to drop, so that all annotations of a group keep the same texts.

    Annotations of one group may name other models for a text, or none. Of the copies of a text as many go in each as
    in the one where most go; those without a model first.
    """
    group_A = one_array(rows["group_id"]).dictionary_encode().indices.to_numpy()
    row_N = np.repeat(np.arange(len(size_A)), size_A)
    text_N = items.field("text").dictionary_encode().indices.to_numpy()
    _, key_N = np.unique(np.stack([group_A[row_N], text_N]), axis=1, return_inverse=True)
    most = np.zeros(key_N.max() + 1, np.int64)
    positions, copies = np.unique(np.stack([key_N[by_model], row_N[by_model]]), axis=1, return_counts=True)
    np.maximum.at(most, positions[0], copies)
    gone = dict(zip(map(tuple, positions.T.tolist()), copies.tolist(), strict=True))
    more = np.zeros(len(key_N), dtype=bool)
    is_named_N = items.field("model").is_valid().to_numpy(zero_copy_only=False)
    candidates = np.flatnonzero((most[key_N] > 0) & ~by_model)
    for position in sorted(candidates.tolist(), key=lambda position: (bool(is_named_N[position]), position)):
        key, row = int(key_N[position]), int(row_N[position])
        if gone.get((key, row), 0) < most[key]:
            gone[key, row] = gone.get((key, row), 0) + 1
            more[position] = True
    return more


def _filtered(lists: pa.ListArray, kept_N: Bools, size_A: Ints, left_A: Ints) -> pa.ListArray:
    """Return lists with the kept items of each; a list that is null stays so."""
    valid_A = lists.is_valid().to_numpy(zero_copy_only=False)
    values = lists.drop_null().flatten().filter(pa.array(kept_N[np.repeat(valid_A, size_A)]))
    offsets = np.concatenate([[0], np.cumsum(np.where(valid_A, left_A, 0))]).astype(np.int32)
    mask = None if valid_A.all() else pa.array(~valid_A)
    return pa.ListArray.from_arrays(pa.array(offsets), values, type=lists.type, mask=mask)


def _by_name(column: pa.Array | pa.ChunkedArray, what: str, exclusions: Exclusions) -> dict[str, int]:
    counts = {row["values"]: row["counts"] for row in column.value_counts().to_pylist()}
    return {NAME_PREFIX.format(what) + name: counts.get(name, 0) for name in exclusions.names[what]}


def _is_in(column: pa.Array | pa.ChunkedArray, names: Sequence[str]) -> Bools:
    found = pc.call_function("is_in", [column], pc.SetLookupOptions(pa.array(names, pa.string())))
    return found.to_numpy(zero_copy_only=False) if isinstance(found, pa.Array) else found.to_numpy()


def _hashes(completions: pa.ListArray) -> NDArray[np.uint64]:
    encoded = completions.flatten().field("text").dictionary_encode()
    return hash_ids(encoded.dictionary.to_pylist())[encoded.indices.to_numpy()]


def _prompt_keys(prompt_ids: Sequence[str]) -> NDArray[np.uint64]:
    return np.frombuffer(bytes.fromhex("".join(prompt_ids)), dtype=">u8")[::2].astype(np.uint64)
