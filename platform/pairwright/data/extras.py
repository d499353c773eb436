"""Fields beside the text of a turn (``extra``) and beside the whole conversation (``context``), for the chat template.

Both are JSON objects, kept as text in the order of their source: templates print the keys of tools and calls in the
order in which they stand, so another order would give other tokens. Field names are those of transformers. On its way
to the template a turn is a mapping of texts: role, content, ``extra`` where it has one, and in the first turn the
``context`` of the conversation.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import msgspec

Turn: TypeAlias = Mapping[str, str]

EXTRA_FIELDS = ("tool_calls", "tool_call_id", "name", "reasoning_content", "thinking")
CONTEXT_FIELDS = ("tools", "chat_template_kwargs")
CONTENT_FIELDS = frozenset({"tool_calls", "reasoning_content", "thinking"})
"""Fields of a turn that say something: a reply may consist of them, and a template that leaves one out is refused."""
_ANY = msgspec.json.Decoder()


def num_characters(text: str, extra: str | None) -> int:
    """Return the length of a text and its extra, in characters."""
    return len(text) if extra is None else len(text) + len(extra)


def is_blank(value: Any) -> bool:
    """Return whether a field is blank: null, white space, or an empty list or object."""
    return value is None or (not value.strip() if isinstance(value, str) else value in ([], {}))


def read_extra(content: str | None) -> dict[str, Any]:
    """Return the fields of an ``extra`` or a ``context`` by name, in their order, but for nulls."""
    return {} if content is None else {name: value for name, value in _ANY.decode(content).items() if value is not None}


def write_extra(fields: Mapping[str, Any]) -> str | None:
    """Return fields as an ``extra`` or a ``context``, in the order that they have; None where there are none."""
    return msgspec.json.encode(dict(fields)).decode() if fields else None


def has_extras(conversation: Sequence[Turn]) -> bool:
    """Return whether a conversation has an extra or a context."""
    return any(len(turn) > 2 for turn in conversation)


def turn_of(role: str, content: str, extra: str | None) -> dict[str, str]:
    """Return a turn on its way to the template."""
    return {"role": role, "content": content} | ({} if extra is None else {"extra": extra})


def reply_of(text: str, extra: str | None = None) -> Turn:
    """Return a completion as the turn behind its prompt."""
    return turn_of("assistant", text, extra)


def turns_of(prompt: Sequence[Mapping[str, str | None]], context: str | None) -> list[Turn]:
    """Return the turns of a prompt in a table on their way to the template; the first carries the context."""
    turns: list[Turn] = [turn_of(turn["role"] or "", turn["content"] or "", turn["extra"]) for turn in prompt]
    if context is not None and turns:
        turns[0] = {**turns[0], "context": context}
    return turns


def texts_of(turn: Turn) -> list[str]:
    """Return every text that a turn gives the template: content and role, and the strings beside them."""
    beside = [text for name in ("extra", "context") if name in turn for text in strings_in(_ANY.decode(turn[name]))]
    return [turn["content"], turn["role"], *beside]


def with_texts(turn: Turn, change: Callable[[str], str]) -> Turn:
    """Return a turn with every text changed that it gives the template."""
    return {
        name: change(value)
        if name in ("role", "content")
        else msgspec.json.encode(with_strings(_ANY.decode(value), change)).decode()
        for name, value in turn.items()
    }


def strings_in(value: Any) -> list[str]:
    """Return every string in a JSON value, keys included."""
    match value:
        case str():
            return [value]
        case list():
            return [text for item in value for text in strings_in(item)]
        case dict():
            return [text for key, item in value.items() for text in (key, *strings_in(item))]
        case _:
            return []


def with_strings(value: Any, change: Callable[[str], str]) -> Any:
    """Return a JSON value with every string changed, keys included."""
    match value:
        case str():
            return change(value)
        case list():
            return [with_strings(item, change) for item in value]
        case dict():
            return {change(key): with_strings(item, change) for key, item in value.items()}
        case _:
            return value
