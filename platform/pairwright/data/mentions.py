"""The kept text of a refused record -> whether it holds an annotator's name or a prompt.

A refused record can be anything: another format, half a line, no JSON at all. Where its text is JSON, a value equal to
the name counts (so `a` is not found in every text); elsewhere the name as a whole word does. A prompt counts wherever
each of its turns stands in the record's text, also within a transcript. That can be one record too many, which costs
the text of a record that was never used; it should never be one too few.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec

from pairwright.data.annotations import MAX_RECORD_CHARACTERS, reason_key
from pairwright.data.rules import normalised, prompt_id
from pairwright.records import Message, Rejection

MIN_CUT_CHARACTERS = 16
"""Of a prompt that is cut off, from which on the record counts as holding it."""

_LITERAL = re.compile(r'"((?:[^"\\]|\\.)*)("|\\?$)', re.DOTALL)


class Mentions:
    """What to look for in refused records."""

    def __init__(self, annotators: Iterable[str], prompt_ids: Iterable[str], prompts: Iterable[Sequence[str]]) -> None:
        self._annotators = frozenset(annotators)
        self._words = [_whole_words(name) for name in self._annotators]
        self._prompt_ids = frozenset(prompt_ids)
        self._prompts = [[_whole_words(turn) for turn in prompt] for prompt in prompts]
        self._turns = [turn for prompt in prompts for turn in prompt]

    def in_refused(self, refused: Rejection) -> bool:
        """Return whether a refused record holds any of it, in its text or in what the reason quotes of it."""
        if not (self._annotators or self._prompt_ids):
            return False
        return any(f"`{name}`" in refused.reason for name in self._annotators) or self._in_record(refused.record)

    def _in_record(self, text: str) -> bool:
        try:
            whole = json.loads(text, object_pairs_hook=_Pairs)
        except (ValueError, RecursionError):
            is_cut = len(text) >= MAX_RECORD_CHARACTERS
            return self._in_words(text) or self._holds(list(_literals(text)), is_cut=is_cut)
        values = list(_scalars(whole))
        return (
            not self._annotators.isdisjoint(values) or self._has_prompt_id(whole) or self._holds(values, is_cut=False)
        )

    def _in_words(self, text: str) -> bool:
        every = "\n".join([text, *_literals(text)])
        return any(word.search(every) for word in self._words)

    def _holds(self, strings: list[str], *, is_cut: bool) -> bool:
        told = [normalised(string) for string in strings]
        every = "\n".join(told)
        if any(all(turn.search(every) for turn in prompt) for prompt in self._prompts):
            return True
        # What is kept of a long record can end within its prompt.
        return is_cut and bool(told) and any(_runs_into(told[-1], turn) for turn in self._turns)

    def _has_prompt_id(self, record: Any) -> bool:
        """Return whether a record with a prompt of ours names one of the prompts, of which the text is not known."""
        if not self._prompt_ids or not isinstance(record, _Pairs):
            return False
        return any(prompt_hash in self._prompt_ids for prompt_hash in _prompt_hashes(record))


def prompt_texts(messages: Iterable[dict[str, str]]) -> tuple[str, ...]:
    """Return the normalised turns of a prompt as a table holds it."""
    return tuple(normalised(message["content"]) for message in messages)


def without_text(refused: Rejection, mentions: Mentions) -> Rejection:
    """Return what stays of a refused record: where it stood, and why it was refused, without what was found."""
    emptied = msgspec.structs.replace(refused, record="", reason=reason_key(refused), path="$")
    return msgspec.structs.replace(emptied, reason="forgotten") if mentions.in_refused(emptied) else emptied


class _Pairs(list[tuple[str, Any]]):
    """A JSON object with repeated keys and all: a list of its items."""


def _scalars(value: Any) -> Iterator[str]:
    match value:
        case _Pairs():
            for key, item in value:
                yield key
                yield from _scalars(item)
        case list():
            for item in value:
                yield from _scalars(item)
        case _:
            yield value if isinstance(value, str) else json.dumps(value)


def _literals(text: str) -> Iterator[str]:
    """Return the strings of a text that is not whole JSON, the last of them perhaps cut off."""
    for literal in _LITERAL.finditer(text):
        try:
            yield str(json.loads(f'"{literal[1]}"', strict=False))
        except ValueError:
            yield literal[1]


def _prompt_hashes(record: _Pairs) -> Iterator[str]:
    for key, value in record:
        if key != "prompt":
            continue
        if isinstance(value, str):
            yield prompt_id([Message(role="user", content=value)])
        elif isinstance(value, list):
            try:
                turns = [dict(turn) for turn in value]
                yield prompt_id([Message(role=turn["role"], content=turn["content"]) for turn in turns])
            except (TypeError, ValueError, KeyError, AttributeError):
                continue


def _runs_into(text: str, turn: str) -> bool:
    """Return whether a text ends with the beginning of a turn, with enough of it to know it by."""
    return any(text.endswith(turn[:length]) for length in range(min(len(turn), len(text)), MIN_CUT_CHARACTERS - 1, -1))


def _whole_words(text: str) -> re.Pattern[str]:
    """Return what finds a text that no letter or digit runs on from."""
    before, after = (r"(?<!\w)" if text[:1].isalnum() else "", r"(?!\w)" if text[-1:].isalnum() else "")
    return re.compile(before + re.escape(text) + after)
