"""Flat rows: every pair of the table once, in the columns and types that TRL and `datasets` expect."""

import json
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from annotation_tables import annotation_row, annotations_table, manifest
from pairwright.config import ExpandConfig
from pairwright.data.pairs.build_pairs import expand_groups
from pairwright.data.pairs.flat_export import export_pairs
from pairwright.data.table.table import Table
from pairwright.errors import DataError, StoreError

Layout = Literal["parquet", "jsonl"]
LAYOUTS: list[Layout] = ["parquet", "jsonl"]
TURNS = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]

ROWS = [
    annotation_row(f"{i}", [f"{i} {text}" for text in "abcd"], [1, 2, 2, 3], prompt=f"Why {i}?") for i in range(60)
] + [annotation_row("tie", ["x", "y"], [1, 1], prompt="All tied?")]


def pairs_table(folder: Path, rows: list[dict[str, Any]] = ROWS, **config: Any) -> str:
    table = Table(str(folder / "pairs"), "pairs")
    halves = [expand_groups(annotations_table(part), ExpandConfig(**config))[0] for part in (rows[::2], rows[1::2])]
    files = [table.write_data(half) for half in halves]
    table.commit(lambda newest: manifest(files=files))
    return table.url


def exported(
    url: str, output: Path, layout: Layout, split: str | None = None, *, plain: bool = False
) -> list[dict[str, Any]]:
    path = output / f"flat.{layout}"
    path.unlink(missing_ok=True)
    num_rows = export_pairs(url, str(path), version=None, split=split, layout=layout, plain=plain)
    rows = pq.read_table(path).to_pylist() if layout == "parquet" else list(map(json.loads, path.open()))
    assert len(rows) == num_rows
    return rows


def expected_pairs(rows: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    return sorted(
        (row["prompt"][0]["content"], one["text"], other["text"])
        for row in rows
        for one, rank in zip(row["completions"], row["ranks"], strict=True)
        for other, worse in zip(row["completions"], row["ranks"], strict=True)
        if rank < worse
    )


def texts_of(rows: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    return sorted(tuple(row[name][0]["content"] for name in ("prompt", "chosen", "rejected")) for row in rows)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("plain", [False, True], ids=["conversational", "plain"])
def test_every_pair_is_one_row_of_its_texts_weight_and_margin(tmp_path: Path, layout: Layout, plain: bool) -> None:
    rows = exported(pairs_table(tmp_path), tmp_path, layout, plain=plain)
    if plain:
        texts = sorted((row["prompt"], row["chosen"], row["rejected"]) for row in rows)
    else:
        texts = texts_of(rows)
        assert {row["prompt"][0]["role"] for row in rows} == {"user"}
        assert {len(row[name]) for row in rows for name in ("prompt", "chosen", "rejected")} == {1}
        assert {row[side][0]["role"] for row in rows for side in ("chosen", "rejected")} == {"assistant"}
    assert texts == expected_pairs(ROWS)
    assert all(row["weight"] == pytest.approx(1 / 6) for row in rows)
    assert {row["margin"] for row in rows} == {0.0}
    assert [*rows[0]] == ["prompt", "chosen", "rejected", "weight", "margin"]


def test_no_row_has_a_null_margin_even_where_only_some_pairs_have_one(tmp_path: Path) -> None:
    """Pitfall 10: TRL looks for margins in the first row only, and fails on a null."""
    scored = [annotation_row("s", ["good", "bad"], scores=[3.0, 1.0], prompt="Scored?"), *ROWS]
    rows = exported(pairs_table(tmp_path, scored, margin="score_difference"), tmp_path, "parquet")
    assert {row["chosen"][0]["content"]: row["margin"] for row in rows if row["margin"]} == {"good": 2.0}
    assert not any(row["margin"] is None for row in rows)


def test_a_split_is_exported_alone_and_the_two_make_the_whole(tmp_path: Path) -> None:
    url = pairs_table(tmp_path, validation_fraction=0.5)
    both = {split: exported(url, tmp_path, "parquet", split) for split in ("train", "validation")}
    prompts = {split: {row["prompt"][0]["content"] for row in rows} for split, rows in both.items()}
    assert prompts["train"]
    assert prompts["validation"]
    assert not prompts["train"] & prompts["validation"]
    assert sum(map(len, both.values())) == len(expected_pairs(ROWS))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_prompt_of_several_turns_keeps_them(tmp_path: Path, layout: Layout) -> None:
    rows = exported(
        pairs_table(tmp_path, [annotation_row("t", ["a", "b"], [1, 2]) | {"prompt": TURNS}, *ROWS]), tmp_path, layout
    )
    (turns,) = [row for row in rows if len(row["prompt"]) == 2]
    assert turns["prompt"] == TURNS
    assert turns["chosen"] == [{"role": "assistant", "content": "a"}]
    assert turns["rejected"] == [{"role": "assistant", "content": "b"}]
    assert texts_of([row for row in rows if row is not turns]) == expected_pairs(ROWS)


@pytest.mark.parametrize("prompt", [TURNS, [{"role": "system", "content": "Be brief."}]], ids=["two turns", "system"])
def test_plain_rows_are_refused_where_they_would_lose_who_said_what(
    tmp_path: Path, prompt: list[dict[str, str]]
) -> None:
    odd = annotation_row("t", ["a", "b"], [1, 2]) | {"prompt": prompt}
    url = pairs_table(tmp_path, [*ROWS, odd])
    roles = ", ".join(turn["role"] for turn in prompt)
    with pytest.raises(DataError, match=rf"group {odd['group_id']}: .* turns {roles}, .*leave out --plain"):
        exported(url, tmp_path, "parquet", plain=True)
    assert not (tmp_path / "flat.parquet").exists()


def test_an_older_version_is_exported_as_it_was(tmp_path: Path) -> None:
    table = Table(pairs_table(tmp_path), "pairs")
    table.commit(lambda newest: manifest())
    assert export_pairs(table.url, str(tmp_path / "new.parquet"), version=None, split=None, layout="parquet") == 0
    assert pq.read_table(tmp_path / "new.parquet").num_rows == 0
    old = export_pairs(table.url, str(tmp_path / "old.parquet"), version=1, split=None, layout="parquet")
    assert old == len(expected_pairs(ROWS))


def test_a_failed_export_leaves_no_file_and_keeps_the_one_before(tmp_path: Path) -> None:
    url = pairs_table(tmp_path)
    table = Table.open(url, "pairs")
    exported(url, tmp_path, "parquet")
    whole = (tmp_path / "flat.parquet").read_bytes()
    path = table.local_path(table.manifest().files[1])
    assert path is not None
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    for name in ("flat.parquet", "other.parquet"):
        with pytest.raises(StoreError, match="damaged"):
            export_pairs(url, str(tmp_path / name), version=None, split=None, layout="parquet")
    assert (tmp_path / "flat.parquet").read_bytes() == whole
    assert not (tmp_path / "other.parquet").exists()


def test_an_output_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    output = str(tmp_path / "file" / "flat.jsonl")
    with pytest.raises(StoreError, match="file"):
        export_pairs(pairs_table(tmp_path), output, version=None, split=None, layout="jsonl")


def test_a_relative_output_lands_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    url = pairs_table(tmp_path)
    export_pairs(url, "flat.jsonl", version=None, split=None, layout="jsonl")
    assert (tmp_path / "flat.jsonl").exists()


def test_arrow_types_are_those_of_the_table(tmp_path: Path) -> None:
    exported(pairs_table(tmp_path), tmp_path, "parquet", plain=True)
    schema = pq.read_schema(tmp_path / "flat.parquet")
    assert [schema.field(name).type for name in ("prompt", "weight", "margin")] == [
        pa.string(),
        pa.float32(),
        pa.float32(),
    ]
