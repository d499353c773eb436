"""Tokenises what a client sends as the model was trained: conversations by its template, rendered texts as they are.

A rendered text gets what the template would have written around it and a client left off: BOS exactly once, and the
template's end behind the last turn. Generation stops at ``<|im_end|>``; where a model's template ends one newline
later, the reward is read at that newline (measured without it: 0.59 of the rewards' spread off, 80 of 276 orders
turned). Where it ends there, as templates of models trained from 2026-11-29 on do, the newline of a client that renders
with the original template is taken off.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from pairwright.data.extras import reply_of
from pairwright.data.tokens.chat_template import render_one
from pairwright.data.tokens.conversation_tokens import TokenSpec, tokenize_completions
from pairwright.data.tokens.template_sandbox import Refusal
from pairwright.errors import DataError
from pairwright.evaluation.load_exported import InputRules
from pairwright.evaluation.requests import ScoreRequest

Int32s = NDArray[np.int32]

_NO_LIMIT = 2**31 - 1
_PROBES = tuple(
    ({"role": "user", "content": "Which one?"}, {"role": "assistant", "content": text}) for text in ("a1", "b2")
)
"""Their last characters differ, so what their texts end with in common is the template's own."""


@dataclass(frozen=True, slots=True)
class TextTokens:
    """One text to score, as tokens."""

    token_ids: Int32s
    is_cut: bool = False
    """Whether the model's rule for texts over its limit took tokens off the end."""
    is_completed: bool = False
    """Whether the template's end was missing and was added."""


@dataclass(frozen=True, slots=True)
class _Frame:
    """What a template writes around a conversation."""

    bos: str
    """The token before everything; empty if the template writes none."""
    end: str
    """Text behind the last turn's content."""
    ends: tuple[int, ...]
    """Lengths of ``end`` at which a text may stop, longest first: all of it, or behind one of its special tokens."""
    is_special_last: bool
    """Whether ``end`` ends in a special token."""
    bos_id: int | None
    end_ids: tuple[int, ...]
    id_ends: tuple[int, ...]


class InputTokens:
    """A model's rules for its input.

    Args:
        tokenizer: of the model.
        rules: from its ``pairwright.json``.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, rules: InputRules) -> None:
        self._tokenizer = tokenizer
        self._rules = rules
        limited = TokenSpec.of(tokenizer, rules.tokens_config())
        # The limit is applied here, where a message can name the length.
        self._spec = replace(limited, max_length=_NO_LIMIT)
        self._frame = _frame(tokenizer, limited.chat_template)
        self._bos_tokens = [str(t) for t in (tokenizer.bos_token, tokenizer.cls_token) if t is not None]
        self._bos_ids = {i for i in (tokenizer.bos_token_id, tokenizer.cls_token_id) if isinstance(i, int)}
        self._vocab_size = len(tokenizer)

    @property
    def max_length(self) -> int:
        """The longest prompt and completion together, in tokens."""
        return self._rules.max_length

    @property
    def chat_template(self) -> str:
        """The model's template, Jinja."""
        return self._spec.chat_template

    def of_request(self, request: ScoreRequest, max_length: int | None = None) -> list[TextTokens]:
        """Return the prompt with each completion, under the model's template.

        An empty completion is scored: policies generate them.

        Raises:
            DataError: if the template refuses it, a completion is over the limit, or holds special tokens that the
                model's rule refuses.
        """
        (found,) = tokenize_completions([request.prompt], [request.replies], self._tokenizer, self._spec)
        if isinstance(found, Refusal):
            raise DataError(f"$.prompt: {found.reason}")
        tokens: list[TextTokens] = []
        for path, token_ids, refused in zip(request.paths, found.row_ids, found.refused, strict=True):
            if token_ids is None:
                raise DataError(f"{path}: {refused or 'expected at least one token, got none'}")
            limited = self._limited(TextTokens(token_ids), path, max_length)
            if limited.is_cut and self._is_prompt_alone(request, limited.token_ids):
                raise DataError(
                    f"{path}: expected a prompt of fewer than {len(limited.token_ids)} tokens, got one that leaves "
                    "nothing of the completion; shorten the prompt"
                )
            tokens.append(limited)
        return tokens

    def of_text(self, text: str, path: str, max_length: int | None = None) -> TextTokens:
        """Return a rendered text, special tokens in it, with what the template writes around it.

        Raises:
            DataError: if it is over the limit, or no text.
        """
        while own := next((token for token in self._bos_tokens if text.startswith(token)), None):
            text = text.removeprefix(own)
        frame = self._frame
        if frame.is_special_last and text.rstrip().endswith(frame.end):
            text = text.rstrip()
        reached = next((length for length in frame.ends if text.endswith(frame.end[:length])), 0)
        whole = f"{frame.bos}{text}{frame.end[reached:]}"
        try:
            ids = self._tokenizer(whole, add_special_tokens=False, verbose=False)["input_ids"]
        except UnicodeEncodeError:  # half a surrogate pair
            raise DataError(f"{path}: holds half a surrogate pair, expected text") from None
        return self._limited(_checked(ids, path, is_completed=reached < len(frame.end)), path, max_length)

    def of_token_ids(self, token_ids: Sequence[int], path: str, max_length: int | None = None) -> TextTokens:
        """Return a tokenised text with what the template writes around it.

        Raises:
            DataError: if it is over the limit, empty, or has ids that the tokenizer does not know.
        """
        ids = list(token_ids)
        if unknown := next((i for i in ids if not 0 <= i < self._vocab_size), None):
            raise DataError(f"{path}: token id {unknown}, expected 0 to {self._vocab_size - 1}; use its own tokenizer")
        start = next((index for index, i in enumerate(ids) if i not in self._bos_ids), len(ids))
        frame = self._frame
        first = [] if frame.bos_id is None else [frame.bos_id]
        body = self._without_white_space(ids[start:])
        reached = next((n for n in frame.id_ends if tuple(body[len(body) - n :]) == frame.end_ids[:n]), 0)
        whole = [*first, *body, *frame.end_ids[reached:]]
        return self._limited(_checked(whole, path, is_completed=reached < len(frame.end_ids)), path, max_length)

    def _without_white_space(self, ids: list[int]) -> list[int]:
        """Return token ids without white space behind the template's end, where that is a special token."""
        frame = self._frame
        end = len(ids)
        while frame.is_special_last and end and not str(self._tokenizer.decode(ids[end - 1])).strip():
            end -= 1
        return ids[:end] if tuple(ids[:end][-len(frame.end_ids) :]) == frame.end_ids else ids

    def _limited(self, tokens: TextTokens, path: str, max_length: int | None) -> TextTokens:
        own = self._rules.max_length
        limit = own if max_length is None else min(own, max_length)
        whose = "the model's" if limit == own else "the request's"
        length = len(tokens.token_ids)
        if length <= limit:
            return tokens
        if self._rules.overlong == "truncate":
            return replace(tokens, token_ids=tokens.token_ids[:limit], is_cut=True)
        raise DataError(f"{path}: {length:,} tokens with its prompt, and {whose} limit is {limit:,}; shorten it")

    def _is_prompt_alone(self, request: ScoreRequest, token_ids: Int32s) -> bool:
        (alone,) = tokenize_completions([request.prompt], [[reply_of("")]], self._tokenizer, self._spec)
        if isinstance(alone, Refusal) or (prompt_ids := alone.row_ids[0]) is None:
            return False
        return np.array_equal(prompt_ids[: len(token_ids)], token_ids)


def _checked(ids: object, path: str, *, is_completed: bool) -> TextTokens:
    token_ids = np.asarray(ids, np.int32)
    if not token_ids.size:
        raise DataError(f"{path}: expected a text, got one without a single token")
    return TextTokens(token_ids, is_completed=is_completed)


def _frame(tokenizer: PreTrainedTokenizerFast, template: str) -> _Frame:
    texts = [render_one(tokenizer, template, probe) for probe in _PROBES]
    one, other = ("" if isinstance(text, Refusal) else text for text in texts)
    end = one[len(one) - _num_common(one[::-1], other[::-1]) :]
    all_special = [t.content for t in tokenizer.added_tokens_decoder.values() if t.special]
    special = "|".join(map(re.escape, all_special))
    ends = {len(end), len(end.rstrip()), *(match.end() for match in re.finditer(special, end) if special)}
    encoded = tokenizer(one, add_special_tokens=False, return_offsets_mapping=True)
    ids: Any = encoded["input_ids"]
    starts: Any = [start - (len(one) - len(end)) for start, _ in encoded["offset_mapping"]]
    end_ids = [i for i, start in zip(ids, starts, strict=True) if start >= 0]
    # A stop in the text is one in the tokens where a token ends there.
    id_ends = {sum(0 <= start < length for start in starts) for length in ends}
    bos_id = next((i for i in ids[:1] if i in (tokenizer.bos_token_id, tokenizer.cls_token_id)), None)
    bos = "" if bos_id is None else str(tokenizer.convert_ids_to_tokens(bos_id))
    is_special_last = end.endswith(tuple(all_special))
    return _Frame(bos, end, _descending(ends), is_special_last, bos_id, tuple(end_ids), _descending(id_ends))


def _descending(lengths: set[int]) -> tuple[int, ...]:
    return tuple(sorted(lengths - {0}, reverse=True))


def _num_common(one: Sequence[object], other: Sequence[object]) -> int:
    """Return how many items both begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(one), len(other)))
