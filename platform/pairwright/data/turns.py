"""Turns as people write them -> messages: text parts joined, tool calls and reasoning kept for the template."""

from collections.abc import Mapping, Sequence
from typing import Any

from pairwright.data.extras import CONTEXT_FIELDS, EXTRA_FIELDS, is_blank, write_extra
from pairwright.data.formats import RecordError, json_name
from pairwright.data.rules import check_context
from pairwright.records import Message


def said(value: Any, where: str) -> str | list[Message]:
    """Return a text, or the turns of a conversation.

    Raises:
        RecordError: if it is neither, or holds what is no text.
    """
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise RecordError(f"expected a text or a conversation, got `{json_name(value)}`", path=where)
    if value and all(isinstance(part, dict) and "role" not in part and "type" in part for part in value):
        return joined_parts(value, where)
    return [_message(turn, f"{where}[{index}]") for index, turn in enumerate(value)]


def _message(turn: Any, where: str) -> Message:
    if not isinstance(turn, dict):
        raise RecordError(f'expected a turn {{"role", "content"}}, got `{json_name(turn)}`', path=where)
    role, content = turn.get("role"), turn.get("content")
    others = {key: value for key, value in turn.items() if key not in ("role", "content")}
    extra = extra_of(others, where)
    if "role" not in turn or ("content" not in turn and extra is None):
        raise RecordError(f"missing field `{'content' if 'role' in turn else 'role'}` of a turn", path=where)
    if not isinstance(role, str):
        raise RecordError(f"expected `str`, got `{json_name(role)}`", path=f"{where}.role")
    if content is None and extra is not None:
        content = ""
    text = joined_parts(content, f"{where}.content") if isinstance(content, list) else content
    if not isinstance(text, str):
        raise RecordError(f"expected `str`, got `{json_name(text)}`", path=f"{where}.content")
    return Message(role=role, content=text, extra=extra)


def context_of(record: Mapping[str, Any]) -> str | None:
    """Return what a record gives the chat template beside its turns, as JSON; None where that is nothing.

    Raises:
        RecordError: if a field is of another type than templates expect, or sets what is not the record's to set.
    """
    context = write_extra({name: record[name] for name in CONTEXT_FIELDS if not is_blank(record.get(name))})
    check_context(context)
    return context


def prompt_of(record: Mapping[str, Any]) -> tuple[list[Message], str | None]:
    """Return the turns of a record's ``prompt``, and what the chat template is given beside them.

    Raises:
        RecordError: if it is neither a text nor a conversation.
    """
    if "prompt" not in record:
        raise RecordError("missing field `prompt`")
    prompt = said(record["prompt"], "$.prompt")
    messages = [Message(role="user", content=prompt)] if isinstance(prompt, str) else prompt
    return messages, context_of(record)


def extra_of(fields: Mapping[str, Any], where: str) -> str | None:
    """Return what a turn holds beside role and content, for the template, as JSON; None where that is nothing.

    Raises:
        RecordError: if a field is none that a template shows.
    """
    kept = {key: value for key, value in fields.items() if not is_blank(value)}
    if odd := [key for key in kept if key not in EXTRA_FIELDS]:
        names = ", ".join(EXTRA_FIELDS)
        raise RecordError(f"unknown field, got `{odd[0]}`; a turn has role, content, {names}", path=where)
    return write_extra(kept)


def joined_parts(parts: Sequence[Any], where: str) -> str:
    """Return the text of content that is given in parts, one behind the other as chat templates write them.

    Raises:
        RecordError: if a part is no text.
    """
    texts = []
    for index, part in enumerate(parts):
        kind = part.get("type") if isinstance(part, dict) else json_name(part)
        text = part.get("text") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(text, str):
            raise RecordError(
                f"expected parts of text, got `{kind}`; rewards are of text alone", path=f"{where}[{index}]"
            )
        texts.append(text)
    return "".join(texts)
