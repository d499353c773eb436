"""Rules of one record: what is refused, in which words, and what an accepted one becomes."""

import copy
import unicodedata
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pairwright.config import IngestConfig
from pairwright.data.ingest.adapters import RecordError, native
from pairwright.data.ingest.parse import (
    ValidAnnotation,
    annotations_to_arrow,
    group_id,
    parse_lines,
    prompt_id,
    reason_key,
)
from pairwright.records import ANNOTATIONS_SCHEMA, Annotation, Message, Rejection

CONFIG = IngestConfig(max_completions=9, max_characters=100)
GOOD: dict[str, Any] = {
    "id": "a1",
    "prompt": "Why?",
    "completions": [{"text": "x", "id": "A"}, {"text": "y", "id": "B"}, {"text": "z", "id": "C"}],
    "ranks": [1, 2, 2],
}


def parse(line: bytes) -> tuple[list[ValidAnnotation], list[Rejection]]:
    return parse_lines(line, 417, "annotations.jsonl", native, CONFIG)


def accept(**change: object) -> ValidAnnotation:
    annotations, rejections = parse(msgspec.json.encode(changed(**change)))
    assert not rejections, str(rejections[0])
    return annotations[0]


def refuse(line: bytes) -> Rejection:
    annotations, rejections = parse(line)
    assert not annotations
    assert len(rejections) == 1
    return rejections[0]


def changed(**change: object) -> dict[str, Any]:
    record = copy.deepcopy(GOOD)
    for key, value in change.items():
        if value is None:
            del record[key]
        else:
            record[key] = value
    return record


TWO = [{"text": "x"}, {"text": "y"}]


@pytest.mark.parametrize(
    ("change", "path", "reason"),
    [
        (
            {"prompt": None},
            "$",
            "missing field `prompt`; name the layout of a foreign record (--format, or [fields] in",
        ),
        ({"id": [5]}, "$.id", "expected `str`, got `array`"),
        ({"id": " "}, "$.id", "expected a name, got an empty id; every record needs an id of its own"),
        ({"score": 1}, "$", "unknown field, got `score`; put it under `metadata`"),
        ({"prompt": 5}, "$.prompt", "expected `str | array`, got `int`"),
        ({"prompt": " \n"}, "$.prompt", "expected text, got an empty prompt"),
        ({"prompt": []}, "$.prompt", "expected text, got an empty prompt"),
        ({"prompt": "p" * 101}, "$.prompt", "expected a prompt of at most 100 characters, got 101; set max_characters"),
        ({"prompt": [{"role": "user"}]}, "$.prompt[0]", "missing field `content`"),
        (
            {"prompt": [{"role": "", "content": "q"}]},
            "$.prompt[0].role",
            "expected a role such as user, got an empty one",
        ),
        ({"completions": TWO[:1]}, "$.completions", "expected 2 to 9 completions, got 1; one alone cannot be ranked"),
        ({"completions": []}, "$.completions", "expected 2 to 9 completions, got 0"),
        ({"completions": TWO * 5}, "$.completions", "expected 2 to 9 completions, got 10; set max_completions"),
        ({"completions": [{"text": "x"}, "y"]}, "$.completions[1]", "expected `object`, got `str`"),
        (
            {"completions": [{"text": "x"}, {"text": ""}]},
            "$.completions[1].text",
            "expected text, got an empty completion",
        ),
        (
            {"completions": [{"text": "\u2003\n"}, {"text": "y"}]},
            "$.completions[0].text",
            "expected text, got an empty",
        ),
        (
            {"completions": [{"text": "x"}, {"text": "y" * 101}]},
            "$.completions[1].text",
            "expected a completion of at most",
        ),
        (
            {"completions": [{"text": "x", "id": "1"}, {"text": "y"}]},
            "$.completions[1].id",
            "expected ids of their own, got `1` as for completion 0; a completion without an id goes by its index",
        ),
        ({"ranks": None}, "$", "expected exactly one of ranks, scores and order, got none of them"),
        ({"scores": [1, 2, 3]}, "$", "expected exactly one of ranks, scores and order, got ranks and scores"),
        ({"ranks": [1, 2]}, "$.ranks", "expected one rank a completion, got 2 for 3 completions"),
        ({"ranks": [1, 2, 0]}, "$.ranks[2]", "expected `int` >= 1 (1 = best), got 0"),
        ({"ranks": [1, 2, -(10**17)]}, "$.ranks[2]", "expected `int` >= 1 (1 = best), got -1"),
        ({"ranks": [1, 2, 1.5]}, "$.ranks[2]", "expected `int`, got `float`"),
        ({"ranks": [1, True, 2]}, "$.ranks[1]", "expected `int`, got `bool`"),
        ({"ranks": None, "scores": [1, 2]}, "$.scores", "expected one score a completion, got 2 for 3 completions"),
        ({"ranks": None, "scores": [1, 2, "3"]}, "$.scores[2]", "expected `float`, got `str`"),
        ({"ranks": None, "order": ["A", "B"]}, "$.order", "expected every completion's id, got none of `C`"),
        ({"ranks": None, "order": ["A", "B", "D"]}, "$.order[2]", "expected the id of a completion, got `D`"),
        (
            {"ranks": None, "order": ["A", ["B", "A"], "C"]},
            "$.order[1]",
            "expected each completion once, got `A` again",
        ),
        ({"ranks": None, "order": ["A", [["B"]]]}, "$.order[1][0]", "expected `str`, got `array`"),
        ({"created_at": "yesterday"}, "$.created_at", "expected ISO 8601 such as 2026-11-20T14:05:00Z"),
        ({"created_at": "0001-01-01T00:00:00+14:00"}, "$.created_at", "expected ISO 8601"),
        ({"metadata": {"k": 1}}, "$.metadata[...]", "expected `str`, got `int`"),
        ({"grade": "better"}, "$.grade", "expected a grade with two completions alone, got 3"),
        (
            {"completions": TWO, "ranks": [2, 2], "grade": "better"},
            "$.grade",
            "expected a grade with a better completion, got a tie",
        ),
        (
            {"grade": "much better"},
            "$.grade",
            "expected one of significantly better, better, slightly better, negligibly better, got `much better`",
        ),
    ],
)
def test_a_record_that_breaks_a_rule_says_where_and_what(change: dict[str, object], path: str, reason: str) -> None:
    refused = refuse(msgspec.json.encode(changed(**change)))
    assert (refused.path, refused.reason[: len(reason)]) == (path, reason)
    assert str(refused).startswith("annotations.jsonl:417: ")


LINE = msgspec.json.encode(GOOD)
NAN_LINE = LINE.replace(b'"ranks":[1,2,2]', b'"scores":[1,NaN,2]')


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"null", "expected `object`, got `null`"),
        (b"[]", "expected `object`, got `array`"),
        (LINE[:30], "not JSON: the record is cut off; a record stands on one whole line"),
        (LINE + LINE, "not JSON: trailing characters"),
        (
            LINE.replace(b"Why?", b"Why\xff?"),
            "expected UTF-8, got byte 0xff at byte 24 of the line; write the source in UTF-8, "
            "or set cells.encoding of a CSV file (cp1252, latin-1, ...)",
        ),
        (LINE.replace(b"Why?", b"\xed\xa0\x80"), "expected UTF-8, got byte 0xed"),
        (LINE.replace(b"Why?", b"\\ud800"), "not JSON: \\ud800 to \\udfff stand in pairs"),
        (
            LINE.replace(b"Why?", b"a\rb"),
            f"not JSON: invalid character (byte {LINE.index(b'Why?') + 1}); it holds a bare carriage return",
        ),
        (LINE + b"\r" + LINE, "not JSON: trailing characters"),
        (
            NAN_LINE,
            f"not JSON: invalid character (byte {NAN_LINE.index(b'NaN')}); NaN and Infinity",
        ),
        (LINE.replace(b'"ranks":[1,2,2]', b'"scores":[1,-Infinity,2]'), "not JSON: invalid character"),
        (LINE.replace(b'"ranks":[1,2,2]', b'"scores":[1,1e999,2]'), "number out of range"),
        (LINE.replace(b"[1,2,2]", b"[1,2," + b"9" * 5000 + b"]"), "integer value out of range"),
        (b"[" * 100_000, "expected `object`, got `array`"),
        (b'{"id":' + b'{"a":' * 100_000, "expected `str`, got `object`"),
        (b"\xef\xbb\xbf" + LINE, "not JSON: invalid character (byte 0)"),
    ],
)
def test_a_line_that_is_no_record_is_refused_with_its_reason(line: bytes, reason: str) -> None:
    assert refuse(line).reason.startswith(reason)


def test_lines_that_end_in_a_bare_carriage_return_are_told_so() -> None:
    assert "it holds a bare carriage return: end lines with" in refuse(LINE + b"\r" + LINE + b"\r").reason


def test_nesting_without_end_is_refused_in_foreign_records() -> None:
    from pairwright.config import FieldPaths
    from pairwright.data.ingest.adapters import parser_for

    fields = FieldPaths(prompt="p", completions="c", ranks="r")
    _, rejections = parse_lines(
        b'{"p":' + b"[" * 100_000, 1, "x", parser_for("fields", IngestConfig(fields=fields)), CONFIG
    )
    assert rejections[0].reason == "nested too deeply for a record"


def test_each_judgement_of_a_record_is_taken_or_refused_by_itself() -> None:
    def three(line: bytes) -> list[Annotation | RecordError]:
        (annotation,) = native(line)
        tied_short = msgspec.structs.replace(annotation, id="a2", ranks=[1, 1])
        return [annotation, RecordError("skipped by its annotator", path="$.answers[1]"), tied_short]

    annotations, rejections = parse_lines(LINE + b"\n\n{}", 417, "x", three, CONFIG)

    assert [(one.id, one.line) for one in annotations] == [("a1", 417)]
    assert [(one.line, one.path) for one in rejections] == [(417, "$.answers[1]"), (417, "$.ranks"), (419, "$")]


def test_a_refused_record_keeps_the_first_ten_thousand_characters() -> None:
    assert refuse(b"\xff" + b"x" * 50_000).record == "\ufffd" + "x" * 9_999


def test_alike_reasons_count_together_and_unlike_ones_apart() -> None:
    ranks = [refuse(msgspec.json.encode(changed(ranks=ranks))) for ranks in ([0, 1, 1], [1, -4, 1])]
    assert {reason_key(one) for one in ranks} == {"expected `int` >= 1 (1 = best) at $.ranks[]"}
    assert reason_key(refuse(msgspec.json.encode(changed(foo=1)))) == "unknown field"
    assert reason_key(refuse(LINE[:-1] + b",")).startswith("not JSON: ")


@pytest.mark.parametrize(
    ("judgement", "ranks"),
    [
        ({"ranks": [1, 2, 3]}, [1, 2, 3]),
        ({"ranks": [7, 7, 2]}, [2, 2, 1]),
        ({"ranks": [2**80, 3, 5]}, [3, 1, 2]),
        ({"ranks": None, "scores": [0.5, 9, -1]}, [2, 1, 3]),
        ({"ranks": None, "scores": [0.0, -0.0, 1]}, [2, 2, 1]),
        ({"ranks": None, "order": ["C", "A", "B"]}, [2, 3, 1]),
        ({"ranks": None, "order": [["C", "A"], "B"]}, [1, 2, 1]),
        ({"ranks": None, "order": ["B", [], ["A", "C"]]}, [2, 1, 2]),
    ],
)
def test_every_judgement_becomes_ranks_without_gaps(judgement: dict[str, Any], ranks: list[int]) -> None:
    assert accept(**judgement).ranks == ranks


def test_times_become_utc() -> None:
    assert accept(created_at="2026-11-20T14:05:00+02:00").created_at == datetime(2026, 11, 20, 12, 5, tzinfo=UTC)
    assert accept(created_at="2026-11-20").created_at == datetime(2026, 11, 20, tzinfo=UTC)


def test_a_line_separator_within_a_string_cuts_no_record() -> None:
    text = "one\u2028two\u2029three\u0085four\x0bfive"
    line = msgspec.json.encode(changed(prompt=text))
    assert "\u2028".encode() in line
    annotations, rejections = parse(line + b"\r\n" + line.replace(b"a1", b"a2"))
    assert not rejections
    assert [annotation.prompt[0].content for annotation in annotations] == [text, text]
    assert [annotation.line for annotation in annotations] == [417, 418]


def test_prompt_id_ignores_white_space_and_composition_but_no_letter_and_no_role() -> None:
    def of(text: str, role: str = "user") -> str:
        return prompt_id([Message(role=role, content=text)])

    assert of("caf\u00e9  au\nlait ") == of(unicodedata.normalize("NFD", "caf\u00e9 au lait"))
    assert of("a") != of("A")
    assert of("a") != of("a", "system")
    assert prompt_id([Message("user", "ab")]) != prompt_id([Message("user", "a"), Message("user", "b")])


def test_group_id_ignores_the_order_of_completions_and_nothing_else() -> None:
    assert group_id("p", ["a", "b"]) == group_id("p", ["b", "a"])
    assert len({group_id("p", texts) for texts in (["a", "b"], ["a", "b", "b"], ["ab", ""], ["a ", "b"])}) == 4
    assert group_id("p", ["a", "b"]) != group_id("q", ["a", "b"])


def test_the_table_holds_what_the_records_said() -> None:
    annotations = [
        accept(),
        accept(
            id="a2",
            prompt=[{"role": "system", "content": ""}, {"role": "user", "content": "q"}],
            completions=[{"text": "x", "model": "m"}, {"text": "y"}],
            ranks=None,
            scores=[1, 2.5],
            annotator="ann",
            created_at="2026-11-20T14:05:00Z",
            subset="s",
            metadata={"k": "v"},
            grade="slightly better",
        ),
    ]
    table = annotations_to_arrow(annotations)
    table.validate(full=True)
    assert table.schema.equals(ANNOTATIONS_SCHEMA, check_metadata=True)
    first, second = table.to_pylist()
    assert first["completions"][2] == {"id": "C", "text": "z", "model": None, "extra": None}
    assert (first["scores"], first["metadata"], first["created_at"]) == (None, None, None)
    assert second["prompt"] == [
        {"role": "system", "content": "", "extra": None},
        {"role": "user", "content": "q", "extra": None},
    ]
    assert second["completions"] == [
        {"id": "0", "text": "x", "model": "m", "extra": None},
        {"id": "1", "text": "y", "model": None, "extra": None},
    ]
    assert (second["ranks"], second["scores"]) == ([2, 1], [1.0, 2.5])
    assert second["metadata"] == [("k", "v")]
    assert (first["grade"], second["grade"]) == (None, "slightly better")
    assert (second["annotator"], second["subset"]) == ("ann", "s")
    assert second["created_at"] == datetime(2026, 11, 20, 14, 5, tzinfo=UTC)
    assert (second["source"], second["line"]) == ("annotations.jsonl", 417)
    assert annotations_to_arrow([]).num_rows == 0


@given(
    st.lists(st.one_of(st.just(LINE), st.just(b""), st.just(b" \r"), st.binary(max_size=20)), max_size=20),
    st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 255)), max_size=8),
)
def test_whatever_is_in_a_file_every_line_is_accepted_refused_or_blank(
    lines: list[bytes], mutations: list[tuple[int, int]]
) -> None:
    text = bytearray(b"\n".join(lines))
    for position, value in mutations:
        if text:
            text[position % len(text)] = value
    annotations, rejections = parse(bytes(text))
    numbers = [one.line for one in annotations] + [one.line for one in rejections]
    is_blank = [not line.strip() for line in bytes(text).split(b"\n")]
    assert sorted(numbers) == [417 + index for index, blank in enumerate(is_blank) if not blank]
    annotations_to_arrow(annotations).validate(full=True)
