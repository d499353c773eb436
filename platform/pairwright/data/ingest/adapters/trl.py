"""Adapter for TRL preference records: one typed pass for common fields, the field paths for records that say more.

The layout itself is ``known/trl.toml``. An implicit prompt of plain texts ends where TRL's ``extract_prompt`` ends it,
but never within a word.
"""

from typing import TypeGuard

import msgspec

from pairwright.config import FieldPaths
from pairwright.data.ingest.fields.adapter import Judgements, content_id
from pairwright.data.ingest.fields.conversation_turns import Prompt, role_of
from pairwright.data.ingest.fields.field_layout import LayoutReader
from pairwright.data.ingest.fields.replies import prompt_and_replies
from pairwright.records import Annotation, Completion, Message

_PATHS = ("$.chosen", "$.rejected")
_READ_WHOLE = 20
"""Records of a source that go through the field paths in any case, to say how it is read."""


class _Turn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    role: str
    content: str


class _Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    chosen: str | list[_Turn]
    rejected: str | list[_Turn]
    prompt: str | list[_Turn] | None = None


_DECODER = msgspec.json.Decoder(_Record)


class TrlReader:
    """Parser of TRL's records."""

    def __init__(self, fields: FieldPaths, layout: str = "") -> None:
        self._any = LayoutReader(fields, layout)
        self.reading = self._any.reading
        self._left = _READ_WHOLE

    def __call__(self, line: bytes, /) -> Judgements:
        """Return the one annotation in a line.

        Raises:
            RecordError, msgspec.DecodeError, UnicodeDecodeError, RecursionError: if it is no such record.
        """
        if self._left:
            self._left -= 1
            return self._any(line)
        try:
            record = _DECODER.decode(line)
        except msgspec.ValidationError:
            return self._any(line)
        prompt, chosen, rejected = record.prompt, record.chosen, record.rejected
        if any(isinstance(value, str) and _may_be_more(value) for value in (prompt, chosen, rejected)):
            return self._any(line)
        if _is_one_reply(chosen) and _is_one_reply(rejected) and isinstance(prompt, list) and _ends_with_user(prompt):
            prompt = _conversation(prompt)
            chosen, rejected = chosen[0].content, rejected[0].content
        elif not (isinstance(prompt, str) and isinstance(chosen, str) and isinstance(rejected, str)):
            prompt_turns = None if prompt is None else _conversation(prompt)
            sides = [_conversation(chosen), _conversation(rejected)]
            prompt, replies = prompt_and_replies(prompt_turns, sides, _PATHS, is_implicit=True)
            chosen, rejected = replies[0].content, replies[1].content
        completions = [Completion(chosen, "chosen"), Completion(rejected, "rejected")]
        return (Annotation(id=content_id(line), prompt=prompt, completions=completions, ranks=[1, 2]),)


def _is_one_reply(side: str | list[_Turn]) -> TypeGuard[list[_Turn]]:
    return isinstance(side, list) and len(side) == 1 and side[0].role == "assistant"


def _ends_with_user(turns: list[_Turn]) -> bool:
    return bool(turns) and turns[-1].role == "user"


def _may_be_more(text: str) -> bool:
    """Return whether a text may be a transcript or a printed conversation."""
    if text[:1] not in _BEGINNINGS:
        return False
    text = text.lstrip()
    return text[:1] == "[" or text.startswith(("array(", "Human:"))


_BEGINNINGS = ("[", "a", " ", "\n", "\t", "\r")


def _conversation(value: str | list[_Turn]) -> Prompt:
    return value if isinstance(value, str) else [Message(role_of(turn.role), turn.content) for turn in value]
