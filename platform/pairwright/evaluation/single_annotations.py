"""Reads the single annotations behind a pairs table, from the annotations table that it was made from.

A pairs table holds what all annotators of a group say together. How far they agree, and whom the model does not
explain, needs each one's ranking. Where the annotations table is gone, the evaluation goes on and says so.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pairwright.data.table.manifest import Manifest
from pairwright.data.table.table import Table
from pairwright.errors import StoreError
from pairwright.evaluation.group_rows import is_among
from pairwright.evaluation.statistics.ceiling import Judgements
from pairwright.evaluation.statistics.pair_arrays import PairArrays

MAX_BYTES = 4 * 1000**3
"""Of an annotations version, as it lies compressed: all of it is read."""
_COLUMNS = ("id", "group_id", "completions", "ranks", "annotator", "subset")


def read_judgements(pairs: Table, manifest: Manifest, arrays: PairArrays) -> Judgements | str:
    """Return the annotations of the evaluated groups, or why they cannot be read."""
    if not manifest.inputs:
        return "the pairs table does not name the annotations that it was made from"
    made_from = manifest.inputs[0]
    try:
        annotations = Table.open(made_from.url, "annotations")
        version = annotations.manifest(made_from.version)
        if version.digest != made_from.digest:
            return f"{made_from.url} version {made_from.version} is not the one that the pairs were made from"
        if sum(file.bytes for file in version.files) > MAX_BYTES:
            return f"{made_from.url} version {made_from.version} is over {MAX_BYTES // 1000**3} GB"
        wanted = pa.array(arrays.group_ids, pa.string())
        parts = [annotations.read_file(file, _COLUMNS) for file in version.files]
        rows = [row for part in parts for row in part.filter(is_among(part["group_id"], wanted)).to_pylist()]
    except StoreError as error:
        return str(error)
    return judgements_of(rows, arrays, _texts(pairs, manifest, wanted), manifest.config)


def judgements_of(
    rows: Sequence[Mapping[str, Any]],
    arrays: PairArrays,
    texts: Mapping[str, Sequence[tuple[str, str | None]]],
    config: Mapping[str, Any],
) -> Judgements:
    """Return the annotations of the evaluated groups, without those that the expansion left out.

    Args:
        rows: of an annotations table.
        arrays: of the evaluation.
        texts: text and extra of every completion of the pairs table's group, by group id.
        config: of the expansion.
    """
    position = {name: index for index, name in enumerate(arrays.group_ids)}
    without = {key: set(config.get(f"leave_out_{key}s", ())) for key in ("annotator", "subset")}
    found: dict[str, tuple[int, str | None, NDArray[np.int64]]] = {}
    for row in sorted(rows, key=lambda row: row["id"]):
        group = position[row["group_id"]]
        if any(row[key] in names for key, names in without.items()):
            continue
        kept = arrays.index_N[arrays.starts_G[group] : arrays.starts_G[group + 1]]
        ranks = _ranks(row, [texts[row["group_id"]][index] for index in kept.tolist()])
        if ranks is not None:
            found.setdefault(row["id"], (group, row["annotator"], ranks))
    names = sorted({name for _, name, _ in found.values() if name is not None})
    code = {name: index for index, name in enumerate(names)}
    return Judgements(
        annotators=names,
        annotator_A=np.array([-1 if name is None else code[name] for _, name, _ in found.values()], np.int64),
        group_A=np.array([group for group, _, _ in found.values()], np.int64),
        ranks_A=[ranks for *_, ranks in found.values()],
        ids_A=list(found),
    )


def _ranks(row: Mapping[str, Any], wanted: Sequence[tuple[str, str | None]]) -> NDArray[np.int64] | None:
    """Return an annotation's rank of each wanted completion; None where it did not see one of them."""
    left: dict[tuple[str, str | None], list[int]] = {}
    for completion, rank in zip(row["completions"], row["ranks"], strict=True):
        left.setdefault((completion["text"], completion["extra"]), []).append(rank)
    ranks = []
    for key in wanted:
        if not left.get(key):
            return None
        ranks.append(left[key].pop(0))
    return np.array(ranks, np.int64)


def _texts(pairs: Table, manifest: Manifest, wanted: pa.Array) -> dict[str, list[tuple[str, str | None]]]:
    def rows() -> Iterator[Mapping[str, Any]]:
        for file in manifest.files:
            part = pairs.read_file(file, ("group_id", "completions"))
            yield from part.filter(is_among(part["group_id"], wanted)).to_pylist()

    return {row["group_id"]: [(one["text"], one["extra"]) for one in row["completions"]] for row in rows()}
