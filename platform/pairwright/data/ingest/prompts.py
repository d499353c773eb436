"""Reads the prompt of a native record, and what the chat template is given beside it."""

from collections.abc import Mapping
from typing import Any

from pairwright.data.extras import CONTEXT_FIELDS, is_blank, write_extra
from pairwright.data.ingest.adapters import RecordError
from pairwright.data.ingest.fields.conversation_turns import read_conversation
from pairwright.data.ingest.rules import check_context
from pairwright.records import Message


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
    prompt = read_conversation(record["prompt"], "$.prompt", {})
    messages = [Message(role="user", content=prompt)] if isinstance(prompt, str) else prompt
    return messages, context_of(record)
