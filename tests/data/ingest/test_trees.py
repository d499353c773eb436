"""Trees of messages: ranked replies at every depth are annotations, and what is no judgement is refused alone."""

import json
from typing import Any

import pytest

from pairwright.config import FieldPaths, IngestConfig
from pairwright.data.ingest.adapters import parser_for, recognise
from pairwright.data.ingest.parse import ValidAnnotation, parse_lines
from pairwright.records import Rejection


def message(text: str, role: str, *replies: Any, **more: Any) -> dict[str, Any]:
    return {"message_id": f"id {text}", "text": text, "role": role, "replies": [*replies], **more}


DEEPER = message(
    "And a sea?", "prompter", message("Aral.", "assistant", rank=1), message("Rhine.", "assistant", rank=0)
)
TREE = {
    "message_tree_id": "t1",
    "tree_state": "ready_for_export",
    "prompt": message(
        "Name a lake.",
        "prompter",
        message("Como.", "assistant", DEEPER, rank=0, model_name="m"),
        message("A puddle.", "assistant", rank=2),
        message("Garda.", "assistant", rank=1),
        lang="en",
    ),
}


def read(record: Any, config: IngestConfig | None = None) -> tuple[list[ValidAnnotation], list[Rejection]]:
    config = config or IngestConfig(format="oasst")
    name = "fields" if config.fields else "oasst"
    return parse_lines(json.dumps(record).encode(), 1, "file", parser_for(name, config), config)


def test_replies_at_every_depth_are_annotations_with_the_turns_before_them() -> None:
    assert recognise([json.dumps(TREE).encode()]) == "oasst"
    accepted, refused = read(TREE)
    assert refused == []
    assert [(one.id, one.ranks) for one in accepted] == [
        ("t1-id Name a lake.", [1, 3, 2]),
        ("t1-id And a sea?", [2, 1]),
    ]
    assert [turn.content for turn in accepted[1].prompt] == ["Name a lake.", "Como.", "And a sea?"]
    assert [turn.role for turn in accepted[1].prompt] == ["user", "assistant", "user"]
    assert accepted[0].completions[0].model == "m"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"rank": None}, "expected a rank of every reply, got none"),
        ({"rank": 0.5}, "expected `int`, got `float`"),
        ({"role": "system"}, "expected a reply of the assistant, got `system`"),
    ],
)
def test_a_message_whose_replies_are_not_ranked_is_refused_alone(change: dict[str, Any], reason: str) -> None:
    root = TREE["prompt"]
    replies = [root["replies"][0], root["replies"][1] | change, root["replies"][2]]
    accepted, refused = read(TREE | {"prompt": root | {"replies": replies}})
    assert [one.id for one in accepted] == ["t1-id And a sea?"]
    assert [one.reason for one in refused] == [reason]


@pytest.mark.parametrize("place", ["tree", "message"])
def test_a_field_without_a_place_refuses_the_tree(place: str) -> None:
    record = TREE | {"persona": "p"} if place == "tree" else TREE | {"prompt": TREE["prompt"] | {"persona": "p"}}
    accepted, refused = read(record)
    assert accepted == []
    assert "got `" in refused[0].reason
    assert "persona` as well" in refused[0].reason


def test_a_tree_under_other_names_is_read_by_field_paths() -> None:
    fields = FieldPaths(
        prompt="root", tree="children", text="body.say", role="by", score="votes", id="thread", roles={"asker": "user"}
    )
    reply = [{"body": {"say": text}, "by": "bot", "votes": votes} for text, votes in (("yes", 3), ("no", -1))]
    record = {"thread": 7, "root": {"body": {"say": "Well?"}, "by": "asker", "children": reply}}
    accepted, refused = read(record, IngestConfig(fields=fields))
    assert refused == []
    assert (accepted[0].scores, accepted[0].ranks, accepted[0].id) == ([3.0, -1.0], [1, 2], "7-1")
    assert [turn.role for turn in accepted[0].prompt] == ["user"]
