"""Drops the groups of excluded prompts, and records what was dropped. Pure."""

from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from pairwright.config import ExpandConfig
from pairwright.data.ingest.parse import MAX_RECORD_CHARACTERS
from pairwright.data.pairs.build_pairs import expand_groups
from pairwright.records import Rejection

EXCLUDED = pa.schema([("prompt_id", pa.string()), ("kind", pa.string()), ("reason", pa.string())])
"""Prompts to exclude, sorted by id; ``kind`` is one of KINDS."""
KINDS = {"near_duplicate": "groups_near_duplicate", "contaminated": "groups_contaminated"}

_FIRST = [(name, "ascending") for name in ("group_id", "id", "source", "line")]


def drop_similar(
    rows: pa.Table, excluded: pa.Table, config: ExpandConfig
) -> tuple[pa.Table, list[Rejection], dict[str, int | float]]:
    """Return the rows of the groups that stay, a rejection for each other group, and totals that add over calls.

    Args:
        rows: annotations; every group has all of its annotations here.
        excluded: prompts, in EXCLUDED.
        config: what pairs the groups that go would have made.
    """
    row = _rows_of_prompts(rows["prompt_id"], excluded)
    gone = rows.filter(row.is_valid()).combine_chunks().sort_by(_FIRST)
    _, lost = expand_groups(gone, config)
    groups = gone["group_id"].to_pylist()
    starts = [row for row, name in enumerate(groups) if row == 0 or name != groups[row - 1]]
    first = gone.take(pa.array(starts, pa.int64()))
    found = excluded.take(_rows_of_prompts(first["prompt_id"], excluded))
    kinds = found["kind"].to_pylist()
    totals = {
        **{total: kinds.count(kind) for kind, total in KINDS.items()},
        "annotations_excluded": lost["annotations"],
        "pairs_excluded": lost["pairs"],
    }
    shown = first.select(["source", "line", "group_id", "prompt"]).to_pylist()
    reasons = found["reason"].to_pylist()
    rejections = [_rejection(row, reason) for row, reason in zip(shown, reasons, strict=True)]
    return rows.filter(row.is_null()), rejections, totals


def excludes_similar(config: ExpandConfig) -> bool:
    """Return whether the configuration excludes groups with similar prompts."""
    return config.near_duplicates != "keep" or bool(config.decontaminate)


def no_totals() -> dict[str, int | float]:
    """Return totals of zero."""
    return dict.fromkeys([*KINDS.values(), "annotations_excluded", "pairs_excluded"], 0)


def _rows_of_prompts(prompt_ids: pa.ChunkedArray, excluded: pa.Table) -> pa.Array:
    """Return the row of each prompt in ``excluded``, null where it is not there."""
    found = pc.index_in(prompt_ids, value_set=excluded["prompt_id"])  # pyright: ignore[reportAttributeAccessIssue]
    return found.combine_chunks()


def _rejection(row: dict[str, Any], reason: str) -> Rejection:
    record = msgspec.json.encode({"group_id": row["group_id"], "prompt": row["prompt"]}).decode()
    return Rejection(
        source=row["source"],
        line=row["line"],
        path="$.prompt",
        reason=reason,
        record=record[:MAX_RECORD_CHARACTERS],
    )
