"""Tokenises prompts with their completions: what training, evaluation and scoring share.

Each completion is rendered as the assistant's turn behind its prompt and tokenised whole. What happens to one over the
length limit, and to special tokens that stand in texts, is part of ``TokenSpec``, which travels with the model.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pairwright.config import TokensConfig
from pairwright.data.extras import Turn
from pairwright.data.tokens.chat_template import PROBES, render, render_one, resolve_template
from pairwright.data.tokens.special_tokens import SpecialTokens
from pairwright.data.tokens.template_coverage import ShownByTemplate
from pairwright.data.tokens.template_sandbox import Conversation, Refusal
from pairwright.data.tokens.tokenizer import tokenizer_digest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

FORMAT_VERSION = 2
"""Of the rules: what other ones would have made of the same groups is not taken for theirs."""

Int32s = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class TokenSpec:
    """All that decides a group's tokens, apart from its text."""

    tokenizer_digest: str
    chat_template: str
    max_length: int
    overlong: Literal["drop", "truncate"]
    special_in_text: Literal["split", "refuse", "keep"]
    refused: Literal["drop", "stop"]

    @classmethod
    def of(cls, tokenizer: "PreTrainedTokenizerFast", config: TokensConfig) -> "TokenSpec":
        """Return what this tokenizer does under this configuration; errors are those of ``resolve_template``."""
        return cls(
            tokenizer_digest(tokenizer),
            resolve_template(tokenizer, config),
            config.max_length,
            config.overlong_policy,
            config.special_in_text,
            config.refused,
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the fields by name, for a manifest."""
        return {"format_version": FORMAT_VERSION} | asdict(self)

    @property
    def digest(self) -> str:
        """SHA-256, 64 hex digits; equal specifications, equal tokens."""
        canonical = json.dumps(self.as_dict(), sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class TokenizedCompletions:
    """The completions of one prompt, after the rules for special tokens in texts and for length.

    Attributes:
        row_ids: tokens of prompt and completion together, int32; None where the completion is dropped.
        num_truncated: how many of them lost their end.
        longest: tokens of the longest before the limit.
        special_in_prompt: special tokens that stand in the prompt's texts, each with its number.
        special_in_completion: those of each completion's text.
        refused: why each completion was dropped for special tokens, be they its own or its prompt's; else None.
        text_hashes: of each completion with its prompt as the template shows them: equal texts, equal hashes.
    """

    row_ids: list[Int32s | None]
    num_truncated: int
    longest: int
    special_in_prompt: Counter[str]
    special_in_completion: list[Counter[str]]
    refused: list[str | None]
    text_hashes: list[int]


class _Plain(NamedTuple):
    """A prompt with one completion, its text, its plain tokenisation, and how many special tokens that holds."""

    conversation: Conversation
    text: str
    token_ids: Int32s
    num_special: int


class _Row(NamedTuple):
    """A prompt with one completion, tokenised under the rules; or why it is dropped."""

    token_ids: Int32s | None
    special: Counter[str]
    refused: str | None = None


def tokenize_completions(
    prompts: Sequence[Conversation],
    replies: Sequence[Sequence[Turn]],
    tokenizer: "PreTrainedTokenizerFast",
    spec: TokenSpec,
) -> list[TokenizedCompletions | Refusal]:
    """Tokenise each prompt with each of its completions, as the assistant's turn behind it.

    Where the chat template refuses a prompt with one of its completions, or shows nothing of a part of it, the prompt's
    result is the reason.

    Args:
        prompts: turns (``extras.turns_of``).
        replies: the completions of each prompt as turns (``extras.reply_of``).
        tokenizer: the one that ``spec`` was made of.
        spec: template, and rules for special tokens and length.

    Raises:
        DataError: if the template goes over its limits (``rendering``) again and again.
    """
    conversations = [
        [*prompt, reply] for prompt, completions in zip(prompts, replies, strict=True) for reply in completions
    ]
    rendered = render(tokenizer, spec.chat_template, conversations)
    pairs = iter(zip(conversations, rendered, strict=True))
    together = [[next(pairs) for _ in completions] for completions in replies]
    refusals = _shown(tokenizer, spec.chat_template, len(tokenizer)).refusals(prompts, together)
    encoded = _encode(tokenizer, [text for text in rendered if isinstance(text, str)])
    special_tokens = _special_tokens(tokenizer, spec.chat_template, len(tokenizer))
    plain = iter(zip(encoded, special_tokens.count(encoded), strict=True))
    rows = iter(
        text if isinstance(text, Refusal) else _Plain(conversation, text, *next(plain))
        for conversation, text in zip(conversations, rendered, strict=True)
    )
    tokenized = [
        _tokenize_group(prompt, [next(rows) for _ in completions], special_tokens, spec)
        for prompt, completions in zip(prompts, replies, strict=True)
    ]
    return [
        found if refusal is None or isinstance(found, Refusal) else refusal
        for found, refusal in zip(tokenized, refusals, strict=True)
    ]


def joined(parts: Sequence[TokenizedCompletions]) -> TokenizedCompletions:
    """Return the completions of one prompt that were tokenised in several parts, at least one, as one."""
    return TokenizedCompletions(
        row_ids=[ids for part in parts for ids in part.row_ids],
        num_truncated=sum(part.num_truncated for part in parts),
        longest=max(part.longest for part in parts),
        special_in_prompt=parts[0].special_in_prompt,
        special_in_completion=[found for part in parts for found in part.special_in_completion],
        refused=[reason for part in parts for reason in part.refused],
        text_hashes=[found for part in parts for found in part.text_hashes],
    )


def _encode(tokenizer: "PreTrainedTokenizerFast", texts: list[str]) -> list[Int32s]:
    """Return plain tokenisations, with nothing added."""
    if not texts:
        return []
    encoded = tokenizer(
        texts, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False, verbose=False
    )
    return [np.asarray(ids, dtype=np.int32) for ids in encoded["input_ids"]]


@lru_cache(maxsize=4)
def _special_tokens(tokenizer: "PreTrainedTokenizerFast", template: str, size: int) -> SpecialTokens:
    """Return what there is to look for; ``size`` is the tokenizer's, which may get a token meanwhile."""
    assert size == len(tokenizer)
    return SpecialTokens(tokenizer, template, partial(render_one, tokenizer, template), PROBES)


@lru_cache(maxsize=4)
def _shown(tokenizer: "PreTrainedTokenizerFast", template: str, size: int) -> ShownByTemplate:
    assert size == len(tokenizer)
    return ShownByTemplate(template, partial(render, tokenizer, template))


def _tokenize_group(
    prompt: Conversation, rows: Sequence[_Plain | Refusal], special_tokens: SpecialTokens, spec: TokenSpec
) -> TokenizedCompletions | Refusal:
    in_prompt = special_tokens.in_prompt(prompt)
    read: list[_Row] = []
    for plain in rows:
        if isinstance(plain, Refusal):
            return plain
        special = special_tokens.in_turn(plain.conversation[-1])
        if special or in_prompt or plain.num_special > special_tokens.num_written(plain.conversation):
            read.append(_read_special(plain, special, in_prompt, special_tokens, spec))
        else:
            read.append(_Row(plain.token_ids, special))
    limited, num_truncated = _limit([row.token_ids for row in read], spec)
    return TokenizedCompletions(
        row_ids=limited,
        num_truncated=num_truncated,
        longest=max((len(row.token_ids) for row in read if row.token_ids is not None), default=0),
        special_in_prompt=in_prompt,
        special_in_completion=[row.special for row in read],
        refused=[row.refused for row in read],
        text_hashes=[hash(plain.text) for plain in rows if isinstance(plain, _Plain)],
    )


def _read_special(
    plain: _Plain, special: Counter[str], in_prompt: Counter[str], special_tokens: SpecialTokens, spec: TokenSpec
) -> _Row:
    """Return one row under the rule for special tokens in its texts."""
    found = special + in_prompt
    if found and spec.special_in_text == "keep":
        return _Row(plain.token_ids, special)
    if found and spec.special_in_text == "refuse":
        return _Row(None, special, _why_refused(found, special, spec))
    reading = special_tokens.read_as_text(plain.conversation, plain.text, plain.token_ids)
    if not found:
        found = special = reading.forged
        if not found or spec.special_in_text == "keep":
            return _Row(plain.token_ids, special)
    if reading.token_ids is None or spec.special_in_text == "refuse":
        return _Row(None, special, _why_refused(found, special, spec))
    return _Row(reading.token_ids, special)


def _why_refused(found: Counter[str], special: Counter[str], spec: TokenSpec) -> str:
    where = "its text" if special else "its prompt"
    names = ", ".join(list(found)[:3])
    if spec.special_in_text == "refuse":
        return f'expected no special tokens in a text, got {names} in {where}; special_in_text is "refuse"'
    return (
        f"{where} holds {names}, which this tokenizer and template cannot take as ordinary text; set "
        'special_in_text = "keep" where such tokens are meant'
    )


def _limit(row_ids: Sequence[Int32s | None], spec: TokenSpec) -> tuple[list[Int32s | None], int]:
    """Apply the rule for rows over the limit; return them, and how many lost their end.

    A row without a single token cannot be read and is dropped too.
    """
    filled = [ids if ids is not None and len(ids) else None for ids in row_ids]
    too_long = [ids is not None and len(ids) > spec.max_length for ids in filled]
    if spec.overlong == "truncate":
        return [ids if ids is None else ids[: spec.max_length] for ids in filled], sum(too_long)
    return [None if over else ids for ids, over in zip(filled, too_long, strict=True)], 0
