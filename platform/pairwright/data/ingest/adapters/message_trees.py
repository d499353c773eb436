"""Adapter for trees of messages: at every depth, the ranked replies to one message are one annotation.

A table of field paths with ``tree`` names the replies of a message. The other paths start at a message, except
``prompt`` (the first message) and those that identify the record. OpenAssistant's trees are ``known/oasst.toml``.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from pairwright.config import FieldPaths, SourceLimits
from pairwright.data.extras import is_blank
from pairwright.data.ingest.fields.adapter import (
    Judgements,
    Reading,
    RecordError,
    check_count,
    content_id,
    json_name,
    label,
    number,
    whole,
)
from pairwright.data.ingest.fields.conversation_turns import ROLES, role_of
from pairwright.data.ingest.fields.other_fields import fate, unplaced
from pairwright.data.ingest.fields.paths import JsonPath, compile_path, find, find_optional, named, opened
from pairwright.records import Annotation, Completion, Message

_ANY = msgspec.json.Decoder()
_OF_MESSAGE = ("text", "role", "rank", "score", "completion_id", "model", "tree")
_OF_RECORD = ("prompt", "annotator", "subset", "created_at")


class TreeReader:
    """Parser of trees.

    Args:
        fields: paths of the parts of a message.
        layout: shape of a record of a known layout; empty where the user gave all paths.
        limits: how many judgements a record may hold.
    """

    def __init__(self, fields: FieldPaths, layout: str, limits: SourceLimits) -> None:
        self.reading = Reading()
        self._fields = fields
        self._layout = layout
        self._limits = limits
        self._roles = ROLES | fields.roles
        names = (*_OF_MESSAGE, *_OF_RECORD)
        self._paths = {name: compile_path(name, path) for name in names if (path := getattr(fields, name))}
        ids = () if fields.id is None else (fields.id,) if isinstance(fields.id, str) else fields.id
        self._ids = [compile_path("id", path) for path in ids]
        self._known = {steps[0] for name in _OF_MESSAGE for steps in self._paths.get(name, ())} | {*fields.ignore}
        tops = [*(steps[0] for path in self._ids for steps in path)]
        tops += [steps[0] for name in _OF_RECORD for steps in self._paths.get(name, ())]
        self._known_tops = {*tops, *fields.ignore}

    def __call__(self, line: bytes, /) -> Judgements:
        """Return the judgements in a tree.

        Raises:
            RecordError, msgspec.DecodeError, UnicodeDecodeError, RecursionError: if the line is no such record.
        """
        record = _ANY.decode(line)
        try:
            if not isinstance(record, dict):
                raise RecordError(f"expected `object`, got `{json_name(record)}`")
            root, where = find(record, self._paths["prompt"])
        except RecordError as error:
            detail = f"; a record of this format is {self._layout}" if self._layout else ""
            raise RecordError(f"{error.reason}{detail}", path=error.path) from None
        self._check_fields(record, self._known_tops, "$")
        parts = [self._label(path, record) for path in self._ids]
        name = "-".join(part for part in parts if part is not None) or content_id(line)
        found = self._judgements(record, opened(root), where, name)
        self.reading.describe((key, named(path[0])) for key, path in self._paths.items() if key != "prompt")
        return found or [RecordError("expected two ranked replies of the assistant to a message, got none")]

    def _judgements(
        self, record: Mapping[str, Any], root: Any, where: str, name: str
    ) -> list[Annotation | RecordError]:
        found: list[Annotation | RecordError] = []
        waiting: list[tuple[Any, str, list[Message]]] = [(root, where, [])]
        while waiting:
            node, location, before = waiting.pop()
            message, replies, replies_at = self._read(node, location)
            turns = [*before, message]
            below = [(reply, f"{replies_at}[{index}]") for index, reply in enumerate(replies)]
            if message.role == "user" and len(replies) > 1:
                try:
                    found.append(self._judgement(record, node, below, turns, name))
                except RecordError as error:
                    found.append(error)
                check_count("judgements", len(found), self._limits.max_judgements, "limits.max_judgements", "$")
            waiting += [(reply, reply_at, turns) for reply, reply_at in reversed(below)]
        return found

    def _read(self, node: Any, where: str) -> tuple[Message, list[Any], str]:
        if not isinstance(node, dict):
            raise RecordError(f"expected `object`, got `{json_name(node)}`", path=where)
        self._check_fields(node, self._known, where)
        parts = {}
        for name in ("text", "role"):
            value, location = find(node, self._paths[name], where)
            if not isinstance(value, str):
                raise RecordError(f"expected `str`, got `{json_name(value)}`", path=location)
            parts[name] = value
        replies, replies_at = find_optional(node, self._paths["tree"], where)
        replies = [] if is_blank(replies) else replies
        if not isinstance(replies, list):
            raise RecordError(f"expected `array`, got `{json_name(replies)}`", path=replies_at)
        return Message(role=role_of(parts["role"], self._roles), content=parts["text"]), replies, replies_at

    def _judgement(
        self,
        record: Mapping[str, Any],
        node: Mapping[str, Any],
        below: list[tuple[Any, str]],
        turns: list[Message],
        name: str,
    ) -> Annotation:
        completions = []
        judged: dict[str, list[Any]] = {}
        kind, path = ("ranks", self._paths["rank"]) if "rank" in self._paths else ("scores", self._paths["score"])
        for reply, location in below:
            message, _, _ = self._read(reply, location)
            if message.role != "assistant":
                raise RecordError(f"expected a reply of the assistant, got `{message.role}`", path=location)
            value, value_at = find_optional(reply, path, location)
            if value is None:
                raise RecordError(f"expected a {kind[:-1]} of every reply, got none", path=value_at)
            detail = (
                number(value, value_at) if kind == "scores" else whole(value, value_at) + 1 - self._fields.first_rank
            )
            judged.setdefault(kind, []).append(detail)
            own, model = (self._label(self._paths.get(key), reply, location) for key in ("completion_id", "model"))
            completions.append(Completion(text=message.content, id=own, model=model))
        at = self._label(self._paths.get("completion_id"), node)
        said = {key: self._label(self._paths.get(key), record) for key in ("annotator", "subset", "created_at")}
        return Annotation(
            id=f"{name}-{len(turns) if at is None else at}",
            prompt=turns,
            completions=completions,
            **{**judged, **(said | self._fields.constants)},
        )

    def _label(self, path: JsonPath | None, value: Any, where: str = "$") -> str | None:
        found, location = find_optional(value, path, where)
        return None if found is None else label(found, location)

    def _check_fields(self, record: Mapping[str, Any], known: set[Any], where: str) -> None:
        for field, value in record.items():
            if field in known or is_blank(value):
                continue
            if fate(("message", field)) is None and fate((field,)) is None and self._layout:
                raise unplaced(f"{where.removeprefix('$').removeprefix('.')}.{field}".removeprefix("."))
            self.reading.unused.add(field)
