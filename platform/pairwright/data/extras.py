"""What stands beside the text of a turn (``extra``), and beside all turns (``context``), for the chat template.

Both are JSON objects, kept as text in the order of their source: templates print the keys of tools and of calls in the
order in which they stand, so another order would be other tokens. Their fields have the names that transformers gives
them. A turn on its way to the template is a mapping of texts: role, content, ``extra`` where it has one, and in the
first turn the ``context`` of the conversation.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import msgspec

Turn: TypeAlias = Mapping[str, str]

CONTENT_FIELDS = frozenset({"tool_calls", "reasoning_content", "thinking"})
"""Fields of a turn that say something: a reply may consist of them, and a template that leaves one out is refused."""
_ANY = msgspec.json.Decoder()


def num_characters(text: str, extra: str | None) -> int:
    """Return the length of a text and of what stands beside it, in characters."""
    return len(text) if extra is None else len(text) + len(extra)


def is_blank(value: Any) -> bool:
    """Return whether a field says nothing: null, white space, or an empty list or object."""
    return value is None or (not value.strip() if isinstance(value, str) else value in ([], {}))


def read_extra(content: str | None) -> dict[str, Any]:
    """Return the fields of an ``extra`` or a ``context`` by name, in their order; none where there is nothing."""
    return {} if content is None else _ANY.decode(content)


def write_extra(fields: Mapping[str, Any]) -> str | None:
    """Return fields as an ``extra`` or a ``context``, in the order that they have; None where there are none."""
    return msgspec.json.encode(dict(fields)).decode() if fields else None


def turn_of(role: str, content: str, extra: str | None) -> dict[str, str]:
    """Return a turn on its way to the template."""
    return {"role": role, "content": content} | ({} if extra is None else {"extra": extra})


def turns_of(prompt: Sequence[Mapping[str, str | None]], context: str | None) -> list[Turn]:
    """Return the turns of a prompt in a table on their way to the template; the first carries the context."""
    turns = [turn_of(str(turn["role"]), str(turn["content"]), turn.get("extra")) for turn in prompt]
    if context is not None and turns:
        turns[0]["context"] = context
    return turns


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
