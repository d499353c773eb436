"""Exports a pairs version as one file of flat rows (prompt, chosen, rejected, weight, margin) for other trainers.

The texts of a group are repeated for each pair, 2.6 times what the table holds at K = 4 and 7.9 times at K = 9: this
is for export, not a format to train from here.
"""

from collections.abc import Iterator
from typing import IO, Literal

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pairwright.data.extras import read_extra
from pairwright.data.storage.outputs import new_file
from pairwright.data.table.arrow_io import in_schema, is_without_extras
from pairwright.data.table.table import Manifest, Table
from pairwright.errors import DataError
from pairwright.records import MESSAGE_V1, PAIRS_SCHEMA_V1

GROUPS_PER_WRITE = 256
_NUMBERS = [pa.field("weight", pa.float32()), pa.field("margin", pa.float32())]
STANDARD = pa.schema([*(pa.field(name, pa.string()) for name in ("prompt", "chosen", "rejected")), *_NUMBERS])
CONVERSATIONAL = pa.schema(
    [*(pa.field(name, pa.list_(MESSAGE_V1)) for name in ("prompt", "chosen", "rejected")), *_NUMBERS]
)


def export_pairs(
    pairs: str,
    output: str,
    *,
    version: int | None,
    split: str | None,
    layout: Literal["parquet", "jsonl"],
    plain: bool = False,
) -> int:
    """Write a pairs version as one file of flat rows, and return how many.

    The columns are those of TRL's preference type with an explicit prompt, as lists of {role, content}: over strings
    TRL renders no chat template. A pair without a margin has margin 0, which is the same loss: TRL would fail on a
    null.

    Args:
        pairs: URL of a pairs table.
        output: path or URL of the file; it is there once it is whole. A file of the same content may be there already.
        version: version of the table, the newest by default.
        split: train or validation; both by default.
        layout: how rows are written.
        plain: whether to write the texts as strings, without their roles.

    Raises:
        StoreError: if there is no such pairs table or version, or ``output`` holds anything else or cannot be written.
        DataError: if ``plain`` is asked for and a prompt is more than one user turn; names its group.
    """
    table = Table.open(pairs, "pairs")
    manifest = table.manifest(version)
    for rows in _groups(table, manifest, split, ["group_id", "prompt", "split"]) if plain else ():
        _refuse_turns(table.url, rows)
    schema = STANDARD if plain else CONVERSATIONAL
    columns = ["group_id", "prompt", "completions", "pairs", "split", "context"]
    flat = (_flat_rows(rows, schema) for rows in _groups(table, manifest, split, columns))
    write = _write_parquet if layout == "parquet" else _write_json_lines
    with new_file(output) as file, file.open("wb") as sink:
        return write(flat, sink, schema)


def _groups(table: Table, manifest: Manifest, split: str | None, columns: list[str]) -> Iterator[pa.Table]:
    """Yield the groups of a split, a few at a time, so that the rows they become fit Arrow's 2 GB a column."""
    for rows in table.read(manifest, columns):
        _refuse_extras(table.url, rows)
        chosen = rows
        if split is not None:
            chosen = rows.filter(pa.array([side == split for side in rows["split"].to_pylist()], pa.bool_()))
        for start in range(0, chosen.num_rows, GROUPS_PER_WRITE):
            yield chosen.slice(start, GROUPS_PER_WRITE).combine_chunks()


def _refuse_turns(url: str, rows: pa.Table) -> None:
    """Refuse a prompt that one string cannot hold without losing who said what."""
    prompts = rows["prompt"].chunk(0)
    roles = prompts.flatten().field("role").to_pylist()
    if len(roles) == len(prompts) and all(role == "user" for role in roles):
        return
    for group_id, prompt in zip(rows["group_id"].to_pylist(), prompts.to_pylist(), strict=True):
        if (found := [turn["role"] for turn in prompt]) != ["user"]:
            raise DataError(
                f"{url}: group {group_id}: its prompt has the turns {', '.join(found)}, expected one user turn, as "
                "--plain writes no roles; leave out --plain"
            )


def _refuse_extras(url: str, rows: pa.Table) -> None:
    """Refuse groups with tools, tool calls or reasoning: without them the texts would say something else."""
    if "context" not in rows.schema.names or is_without_extras(rows):
        return
    for row in rows.to_pylist():
        held = [turn["extra"] for turn in (*row["prompt"], *row["completions"])]
        if found := [name for content in (row["context"], *held) for name in read_extra(content)]:
            raise DataError(
                f"{url}: group {row['group_id']} holds `{found[0]}`, which export-pairs does not write; expand "
                "annotations without such records, or read the table's Arrow files"
            )


def _flat_rows(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    rows = in_schema(rows, PAIRS_SCHEMA_V1, ["prompt", "completions", "pairs"]).combine_chunks()
    prompts, completions, pairs = (rows[name].chunk(0) for name in ("prompt", "completions", "pairs"))
    group_P = np.repeat(np.arange(len(pairs)), np.diff(pairs.offsets.to_numpy()))
    chosen, rejected, weight, margin = pairs.flatten().flatten()
    starts_G = completions.offsets.to_numpy()[:-1] - completions.offsets[0].as_py()
    texts = completions.flatten().field("text")
    sides = [texts.take(pa.array(starts_G[group_P] + side.to_numpy())) for side in (chosen, rejected)]
    if schema is STANDARD:
        prompt = prompts.flatten().field("content").take(pa.array(group_P))
    else:
        prompt = prompts.take(pa.array(group_P))
        sides = [_assistant_turns(side) for side in sides]
    return pa.Table.from_arrays([prompt, *sides, weight, margin.fill_null(0.0)], schema=schema)


def _assistant_turns(texts: pa.StringArray) -> pa.ListArray:
    roles = pa.repeat(pa.scalar("assistant"), len(texts))
    turns = pa.StructArray.from_arrays([roles, texts], fields=list(MESSAGE_V1))
    return pa.ListArray.from_arrays(
        pa.array(np.arange(len(texts) + 1, dtype=np.int32)), turns, type=pa.list_(MESSAGE_V1)
    )


def _write_parquet(flat: Iterator[pa.Table], sink: IO[bytes], schema: pa.Schema) -> int:
    num_rows = 0
    with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
        for rows in flat:
            writer.write_table(rows)
            num_rows += rows.num_rows
    return num_rows


def _write_json_lines(flat: Iterator[pa.Table], sink: IO[bytes], schema: pa.Schema) -> int:
    num_rows = 0
    for rows in flat:
        assert rows.schema.equals(schema)
        sink.write(msgspec.json.Encoder().encode_lines(rows.to_pylist()))
        num_rows += rows.num_rows
    return num_rows
