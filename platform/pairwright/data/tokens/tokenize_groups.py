"""Tokenises groups of pairs: the prompt's tokens once, then each completion's.

The prompt is the longest common prefix of the full tokenisations and not the tokenisation of the prompt's text, since a
token may span the boundary; so prompt + completion always equals plain tokenisation. A completion over the length limit
is dropped or truncated, and everything that is dropped is counted.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pairwright.data.extras import reply_of, turns_of
from pairwright.data.tokens.chat_template import plain_template, resolve_template
from pairwright.data.tokens.conversation_tokens import TokenizedCompletions, TokenSpec, tokenize_completions
from pairwright.data.tokens.template_sandbox import Conversation, Refusal
from pairwright.data.tokens.token_files import local_token_paths
from pairwright.data.tokens.token_table import TokenGroup, TokenTable, groups_to_table
from pairwright.data.tokens.tokenizer import load_tokenizer, tokenizer_digest
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
    "counts_behind",
    "groups_to_table",
    "load_tokenizer",
    "local_token_paths",
    "plain_template",
    "resolve_template",
    "tokenize_completions",
    "tokenize_groups",
    "tokenizer_digest",
]

TOTALS: tuple[str, ...] = (
    "groups",
    "groups_dropped",
    "groups_refused",
    "groups_with_special",
    "prompts_with_special",
    "completions",
    "completions_dropped",
    "completions_refused",
    "completions_truncated",
    "completions_unpaired",
    "completions_with_special",
    "pairs",
    "pairs_dropped",
    "pairs_identical",
    "pairs_equal_in_template",
    "tokens",
    "longest",
)
SPECIAL_PREFIX = "special_in_text:"
"""Of further totals: the special token behind it stands in so many texts, prompts and completions."""
REFUSED_PREFIX = "refused:"
"""Of further totals: the template refused so many groups for the reason behind it."""
EQUAL_IN_TEMPLATE = "equal after the chat template, which leaves out part of their texts"
"""What is said of pairs that count as ``pairs_equal_in_template``."""
_MAX_REASONS = 5
_MIN_QUOTED_CHARACTERS, _QUOTED_CHARACTERS = 4, 20
_WHAT_BECAME = {
    "split": 'read as ordinary text (special_in_text = "split")',
    "refuse": 'and are left out (special_in_text = "refuse")',
    "keep": 'read as these tokens: such a text can end its turn and begin another (special_in_text = "keep")',
}
_OTHER_REASONS = "other reasons"
_GROUPS_AT_ONCE = 256

Int32s = NDArray[np.int32]


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

    A pair goes where a completion of it was dropped (``pairs_dropped``), or where both have the same tokens
    (``pairs_identical``), be it cut to the same beginning or made equal by the template (``pairs_equal_in_template`` of
    them): its loss would be ln 2 whatever the model does. Then completions without a pair (``completions_unpaired``)
    and groups without a pair (``groups_dropped``) go. Weights of the pairs that stay are as they were: a group that
    lost pairs counts for less, it is not scaled up again.

    Args:
        pairs: rows in PAIRS_SCHEMA.
        tokenizer: the one that ``spec`` was made of.
        spec: template and length limit.

    Returns:
        The table, and totals over ``pairs`` by name; all add up over calls (``add_totals``) but ``longest``, the
        longest row in tokens before the limit, of which the larger is taken. ``tokens`` counts what is stored. Beside
        ``TOTALS`` there is one for each special token that stands in texts, and one for each reason of a refusal.

    Raises:
        DataError: if the chat template refuses a group's prompt where ``spec.refused`` is "stop"; names the group. If
            the template goes over its limits again and again.
    """
    totals = Counter(dict.fromkeys(TOTALS, 0))
    groups: list[TokenGroup] = []
    splits: list[str] = []
    for batch in pairs.combine_chunks().to_batches(max_chunksize=_GROUPS_AT_ONCE):
        given = zip(batch.column("prompt").to_pylist(), batch.column("context").to_pylist(), strict=True)
        prompts = [turns_of(prompt, context) for prompt, context in given]
        replies = [
            [reply_of(completion["text"], completion["extra"]) for completion in group]
            for group in batch.column("completions").to_pylist()
        ]
        for row, tokenized in enumerate(tokenize_completions(prompts, replies, tokenizer, spec)):
            if isinstance(tokenized, Refusal):
                if spec.refused == "stop":
                    raise DataError(_stopped_by(batch.column("group_id")[row].as_py(), prompts[row], tokenized))
                _count_refused(batch, row, _without_texts(tokenized.reason, [*prompts[row], *replies[row]]), totals)
                continue
            _count_special(tokenized, totals)
            group = _keep_what_pairs(batch, row, tokenized, totals)
            if group is not None:
                groups.append(group)
                splits.append(batch.column("split")[row].as_py())
    return groups_to_table(groups, splits), dict(totals)


def add_totals(*parts: Mapping[str, int]) -> dict[str, int]:
    """Return the totals of several calls of ``tokenize_groups`` together; zeros for none."""
    total = Counter(dict.fromkeys(TOTALS, 0))
    for part in parts:
        for name, count in part.items():
            known = name in total or not name.startswith(REFUSED_PREFIX) or _num_reasons(total) < _MAX_REASONS
            total[name if known else REFUSED_PREFIX + _OTHER_REASONS] += count
    return dict(total) | {"longest": max((part["longest"] for part in parts), default=0)}


def counts_behind(totals: Mapping[str, int | float], prefix: str) -> dict[str, int]:
    """Return the totals of special tokens or of reasons by what stands behind the prefix, largest first."""
    found = Counter({name.removeprefix(prefix): int(n) for name, n in totals.items() if name.startswith(prefix)})
    return dict(found.most_common())


def special_line(totals: Mapping[str, int | float], rule: str) -> str:
    """Return what is said of texts that hold special tokens: which, in how many texts, and what became of them."""
    found = counts_behind(totals, SPECIAL_PREFIX)
    shown = ", ".join(f"{token} in {count:,}" for token, count in list(found.items())[:_MAX_REASONS])
    more = f", and {len(found) - _MAX_REASONS} others" if len(found) > _MAX_REASONS else ""
    return f"hold special tokens in their texts ({shown}{more}), {_WHAT_BECAME[rule]}"


def _num_reasons(totals: Mapping[str, int]) -> int:
    return sum(name.startswith(REFUSED_PREFIX) for name in totals)


def _stopped_by(group_id: str, prompt: Conversation, refusal: Refusal) -> str:
    roles = ", ".join(message["role"] for message in prompt)
    return (
        f'group {group_id}: {refusal.reason} (roles of its prompt: {roles}); set tokens.refused = "drop" to leave such '
        "groups out, or tokens.chat_template to one that takes them"
    )


def _without_texts(reason: str, turns: Conversation) -> str:
    """Return a reason up to where it quotes the group's own texts: it is kept with the totals, longer than these."""
    for text in (turn["content"] for turn in turns):
        beginning = text.strip()[:_QUOTED_CHARACTERS]
        if len(beginning) >= _MIN_QUOTED_CHARACTERS and beginning in reason:
            reason = f"{reason.partition(beginning)[0]}..."
    return reason


def _count_refused(batch: pa.RecordBatch, row: int, reason: str, totals: Counter[str]) -> None:
    num_completions, num_pairs = len(batch.column("completions")[row]), len(batch.column("pairs")[row])
    totals.update(
        groups=1,
        groups_dropped=1,
        groups_refused=1,
        completions=num_completions,
        completions_refused=num_completions,
        pairs=num_pairs,
        pairs_dropped=num_pairs,
    )
    name = REFUSED_PREFIX + reason
    known = name in totals or _num_reasons(totals) < _MAX_REASONS
    totals[name if known else REFUSED_PREFIX + _OTHER_REASONS] += 1


def _count_special(tokenized: TokenizedCompletions, totals: Counter[str]) -> None:
    """Count the texts that hold special tokens, whatever becomes of them."""
    in_prompt, in_completions = (
        tokenized.special_in_prompt,
        [found for found in tokenized.special_in_completion if found],
    )
    totals.update(
        groups_with_special=int(bool(in_prompt or in_completions)),
        prompts_with_special=int(bool(in_prompt)),
        completions_with_special=len(in_completions),
    )
    totals.update(SPECIAL_PREFIX + token for found in (in_prompt, *in_completions) for token in found)


def _keep_what_pairs(
    batch: pa.RecordBatch, row: int, tokenized: TokenizedCompletions, totals: Counter[str]
) -> TokenGroup | None:
    """Return one group with the pairs that still mean something, or None if there are none; count the rest."""
    chosen, rejected, weight, margin = batch.column("pairs")[row].values.flatten()
    chosen_P, rejected_P = chosen.to_numpy(), rejected.to_numpy()
    same_K = _same_rows(tokenized.row_ids)
    dropped_P = (same_K[chosen_P] < 0) | (same_K[rejected_P] < 0)
    identical_P = ~dropped_P & (same_K[chosen_P] == same_K[rejected_P])
    hash_K = np.array(tokenized.text_hashes)
    equal_P = identical_P & (hash_K[chosen_P] == hash_K[rejected_P])
    kept_P = ~(dropped_P | identical_P)
    used = np.unique(np.concatenate([chosen_P[kept_P], rejected_P[kept_P]]))
    rows = [ids for k in used if (ids := tokenized.row_ids[k]) is not None]
    prefix = common_prefix_length(rows)
    num_left = int((same_K >= 0).sum())
    num_refused = sum(reason is not None for reason in tokenized.refused)
    totals.update(
        groups=1,
        groups_dropped=int(not rows),
        completions=len(same_K),
        completions_dropped=len(same_K) - num_left - num_refused,
        completions_refused=num_refused,
        completions_truncated=tokenized.num_truncated,
        completions_unpaired=num_left - len(rows),
        pairs=len(kept_P),
        pairs_dropped=int(dropped_P.sum()),
        pairs_identical=int(identical_P.sum()),
        pairs_equal_in_template=int(equal_P.sum()),
        tokens=sum(map(len, rows)) - prefix * max(0, len(rows) - 1),
    )
    totals["longest"] = max(totals["longest"], tokenized.longest)
    if not rows:
        return None
    completions = batch.column("completions")[row].as_py()
    return TokenGroup(
        group_id=batch.column("group_id")[row].as_py(),
        subset=batch.column("subset")[row].as_py(),
        more_subsets=tuple(batch.column("more_subsets")[row].as_py() or ()),
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
