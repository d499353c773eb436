"""Spoilt records in JSON arrays, CSV, Parquet and Arrow, and spoilt files: a whole account, or one reason."""

import csv
import gzip
import io
import json
import random
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mutations import STRUCTURE, encoded
from pairwright.config import IngestConfig
from pairwright.data.table.table import Table
from record_rules import Broken, expected_row, has_a_key_twice
from spoilt_sources import Outcome, check_refusal, ingested

SEED = 20261121
LIMITS = {"max_completions": 12, "max_characters": 2000}
SEEDS: list[dict[str, Any]] = [
    {
        "id": f"r{k}",
        "prompt": "Why, is [it] \"blue\"?\n{Or} grün, 練習",
        "completions": [{"text": f"answer, [{i}]: \\ \"{i}\"", "id": None, "model": "m"} for i in range(k)],
        "ranks": list(range(1, k + 1)),
        "annotator": "w1",
    }
    for k in range(2, 6)
]  # fmt: skip
TABLE_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("prompt", pa.string()),
        ("completions", pa.list_(pa.struct([("text", pa.string()), ("id", pa.string()), ("model", pa.string())]))),
        ("ranks", pa.list_(pa.int64())),
        ("scores", pa.list_(pa.float64())),
        ("annotator", pa.string()),
    ]
)
SIZES = [400, pytest.param(20_000, marks=[pytest.mark.slow, pytest.mark.timeout(900)])]
LAYOUTS = [".jsonl", ".jsonl.gz", ".json", ".csv", ".parquet", ".arrow"]


def config(split_bytes: int = 4096) -> IngestConfig:
    return IngestConfig.model_validate({"format": "native", "split_bytes": split_bytes} | LIMITS)


def spoilt_records(rng: random.Random, num_records: int) -> list[dict[str, Any]]:
    """Return records of which most have one or more parts dropped, renamed, retyped, ..."""
    found = []
    for _ in range(num_records):
        record = json.loads(json.dumps(rng.choice(SEEDS)))
        for _ in range(rng.choice([0, 1, 1, 1, 2])):
            rng.choice(STRUCTURE)(record, rng, LIMITS["max_characters"])
        found.append(record)
    return found


@pytest.mark.parametrize("num_records", SIZES)
def test_every_spoilt_item_of_an_array_is_taken_or_refused_alone(tmp_path: Path, num_records: int) -> None:
    rng = random.Random(SEED)
    items = [encoded(record, rng) for record in spoilt_records(rng, num_records)]
    path = tmp_path / "array.json"
    path.write_bytes(b"[" + rng.choice([b",", b" ,\n", b",\n  "]).join(items) + b"\n]\n")
    outcome = ingested(path, Table(str(tmp_path / "table"), "annotations"), config(), LIMITS)
    check_against(items, outcome)


@pytest.mark.parametrize("ending", [".parquet", ".arrow"])
@pytest.mark.parametrize("num_records", SIZES)
def test_every_spoilt_row_of_a_table_is_taken_or_refused_alone(tmp_path: Path, num_records: int, ending: str) -> None:
    rng = random.Random(SEED)
    rows = list(islice((record for record in spoilt_records(rng, 4 * num_records) if fits(record)), num_records))
    path = tmp_path / f"rows{ending}"
    write_table(path, rows, rows_in_group=rng.choice([7, 100]))
    ranges = config(max(1024, path.stat().st_size // 8))
    outcome = ingested(path, Table(str(tmp_path / "table"), "annotations"), ranges, LIMITS)
    lines = [json.dumps(as_read(row)).encode() for row in rows]
    check_against(lines, outcome, is_text_known=False)


@pytest.mark.parametrize("num_records", SIZES)
def test_every_spoilt_row_of_a_csv_file_is_taken_or_refused_alone(tmp_path: Path, num_records: int) -> None:
    rng = random.Random(SEED)
    records = [record for record in spoilt_records(rng, num_records) if is_text(record)]
    path = tmp_path / "rows.csv"
    path.write_bytes(csv_of(records))
    outcome = ingested(path, Table(str(tmp_path / "table"), "annotations"), config(), LIMITS)
    assert outcome.errors == []
    assert outcome.lines == len(records)
    taken = {row["line"]: row for row in outcome.rows}
    for number, record in enumerate(records, start=1):
        if number in taken:
            assert [one["text"] for one in taken[number]["completions"]] == [
                one["text"] for one in record["completions"]
            ]
            assert taken[number]["prompt"][0]["content"] == record["prompt"]
    assert num_records / 10 < len(taken) < len(records)


@pytest.mark.parametrize("num_files", [20, pytest.param(600, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
@pytest.mark.parametrize("ending", LAYOUTS)
def test_a_spoilt_file_of_any_layout_gives_a_whole_account_or_one_reason(
    tmp_path: Path, ending: str, num_files: int
) -> None:
    rng = random.Random(SEED)
    table = Table(str(tmp_path / "table"), "annotations")
    counts: Counter[str] = Counter()
    for number in range(num_files):
        good = file_of([rng.choice(SEEDS) | {"id": f"{number}-{i}"} for i in range(60)], ending, tmp_path)
        path = tmp_path / f"{number}{ending}"
        path.write_bytes(spoilt_bytes(good, rng))
        outcome = ingested(path, table, config(rng.choice([1024, 1_000_000])), LIMITS)
        counts["failed as a whole" if outcome.errors else "read to its end"] += 1
        counts["records refused"] += len(outcome.refused)
        counts["records accepted"] += len(outcome.rows)
        path.unlink()
    print(f"seed {SEED}: {num_files} spoilt {ending} files: {dict(counts)}")


# --------------------------------------------------------------------------------------------- good files


def file_of(records: list[dict[str, Any]], ending: str, folder: Path) -> bytes:
    lines = b"".join(json.dumps(record).encode() + b"\n" for record in records)
    match ending:
        case ".jsonl":
            return lines
        case ".jsonl.gz":
            return gzip.compress(lines)
        case ".json":
            return json.dumps(records, indent=1).encode()
        case ".csv":
            return csv_of(records)
    path = folder / f"good{ending}"
    write_table(path, records, rows_in_group=20)
    return path.read_bytes()


def csv_of(records: list[dict[str, Any]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    names = ["id", "prompt", "completions", "ranks", "annotator"]
    writer.writerow(names)
    for record in records:
        cells = (record.get(name, "") for name in names)
        writer.writerow([cell if isinstance(cell, str) else json.dumps(cell) for cell in cells])
    return text.getvalue().encode()


def write_table(path: Path, records: list[dict[str, Any]], *, rows_in_group: int) -> None:
    table = pa.Table.from_pylist(records, schema=TABLE_SCHEMA)
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=rows_in_group)
        return
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows_in_group)


def spoilt_bytes(content: bytes, rng: random.Random) -> bytes:
    """Return a file with some bytes changed, a stretch lost or doubled, or its end or beginning cut off."""
    where = rng.randrange(len(content))
    kind = rng.randrange(5)
    if kind == 0:
        return content[:where]
    if kind == 1:
        return content[where:]
    if kind == 2:
        end = where + rng.choice([1, 10, 1000])
        return content[:where] + content[end:]
    if kind == 3:
        return content[:where] + rng.randbytes(rng.choice([1, 5])) + content[where:]
    spoilt = bytearray(content)
    for _ in range(rng.choice([1, 3, 30])):
        spoilt[rng.randrange(len(spoilt))] ^= 1 << rng.randrange(8)
    return bytes(spoilt)


# --------------------------------------------------------------------------------------------- expectations


def fits(record: dict[str, Any]) -> bool:
    """Return whether a record can stand in a table with typed columns."""
    known = record.keys() <= set(TABLE_SCHEMA.names)
    completions = record.get("completions")
    items = completions if isinstance(completions, list) else []
    if not known or not all(
        one is None or (isinstance(one, dict) and one.keys() <= {"text", "id", "model"}) for one in items
    ):
        return False
    try:
        pa.Table.from_pylist([record], schema=TABLE_SCHEMA)
    except (pa.ArrowException, UnicodeEncodeError, OverflowError, TypeError, ValueError):
        return False
    return True


def as_read(record: dict[str, Any]) -> dict[str, Any]:
    """Return a row as the record that it is: what is null is not there, neither in the row nor in its structs."""
    row = pa.Table.from_pylist([record], schema=TABLE_SCHEMA).to_pylist()[0]
    row = {name: value for name, value in row.items() if value is not None}
    if "completions" in row:
        row["completions"] = [
            one if one is None else {name: value for name, value in one.items() if value is not None}
            for one in row["completions"]
        ]
    return row


def texts_of(record: dict[str, Any]) -> list[Any]:
    return [one["text"] for one in record["completions"]]


def is_text(record: dict[str, Any]) -> bool:
    """Return whether a record's completions are texts that a cell of a CSV file can hold."""
    try:
        json.dumps(record, ensure_ascii=False).encode()
        texts = texts_of(record)
    except (KeyError, TypeError, UnicodeEncodeError):
        return False
    return isinstance(record.get("prompt"), str) and all(isinstance(text, str) for text in texts)


def check_against(lines: list[bytes], outcome: Outcome, *, is_text_known: bool = True) -> None:
    """Hold what became of each record to the rules of docs/data.md, applied a second time to its JSON."""
    assert outcome.errors == []
    assert outcome.lines == len(lines)
    assert outcome.blank == 0
    rows = {row["line"]: row for row in outcome.rows}
    refused = {one.line: one for one in outcome.refused}
    for number, line in enumerate(lines, start=1):
        try:
            expected = expected_row(line, **LIMITS)
        except Broken:
            assert number in refused, f"accepted against the rules: {line[:2000]!r}"
            if is_text_known:
                shown = msgspec.structs.replace(refused[number], record=refused[number].record.strip())
                check_refusal(shown, shown.record.encode())
                assert line.decode().replace("\n", "\t").strip().startswith(shown.record)
            continue
        if number in refused:
            assert has_a_key_twice(line), f"refused without need: {refused[number]}: {line[:2000]!r}"
        else:
            assert {key: rows[number][key] for key in expected} == expected
    assert len(rows) > len(lines) / 10
    assert len(refused) > len(lines) / 10
