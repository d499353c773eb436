"""Joins a record's prompt with its sides: one prompt, and one reply of each side.

A reply is one turn. Sides that differ before their last turn, or do not continue the prompt, are refused.
"""

from collections.abc import Sequence

from pairwright.data.ingest.fields.adapter import RecordError
from pairwright.data.ingest.fields.conversation_turns import Prompt
from pairwright.records import Message


def prompt_and_replies(
    prompt: Prompt | None, sides: Sequence[Prompt], paths: Sequence[str], *, is_implicit: bool = False
) -> tuple[Prompt, list[Message]]:
    """Return the prompt, and the last turn of each side.

    Args:
        prompt: what the record says to be it; None where it says nothing.
        sides: each a text, one turn of the assistant, or a conversation: with the prompt in it, or what follows it.
        paths: of each in the record, for messages.
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
