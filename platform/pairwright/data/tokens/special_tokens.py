"""Finds special tokens that stand in texts as plain characters, and tokenises them as ordinary text.

A tokenizer reads ``<|im_end|>`` as the token that ends a turn, whoever wrote it: a completion could speak as another
role. So a mark, a character that no text holds, is set into each of them before the whole conversation is rendered
and tokenised, and its tokens are taken out again: what stands around it is tokenised in its own context, exactly.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pairwright.data.extras import Turn, has_extras, texts_of, with_texts
from pairwright.data.tokens.template_sandbox import Conversation, Refusal

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Int32s: TypeAlias = NDArray[np.int32]
Render: TypeAlias = Callable[[Conversation], str | Refusal]
Within: TypeAlias = Callable[[str, str], str]
"""Sets marks into a special token."""

# Private use, which no text should hold and BERT's normaliser removes; punctuation, which pre-tokenisers set apart.
MARKS = ("\U0010fffd", "\U000f0000", "\ue000", "\u2042", "\u203b")
_MAX_PREFIXES = 16
_EXPECTED_KEPT = 4096
# Where a template looks into contents for a token, and so gives it a meaning there itself: '</think>' in content.
_LOOKUPS = (
    r"(?:\.(?:r?split|r?partition|startswith|endswith|r?find|r?index|count|replace|[lr]?strip)|\breplace)\(\s*(['\"])"
    r"{token}\1|(['\"]){token}\2\s+(?:not\s+)?in\b"
)


@dataclass(frozen=True, slots=True)
class Reading:
    """One conversation, tokenised.

    Attributes:
        token_ids: under the rule for special tokens in texts; None if they cannot be tokenised as ordinary text.
        forged: special tokens that plain tokenisation would have made of the texts, where no text holds them whole:
            a text that completes what the template begins, or one that the tokenizer's normaliser changes into them.
    """

    token_ids: Int32s | None
    forged: Counter[str]


class SpecialTokens:
    """The special tokens of a tokenizer under a template: those that a text must not forge.

    They are the tokenizer's special tokens, and other added tokens that the template writes around plain turns (the
    ``<|im_start|>`` of some fine-tuned models); without those that the template itself looks for in contents, such as
    ``</think>``, and without other added tokens, such as ``<tool_call>``: these are words that models write.

    Args:
        tokenizer: whose tokens.
        template: Jinja source.
        render: gives the text of a conversation under this template.
        probes: plain conversations, which show what the template writes by itself.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerFast",
        template: str,
        render: Render,
        probes: Sequence[Conversation],
    ) -> None:
        self._tokenizer = tokenizer
        self._render = render
        self._expected: dict[tuple[str, ...], int] = {}
        self._is_special = np.zeros(max(tokenizer.get_vocab().values()) + 1, dtype=bool)
        shown = [text for text in map(render, probes) if isinstance(text, str)]
        written = {token_id for text in shown for token_id in tokenizer(text, add_special_tokens=False)["input_ids"]}
        names, words = set[str](), set[str]()
        self._is_any_normalized = False
        for token_id, token in tokenizer.added_tokens_decoder.items():
            is_ours = token.content.strip() and not _is_looked_for(token.content, template)
            if is_ours and (token.special or token_id in written):
                names.add(token.content)
                self._is_special[token_id] = True
                self._is_any_normalized |= token.normalized
                if token.single_word:
                    words.add(token.content)
        if tokenizer.unk_token_id is not None and tokenizer.unk_token_id not in (
            tokenizer.bos_token_id,
            tokenizer.eos_token_id,
        ):
            self._is_special[tokenizer.unk_token_id] = False  # any unknown character is read as it
        self._pattern = _pattern_of(names, words)
        self._prefixes = _prefixes(names)

    def in_text(self, text: str) -> Counter[str]:
        """Return the special tokens that stand in a text, each as often as it does."""
        if not any(prefix in text for prefix in self._prefixes):
            return Counter()
        return Counter(self._pattern.findall(text))

    def in_prompt(self, prompt: Conversation) -> Counter[str]:
        """Return the special tokens in the texts of turns: contents and roles, and what stands beside them."""
        found = Counter[str]()
        for turn in prompt:
            found.update(self.in_turn(turn))
        return found

    def in_turn(self, turn: Turn) -> Counter[str]:
        """Return the special tokens in the texts of one turn."""
        found = Counter[str]()
        for text in texts_of(turn):
            found.update(self.in_text(text))
        return found

    def num_written(self, conversation: Conversation) -> int:
        """Return how many special tokens the template writes for these roles, whatever the contents.

        What stands beside contents decides what it writes; it counts without the special tokens in its own texts.
        """
        key = tuple(turn["role"] for turn in conversation)
        if has_extras(conversation):
            key = tuple(text for turn in conversation for name, text in turn.items() if name != "content")
        if key not in self._expected:
            if len(self._expected) == _EXPECTED_KEPT:
                self._expected.clear()
            text = self._render([self._neutral(turn) for turn in conversation])
            ids = [] if isinstance(text, Refusal) else self._tokenizer(text, add_special_tokens=False)["input_ids"]
            self._expected[key] = self._count(np.asarray(ids, dtype=np.int32))
        return self._expected[key]

    def _neutral(self, turn: Turn) -> Turn:
        """Return a turn of the same role with a content of no meaning, and no special token beside it."""
        if len(turn) == 2:
            return {"role": turn["role"], "content": "x"}
        return dict(with_texts(turn, lambda text: self._pattern.sub("x", text))) | {
            "role": turn["role"],
            "content": "x",
        }

    def count(self, rows: Sequence[Int32s]) -> list[int]:
        """Return how many special tokens each row holds; more than ``num_written`` come from its texts."""
        ends = np.cumsum([len(row) for row in rows], dtype=np.int64)
        sums = np.concatenate([[0], np.cumsum(self._is_special[np.concatenate([np.empty(0, np.int32), *rows])])])
        return np.diff(sums[ends], prepend=0).tolist()

    def read_as_text(self, conversation: Conversation, text: str, token_ids: Int32s) -> Reading:
        """Tokenise a conversation with the special tokens in its texts as ordinary text.

        Args:
            conversation: whose texts hold special tokens, or which has more of them than the template writes.
            text: the conversation, rendered.
            token_ids: plain tokenisation of ``text``.
        """
        pattern = self._pattern
        if changed := self._changed_by_normaliser(text, conversation):
            pattern = re.compile("|".join([*map(re.escape, changed), self._pattern.pattern]))
        for mark in MARKS:
            if mark in text or any(mark in part for turn in conversation for part in texts_of(turn)):
                continue
            for within in (_after_first, _after_every):
                read = self._read_marked(conversation, text, mark, pattern, within)
                if read is not None:
                    return Reading(read, self._named(token_ids) - self._named(read))
        return Reading(None, Counter())

    def _read_marked(
        self, conversation: Conversation, text: str, mark: str, pattern: re.Pattern[str], within: Within
    ) -> Int32s | None:
        marked = [with_texts(turn, lambda text: _marked(text, mark, pattern, within)) for turn in conversation]
        if any(pattern.search(text) for turn in marked for text in texts_of(turn)):
            return None
        read = self._encode_marked(marked, text, mark)
        if read is None or self._count(read) <= self.num_written(conversation):
            return read
        # More than the template writes for other contents: either these make it do so, or they complete what it begins.
        edged = [{**turn, "content": _edged(turn["content"], mark)} for turn in marked]
        apart = self._encode_marked(edged, text, mark)
        return read if apart is None or self._count(apart) >= self._count(read) else apart

    def _encode_marked(self, conversation: Conversation, text: str, mark: str) -> Int32s | None:
        """Return the ids of a marked conversation without those of the marks; None unless that is exactly ``text``."""
        marked = self._render(conversation)
        if isinstance(marked, Refusal) or marked.replace(mark, "") != text:
            return None
        encoded = self._tokenizer(marked, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        normalizer = self._tokenizer.backend_tokenizer.normalizer
        vanishes = normalizer is not None and normalizer.normalize_str(f"a{mark}a") == normalizer.normalize_str("aa")
        kept: list[int] = []
        for token_id, (start, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
            piece = marked[start:end]
            if mark not in piece:
                kept.append(token_id)
            elif rest := piece.replace(mark, ""):
                if self._is_special[token_id] or not (vanishes or self._is_unknown(token_id, rest)):
                    return None
                kept.append(token_id)
        return np.asarray(kept, dtype=np.int32)

    def _is_unknown(self, token_id: int, text: str) -> bool:
        """Return whether a token stands for unknown characters, some of them beside the mark."""
        unknown = self._tokenizer.unk_token_id
        return token_id == unknown and unknown in self._tokenizer(text, add_special_tokens=False)["input_ids"]

    def _changed_by_normaliser(self, text: str, conversation: Conversation) -> set[str]:
        """Return pieces of the contents that become special tokens by normalisation alone, such as other cases."""
        if not self._is_any_normalized:
            return set()
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        pieces = {
            text[start:end].strip()
            for token_id, (start, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
            if self._is_special[token_id]
        }
        return {
            piece
            for piece in pieces
            if piece
            and not self.in_text(piece)
            and any(piece in text for turn in conversation for text in texts_of(turn))
        }

    def _count(self, token_ids: Int32s) -> int:
        return int(np.count_nonzero(self._is_special[token_ids]))

    def _named(self, token_ids: Int32s) -> Counter[str]:
        return Counter(self._tokenizer.convert_ids_to_tokens(token_ids[self._is_special[token_ids]].tolist()))


def _is_looked_for(token: str, template: str) -> bool:
    return token in template and re.search(_LOOKUPS.replace("{token}", re.escape(token)), template) is not None


def _pattern_of(names: set[str], words: set[str]) -> re.Pattern[str]:
    if not names:
        return re.compile("(?!)")
    try:
        return re.compile(_any_of(names, words), re.DOTALL)
    except RecursionError:  # hundreds of tokens that begin with each other: slower, and words are found in words too
        return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))))


def _any_of(tokens: set[str], words: set[str], before: str = "") -> str:
    """Return a regular expression for the longest of some tokens, as a trie: some vocabularies have 6,000.

    Args:
        tokens: what follows ``before``.
        words: whole tokens that count only where no letter, digit or underscore stands beside them.
        before: the beginning that the tokens share.
    """
    if shared := os.path.commonprefix(list(tokens)):  # noqa: RUF071 (no paths)
        return re.escape(shared) + _any_of({token.removeprefix(shared) for token in tokens}, words, before + shared)
    branches = []
    for first in sorted({token[0] for token in tokens if token}):
        rests = {token[1:] for token in tokens if token.startswith(first)}
        branches.append(re.escape(first) + _any_of(rests, words, before + first))
    if "" in tokens:
        branches.append(rf"(?<!\w.{{{len(before)}}})(?!\w)" if before in words else "")
    return branches[0] if len(branches) == 1 else f"(?:{'|'.join(branches)})"


def _prefixes(tokens: set[str]) -> list[str]:
    """Return a few strings of which each text with a token holds one: cheaper to look for than any pattern."""
    twos = sorted({token[:2] for token in tokens})
    return twos if len(twos) <= _MAX_PREFIXES else sorted({token[0] for token in tokens})


def _after_first(token: str, mark: str) -> str:
    return token if len(token) == 1 else token[0] + mark + token[1:]


def _after_every(token: str, mark: str) -> str:
    return mark.join(token)


def _marked(text: str, mark: str, pattern: re.Pattern[str], within: Within) -> str:
    """Return a text with marks in its special tokens, in overlapping ones too; a single character takes none."""
    before = None
    while text != before:
        before, text = text, pattern.sub(lambda match: within(match[0], mark), text)
    return text


def _edged(text: str, mark: str) -> str:
    """Return a text with a mark at each end, inside the blanks that a template may trim."""
    core = text.strip()
    before, _, after = text.partition(core) if core else (text, "", "")
    return f"{before}{mark}{core}{mark}{after}"
