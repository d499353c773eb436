"""What a record says beside its texts: its rules, the ids that it enters, and tables that were made before it."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from annotation_tables import manifest
from pairwright.config import ExpandConfig, IngestConfig
from pairwright.data.identity import group_id, prompt_id
from pairwright.data.ingest.adapters import RecordError
from pairwright.data.ingest.parse import annotations_to_arrow
from pairwright.data.ingest.quality_warnings import count_quality_warnings
from pairwright.data.ingest.rules import ValidAnnotation, validate_annotation
from pairwright.data.pairs.build_pairs import expand_groups
from pairwright.data.profile.compact_rows import compact_rows
from pairwright.data.table.compact import merge
from pairwright.data.table.diff import hash_rows
from pairwright.data.table.table import Table
from pairwright.records import (
    ANNOTATIONS_SCHEMA,
    ANNOTATIONS_SCHEMA_V1,
    PAIRS_SCHEMA,
    PAIRS_SCHEMA_V1,
    Annotation,
    Completion,
    Message,
)

CALL = '{"tool_calls": [{"function": {"name": "w", "arguments": {"place": "Oslo"}}}]}'
OTHER_CALL = CALL.replace("Oslo", "Rome")
THOUGHT = '{"reasoning_content": "17 + 5 = 22."}'
TOOLS = '{"tools": [{"type": "function", "function": {"name": "w"}}]}'


def annotation(
    *extras: str | None, text: str = "So.", turn: str | None = None, context: str | None = None, **others: Any
) -> Annotation:
    prompt = [Message("user", "Weather?"), Message("assistant", "Where?", turn), Message("user", "Oslo.")]
    completions = [Completion(text, extra=extra) for extra in extras]
    given = {"id": "a", "prompt": prompt, "completions": completions, "ranks": [1, 2], "context": context}
    return Annotation(**(given | others))


def accept(*extras: str | None, **others: Any) -> ValidAnnotation:
    return validate_annotation(annotation(*extras, **others), IngestConfig(), "f.jsonl", 1)


def refusal(*extras: str | None, **others: Any) -> str:
    with pytest.raises(RecordError) as error:
        validate_annotation(annotation(*extras, **others), IngestConfig(max_characters=1000), "f.jsonl", 1)
    return f"{error.value.path}: {error.value.reason}"


@pytest.mark.parametrize("extra", [CALL, THOUGHT, '{"thinking": "hm"}'])
def test_a_reply_may_consist_of_calls_or_of_reasoning(extra: str) -> None:
    assert [one.extra for one in accept(extra, OTHER_CALL, text="").completions] == [extra, OTHER_CALL]


@pytest.mark.parametrize("extra", [None, '{"name": "w"}', '{"tool_calls": []}', '{"reasoning_content": " "}'])
def test_a_reply_of_neither_text_nor_calls_nor_reasoning_is_refused(extra: str | None) -> None:
    assert refusal(CALL, extra, text="") == "$.completions[1].text: expected text, got an empty completion"


@pytest.mark.parametrize(
    ("others", "reason"),
    [
        ({"context": '{"tools": ["w"]}'}, "$.tools[0]: expected `object`, got `str`"),
        ({"context": '{"tools": {}}'}, "$.tools: expected `array | null`, got `object`"),
        (
            {"context": '{"chat_template_kwargs": {"messages": []}}'},
            "$.chat_template_kwargs.messages: expected variables",
        ),
        ({"turn": '{"tool_calls": "w"}'}, "$.prompt[1].tool_calls: expected `array | null`, got `str`"),
        ({"turn": '{"weight": 1}'}, "$.prompt[1]: object contains unknown field `weight`"),
        ({"turn": '{"name": "' + "w" * 1000 + '"}'}, "$.prompt: expected a prompt of at most 1,000 characters"),
        ({"context": '{"tools": [{"a": "' + "w" * 1000 + '"}]}'}, "$.prompt: expected a prompt of at most 1,000"),
    ],
)
def test_what_no_template_could_take_is_refused_by_its_name(others: dict[str, Any], reason: str) -> None:
    assert refusal(None, CALL, **others).startswith(reason)


def test_a_reply_counts_with_its_calls_towards_max_characters() -> None:
    long = '{"thinking": "' + "w" * 1000 + '"}'
    assert refusal(None, long).startswith("$.completions[1].text: expected a completion of at most 1,000 characters")


def test_ids_of_plain_records_are_what_they_were_before_there_were_others() -> None:
    prompt = prompt_id([Message("system", "Be brief."), Message("user", "Name a lake.")])
    assert prompt == "afeb6cd16fc05db59adda6cd0371b77d"
    assert group_id(prompt, ["Lake Como.", "A puddle."]) == group_id(prompt, ["A puddle.", "Lake Como."], [None, None])
    assert group_id(prompt, ["Lake Como.", "A puddle."]) == "f764d156ac52d5698e6aca7faa2d622f"


def test_ids_tell_records_apart_that_differ_beside_their_texts_alone() -> None:
    plain, called, given = accept(None, CALL), accept(None, CALL, turn=CALL), accept(None, CALL, context=TOOLS)
    assert len({one.prompt_id for one in (plain, called, given)}) == 3
    groups = [accept(None, CALL), accept(CALL, None), accept(None, OTHER_CALL), accept(CALL, CALL), accept(None, None)]
    assert len({one.group_id for one in groups}) == 4
    assert groups[0].group_id == groups[1].group_id
    beside = prompt_id([Message("user", "a", CALL)])
    assert beside not in (
        prompt_id([Message("user", "a" + CALL)]),
        prompt_id([Message("user", "a"), Message(CALL, "")]),
    )


def test_completions_that_differ_beside_their_texts_are_a_pair_and_meet_across_annotations(tmp_path: Path) -> None:
    first, second = accept(CALL, OTHER_CALL, context=TOOLS), accept(OTHER_CALL, CALL, context=TOOLS, id="b")
    same = accept(CALL, CALL, id="c")
    rows = annotations_to_arrow([first, second, same])
    rows.validate(full=True)
    pairs, totals = expand_groups(rows, ExpandConfig())
    assert (totals["groups"], totals["pairs"], totals["conflicting"], totals["identical"]) == (2, 2, 1, 1)
    assert [len(row["pairs"]) for row in pairs.to_pylist() if row["context"] == TOOLS] == [2]
    table = Table(str(tmp_path / "t"), "annotations")
    assert count_quality_warnings(table, table.write_data(rows)).identical_ranked_apart == 1
    texts = compact_rows(rows, {})["texts"].to_pylist()
    assert [len(set(hashes)) for hashes in texts] == [2, 2, 1]
    assert texts[0] == texts[1]


def stored(table: Table, rows: pa.Table) -> tuple[Any, pa.Schema]:
    file = table.write_data(rows)
    return file, pa.ipc.open_file(table.local_path(file)).schema


def test_files_without_anything_beside_texts_are_of_the_first_version_byte_for_byte(tmp_path: Path) -> None:
    """The digests of tables stay what they were, and an older Pairwright reads them."""
    annotations, pairs = Table(str(tmp_path / "a"), "annotations"), Table(str(tmp_path / "p"), "pairs")
    plain, full = annotations_to_arrow([accept(None, None)]), annotations_to_arrow([accept(None, CALL)])
    assert stored(annotations, plain)[1].equals(ANNOTATIONS_SCHEMA_V1, check_metadata=True)
    assert stored(annotations, full)[1].equals(ANNOTATIONS_SCHEMA, check_metadata=True)
    assert stored(pairs, expand_groups(plain, ExpandConfig())[0])[1].equals(PAIRS_SCHEMA_V1, check_metadata=True)
    assert stored(pairs, expand_groups(full, ExpandConfig())[0])[1].equals(PAIRS_SCHEMA, check_metadata=True)


@pytest.mark.parametrize("beside", ["a turn", "a reply", "the turns"])
def test_a_table_of_both_versions_reads_compacts_compares_and_expands_as_one(tmp_path: Path, beside: str) -> None:
    table = Table(str(tmp_path / "t"), "annotations")
    others = {"a turn": {"turn": CALL}, "a reply": {}, "the turns": {"context": TOOLS}}[beside]
    rows = [
        annotations_to_arrow([accept(None, None, id="old", text="A.")]),
        annotations_to_arrow([accept(None, CALL if beside == "a reply" else None, id="new", **others)]),
    ]
    files = [table.write_data(each) for each in rows]
    table.commit(lambda _: manifest(kind="annotations", files=files))
    read = [*table.read(table.manifest())]
    assert all(each.schema.equals(ANNOTATIONS_SCHEMA, check_metadata=True) for each in read)
    assert [each.to_pylist() for each in read] == [each.to_pylist() for each in rows]
    merged = merge(table, files).file
    assert table.read_file(merged).to_pylist() == [row for each in rows for row in each.to_pylist()]
    assert table.read_file(merged, ["context", "id"]).column_names == ["context", "id"]
    assert table.read_file(files[0], ["context"]).to_pylist() == [{"context": None}]
    assert hash_rows(table, merged).contents == b"".join(hash_rows(table, file).contents for file in files)
    _, totals = expand_groups(table.read_file(merged), ExpandConfig())
    assert (totals["annotations"], totals["groups"]) == (2, 2)
