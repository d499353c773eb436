"""The files under schemas/ say what the code does."""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pyarrow as pa
import pytest

from annotation_tables import manifest
from pairwright.cli.schema_files import table_contracts, write_schemas
from pairwright.config import IngestConfig
from pairwright.data.ingest.adapters import parser_for
from pairwright.data.ingest.parse import parse_lines
from pairwright.data.table.table import SCHEMAS, Table
from pairwright.records import Rejection

DIRECTORY = Path(__file__).parents[2] / "schemas"

GOOD = {"id": "1", "prompt": "Why?", "completions": [{"text": "a"}, {"text": "b"}]}
ACCEPTED = {
    "ranks": GOOD | {"ranks": [1, 2]},
    "tied ranks": GOOD | {"ranks": [1, 1]},
    "scores": GOOD | {"scores": [0.5, 2]},
    "order": GOOD | {"order": ["1", "0"]},
    "a tie in the order": GOOD | {"order": [["1", "0"]]},
    "null judgements beside the one": GOOD | {"ranks": [1, 2], "scores": None, "order": None},
    "turns": GOOD | {"ranks": [1, 2], "prompt": [{"role": "user", "content": "Why?"}]},
    "a number as id": GOOD | {"ranks": [1, 2], "id": 1},
    "a rank that came through a column of floats": GOOD | {"ranks": [1.0, 2.0]},
    "a call and a text in parts": GOOD
    | {
        "completions": [
            {"text": None, "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}]},
            {"text": [{"type": "text", "text": "b"}]},
        ],
        "ranks": [1, 2],
        "tools": [{"type": "function", "function": {"name": "f"}}],
    },
    "everything": GOOD
    | {
        "completions": [{"text": "a", "id": "x", "model": "m"}, {"text": "b", "id": "y"}],
        "order": ["x", "y"],
        "grade": "slightly better",
        "annotator": "ann",
        "created_at": "2026-11-20T12:00:00Z",
        "subset": "s",
        "metadata": {"k": "v"},
    },
}
REFUSED = {
    "no judgement": GOOD,
    "two judgements": GOOD | {"ranks": [1, 2], "scores": [2, 1]},
    "only null judgements": GOOD | {"ranks": None},
    "an unknown field": GOOD | {"ranks": [1, 2], "rank": 1},
    "an unknown field of a completion": GOOD | {"ranks": [1, 2], "completions": [{"text": "a", "x": 1}, {"text": "b"}]},
    "a rank of zero": GOOD | {"ranks": [0, 1]},
    "a fractional rank": GOOD | {"ranks": [1, 1.5]},
    "a score that is text": GOOD | {"scores": ["1", "2"]},
    "one completion": GOOD | {"ranks": [1], "completions": [{"text": "a"}]},
    "an empty completion": GOOD | {"ranks": [1, 2], "completions": [{"text": " "}, {"text": "b"}]},
    "no prompt": {key: value for key, value in GOOD.items() if key != "prompt"} | {"ranks": [1, 2]},
    "an empty id": GOOD | {"ranks": [1, 2], "id": " "},
    "a list as id": GOOD | {"ranks": [1, 2], "id": [1]},
    "a grade of another name": GOOD | {"ranks": [1, 2], "grade": "best"},
    "a grade of three completions": GOOD
    | {"completions": [{"text": "a"}, {"text": "b"}, {"text": "c"}], "ranks": [1, 2, 3], "grade": "better"},
    "metadata that are no text": GOOD | {"ranks": [1, 2], "metadata": {"k": 1}},
}


def test_files_are_what_the_code_writes(tmp_path: Path) -> None:
    for path in write_schemas(tmp_path):
        committed = DIRECTORY / path.name
        assert committed.exists(), f"{path.name} is missing: run `pairwright schemas`"
        assert committed.read_text() == path.read_text(), (
            f"{path.name} is not what the code says: run `pairwright schemas`"
        )


@pytest.mark.parametrize("path", sorted(DIRECTORY.glob("*.json")), ids=lambda path: path.name)
def test_every_file_is_json_with_a_version_in_its_name(path: Path) -> None:
    json.loads(path.read_text())
    assert re.fullmatch(r"[a-z_]+\.v[1-9]\.json", path.name)


@pytest.mark.parametrize("record", ACCEPTED.values(), ids=[*ACCEPTED])
def test_the_annotation_schema_accepts_what_ingestion_accepts(record: dict[str, Any]) -> None:
    jsonschema.validate(record, table_contracts()["annotation"], jsonschema.Draft202012Validator)
    assert ingested(record) == (1, 0)


@pytest.mark.parametrize("record", REFUSED.values(), ids=[*REFUSED])
def test_the_annotation_schema_refuses_what_ingestion_refuses(record: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(record, table_contracts()["annotation"], jsonschema.Draft202012Validator)
    assert ingested(record) == (0, 1)


def ingested(record: dict[str, Any]) -> tuple[int, int]:
    config = IngestConfig()
    accepted, refused = parse_lines(json.dumps(record).encode(), 1, "file.jsonl", parser_for("native", config), config)
    return len(accepted), len(refused)


def test_a_written_manifest_keeps_its_contract(tmp_path: Path) -> None:
    table = Table(str(tmp_path / "table"), "pairs")
    table.commit(lambda newest: manifest(files=[table.write_data(SCHEMAS["pairs"].empty_table())]))
    written = json.loads((tmp_path / "table/versions/00000001.json").read_text())
    jsonschema.validate(written, table_contracts()["manifest"], jsonschema.Draft202012Validator)
    del written["files"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(written, table_contracts()["manifest"], jsonschema.Draft202012Validator)


def test_a_written_rejection_keeps_its_contract(tmp_path: Path) -> None:
    table = Table(str(tmp_path / "table"), "annotations")
    file = table.write_quarantined([Rejection(source="a", line=1, path="$", reason="not JSON", record="{")])
    written = json.loads((Path(table.url) / file.path).read_text())
    jsonschema.validate(written, table_contracts()["rejection"], jsonschema.Draft202012Validator)


@pytest.mark.parametrize("kind", ["annotations", "pairs", "tokens"])
def test_a_written_table_has_the_fields_of_its_contract(tmp_path: Path, kind: str) -> None:
    newest = table_contracts()[kind]["version"]
    rows = pa.Table.from_pylist([{field.name: some_value(field) for field in SCHEMAS[kind]}], schema=SCHEMAS[kind])
    fields = json.loads((DIRECTORY / f"{kind}.v{newest}.json").read_text())["fields"]
    assert_is_written_with(rows, kind, fields, tmp_path)


@pytest.mark.parametrize("kind", ["annotations", "pairs", "tokens"])
def test_a_table_that_uses_no_added_column_has_the_fields_of_the_first_version(tmp_path: Path, kind: str) -> None:
    fields = json.loads((DIRECTORY / f"{kind}.v1.json").read_text())["fields"]
    assert_is_written_with(SCHEMAS[kind].empty_table(), kind, fields, tmp_path)


def some_value(field: pa.Field) -> Any:
    if pa.types.is_list(field.type) or pa.types.is_map(field.type):
        return []
    return "" if pa.types.is_string(field.type) else 0


def assert_is_written_with(rows: pa.Table, kind: str, fields: list[dict[str, Any]], tmp_path: Path) -> None:
    table = Table(str(tmp_path / "table"), kind)
    file = table.write_data(rows)
    assert table.read_file(file).schema.equals(SCHEMAS[kind])
    schema = pa.ipc.open_file(tmp_path / "table" / file.path).schema
    assert [field["name"] for field in fields] == schema.names
    for field in fields:
        stored = schema.field(field["name"])
        assert field["nullable"] == stored.nullable
        assert field["meaning"] == stored.metadata[b"meaning"].decode()
        assert str(stored.type).startswith(field["type"])
