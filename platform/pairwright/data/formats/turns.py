"""Conversations of other people's layouts -> prompt and completions; no format of its own.

Two transcripts that differ in their last reply alone are a prompt and two completions; a transcript in one string is
cut at its speakers. Whatever a completion would need more than one turn for is refused: a reward is of one reply.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import msgspec

from pairwright.data.formats.record import RecordError, quoted
from pairwright.records import Message

PROMPT_NAMES = ("prompt", "instruction", "question", "query", "input", "context")
Prompt: TypeAlias = "str | list[Message]"

_SPEAKER = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


class Turn(msgspec.Struct, frozen=True):
    """One message of a chat; what else it carries is left out."""

    role: str
    content: str


def messages(turns: Sequence[Turn]) -> list[Message]:
    """Return the turns as messages."""
    return [Message(role=turn.role, content=turn.content) for turn in turns]


def shared_prompt(chosen: list[Message], rejected: list[Message]) -> tuple[list[Message], str, str]:
    """Return the turns that both begin with, and the last turn of each.

    Raises:
        RecordError: if they differ in anything but their last turn, or the last turn is not the assistant's.
    """
    shortest = min(len(chosen), len(rejected))
    if not shortest:
        raise RecordError("expected a conversation, got no turn", path="$.rejected" if chosen else "$.chosen")
    shared = next((index for index in range(shortest - 1) if chosen[index] != rejected[index]), shortest - 1)
    for name, turns in (("chosen", chosen), ("rejected", rejected)):
        if len(turns) != shared + 1:
            found = f"{len(turns) - shared} turns after the {shared} that both begin with"
            raise RecordError(
                f"expected conversations that differ in the last reply alone, got {found}", path=f"$.{name}"
            )
        if turns[-1].role != "assistant":
            raise RecordError(f"expected the last turn to be the assistant's, got `{turns[-1].role}`", path=f"$.{name}")
    if not shared:
        raise RecordError("expected turns that both begin with as the prompt, got none", path="$.chosen")
    return chosen[:shared], chosen[-1].content, rejected[-1].content


def is_transcript(text: object) -> bool:
    """Return whether a text is a transcript as Anthropic writes them: two newlines, Human:, and so on."""
    return isinstance(text, str) and text.startswith("\n\nHuman:")


def transcript(text: str, path: str) -> list[Message]:
    """Return the turns of a transcript, white space around each left out.

    Raises:
        RecordError: if it does not begin with a speaker.
    """
    before, *parts = _SPEAKER.split(text)
    if before.strip() or not parts:
        raise RecordError(r"expected a transcript that begins with \n\nHuman:, got other text", path=path)
    speakers, contents = parts[::2], parts[1::2]
    return [
        Message(role=_ROLES[speaker], content=content.strip())
        for speaker, content in zip(speakers, contents, strict=True)
    ]


def prompts_among(fields: Mapping[str, Any]) -> dict[str, Prompt]:
    """Return the fields of a record that may be a prompt: once for all of its judgements."""
    return {
        name: value if isinstance(value, str) else messages(msgspec.convert(value, list[Turn]))
        for name, value in fields.items()
        if _is_prompt(value)
    }


def find_prompt(prompts: Mapping[str, Prompt], others: Sequence[str], path: str) -> Prompt:
    """Return the prompt among fields that may be one: the one left beside ``others``, or the one that is called so.

    Raises:
        RecordError: if there is none, or several that might be it.
    """
    taken = set(others)
    left = [name for name in prompts if name not in taken]
    names = [name for name in PROMPT_NAMES if name in prompts and name not in taken] or left
    if not names or (len(names) > 1 and names[0] not in PROMPT_NAMES):
        found = quoted(left) or "no other text"
        raise RecordError(f"expected a field `prompt` beside the completions, got {found}", path=path)
    return prompts[names[0]]


def _is_prompt(value: object) -> bool:
    if isinstance(value, str):
        return True
    if not isinstance(value, list) or not value:
        return False
    return all(
        isinstance(turn, dict) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)
        for turn in value
    )
