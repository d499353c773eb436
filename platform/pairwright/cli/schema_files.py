"""Writes the data contracts under ``schemas/``, for readers in any language.

JSON data has a JSON Schema, Arrow data a list of fields. A test holds the files equal to the code. A released file is
never edited: a change of contract is a v2 beside the v1. The v2 of a table adds columns that may be null, so files of a
v1 are files of a v2 too (data/table/arrow_io.py).
"""

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa

from pairwright.data.profile.profile_schema import TableMetrics
from pairwright.data.storage.outputs import check_output, put_output
from pairwright.data.table.manifest import Manifest
from pairwright.evaluation.load_exported import InputRules
from pairwright.evaluation.reports.comparison import Comparison
from pairwright.evaluation.reports.report_schema import Report
from pairwright.evaluation.reports.stored_temperature import StoredTemperature
from pairwright.evaluation.reports.sweep_table import Sweep
from pairwright.evaluation.score_files import ScoresManifest
from pairwright.model.model_export import SelfCheck
from pairwright.records import (
    ANNOTATIONS_SCHEMA,
    ANNOTATIONS_SCHEMA_V1,
    INDEX_FILE_SCHEMA,
    PAIRS_SCHEMA,
    PAIRS_SCHEMA_V1,
    SCORES_SCHEMA,
    TOKENS_SCHEMA,
    TOKENS_SCHEMA_V1,
    Annotation,
    Rejection,
)
from pairwright.runs.run_dir import TrainingSummary
from pairwright.runs.run_identity import RunIdentity
from pairwright.training.checkpoint import CheckpointManifest, ShardFile

_DRAFT = "https://json-schema.org/draft/2020-12/schema"
_CONTRACT = "a contract of `pairwright schemas`"
_JUDGEMENTS = ("ranks", "scores", "order")
_NATIVE = "One line of native input (JSON Lines, UTF-8): one annotator's judgement of one group."
_TABLE = "Rows of data/*.arrow (Arrow IPC file format) in {} table."
_V2 = "Of files with a row that says something that version 2 added; others are in version 1."


def all_contracts() -> dict[str, dict[str, Any]]:
    """Return the contracts of the tables, of a run's folder, of an exported model and of what is made with it."""
    return table_contracts() | {
        "run": json_contract(RunIdentity, "run", "run.json in a run's folder: what decides its result."),
        "training": json_contract(
            TrainingSummary, "training", "summary.json in a run's folder: written when it has finished."
        ),
        "checkpoint": json_contract(CheckpointManifest, "checkpoint", "checkpoint.json in a checkpoint: its identity."),
        "checkpoint_file": json_contract(
            ShardFile, "checkpoint_file", "An entry of files-<rank, 5 digits>.json in a checkpoint."
        ),
        "self_check": json_contract(SelfCheck, "self_check", "self_check.json in a model directory."),
        "model_input": json_contract(InputRules, "model_input", "pairwright.json in a model directory."),
        "report": json_contract(Report, "report", "What `pairwright evaluate` writes."),
        "sweep": json_contract(Sweep, "sweep", "What `pairwright sweep` writes."),
        "comparison": json_contract(Comparison, "comparison", "What `pairwright compare` writes."),
        "temperature": json_contract(StoredTemperature, "temperature", "temperature.json beside a model's directory."),
        "table_report": json_contract(TableMetrics, "table_report", "What `pairwright report --json` prints."),
        "scores_manifest": json_contract(ScoresManifest, "scores_manifest", "What `pairwright score` writes last."),
    }


def write_schemas(directory: Path, *, overwrite: bool = False) -> list[Path]:
    """Write every contract as ``<name>.v<version>.json``, and return the paths in order of name."""
    return write_documents(directory, all_contracts(), overwrite=overwrite)


def write_documents(directory: Path, documents: Mapping[str, dict[str, Any]], *, overwrite: bool) -> list[Path]:
    """Write contracts as ``<name>.v<version>.json``, and return the paths in order of name.

    Raises:
        StoreError: if a file of that name is not such a contract, or one of other content and ``overwrite`` is False,
            or one cannot be written; then nothing is.
    """
    contents = {
        directory / _file_name(document): json.dumps(document, indent=2, ensure_ascii=False).encode() + b"\n"
        for _, document in sorted(documents.items())
    }
    for path, content in contents.items():
        if not path.is_file() or path.read_bytes() != content:
            check_output(str(path), _is_contract, what=_CONTRACT, overwrite=overwrite)
    for path, content in contents.items():
        put_output(str(path), content, _is_contract, what=_CONTRACT, overwrite=overwrite)
    return list(contents)


def _file_name(document: Mapping[str, Any]) -> str:
    return document["$id"] if "$id" in document else f"{document['name']}.v{document['version']}.json"


def _is_contract(content: bytes) -> bool:
    try:
        found = json.loads(content)
    except ValueError:
        return False
    return isinstance(found, dict) and (found.get("$schema") == _DRAFT or {"name", "version", "fields"} <= found.keys())


def table_contracts() -> dict[str, dict[str, Any]]:
    """Return the contracts by name: the input record, the tables, their manifest, and refused records.

    An earlier version that is still valid is listed by its name and version.
    """
    annotations, pairs = _TABLE.format("an annotations"), _TABLE.format("a pairs")
    return {
        "annotation": _annotation_contract(2),
        "annotation.v1": _annotation_contract(1),
        "annotations": arrow_contract("annotations", ANNOTATIONS_SCHEMA, f"{annotations} {_V2}", version=2),
        "annotations.v1": arrow_contract("annotations", ANNOTATIONS_SCHEMA_V1, annotations),
        "pairs": arrow_contract("pairs", PAIRS_SCHEMA, f"{pairs} {_V2}", version=2),
        "pairs.v1": arrow_contract("pairs", PAIRS_SCHEMA_V1, pairs),
        "tokens": arrow_contract("tokens", TOKENS_SCHEMA, f"{_TABLE.format('a tokens')} {_V2}", version=2),
        "tokens.v1": arrow_contract("tokens", TOKENS_SCHEMA_V1, _TABLE.format("a tokens")),
        "scores": arrow_contract("scores", SCORES_SCHEMA, "Rows that `pairwright score` writes."),
        "manifest": _manifest_contract(),
        "id_index": arrow_contract("id_index", INDEX_FILE_SCHEMA, "Content of index/*.ids, little-endian, unframed."),
        "rejection": json_contract(Rejection, "rejection", "One refused record: a line of quarantine/*.jsonl."),
    }


def arrow_contract(name: str, schema: pa.Schema, description: str, *, version: int = 1) -> dict[str, Any]:
    """Return an Arrow schema as JSON: name, type, nullable, unit and meaning of each field, and nested fields."""
    return {
        "name": name,
        "version": version,
        "description": description,
        "fields": [_arrow_field(field) for field in schema],
    }


def _arrow_field(field: pa.Field) -> dict[str, Any]:
    metadata = {key.decode(): value.decode() for key, value in (field.metadata or {}).items()}
    children = [_arrow_field(child) for child in _children(field.type)]
    return {
        "name": field.name,
        "type": _type_name(field.type),
        "nullable": field.nullable,
        **{key: metadata[key] for key in ("since", "unit", "meaning") if key in metadata},
        **({"children": children} if children else {}),
    }


def _children(type_: pa.DataType) -> list[pa.Field]:
    match type_:
        case pa.MapType():
            return [type_.key_field, type_.item_field]
        case pa.ListType():
            return [type_.value_field]
        case pa.StructType():
            return list(type_)
        case _:
            return []


def _type_name(type_: pa.DataType) -> str:
    match type_:
        case pa.MapType():
            return "map"
        case pa.ListType():
            return "list"
        case pa.StructType():
            return "struct"
        case _:
            return str(type_)


def json_contract(kind: type[msgspec.Struct], name: str, description: str, *, version: int = 1) -> dict[str, Any]:
    """Return a struct as JSON Schema, with the first line of each docstring as its description."""
    schema = msgspec.json.schema(kind)
    for definition in schema["$defs"].values():
        definition["description"] = inspect.cleandoc(definition["description"]).partition("\n")[0]
    return {"$schema": _DRAFT, "$id": f"{name}.v{version}.json", "title": name, "description": description, **schema}


def _manifest_contract() -> dict[str, Any]:
    contract = json_contract(Manifest, "manifest", "One version of a table: versions/<version, 8 digits>.json.")
    definition = contract["$defs"]["Manifest"]
    for field in definition["properties"].values():
        field.pop("default", None)  # a manifest is written whole
    definition["required"] = list(definition["properties"])
    return contract


def _annotation_contract(version: int) -> dict[str, Any]:
    """Return the contract of an input line: its types, and the rules that a schema can express."""
    contract = json_contract(Annotation, "annotation", _NATIVE, version=version)
    definitions = contract["$defs"]
    definitions["Completion"]["properties"]["text"] |= {"pattern": r"\S"}
    for name, field in (("Message", "extra"), ("Completion", "extra"), ("Annotation", "context")):
        del definitions[name]["properties"][field]  # a record has its fields beside the text
    if version > 1:
        _add_version_2(definitions)
    properties = definitions["Annotation"]["properties"]
    properties["id"] |= {"pattern": r"\S"} | ({"type": ["string", "integer"]} if version > 1 else {})
    properties["completions"] |= {"minItems": 2}
    for choice in properties["ranks"]["anyOf"]:
        if choice["type"] == "array":
            choice["items"] |= {"minimum": 1}
    definitions["Annotation"]["dependentSchemas"] = {
        "grade": {
            "anyOf": [{"properties": {"grade": {"type": "null"}}}, {"properties": {"completions": {"maxItems": 2}}}]
        }
    }
    definitions["Annotation"]["oneOf"] = [_only(name) for name in _JUDGEMENTS]
    return contract


def _add_version_2(definitions: dict[str, Any]) -> None:
    """Add what version 2 has: text in parts, fields of a turn beside its text, and variables of the chat template."""
    parts = {"type": "array", "items": {"$ref": "#/$defs/TextPart"}}
    definitions["TextPart"] = {
        "type": "object",
        "description": "A part of a text; the parts are joined.",
        "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
        "required": ["type", "text"],
    }
    for name, text in (("Message", "content"), ("Completion", "text")):
        properties = definitions[name]["properties"]
        properties[text] = {"anyOf": [properties[text], parts, {"type": "null"}]}
        properties |= {field: _BESIDE_TEXT[field] for field in _BESIDE_TEXT}
        speaks = [{"required": [field], "properties": {field: _SPEAKS[field]}} for field in _SPEAKS]
        definitions[name]["anyOf"] = [{"properties": {text: {"type": ["string", "array"]}}}, *speaks]
    text = definitions["Completion"]["properties"]["text"]
    del text["anyOf"][0]["pattern"]
    definitions["Completion"]["anyOf"][0]["properties"]["text"] |= {"pattern": r"\S"}
    definitions["Annotation"]["properties"] |= {
        "tools": _or_null({"type": "array", "items": {"type": "object"}}, "the tools that the chat template is given"),
        "chat_template_kwargs": _or_null({"type": "object"}, "variables that the chat template is given"),
    }


def _or_null(schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}], "default": None, "description": description}


_BESIDE_TEXT = {
    "tool_calls": _or_null({"type": "array", "items": {"type": "object"}}, "the calls that the turn makes"),
    "tool_call_id": _or_null({"type": "string"}, "the call that the turn answers"),
    "name": _or_null({"type": "string"}, "the tool or the person that speaks"),
    "reasoning_content": _or_null({"type": "string"}, "what was thought before the text"),
    "thinking": _or_null({"type": "string"}, "another name of reasoning_content"),
}
_SPEAKS = {
    "tool_calls": {"type": "array", "minItems": 1},
    "reasoning_content": {"type": "string", "pattern": r"\S"},
    "thinking": {"type": "string", "pattern": r"\S"},
}
"""Fields by which a turn is valid without any text."""


def _only(name: str) -> dict[str, Any]:
    others = {other: {"type": "null"} for other in _JUDGEMENTS if other != name}
    return {"required": [name], "properties": {name: {"type": "array"}, **others}}
