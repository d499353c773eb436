r"""Parser for conversations in every form that people write them in; no format of its own.

It reads a text; turns of ``role`` and ``content`` or of ``from`` and ``value``; one such turn; an object of two lists;
a transcript of ``\n\nHuman:`` and ``\n\nAssistant:``; any of these as JSON or as Python prints it. A text that is none
of them is a text, whatever it holds. A reply is one turn: sides that differ before their last are refused.
"""

import ast
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from pairwright.data.extras import EXTRA_FIELDS, is_blank, write_extra
from pairwright.data.ingest.fields.adapter import RecordError, json_name, quoted
from pairwright.data.ingest.fields.paths import opened
from pairwright.records import Message

PROMPT_NAMES = ("prompt", "instruction", "question", "query", "input", "context")
Prompt: TypeAlias = str | list[Message]

ROLES = {
    "human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "user": "user",
    "system": "system",
    "tool": "tool",
}
"""Names of speakers, in small letters -> roles; any other name stays as it is."""
_SAYS_NOTHING = frozenset(
    {"weight", "loss", "train", "loss_mask", "mask", "trainable", "id", "message_id", "timestamp"}
)
"""Fields of a turn that say how it was made or is to be trained on, not what was said."""
_SPEAKER = re.compile(r"\n\n(Human|Assistant):")
_SPEAKERS = {"Human": "user", "Assistant": "assistant"}
_SERIALISED = re.compile(r"""\s*(?:array\()?\[\s*\{\s*['"](?:role|content|from|value)['"]\s*:""")
_PARTS_OF_OTHERS = ("image", "image_url", "input_image", "audio", "input_audio", "video", "file")


# ---------------------------------------------------------------------------------------------- one value


def read_conversation(value: Any, where: str, roles: Mapping[str, str] = ROLES) -> Prompt:
    """Return a text, or the turns of a conversation in any of the forms above.

    Raises:
        RecordError: if it is none of them, or holds what is no text.
    """
    if isinstance(value, str):
        if is_transcript(value):
            return transcript(value, where)
        printed = _read(value, where) if _SERIALISED.match(value) else None
        return value if printed is None else read_conversation(printed, where, roles)
    if isinstance(value, dict):
        return _of_object(value, where, roles)
    if not isinstance(value, list):
        raise RecordError(f"expected a text or a conversation, got `{json_name(value)}`", path=where)
    if value and all(_is_part(item) for item in value):
        return joined_parts(value, where)
    return [_message(turn, f"{where}[{index}]", roles) for index, turn in enumerate(value)]


def _of_object(value: Mapping[str, Any], where: str, roles: Mapping[str, str]) -> list[Message]:
    for who, what in (("role", "content"), ("from", "value")):
        names, texts = value.get(who), value.get(what)
        if isinstance(names, list) and isinstance(texts, list):
            if len(names) != len(texts):
                raise RecordError(
                    f"expected as many of `{who}` as of `{what}`, got {len(names)} and {len(texts)}", path=where
                )
            others = {
                key: items for key, items in value.items() if isinstance(items, list) and len(items) == len(names)
            }
            turns = [{key: items[index] for key, items in others.items()} for index in range(len(names))]
            return [_message(turn, f"{where}[{index}]", roles) for index, turn in enumerate(turns)]
    return [_message(value, where, roles)]


def _message(turn: Any, where: str, roles: Mapping[str, str]) -> Message:
    if isinstance(turn, str) and turn[:1] == "{":  # a list of JSON texts, one a turn
        turn = opened(turn)
    if not isinstance(turn, dict):
        raise RecordError(f'expected a turn {{"role", "content"}}, got `{json_name(turn)}`', path=where)
    who, what = ("from", "value") if "from" in turn and "role" not in turn else ("role", "content")
    speaks = any(turn.get(name) for name in EXTRA_FIELDS)
    if who not in turn or (what not in turn and not speaks):
        found = quoted(turn) or "an empty object"
        raise RecordError(f"missing field `{who if who not in turn else what}` of a turn, got {found}", path=where)
    role = turn[who]
    if not isinstance(role, str):
        raise RecordError(f"expected `str`, got `{json_name(role)}`", path=f"{where}.{who}")
    content = turn.get(what)
    if content is None and speaks:
        content = ""
    text = joined_parts(content, f"{where}.{what}") if isinstance(content, list) else content
    if not isinstance(text, str):
        raise RecordError(f"expected `str`, got `{json_name(text)}`", path=f"{where}.{what}")
    extra = {key: item for key, item in turn.items() if key not in (who, what)}
    return Message(role=role_of(role, roles), content=text, extra=extra_of(extra, where))


def role_of(name: str, roles: Mapping[str, str] = ROLES) -> str:
    """Return the role that a name of a speaker means; the name itself where it is none that is known."""
    return roles.get(name) or roles.get(name.strip().lower(), name)


def extra_of(fields: Mapping[str, Any], where: str) -> str | None:
    """Return what a turn holds beside role and content, for the template, as JSON; None where that is nothing.

    Raises:
        RecordError: if a field is none that a template shows.
    """
    kept = {key: value for key, value in fields.items() if key not in _SAYS_NOTHING and not is_blank(value)}
    if odd := [key for key in kept if key not in EXTRA_FIELDS]:
        raise RecordError(
            f"expected a turn of role, content and {', '.join(EXTRA_FIELDS)}, got {quoted(odd)} as well; "
            "no chat template shows it: leave it out, or the record",
            path=where,
        )
    return write_extra(kept)


def _is_part(item: Any) -> bool:
    return isinstance(item, dict) and "role" not in item and "from" not in item and isinstance(item.get("type"), str)


def joined_parts(parts: Sequence[Any], where: str) -> str:
    """Return the text of content that is given in parts, one behind the other as chat templates write them.

    Raises:
        RecordError: if a part is an image, a sound or anything else that is no text.
    """
    texts = []
    for index, part in enumerate(parts):
        if not isinstance(part, dict):
            raise RecordError(f'expected a part {{"type", "text"}}, got `{json_name(part)}`', path=f"{where}[{index}]")
        kind = part.get("type")
        if odd := [name for name in _PARTS_OF_OTHERS if kind == name or not is_blank(part.get(name))]:
            raise RecordError(
                f"expected parts that are text, got `{odd[0]}`; rewards are of text alone", path=f"{where}[{index}]"
            )
        if kind not in ("text", "input_text", "output_text") or not isinstance(part.get("text"), str):
            raise RecordError(f"expected a part of text, got one of type `{str(kind)[:100]}`", path=f"{where}[{index}]")
        texts.append(part["text"])
    return "".join(texts)


def _read(text: str, where: str) -> list[Any] | None:
    """Return the conversation in a text of JSON or of Python's notation; None where it is something else."""
    value = opened(text.strip())
    if isinstance(value, str) and len(text) <= _MAX_PRINTED:
        try:  # through JSON, which holds neither half a character nor bytes
            value = json.loads(json.dumps(ast.literal_eval(text.strip()), ensure_ascii=False, allow_nan=False).encode())
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            value = text
    if isinstance(value, list):
        return value if all(_is_turn(item) for item in value) else None
    if all(re.search(rf"['\"]{key}['\"]\s*:", text) for key in ("role", "content")):
        raise RecordError(
            "expected a conversation or a text, got a text that begins like a printed conversation and cannot be read "
            "as one; write conversations as JSON",
            path=where,
        )
    return None


def _is_turn(item: Any) -> bool:
    return isinstance(item, dict) and ({"role", "content"} <= item.keys() or {"from", "value"} <= item.keys())


_MAX_PRINTED = 1_000_000
"""Characters of a conversation in Python's notation: reading it takes about a hundred times its size."""


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
        Message(role=_SPEAKERS[speaker], content=content.strip())
        for speaker, content in zip(speakers, contents, strict=True)
    ]


def interleaved(prompts: Any, replies: Any, where: str) -> list[Message]:
    """Return the conversation of two lists of texts, the user's and the assistant's in turn.

    Raises:
        RecordError: if they are none, or one is longer.
    """
    prompts, replies = opened(prompts), opened(replies)
    if not isinstance(prompts, list) or not isinstance(replies, list) or len(prompts) != len(replies):
        raise RecordError("expected two lists of texts of the same length, got others", path=where)
    turns = []
    for index, pair in enumerate(zip(prompts, replies, strict=True)):
        for role, text in zip(("user", "assistant"), pair, strict=True):
            if not isinstance(text, str):
                raise RecordError(f"expected `str`, got `{json_name(text)}`", path=f"{where}[{index}]")
            turns.append(Message(role=role, content=text))
    return turns


def earlier(value: Any, where: str, roles: Mapping[str, str] = ROLES) -> list[Message]:
    """Return the turns of a history: a conversation, or pairs of what user and assistant said.

    Raises:
        RecordError: if it is neither.
    """
    value = opened(value)
    if isinstance(value, list) and value and all(isinstance(pair, list) for pair in value):
        turns = []
        for index, pair in enumerate(value):
            if len(pair) != 2 or not all(isinstance(text, str) for text in pair):
                raise RecordError(
                    "expected [what the user said, what the assistant said], got another list", path=f"{where}[{index}]"
                )
            turns += [Message(role="user", content=pair[0]), Message(role="assistant", content=pair[1])]
        return turns
    found = read_conversation(value, where, roles)
    if isinstance(found, str):
        raise RecordError("expected a list of earlier turns, got a text", path=where)
    return found


# ---------------------------------------------------------------------------------------------- prompts by name


def prompts_among(fields: Mapping[str, Any]) -> dict[str, Prompt]:
    """Return the fields of a record that may be a prompt: once for all of its judgements."""
    return {name: read_conversation(value, f"$.{name}") for name, value in fields.items() if _is_prompt(value)}


def find_prompt(prompts: Mapping[str, Prompt], others: Sequence[str], path: str) -> tuple[str, Prompt]:
    """Return name and value of the prompt: the one left beside ``others``, or the one that is called so.

    Raises:
        RecordError: if there is none, or several that might be it.
    """
    taken = set(others)
    left = [name for name in prompts if name not in taken]
    names = [name for name in PROMPT_NAMES if name in prompts and name not in taken] or left
    if not names or (len(names) > 1 and names[0] not in PROMPT_NAMES):
        found = quoted(left) or "no other text"
        raise RecordError(f"expected a field `prompt` beside the completions, got {found}", path=path)
    return names[0], prompts[names[0]]


def _is_prompt(value: object) -> bool:
    if isinstance(value, str):
        return True
    if not isinstance(value, list) or not value:
        return False
    return all(
        isinstance(turn, dict) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str | list)
        for turn in value
    )
