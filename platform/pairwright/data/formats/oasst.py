"""OpenAssistant's message trees: at every depth, the ranked replies of the assistant to one prompt.

Layout after the export of OpenAssistant (oasst1 and oasst2, ``*_trees.jsonl``): ``rank`` counts from 0 among the
replies to one message. One annotation for each message of the prompter with two ranked replies or more.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from pairwright.config import IngestConfig
from pairwright.data.formats.record import Format, Judgements, Reading, RecordError, check_count, json_name, whole
from pairwright.data.formats.turns import role_of
from pairwright.records import Annotation, Completion, Message

LAYOUT = '{"message_tree_id", "prompt": {"text", "role", "replies": [{"text", "role", "rank", "replies"}, ...]}}'
_ANY = msgspec.json.Decoder()
_MESSAGE_FIELDS = frozenset(
    [
        "message_id",
        "parent_id",
        "user_id",
        "created_date",
        "text",
        "role",
        "lang",
        "review_count",
        "review_result",
        "deleted",
        "rank",
        "synthetic",
        "model_name",
        "emojis",
        "replies",
        "labels",
        "detoxify",
        "events",
    ]
)
_TREE_FIELDS = frozenset(["message_tree_id", "tree_state", "prompt", "origin"])


class OasstReader:
    """Parser of message trees."""

    def __init__(self, config: IngestConfig) -> None:
        self.reading = Reading()
        self._limits = config.limits

    def __call__(self, line: bytes, /) -> Judgements:
        """Return the judgements in a tree.

        Raises:
            RecordError, msgspec.DecodeError, UnicodeDecodeError, RecursionError: if the line is no such record.
        """
        record = _ANY.decode(line)
        if not isinstance(record, dict) or not isinstance(record.get("prompt"), dict):
            raise RecordError(f"expected a tree; a record of this format is {LAYOUT}")
        _check_fields(record, _TREE_FIELDS, "$")
        found: list[Annotation | RecordError] = []
        name = record.get("message_tree_id")
        waiting: list[tuple[Any, str, list[Message]]] = [(record["prompt"], "$.prompt", [])]
        while waiting:
            node, where, before = waiting.pop()
            message, replies = _read(node, where)
            turns = [*before, message]
            below = [(reply, f"{where}.replies[{index}]") for index, reply in enumerate(replies)]
            if message.role == "user" and len(replies) > 1:
                try:
                    found.append(_judgement(node, below, turns, str(name)))
                except RecordError as error:
                    found.append(error)
                check_count("judgements", len(found), self._limits.max_judgements, "limits.max_judgements", "$")
            waiting += [(reply, place, turns) for reply, place in reversed(below)]
        self.reading.describe([("prompt", "prompt.text ..."), ("rank", "replies[].rank")])
        return found or [RecordError("expected two ranked replies of the assistant to a message, got none")]


def _read(node: Any, where: str) -> tuple[Message, list[Any]]:
    if not isinstance(node, dict):
        raise RecordError(f"expected `object`, got `{json_name(node)}`", path=where)
    _check_fields(node, _MESSAGE_FIELDS, where)
    text, role, replies = node.get("text"), node.get("role"), node.get("replies") or []
    for field, value, kind in (("text", text, str), ("role", role, str), ("replies", replies, list)):
        if not isinstance(value, kind):
            raise RecordError(f"expected `{json_name(kind())}`, got `{json_name(value)}`", path=f"{where}.{field}")
    return Message(role=role_of(str(role)), content=str(text)), list(replies)


def _judgement(node: Mapping[str, Any], below: list[tuple[Any, str]], turns: list[Message], tree: str) -> Annotation:
    completions, ranks = [], []
    for reply, place in below:
        message, _ = _read(reply, place)
        if message.role != "assistant":
            raise RecordError(f"expected a reply of the assistant, got `{message.role}`", path=f"{place}.role")
        if reply.get("rank") is None:
            raise RecordError("expected a rank of every reply, got none", path=f"{place}.rank")
        ranks.append(whole(reply["rank"], f"{place}.rank") + 1)
        name = reply.get("message_id")
        completions.append(
            Completion(text=message.content, id=None if name is None else str(name), model=reply.get("model_name"))
        )
    metadata = {"lang": str(node["lang"])} if node.get("lang") else None
    return Annotation(
        id=f"{tree}-{node.get('message_id', '')}", prompt=turns, completions=completions, ranks=ranks, metadata=metadata
    )


def _check_fields(record: Mapping[str, Any], known: frozenset[str], where: str) -> None:
    for field, value in record.items():
        if field not in known and value not in (None, "", [], {}):
            raise RecordError(f"expected the fields of a message tree, got `{field}` as well", path=f"{where}.{field}")


def _fits(record: Mapping[str, Any]) -> bool:
    prompt = record.get("prompt")
    return "message_tree_id" in record and isinstance(prompt, dict) and "replies" in prompt


OASST = Format(
    name="oasst",
    layout=LAYOUT,
    fits=_fits,
    parser=OasstReader,
    num_essential=4,
    what="OpenAssistant's message trees (oasst1, oasst2): ranked replies at every depth.",
    examples=(
        '{"message_tree_id": "t1", "prompt": {"message_id": "m0", "text": "Name a lake.", "role": '
        '"prompter", "replies": [{"message_id": "m1", "text": "Lake Como.", "role": "assistant", "rank": 0, '
        '"replies": []}, {"message_id": "m2", "text": "A puddle.", "role": "assistant", "rank": 1, '
        '"replies": []}]}}',
    ),
)
