"""Pairs and a tokenizer -> tokenised groups: the prompt's tokens once, then each completion's.

The prompt is the longest common prefix of the full tokenisations and not the tokenisation of the prompt's text, since a
token may span the boundary; so prompt + completion always equals plain tokenisation. A completion over the length limit
is dropped or cut, and everything that goes is counted.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pairwright.config import TokensConfig
from pairwright.data.templates import Conversation, encode, plain_template, resolve_template
from pairwright.data.token_files import local_token_paths
from pairwright.data.token_table import TokenGroup, TokenTable, groups_to_table
from pairwright.data.tokenizers import load_tokenizer, tokenizer_digest
from pairwright.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = [
    "TokenGroup",
    "TokenSpec",
    "TokenTable",
    "TokenizedCompletions",
    "add_totals",
    "common_prefix_length",
    "groups_to_table",
    "load_tokenizer",
    "local_token_paths",
    "plain_template",
    "resolve_template",
    "tokenize_completions",
    "tokenize_groups",
    "tokenizer_digest",
]

FORMAT_VERSION = 1
TOTALS: tuple[str, ...] = (
    "groups",
    "groups_dropped",
    "completions",
    "completions_dropped",
    "completions_truncated",
    "completions_unpaired",
    "pairs",
    "pairs_dropped",
    "pairs_identical",
    "tokens",
    "longest",
)
_GROUPS_AT_ONCE = 256

Int32s = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class TokenSpec:
    """All that decides a group's tokens, apart from its text."""

    tokenizer_digest: str
    chat_template: str
    max_length: int
    overlong: Literal["drop", "truncate"]

    @classmethod
    def of(cls, tokenizer: "PreTrainedTokenizerFast", config: TokensConfig) -> "TokenSpec":
        """Return what this tokenizer does under this configuration; errors are those of ``resolve_template``."""
        return cls(tokenizer_digest(tokenizer), resolve_template(tokenizer, config), config.max_length, config.overlong)

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
    """The completions of one prompt under the length limit.

    Attributes:
        row_ids: tokens of prompt and completion together, int32; None where the completion is dropped.
        num_truncated: how many of them lost their end.
        longest: tokens of the longest before the limit.
    """

    row_ids: list[Int32s | None]
    num_truncated: int
    longest: int


def tokenize_completions(
    prompts: Sequence[Conversation],
    texts: Sequence[Sequence[str]],
    tokenizer: "PreTrainedTokenizerFast",
    spec: TokenSpec,
) -> list[TokenizedCompletions]:
    """Tokenise each prompt with each of its completions, as the assistant's turn behind it.

    Raises:
        DataError: if the chat template refuses a prompt, with the template's own reason.
    """
    conversations = [
        [*prompt, {"role": "assistant", "content": text}]
        for prompt, completions in zip(prompts, texts, strict=True)
        for text in completions
    ]
    rows = iter(encode(tokenizer, spec.chat_template, conversations) if conversations else [])
    return [_limit([next(rows) for _ in completions], spec) for completions in texts]


def common_prefix_length(row_ids: Sequence[Int32s]) -> int:
    """Return how many tokens all rows begin with, at most one less than the shortest has; 0 where there are no rows.

    The cap leaves a token to every completion, also where one row is the beginning of another.
    """
    if not row_ids:
        return 0
    cap = min(map(len, row_ids)) - 1
    same = np.ones(cap, dtype=bool)
    for row in row_ids[1:]:
        same &= row[:cap] == row_ids[0][:cap]
    return cap if same.all() else int(np.argmin(same))


def tokenize_groups(
    pairs: pa.Table, tokenizer: "PreTrainedTokenizerFast", spec: TokenSpec
) -> tuple[pa.Table, dict[str, int]]:
    """Return the groups of a pairs table in TOKENS_SCHEMA, in their order, and what became of them.

    A pair goes where a completion of it was dropped (``pairs_dropped``), or where both have the same tokens, be it cut
    to the same beginning or made equal by the template (``pairs_identical``): its loss would be ln 2 whatever the model
    does. Then completions without a pair (``completions_unpaired``) and groups without a pair (``groups_dropped``) go.
    Weights of the pairs that stay are as they were: a group that lost pairs counts for less, it is not scaled up again.

    Args:
        pairs: rows in PAIRS_SCHEMA.
        tokenizer: the one that ``spec`` was made of.
        spec: template and length limit.

    Returns:
        The table, and totals over ``pairs`` by name; all add up over calls (``add_totals``) but ``longest``, the
        longest row in tokens before the limit, of which the larger is taken. ``tokens`` counts what is stored.

    Raises:
        DataError: if the chat template refuses a group's prompt; names the group.
    """
    totals = Counter(dict.fromkeys(TOTALS, 0))
    groups: list[TokenGroup] = []
    splits: list[str] = []
    for batch in pairs.combine_chunks().to_batches(max_chunksize=_GROUPS_AT_ONCE):
        for row, tokenized in enumerate(_tokenize_batch(batch, tokenizer, spec)):
            group = _keep_what_pairs(batch, row, tokenized, totals)
            if group is not None:
                groups.append(group)
                splits.append(batch.column("split")[row].as_py())
    return groups_to_table(groups, splits), dict(totals)


def add_totals(*parts: dict[str, int]) -> dict[str, int]:
    """Return the totals of several calls of ``tokenize_groups`` together; zeros for none."""
    total = {name: sum(part[name] for part in parts) for name in TOTALS}
    return total | {"longest": max((part["longest"] for part in parts), default=0)}


def _tokenize_batch(
    batch: pa.RecordBatch, tokenizer: "PreTrainedTokenizerFast", spec: TokenSpec
) -> list[TokenizedCompletions]:
    prompts = batch.column("prompt").to_pylist()
    texts = [[completion["text"] for completion in group] for group in batch.column("completions").to_pylist()]
    try:
        return tokenize_completions(prompts, texts, tokenizer, spec)
    except DataError:
        # Once more, one by one, to name the group.
        for group_id, prompt, completions in zip(batch.column("group_id"), prompts, texts, strict=True):
            try:
                tokenize_completions([prompt], [completions], tokenizer, spec)
            except DataError as error:
                roles = ", ".join(message["role"] for message in prompt)
                raise DataError(
                    f"group {group_id}: {error} (roles of its prompt: {roles}); leave such prompts out, or set "
                    "tokens.chat_template to one that takes them"
                ) from None
        raise


def _keep_what_pairs(
    batch: pa.RecordBatch, row: int, tokenized: TokenizedCompletions, totals: Counter[str]
) -> TokenGroup | None:
    """Return one group with the pairs that still mean something, or None if there are none; count the rest."""
    chosen, rejected, weight, margin = batch.column("pairs")[row].values.flatten()
    chosen_P, rejected_P = chosen.to_numpy(), rejected.to_numpy()
    same_K = _same_rows(tokenized.row_ids)
    dropped_P = (same_K[chosen_P] < 0) | (same_K[rejected_P] < 0)
    identical_P = ~dropped_P & (same_K[chosen_P] == same_K[rejected_P])
    kept_P = ~(dropped_P | identical_P)
    used = np.unique(np.concatenate([chosen_P[kept_P], rejected_P[kept_P]]))
    rows = [ids for k in used if (ids := tokenized.row_ids[k]) is not None]
    prefix = common_prefix_length(rows)
    num_left = int((same_K >= 0).sum())
    totals.update(
        groups=1,
        groups_dropped=int(not rows),
        completions=len(same_K),
        completions_dropped=len(same_K) - num_left,
        completions_truncated=tokenized.num_truncated,
        completions_unpaired=num_left - len(rows),
        pairs=len(kept_P),
        pairs_dropped=int(dropped_P.sum()),
        pairs_identical=int(identical_P.sum()),
        tokens=sum(map(len, rows)) - prefix * max(0, len(rows) - 1),
    )
    totals["longest"] = max(totals["longest"], tokenized.longest)
    if not rows:
        return None
    completions = batch.column("completions")[row].as_py()
    return TokenGroup(
        group_id=batch.column("group_id")[row].as_py(),
        subset=batch.column("subset")[row].as_py(),
        prompt_ids=rows[0][:prefix],
        completion_ids=[ids[prefix:] for ids in rows],
        num_characters=np.array([len(completions[k]["text"]) for k in used], dtype=np.int32),
        completion_index=used.astype(np.int16),
        chosen_P=np.searchsorted(used, chosen_P[kept_P]),
        rejected_P=np.searchsorted(used, rejected_P[kept_P]),
        weight_P=weight.to_numpy()[kept_P],
        margin_P=margin.to_numpy(zero_copy_only=False)[kept_P],
    )


def _same_rows(row_ids: Sequence[Int32s | None]) -> NDArray[np.int64]:
    """Return for each row the index of the first one with the same tokens; -1 where there is no row."""
    first: dict[bytes, int] = {}
    same = (-1 if ids is None else first.setdefault(ids.tobytes(), k) for k, ids in enumerate(row_ids))
    return np.fromiter(same, dtype=np.int64, count=len(row_ids))


def _limit(row_ids: Sequence[Int32s], spec: TokenSpec) -> TokenizedCompletions:
    """Apply the rule for rows over the limit; a row without a single token cannot be read and is dropped too."""
    longest = max(map(len, row_ids), default=0)
    too_long = [len(ids) > spec.max_length for ids in row_ids]
    if spec.overlong == "truncate":
        limited = [ids[: spec.max_length] if len(ids) else None for ids in row_ids]
        return TokenizedCompletions(limited, sum(too_long), longest)
    limited = [None if over or not len(ids) else ids for ids, over in zip(row_ids, too_long, strict=True)]
    return TokenizedCompletions(limited, 0, longest)
