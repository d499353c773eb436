"""Adapter for the native format: one judgement a line, every field of it known. One msgspec pass, 700 MB/s a core.

Records that say the same in another way (ranks as 1.0, a number as id, content in parts, lists as JSON text in the
cells of a table, tool calls of turns) take a second, slower pass.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from pairwright.config import IngestConfig
from pairwright.data.extras import CONTEXT_FIELDS, EXTRA_FIELDS, is_blank, write_extra
from pairwright.data.ingest.fields.adapter import Format, Reading, RecordError, is_list_of, whole
from pairwright.data.ingest.fields.conversation_turns import extra_of, joined_parts, read_conversation
from pairwright.data.ingest.fields.other_fields import as_text
from pairwright.data.ingest.fields.paths import opened
from pairwright.records import UNREADABLE_JSON, Annotation, Completion

_NATIVE = msgspec.json.Decoder(Annotation)
_ANY = msgspec.json.Decoder()
_KNOWN = frozenset(Annotation.__struct_fields__) - {"context"} | {"tools", "chat_template_kwargs"}
_IN_COMPLETION = frozenset(Completion.__struct_fields__) - {"extra"}


class NativeReader:
    """Parser of native records.

    Args:
        keep: names of further fields that go into metadata.
        ignore: names of further fields that mean nothing.
    """

    def __init__(self, keep: tuple[str, ...] = (), ignore: tuple[str, ...] = ()) -> None:
        self.reading = Reading()
        self.has_cells = False
        """Whether records come from a table of text, where a list is JSON text."""
        self._keep = keep
        self._ignore = ignore

    def __call__(self, line: bytes, /) -> tuple[Annotation]:
        """Return the one annotation in a line of the native format; unknown fields are refused.

        Raises:
            RecordError, msgspec.DecodeError, UnicodeDecodeError, RecursionError: if the line is no such record.
        """
        try:
            found = _NATIVE.decode(line)
        except msgspec.ValidationError as error:
            return (self._otherwise(line, error),)
        if _says_extra(found):
            raise RecordError("unknown field, got `extra` or `context`; give tool_calls, tools, ... by their own names")
        return (found,)

    def _otherwise(self, line: bytes, error: msgspec.ValidationError) -> Annotation:
        try:
            record = _ANY.decode(line)
        except UNREADABLE_JSON:
            raise error from None
        if not isinstance(record, dict) or any(key in record for key in ("context", "extra")):
            raise error
        metadata = record.get("metadata") or {}
        metadata = opened(metadata) if self.has_cells else metadata
        for name in (*self._keep, *self._ignore):
            if not is_blank(value := record.pop(name, None)):
                (self.reading.kept if name in self._keep else self.reading.unused).add(name)
                if name in self._keep and isinstance(metadata, dict):
                    metadata = metadata | {name: as_text(value)}
        if metadata:
            record["metadata"] = metadata
        try:
            return msgspec.convert(_spelled(_opened(record) if self.has_cells else record), Annotation)
        except msgspec.ValidationError as other:
            raise other from None


def _says_extra(found: Annotation) -> bool:
    for one in found.completions:  # no generator: this is done for every record
        if one.extra is not None:
            return True
    if found.context is not None:
        return True
    return not isinstance(found.prompt, str) and any(turn.extra is not None for turn in found.prompt)


def _opened(record: dict[str, Any]) -> dict[str, Any]:
    """Return the record with its lists and objects out of their cells; a text that may be the prompt stays one."""
    names = ("completions", "ranks", "scores", "order", "tools", "chat_template_kwargs")
    record = record | {name: opened(record[name]) for name in names if name in record}
    prompt = opened(record.get("prompt"))
    return record | {"prompt": prompt} if is_list_of(prompt, "role", "content") else record


def _spelled(record: dict[str, Any]) -> dict[str, Any]:
    """Return the record with each part in the spelling of the contract."""
    record = dict(record)
    if isinstance(record.get("id"), int) and not isinstance(record["id"], bool):
        record["id"] = str(record["id"])
    if isinstance(record.get("ranks"), list):
        record["ranks"] = [
            whole(rank, f"$.ranks[{index}]") if isinstance(rank, float) else rank
            for index, rank in enumerate(record["ranks"])
        ]
    if isinstance(record.get("prompt"), list | str) and "prompt" in record:
        record["prompt"] = _prompt(record["prompt"])
    if isinstance(record.get("completions"), list):
        record["completions"] = [
            _completion(item, f"$.completions[{index}]") for index, item in enumerate(record["completions"])
        ]
    context = {name: value for name in CONTEXT_FIELDS if not is_blank(value := record.pop(name, None))}
    if context:
        record["context"] = write_extra(context)
    return record


def _prompt(prompt: list[Any] | str) -> Any:
    known = {"role", "content", *EXTRA_FIELDS}
    if isinstance(prompt, str) or not all(isinstance(turn, dict) and turn.keys() <= known for turn in prompt):
        return prompt
    return read_conversation(prompt, "$.prompt", {})


def _completion(item: Any, where: str) -> Any:
    if not isinstance(item, dict):
        return item
    fields = dict(item)
    if isinstance(fields.get("text"), list):
        fields["text"] = joined_parts(fields["text"], f"{where}.text")
    others = {key: value for key, value in fields.items() if key not in _IN_COMPLETION}
    if not others or not others.keys() <= set(EXTRA_FIELDS):
        return fields
    kept = {key: value for key, value in fields.items() if key in _IN_COMPLETION}
    if kept.get("text") is None:
        kept["text"] = ""
    extra = extra_of(others, where)
    return kept if extra is None else kept | {"extra": extra}


def native(line: bytes) -> tuple[Annotation]:
    """Return the one annotation in a line of the native format.

    Raises:
        RecordError, msgspec.DecodeError, UnicodeDecodeError, RecursionError: if the line is no such record.
    """
    return NativeReader()(line)


def _parser(config: IngestConfig) -> NativeReader:
    return NativeReader() if config.fields is None else NativeReader(config.fields.keep, config.fields.ignore)


def _matches(record: Mapping[str, Any]) -> bool:
    judged = any(name in record for name in ("ranks", "scores", "order"))
    return "prompt" in record and judged and is_list_of(opened(record.get("completions")), "text")


NATIVE = Format(
    name="native",
    layout='{"id", "prompt", "completions": [{"text"}, ...], "ranks" | "scores" | "order"}',
    matches=_matches,
    parser=_parser,
    num_unplaced=lambda record: sum(key not in _KNOWN and not is_blank(value) for key, value in record.items()),
    num_essential=4,
    what="This project's own: docs/data.md.",
    examples=(
        '{"id": "1", "prompt": "Name a lake.", "completions": [{"text": "Lake Como."}, {"text": "A '
        'puddle."}], "ranks": [1, 2]}',
    ),
)
