"""Exports of other tools: fixtures and written rankings -> exactly the annotations that they mean."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import msgspec
import pytest

from foreign_exports import EXPORTS, Export, Native, turns
from pairwright.config import FieldPaths, IngestConfig, load_config
from pairwright.data.ingest.adapters import formats, groups_rows, parser_for, recognise
from pairwright.data.ingest.adapters.format_pages import format_text, formats_table
from pairwright.data.ingest.parse import ValidAnnotation, parse_lines
from pairwright.data.synthetic import make_rankings
from pairwright.errors import ConfigError, SourceError
from pairwright.records import Message, Rejection

FIXTURES = Path(__file__).parents[2] / "fixtures/formats"
REAL_PAIRS = Path(__file__).parents[3].parent / "shared/data/pairs_sharegpt_demo.json"
FIXTURE_FILES = sorted(path for path in FIXTURES.iterdir() if ".expected." not in path.name)
CONFIG = IngestConfig(buckets=("good", "_", "bad"))
BUCKETS = tuple(f"grade{rank}" for rank in range(1, 10))
FIELDS = FieldPaths(id="id", prompt="instruction", completions="answers", text="text", rank="rank", annotator="judge")


def records(path: Path) -> list[bytes]:
    """Return the records of a fixture as lines, whether it is JSON Lines or one array."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".jsonl":
        return text.encode().splitlines()
    return [json.dumps(item).encode() for item in json.loads(text)]


def ingest(
    lines: list[bytes], name: str, config: IngestConfig = CONFIG
) -> tuple[list[ValidAnnotation], list[Rejection]]:
    return parse_lines(b"\n".join(lines), 1, "export.jsonl", parser_for(name, config), config)


def format_of(path: Path) -> str:
    return max((name for name in formats() if path.name.startswith(name)), key=len)


# ---------------------------------------------------------------------------------------------- fixtures


@pytest.mark.parametrize("path", FIXTURE_FILES, ids=lambda path: path.stem)
def test_a_fixture_becomes_exactly_the_annotations_written_beside_it(path: Path) -> None:
    lines = records(path)
    accepted, refused = ingest(lines, format_of(path))
    expected, none = ingest(records(path.with_name(f"{path.stem}.expected.jsonl")), "native")
    assert (refused, none) == ([], [])

    def content(annotation: ValidAnnotation) -> dict[str, Any]:
        return {**msgspec.to_builtins(annotation), "line": None}

    named = [{**content(annotation), "id": _name(annotation.id, lines)} for annotation in expected]
    assert [content(annotation) for annotation in accepted] == named


def _name(name: str, lines: list[bytes]) -> str:
    """Return an id; "#2" is that of the second record, which has none: it goes by its text."""
    if not name.startswith("#"):
        return name
    return hashlib.blake2b(lines[int(name[1:]) - 1], digest_size=16).hexdigest()


@pytest.mark.parametrize("path", FIXTURE_FILES, ids=lambda path: path.stem)
def test_each_record_of_a_fixture_is_recognised_by_itself(path: Path) -> None:
    for line in records(path):
        assert recognise([line]) == format_of(path)


PKU = ["pku-saferlhf-better", "pku-saferlhf-safer"]


@pytest.mark.parametrize("name", formats())
def test_the_examples_of_a_format_are_of_it_and_every_field_of_them_has_a_place(name: str) -> None:
    lines = [example.encode() for example in formats()[name].examples]
    assert lines
    for line in lines:
        if name in PKU:
            with pytest.raises(SourceError, match=f"fit {PKU[0]} and {PKU[1]} alike"):
                recognise([line])
        else:
            assert recognise([line]) == name
    is_row = bool(groups_rows(name, CONFIG))
    accepted, refused = ingest([b"[" + line + b"," + line + b"]" if is_row else line for line in lines], name)
    assert ([one.line for one in accepted], refused) == (list(range(1, len(lines) + 1)), [])


@pytest.mark.parametrize("name", [name for name, one in formats().items() if one.fields is not None])
def test_a_layout_printed_and_read_again_is_the_same(name: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("[fields]\n" + format_text(name).partition("[fields]\n")[2], encoding="utf-8")
    config = load_config(IngestConfig, None, [f"format={path}"])
    assert config.fields == formats()[name].fields


def test_every_format_of_code_has_a_fixture_and_every_old_one_a_round_trip() -> None:
    assert {name for name, one in formats().items() if one.fields is None} <= {"oasst", *map(format_of, FIXTURE_FILES)}
    assert {export.format for export in EXPORTS.values()} <= {"fields", *formats()}


def test_the_table_of_the_manual_is_that_of_the_layouts() -> None:
    manual = (Path(__file__).parents[3] / "docs/formats.md").read_text(encoding="utf-8")
    assert formats_table() in manual, formats_table()


def test_the_manual_shows_records_that_are_what_it_calls_them() -> None:
    manual = (Path(__file__).parents[3] / "docs/formats.md").read_text(encoding="utf-8")
    shown = [
        (name, block)
        for name, body in re.findall(r"^## (\S+)\n(.*?)(?=^## |\Z)", manual, re.MULTILINE | re.DOTALL)
        for block in re.findall(r"^```json\n(.*?)^```", body, re.MULTILINE | re.DOTALL)
    ]
    assert {name for name, _ in shown} <= set(formats())
    assert len(shown) >= 4
    for name, block in shown:
        lines = block.encode().splitlines()
        assert {recognise([line]) for line in lines} == {name}
        accepted, refused = ingest(lines, name)
        assert ({one.line for one in accepted}, refused) == (set(range(1, len(lines) + 1)), [])


def test_a_source_is_what_most_of_its_first_records_are() -> None:
    trl, nectar = records(FIXTURES / "trl.jsonl"), records(FIXTURES / "nectar.jsonl")
    assert recognise([b"{half a li", *trl[:2], nectar[0], b""]) == "trl"
    assert recognise([b'{"question": "?", "good": "a", "bad": "b"}', b"[1, 2]", b"\xff"]) is None
    assert recognise([]) is None


def test_the_real_pairs_all_become_annotations() -> None:
    if not REAL_PAIRS.exists():
        pytest.skip(f"{REAL_PAIRS.name} is not here: shared/data is handed out with the project, not in it")
    lines = records(REAL_PAIRS)
    assert recognise(lines) == "sharegpt"
    accepted, refused = ingest(lines, "sharegpt")
    assert (len(accepted), refused) == (300, [])
    raw = json.loads(lines[41])
    assert [completion.text for completion in accepted[41].completions] == [
        raw["chosen"]["value"],
        raw["rejected"]["value"],
    ]
    assert accepted[41].ranks == [1, 2]
    assert [message.content for message in accepted[41].prompt] == [turn["value"] for turn in raw["conversations"]]
    assert {message.role for one in accepted for message in one.prompt} == {"system", "user", "assistant"}


# ------------------------------------------------------------------------------------------- round trips


def groups_for(export: Export) -> list[list[Native]]:
    """Return rankings of the kind that the layout can hold, all annotations of a group together."""
    rankings = make_rankings(
        40,
        seed=7,
        completions_per_group=(2, 2) if export.pairs_only else (2, 7),
        tie_gap=0.3 if export.ties else 0.0,
    )
    usable = [one for one in rankings if export.chats or isinstance(one["prompt"], str)]
    for one in usable:
        for completion in one["completions"]:
            completion["text"] = completion["text"].replace(" ", ' "\u2028\\ü\n', 1)
    return [list(group) for _, group in groupby(usable, key=lambda one: one["id"].rpartition("-")[0])]


def ranking_of(prompt: list[Message], texts: list[str], ranks: list[int]) -> tuple[Any, ...]:
    place = {rank: index for index, rank in enumerate(sorted(set(ranks)))}
    return (
        tuple((turn.role, turn.content) for turn in prompt),
        tuple(sorted((text, place[rank]) for text, rank in zip(texts, ranks, strict=True))),
    )


@pytest.mark.parametrize("export", EXPORTS.values(), ids=EXPORTS.keys())
def test_rankings_written_by_another_tool_come_back_as_they_were(export: Export) -> None:
    groups = groups_for(export)
    config = IngestConfig(buckets=BUCKETS, fields=FIELDS if export.format == "fields" else None)
    lines = [json.dumps(record).encode() for group in groups for record in export.write(group)]

    accepted, refused = ingest(lines, export.format, config)

    expected: Counter[Any] = Counter()
    for one in (one for group in groups for one in group):
        prompt = export.prompt(one["prompt"]) if isinstance(one["prompt"], str) else one["prompt"]
        texts = [completion["text"] for completion in one["completions"]]
        expected[ranking_of([Message(**turn) for turn in turns(prompt)], texts, one["ranks"])] += 1
    assert refused == []
    assert len(groups) > 20
    assert Counter(ranking_of(one.prompt, [c.text for c in one.completions], one.ranks) for one in accepted) == expected
    assert recognise(lines) == (None if export.format == "fields" else export.format)


@pytest.mark.parametrize("name", ["label-studio, ranker", "label-studio, pairwise", "argilla", "openai-summarize"])
def test_who_ranked_comes_along(name: str) -> None:
    groups = groups_for(EXPORTS[name])
    lines = [json.dumps(record).encode() for group in groups for record in EXPORTS[name].write(group)]
    accepted, _ = ingest(lines, EXPORTS[name].format)
    assert [one.annotator for one in accepted] == [one["annotator"] for group in groups for one in group]
    assert len({one.id for one in accepted}) == len(accepted)


# -------------------------------------------------------------------------------------------- refused


def changed(path: str, *keys: str | int, to: object) -> bytes:
    """Return the first record of a fixture with one value replaced."""
    record: Any = json.loads(records(FIXTURES / path)[0])
    place = record
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = to
    return json.dumps(record).encode()


NONE = json.dumps({"nothing": "of this"}).encode()


@pytest.mark.parametrize("name", [name for name in formats() if name != "native"])
def test_a_record_of_another_layout_is_refused_with_what_was_expected(name: str) -> None:
    accepted, refused = ingest([NONE, b"[]", b"{"], name)
    assert accepted == []
    missing, array, half = refused
    assert missing.reason.startswith(("missing field `", "expected two records or more", "expected a "))
    if missing.reason.startswith("missing"):
        assert missing.reason.endswith(f"; a record of this format is {formats()[name].layout}")
        assert array.reason.endswith(f"; a record of this format is {formats()[name].layout}")
    assert half.reason.startswith("not JSON: the record is cut off")


def test_numbers_in_quotes_are_read_as_csv_files_hold_them() -> None:
    cells = {"id": "7", "prompt": "?", "chosen": "Y", "rejected": "N", "margin": "0.5", "subset": "12"}
    ((accepted,), refused) = ingest([json.dumps(cells).encode()], "trl")
    assert (accepted.id[:5], accepted.scores, accepted.subset, refused) == ("12-7-", [0.5, 0.0], "12", [])


AGAIN = [{"value": ["reply_1", "reply_2", "reply_1"], "user_id": "u"}]


@pytest.mark.parametrize(
    ("name", "line", "path", "reason"),
    [
        ("trl", changed("trl.jsonl", "chosen", to=5), "$.chosen", "expected `str`, got `int`"),
        ("trl", b'{"chosen": "Yes.", "rejected": "No."}', "$.chosen", "expected texts that both begin with a prompt"),
        (
            "trl",
            b'{"prompt": "?", "chosen": "Yes.", "rejected": []}',
            "$.rejected",
            "expected a conversation, got no turn",
        ),
        ("trl", changed("trl.jsonl", "margin", to=-1), "$.margin", "expected a margin of at least 0, got -1"),
        (
            "trl",
            b'{"prompt": "?", "chosen": "Y", "rejected": "N", "score_chosen": 1, "score_rejected": 2}',
            "$.score_chosen",
            "expected no lower score than the rejected one's, got 1.0 < 2.0",
        ),
        (
            "trl",
            b'{"chosen": [{"role": "user", "content": "?"}], "rejected": [{"role": "user", "content": "!"}]}',
            "$.chosen",
            "expected the last turn to be the assistant's, got `user`",
        ),
        (
            "sharegpt",
            changed("sharegpt.json", "conversations", 1, "from", to=7),
            "$.conversations[1].from",
            "expected `str`, got `int`",
        ),
        (
            "sharegpt",
            changed("sharegpt.json", "rejected", "from", to="human"),
            "$.rejected",
            "expected a side that repeats the prompt or goes on from it",
        ),
        ("hh-rlhf", changed("hh-rlhf.jsonl", "rejected", to="No."), "$.rejected", "expected a transcript that begins"),
        (
            "hh-rlhf",
            changed("hh-rlhf.jsonl", "chosen", to="\n\nHuman: Other?\n\nAssistant: Yes."),
            "$.chosen",
            "expected conversations that differ in the last reply alone, got 2 turns after the 0",
        ),
        (
            "ultrafeedback",
            changed("ultrafeedback.jsonl", "completions", 1, "overall_score", to=None),
            "$.completions[1].overall_score",
            "expected `float`, got `null`",
        ),
        ("nectar", changed("nectar.jsonl", "answers", 0, "rank", to=1.5), "$.answers[0].rank", "expected `int`, got"),
        (
            "nectar",
            changed("nectar.jsonl", "answers", 0, "rank", to=0),
            "$.answers[0].rank",
            "expected `int` >= 1 (1 = best)",
        ),
        ("openai-summarize", changed("openai-summarize.jsonl", "choice", to=2), "$.choice", "expected the index of a"),
        (
            "openai-summarize",
            changed("openai-summarize.jsonl", "info", to={}),
            "$.info",
            "expected `post` or `article`",
        ),
        (
            "label-studio",
            changed("label-studio-ranker.json", "annotations", to=[]),
            "$.annotations",
            "expected annotations, got a task that nobody has finished",
        ),
        (
            "label-studio",
            changed("label-studio-ranker.json", "annotations", 1, "was_cancelled", to=True),
            "$.annotations[1].was_cancelled",
            "skipped by its annotator",
        ),
        (
            "label-studio",
            changed("label-studio-ranker.json", "annotations", 0, "result", to=[]),
            "$.annotations[0].result",
            "expected one result of type ranker or pairwise, one choice of a field, or ratings",
        ),
        (
            "label-studio",
            changed("label-studio-buckets.json", "annotations", 0, "result", 0, "value", "ranker", to={"fair": []}),
            "$.annotations[0].result[0].value.ranker",
            "expected buckets whose order is known, got `fair`; name all of them, best first",
        ),
        (
            "label-studio",
            changed("label-studio-ranker.json", "annotations", 0, "result", 0, "value", "ranker", to=["llm_1"]),
            "$.order",
            "expected every completion's id, got none of `llm_2`, `llm_3`",
        ),
        (
            "label-studio",
            changed("label-studio-pairwise.json", "annotations", 0, "result", 0, "value", "selected", to="none"),
            "$.annotations[0].result[0].value.selected",
            "expected left or right, got `none`",
        ),
        (
            "label-studio",
            changed("label-studio-pairwise.json", "annotations", 0, "result", 0, "to_name", to="a,b"),
            "$.data",
            "expected a field that the tag `a` shows",
        ),
        ("argilla", changed("argilla-sdk.json", "responses", to={}), "$.responses", "expected a response that ranks"),
        (
            "argilla",
            changed("argilla-server.jsonl", "responses", 0, "status", to="draft"),
            "$.responses[0]",
            "expected a submitted response, got a draft one",
        ),
        (
            "argilla",
            changed("argilla-sdk.json", "responses", "ranking", to=AGAIN),
            "$.responses.ranking[0].value[2]",
            "expected each option once, got `reply_1` again",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place(name: str, line: bytes, path: str, reason: str) -> None:
    _, refused = ingest([line], name)
    assert [(one.path, one.reason[: len(reason)]) for one in refused] == [(path, reason)]


ODD: list[Any] = [None, True, -1, 0.5, 10**30, "", "x", [], [[]], [{}], [None], {}, {"x": []}, ["reply_1", []]]


def places(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the path of everything within a decoded record."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield (*path, key)
        yield from places(item, (*path, key))


@pytest.mark.parametrize("path", FIXTURE_FILES, ids=lambda path: path.stem)
def test_an_odd_value_anywhere_is_accepted_or_refused_and_never_a_crash(path: Path) -> None:
    spoilt = [changed(path.name, *place, to=odd) for place in places(json.loads(records(path)[0])) for odd in ODD]
    accepted, refused = ingest(spoilt, format_of(path))
    assert {one.line for one in accepted} | {one.line for one in refused} == set(range(1, len(spoilt) + 1))
    assert all(one.reason and one.path.startswith("$") for one in refused)
    recognise(spoilt)


def test_a_refused_annotation_of_a_task_leaves_the_others() -> None:
    task = changed("label-studio-ranker.json", "annotations", 0, "was_cancelled", to=True)
    accepted, refused = ingest([task], "label-studio")
    assert ([one.id for one in accepted], len(refused)) == (["101-12"], 1)


@pytest.mark.parametrize(
    ("ratings", "is_refused"), [("1 2 N/A 2", True), ("2 2 2 2", True), ("2 2 2 3", False), ("5 5 5 5", False)]
)
def test_a_ten_that_ultrafeedback_meant_as_a_one_is_refused(ratings: str, is_refused: bool) -> None:
    completion = json.loads(records(FIXTURES / "ultrafeedback.jsonl")[0])["completions"][1]
    for aspect, rating in zip(completion["annotations"].values(), ratings.split(), strict=True):
        aspect["Rating"] = rating
    _, refused = ingest([changed("ultrafeedback.jsonl", "completions", 1, to=completion)], "ultrafeedback")
    assert [one.path for one in refused] == (["$.completions[1].overall_score"] if is_refused else [])


def test_buckets_without_an_order_are_refused_with_their_names() -> None:
    _, refused = ingest(records(FIXTURES / "label-studio-buckets.json"), "label-studio", IngestConfig())
    assert len(refused) == 2
    assert "got `bad`, `good`; name all of them, best first, as `buckets` in --config" in refused[0].reason


@pytest.mark.parametrize("override", ["format=fields", "format=none.toml", "format=csv"])
def test_a_format_that_cannot_be_read_with_is_a_configuration_error(override: str) -> None:
    with pytest.raises(ConfigError, match="format"):
        parser_for("csv", load_config(IngestConfig, None, [override]))


def test_fields_and_another_format_are_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match=r"\[fields\] and format = 'trl'"):
        load_config(IngestConfig, None, ["format=trl", "fields.prompt=p", "fields.completions=c", "fields.ranks=r"])
