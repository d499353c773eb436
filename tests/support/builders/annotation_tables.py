"""Annotations tables for tests, written out by hand: nothing here calls the code that ingests."""

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import zstandard

from pairwright.data.table.table import Manifest, Table
from pairwright.records import ANNOTATIONS_SCHEMA

REAL_RANKINGS = Path(__file__).parents[3].parent / "shared/data/rankings_dev.jsonl.zst"


def annotation_row(
    name: str,
    texts: Sequence[str],
    ranks: Sequence[int] | None = None,
    *,
    scores: Sequence[float] | None = None,
    prompt: str = "Why is the sky blue?",
    annotator: str | None = None,
    **others: Any,
) -> dict[str, Any]:
    """Return one row of ANNOTATIONS_SCHEMA; ranks come from the scores where they are not given."""
    if ranks is None:
        assert scores is not None
        ranks = [-score for score in scores]  # type: ignore[assignment]
    assert ranks is not None
    places = {rank: place for place, rank in enumerate(sorted(set(ranks)), start=1)}
    row = {
        "id": name,
        "group_id": _hash([prompt, *sorted(texts)]),
        "prompt_id": _hash([" ".join(prompt.split())]),
        "prompt": [{"role": "user", "content": prompt}],
        "completions": [{"id": str(i), "text": text, "model": None} for i, text in enumerate(texts)],
        "ranks": [places[rank] for rank in ranks],
        "scores": None if scores is None else list(scores),
        "grade": None,
        "annotator": annotator,
        "created_at": None,
        "subset": None,
        "metadata": None,
        "source": "file.jsonl",
        "line": 1,
    }
    return row | others


def annotations_table(rows: Sequence[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=ANNOTATIONS_SCHEMA)


def real_rows() -> list[dict[str, Any]]:
    """Return the rows of the real rankings, or skip the test where they are absent."""
    if not REAL_RANKINGS.exists():
        pytest.skip(f"real rankings are absent: {REAL_RANKINGS.name}")
    with zstandard.open(REAL_RANKINGS, "rb") as stream:
        records = [json.loads(line) for line in io.BytesIO(stream.read())]
    rows = [
        annotation_row(
            record["id"],
            [answer["text"] for answer in record["answers"]],
            [answer["rank"] for answer in record["answers"]],
            prompt=record["instruction"],
            annotator=record["judge"],
            subset=record["subset"],
            line=line,
        )
        for line, record in enumerate(records, start=1)
    ]
    for row, record in zip(rows, records, strict=True):
        for completion, answer in zip(row["completions"], record["answers"], strict=True):
            completion["model"] = answer["model"]
    return rows


def commit_annotations(url: str, tables: Sequence[pa.Table]) -> Manifest:
    """Make the tables, a file each, the next version of the annotations table at a URL."""
    target = Table(url, "annotations")
    files = [target.write_data(table) for table in tables]
    committed = target.commit(lambda newest: manifest(kind="annotations", files=files))
    assert committed is not None
    return committed


def manifest(**fields: Any) -> Manifest:
    """Return a manifest with nothing in it but the given fields."""
    empty: dict[str, Any] = {
        "kind": "pairs",
        "operation": "test",
        "files": [],
        "quarantined_files": [],
        "totals": {},
        "sources": [],
        "inputs": [],
        "config": {},
        "config_digest": "",
    }
    return Manifest(**(empty | fields))


def _hash(parts: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(parts)).encode()).hexdigest()[:32]
