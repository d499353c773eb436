"""Sums of a report: small Arrow tables of key columns and counts, which add up over tasks in any order.

Every figure of the report comes from one of these tables, so merging is one function, and what travels to the driver
grows with the number of annotators, models or values, never with the number of annotations.
"""

from collections.abc import Iterable, Mapping
from typing import TypeAlias

import msgspec
import pyarrow as pa

Sums: TypeAlias = dict[str, pa.Table]
"""Name of a sum -> its key columns and its counts."""

KEYS: dict[str, tuple[str, ...]] = {
    "totals": ("name",),
    "sizes": ("subset", "num_completions"),
    "tied_shares": ("tenth",),
    "lengths": ("rank", "step"),
    "ratios": ("step",),
    "depth": ("num_annotations",),
    "annotators": ("annotator",),
    "coincidences": ("num_completions", "num_raters", "one", "other"),
    "models": ("model",),
    "scores": ("party", "name", "value"),
    "growth": ("version",),
    "prompts": ("prompt_id", "prompt"),
    "refused": ("source", "reason"),
    "games": ("one", "other"),
    "texts": ("text",),
    "text_models": ("text", "model"),
    "text_beginnings": ("text", "beginning"),
    "annotator_kinds": ("annotator", "source"),
    "model_kinds": ("model",),
    "marks": ("mark", "source"),
    "by_source": ("source",),
}
"""The key columns of each sum; all others add."""


def counted(name: str, table: pa.Table) -> pa.Table:
    """Return a table with one row for each key of the sum ``name``, the other columns added up."""
    keys = list(KEYS[name])
    values = [column for column in table.column_names if column not in keys]
    added = table.group_by(keys, use_threads=False).aggregate([(column, "sum") for column in values])
    return added.select([*keys, *(f"{column}_sum" for column in values)]).rename_columns([*keys, *values])


def merge(parts: Iterable[Sums]) -> Sums:
    """Return the sums of all parts together."""
    tables: dict[str, list[pa.Table]] = {}
    for part in parts:
        for name, table in part.items():
            held = tables.setdefault(name, [])
            held.append(table)
            if sum(one.num_rows for one in held) > 4 * held[0].num_rows + 10_000:  # keep what waits to be added small
                tables[name] = [counted(name, pa.concat_tables(held, promote_options="permissive"))]
    return {name: counted(name, pa.concat_tables(held, promote_options="permissive")) for name, held in tables.items()}


def encode(sums: Mapping[str, pa.Table]) -> bytes:
    """Return sums as bytes that travel between processes."""
    return msgspec.msgpack.encode({name: encode_table(table) for name, table in sums.items()})


def decode(payload: bytes) -> Sums:
    """Return what ``encode`` was given."""
    return {name: decode_table(held) for name, held in msgspec.msgpack.decode(payload, type=dict[str, bytes]).items()}


def encode_table(table: pa.Table) -> bytes:
    """Return a table as an Arrow IPC stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def decode_table(payload: bytes) -> pa.Table:
    """Return what ``encode_table`` was given."""
    return pa.ipc.open_stream(payload).read_all()
