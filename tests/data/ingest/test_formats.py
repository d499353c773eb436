"""Lines of native and foreign exports -> annotations."""

from pathlib import Path

import msgspec
import pyarrow as pa
import pytest

from pairwright.config import FieldPaths, IngestConfig
from pairwright.data.ingest.adapters import LayoutReader, RecordError, compile_path, native, parser_for
from pairwright.data.ingest.parse import ValidAnnotation, parse_lines
from pairwright.errors import ConfigError
from pairwright.records import Rejection

DATA = Path(__file__).parents[3].parent / "shared/data"

RANKINGS = FieldPaths(
    id="id",
    prompt="instruction",
    completions="answers",
    text="text",
    rank="rank",
    model="model",
    subset="subset",
    annotator="judge",
)


def parse_fields(text: bytes, fields: FieldPaths) -> tuple[list[ValidAnnotation], list[Rejection]]:
    config = IngestConfig(fields=fields)
    return parse_lines(text, 1, "file", parser_for("fields", config), config)


def encode(record: object) -> bytes:
    return msgspec.json.encode(record)


def test_every_record_of_the_real_rankings_is_accepted_by_field_paths_alone() -> None:
    path = DATA / "rankings_dev.jsonl.zst"
    if not path.exists():
        pytest.skip(f"{path.name} is not here: shared/data is handed out with the project, not in it")
    with pa.CompressedInputStream(pa.OSFile(str(path)), "zstd") as stream:
        text = stream.read()

    annotations, rejections = parse_fields(text, RANKINGS)

    assert (len(annotations), len(rejections)) == (2436, 0)
    possible = sum(len(a.ranks) * (len(a.ranks) - 1) // 2 for a in annotations)
    decisive = sum(x < y for a in annotations for x in a.ranks for y in a.ranks)
    assert (possible, decisive) == (47_090, 18_099)
    assert {a.subset for a in annotations} == {"helpful_base", "koala", "oasst", "selfinstruct", "vicuna"}
    assert {a.annotator for a in annotations} == {"weighted_alpaca_eval_gpt4_turbo"}
    raw = msgspec.json.decode(text.split(b"\n")[7])
    assert [c.text for c in annotations[7].completions] == [answer["text"] for answer in raw["answers"]]
    assert [c.model for c in annotations[7].completions] == [answer["model"] for answer in raw["answers"]]
    assert (annotations[7].id, annotations[7].line) == (raw["id"], 8)


def test_a_native_line_keeps_every_field() -> None:
    (annotation,) = native(
        b'{"id":"a","prompt":[{"role":"user","content":"q"}],"completions":[{"text":"x","id":"1","model":"m"},{"text":"y"}],'
        b'"order":["1",["1"]],"annotator":"ann","created_at":"2026-01-01","subset":"s","metadata":{"k":"v"}}'
    )
    assert annotation.annotator == "ann"
    assert annotation.order == ["1", ["1"]]
    assert annotation.metadata == {"k": "v"}


def test_nested_paths_reach_lists_indices_and_keys_with_dots() -> None:
    fields = FieldPaths(
        prompt="turns[-1].content",
        completions="result.groups[].items[]",
        text='body["plain.text"]',
        scores="result.groups[].values[]",
        metadata={"source": "meta.origin", "tags": "meta.tags", "absent": "meta.none"},
    )
    record = {
        "turns": [{"content": "first"}, {"content": "last"}],
        "result": {
            "groups": [
                {"items": [{"body": {"plain.text": "a"}}], "values": [1]},
                {"items": [{"body": {"plain.text": "b"}}, {"body": {"plain.text": "c"}}], "values": [2.5, 3]},
            ]
        },
        "meta": {"origin": 7, "tags": ["x"]},
    }
    (annotation,) = LayoutReader(fields)(encode(record))
    assert annotation.prompt == "last"
    assert [completion.text for completion in annotation.completions] == ["a", "b", "c"]
    assert annotation.scores == [1.0, 2.5, 3.0]
    assert annotation.metadata == {"source": "7", "tags": '["x"]'}


def test_completions_may_be_bare_strings_and_a_prompt_may_be_messages() -> None:
    fields = FieldPaths(prompt="p", completions="c", ranks="r")
    record = {"p": [{"role": "user", "content": "q", "weight": 1}], "c": ["a", "b"], "r": [2, 1.0]}
    (annotation,) = LayoutReader(fields)(encode(record))
    assert [completion.text for completion in annotation.completions] == ["a", "b"]
    assert annotation.ranks == [2, 1]
    assert isinstance(annotation.prompt, list)
    assert annotation.prompt[0].content == "q"


@pytest.mark.parametrize(
    ("told", "grade"),
    [
        ("Slightly_Better", "slightly better"),
        ("significantly-better", "significantly better"),
        ("Unsure", "negligibly better"),
    ],
)
def test_a_grade_is_read_in_any_spelling(told: str, grade: str) -> None:
    fields = FieldPaths(prompt="p", completions="c", ranks="r", grade="how.much")
    record = {"p": "q", "c": ["a", "b"], "r": [2, 1], "how": {"much": told}}
    (annotation,) = LayoutReader(fields)(encode(record))
    assert annotation.grade == grade
    _, rejections = parse_fields(encode(record | {"how": {"much": "9"}}), fields)
    assert (rejections[0].path, rejections[0].reason[:36]) == ("$.how.much", "expected one of significantly better")


def test_a_record_without_an_id_is_named_by_its_content() -> None:
    fields = FieldPaths(prompt="p", completions="c", ranks="r")
    line = b'{"p":"q","c":["a","b"],"r":[1,2]}'
    one, same, other = (LayoutReader(fields)(text)[0].id for text in (line, line + b"\r", line.replace(b"q", b"Q")))
    assert one == same != other


@pytest.mark.parametrize(
    ("change", "path", "reason"),
    [
        ({"instruction": None}, "$.instruction", "expected a text or a conversation, got `null`"),
        ({"answers": {}}, "$.answers", "expected `array`, got `object`"),
        ({"answers": [{"text": "a", "rank": 1}, {"text": "b"}]}, "$.answers[1]", "missing field `rank`, got an object"),
        ({"answers": [{"text": "a", "rank": "x"}]}, "$.answers[0].rank", "expected `int`, got `str`"),
        ({"answers": [{"text": "a", "rank": True}]}, "$.answers[0].rank", "expected `int`, got `bool`"),
        ({"answers": [{"text": 5, "rank": 1}]}, "$.answers[0].text", "expected `str`, got `int`"),
        ({"answers": ["a"]}, "$.answers[0]", "expected `object`, got `str`"),
        ({"id": [1]}, "$.id", "expected `str | int`, got `array`"),
        ({"judge": {"name": 1}}, "$.judge", "expected `str | int`, got `object`"),
    ],
)
def test_a_foreign_record_that_does_not_fit_says_where_and_what(
    change: dict[str, object], path: str, reason: str
) -> None:
    record = {"id": 1, "instruction": "q", "answers": [{"text": "a", "rank": 1}, {"text": "b", "rank": 2}]}
    with pytest.raises(RecordError) as caught:
        LayoutReader(RANKINGS)(encode(record | change))
    assert caught.value.path == path
    assert caught.value.reason.startswith(reason)


def test_a_missing_field_shows_what_the_record_has() -> None:
    with pytest.raises(RecordError, match="missing field `answers`, got an object with `id`, `query`"):
        LayoutReader(RANKINGS)(b'{"id":1,"query":"q"}')


def test_a_score_beyond_a_double_is_refused_and_no_crash() -> None:
    fields = FieldPaths(prompt="p", completions="c", scores="s")
    line = b'{"p":"q","c":["a","b"],"s":[1,' + b"9" * 400 + b"]}"
    _, rejections = parse_fields(line, fields)
    assert rejections[0].path.startswith("$.s[1]")


@pytest.mark.parametrize("path", ["", ".", "a.", ".a", "a..b", "a[", "a[x]", "a]b", "a[0]b", 'a[""]', "a.[0]"])
def test_a_field_path_that_cannot_be_read_names_its_key(path: str) -> None:
    with pytest.raises(ConfigError, match=r"fields\.text: cannot read the path"):
        compile_path("text", path)
