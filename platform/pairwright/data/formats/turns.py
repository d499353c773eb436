r"""Conversations as people write them -> prompt and replies; no format of its own.

What is read: a text; turns of ``role`` and ``content`` or of ``from`` and ``value``; one such turn; an object of two
lists; a transcript of ``\n\nHuman:`` and ``\n\nAssistant:``; any of these as JSON or as Python prints it. A text that
is none of them is a text, whatever it holds. A reply is one turn: sides that differ before their last are refused.
"""

import ast
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import msgspec

from pairwright.data.formats.paths import is_nothing, opened
from pairwright.data.formats.record import RecordError, json_name, quoted
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
SHOWN_BY_TEMPLATES = ("tool_calls", "tool_call_id", "name", "reasoning_content", "thinking")
"""What a turn may hold beside its content: kept, and given to the chat template."""
_SAYS_NOTHING = frozenset(
    {"weight", "loss", "train", "loss_mask", "mask", "trainable", "id", "message_id", "timestamp"}
)
"""Fields of a turn that say how it was made or is to be trained on, not what was said."""
_SPEAKER = re.compile(r"\n\n(Human|Assistant):")
_SPEAKERS = {"Human": "user", "Assistant": "assistant"}
_SERIALISED = re.compile(r"""\s*(?:array\()?\[\s*\{\s*['"](?:role|content|from|value)['"]\s*:""")
_PARTS_OF_OTHERS = ("image", "image_url", "input_image", "audio", "input_audio", "video", "file")


# ---------------------------------------------------------------------------------------------- one place


def said(value: Any, where: str, roles: Mapping[str, str] = ROLES) -> Prompt:
    """Return a text, or the turns of a conversation in any of the forms above.

    Raises:
        RecordError: if it is none of them, or holds what is no text.
    """
    if isinstance(value, str):
        if is_transcript(value):
            return transcript(value, where)
        printed = _read(value, where) if _SERIALISED.match(value) else None
        return value if printed is None else said(printed, where, roles)
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
    speaks = any(turn.get(name) for name in SHOWN_BY_TEMPLATES)
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
    extra = {key: item for key, item in turn.items() if key not in (who, what) and not is_nothing(item)}
    return Message(role=role_of(role, roles), content=text, extra=extra_of(extra, where))


def role_of(name: str, roles: Mapping[str, str] = ROLES) -> str:
    """Return the role that a name of a speaker means; the name itself where it is none that is known."""
    return roles.get(name) or roles.get(name.strip().lower(), name)


def extra_of(fields: Mapping[str, Any], where: str) -> str | None:
    """Return what a turn holds beside role and content, for the template, as JSON; None where that is nothing.

    Raises:
        RecordError: if a field is none that a template shows.
    """
    kept = {key: value for key, value in fields.items() if key not in _SAYS_NOTHING and not is_nothing(value)}
    if not kept:
        return None
    if odd := [key for key in kept if key not in SHOWN_BY_TEMPLATES]:
        raise RecordError(
            f"expected a turn of role, content and {', '.join(SHOWN_BY_TEMPLATES)}, got {quoted(odd)} as well; "
            "no chat template shows it: leave it out, or the record",
            path=where,
        )
    return msgspec.json.encode(kept).decode()


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
        if odd := [name for name in _PARTS_OF_OTHERS if kind == name or not is_nothing(part.get(name))]:
            raise RecordError(
                f"expected parts that are text, got `{odd[0]}`; rewards are of text alone", path=f"{where}[{index}]"
            )
        if kind not in ("text", "input_text", "output_text") or not isinstance(part.get("text"), str):
            raise RecordError(f"expected a part of text, got one of type `{str(kind)[:100]}`", path=f"{where}[{index}]")
        texts.append(part["text"])
    return "".join(texts)


def _read(text: str, where: str) -> list[Any] | None:
    """Return the conversation that stands as JSON or as Python prints it; None where it is something else."""
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
    found = said(value, where, roles)
    if isinstance(found, str):
        raise RecordError("expected a list of earlier turns, got a text", path=where)
    return found


# ---------------------------------------------------------------------------------------------- all of them


def prompt_and_replies(
    prompt: Prompt | None, sides: Sequence[Prompt], paths: Sequence[str], *, is_implicit: bool = False
) -> tuple[Prompt, list[Message]]:
    """Return the prompt, and the last turn of each side.

    Args:
        prompt: what the record says to be it; None where it says nothing.
        sides: each a text, one turn of the assistant, or a conversation: with the prompt in it, or what follows it.
        paths: where each stands in the record, for messages.
        is_implicit: texts may begin with their prompt.

    Raises:
        RecordError: if there is no prompt, if prompt and sides do not fit, or if sides differ before their last turn.
    """
    if isinstance(prompt, list) and prompt and prompt[-1].role == "assistant" and not prompt[-1].content:
        prompt = prompt[:-1] if prompt[-1].extra is None else prompt  # a transcript that ends where the reply begins
    talks = [(side, path) for side, path in zip(sides, paths, strict=True) if not _is_reply(side)]
    if not talks:
        replies = [_reply(side, path) for side, path in zip(sides, paths, strict=True)]
        if prompt is not None:
            return prompt, replies
        if not all(isinstance(side, str) for side in sides):
            raise RecordError("expected turns that both begin with as the prompt, got none", path=paths[0])
        if not is_implicit:
            raise RecordError("expected a prompt beside the completions, got none")
        text, *rest = _shared_text([reply.content for reply in replies], paths)
        return text, [Message(role="assistant", content=content) for content in rest]
    whole = [_joined(prompt, side, path) for side, path in talks if isinstance(side, list)]
    names = [path for _, path in talks]
    opening = _opening(whole, names)
    replies = []
    for side, path in zip(sides, paths, strict=True):
        replies.append(_reply(side, path) if _is_reply(side) else whole[names.index(path)][-1])
    return opening, replies


def _is_reply(side: Prompt) -> bool:
    return isinstance(side, str) or (len(side) == 1 and side[0].role == "assistant")


def _reply(side: Prompt, path: str) -> Message:
    return Message(role="assistant", content=side) if isinstance(side, str) else side[0]


def _opening(whole: Sequence[list[Message]], paths: Sequence[str]) -> list[Message]:
    """Return the turns that all conversations begin with, which must be all but the last turn of each."""
    shortest = min(map(len, whole))
    if not shortest:
        empty = next(path for turns, path in zip(whole, paths, strict=True) if not turns)
        raise RecordError("expected a conversation, got no turn", path=empty)
    first = whole[0]
    shared = next(
        (index for index in range(shortest - 1) if any(turns[index] != first[index] for turns in whole)), shortest - 1
    )
    for turns, path in zip(whole, paths, strict=True):
        if len(turns) != shared + 1:
            found = f"{len(turns) - shared} turns after the {shared} that both begin with"
            raise RecordError(f"expected conversations that differ in the last reply alone, got {found}", path=path)
        if turns[-1].role != "assistant":
            raise RecordError(f"expected the last turn to be the assistant's, got `{turns[-1].role}`", path=path)
    if not shared:
        raise RecordError("expected turns that both begin with as the prompt, got none", path=paths[0])
    return first[:shared]


def _joined(prompt: Prompt | None, side: list[Message], path: str) -> list[Message]:
    """Return the whole conversation of one side, with the prompt in it once."""
    if prompt is None or not side:
        return side
    opening = [Message(role="user", content=prompt)] if isinstance(prompt, str) else prompt
    if not opening:
        return side
    before, asked = _system_and_rest(opening)
    lead, body = _system_and_rest(side)
    if lead and before and not _same(lead, before):
        raise RecordError("expected one system prompt, got another in the prompt", path=path)
    lead = lead or before
    if not asked or _same(body[: len(asked)], asked):
        return lead + body
    if isinstance(prompt, str) and any(turn.role == "user" and _same([turn], asked) for turn in body[:-1]):
        return lead + body
    follows = body and (body[0].role == "assistant") != (asked[-1].role == "assistant")
    if not follows or len(lead) != len(before):
        raise RecordError("expected a side that repeats the prompt or goes on from it, got other turns", path=path)
    return lead + asked + body


def _system_and_rest(turns: list[Message]) -> tuple[list[Message], list[Message]]:
    end = next((index for index, turn in enumerate(turns) if turn.role not in ("system", "developer")), len(turns))
    return turns[:end], turns[end:]


def _same(some: Sequence[Message], others: Sequence[Message]) -> bool:
    """Return whether turns are the same but for white space around them."""
    return len(some) == len(others) and all(
        one.role == other.role and one.content.strip() == other.content.strip() and one.extra == other.extra
        for one, other in zip(some, others, strict=True)
    )


def _shared_text(texts: Sequence[str], paths: Sequence[str]) -> list[str]:
    """Return what all texts begin with, up to the white space before the word in which they differ, and the rests."""
    first, *others = texts
    shortest = min(map(len, texts))
    end = next((i for i in range(shortest) if any(text[i] != first[i] for text in others)), shortest)
    while end and not first[end : end + 1].isspace():
        end -= 1
    if not first[:end].strip():
        raise RecordError("expected texts that both begin with a prompt, got none", path=paths[0])
    return [first[:end], *(text[end:] for text in texts)]


def with_context(prompt: Prompt, system: str | None, history: Sequence[Message], where: str) -> Prompt:
    """Return a prompt after its system prompt and earlier turns; as it is where there is neither.

    Raises:
        RecordError: if the prompt begins with another system prompt.
    """
    if not history and (system is None or not system.strip()):
        return prompt
    turns = [Message(role="user", content=prompt)] if isinstance(prompt, str) else list(prompt)
    lead, rest = _system_and_rest(turns)
    turns = [*lead, *history, *rest]
    if system is None or not system.strip():
        return turns
    given = Message(role="system", content=system)
    if not lead:
        return [given, *turns]
    if not _same(lead, [given]):
        raise RecordError("expected one system prompt, got another in the conversation", path=where)
    return turns


# ---------------------------------------------------------------------------------------------- prompts by name


def prompts_among(fields: Mapping[str, Any]) -> dict[str, Prompt]:
    """Return the fields of a record that may be a prompt: once for all of its judgements."""
    return {name: said(value, f"$.{name}") for name, value in fields.items() if _is_prompt(value)}


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
