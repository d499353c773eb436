"""Scores requests with a loaded model: a reward for each completion, in SCORES_SCHEMA, and the rejections.

Tokenisation is that of training (data/tokens/tokenize_groups.py), with the model's own template and length policy. Each
row is scored once, beside rows of similar length; the requests alone decide which rows share a forward pass.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pairwright.data.extras import CONTENT_FIELDS, Turn, is_blank, read_extra, reply_of
from pairwright.data.ingest.parse import MAX_RECORD_CHARACTERS
from pairwright.data.tokens.conversation_tokens import TokenizedCompletions, TokenSpec, joined, tokenize_completions
from pairwright.data.tokens.template_sandbox import Refusal
from pairwright.data.tokens.tokenize_groups import SPECIAL_PREFIX, TokenGroup
from pairwright.errors import ModelError
from pairwright.evaluation.load_exported import LoadedModel
from pairwright.evaluation.requests import ScoreRequest
from pairwright.records import SCORES_SCHEMA, Rejection

_OVER = "expected at most {} tokens with the prompt, got more; the model's pairwright.json says to drop such"
_PROMPT_ALONE = "expected a prompt of fewer than {} tokens, got one that leaves nothing of the completion"

CHARACTERS_AT_ONCE = 1_000_000
"""Most characters that are tokenised together; a prompt counts once for each completion."""

Int32s = NDArray[np.int32]
TOTALS: tuple[str, ...] = (
    "records",
    "records_refused",
    "completions",
    "completions_refused",
    "completions_truncated",
    "records_with_special",
    "tokens",
)
"""records: read, without blank lines; completions: scored; tokens: of these, with their prompts. Further totals count
the texts that hold a special token, as those of token tables do."""


@dataclass(slots=True)
class Scored:
    """The result of scoring some input."""

    scores: pa.Table
    rejections: list[Rejection]
    totals: dict[str, int]


@dataclass(slots=True)
class _Rows:
    """Completions to score, as parallel lists."""

    ids: list[str] = field(default_factory=list)
    completion_ids: list[str] = field(default_factory=list)
    token_ids: list[Int32s] = field(default_factory=list)


def score_requests(
    loaded: LoadedModel,
    spec: TokenSpec,
    requests: Sequence[ScoreRequest],
    refused: Sequence[Rejection],
    *,
    micro_batch_tokens: int,
) -> Scored:
    """Return the rewards of all requests' completions, in the order of the requests.

    A completion without text, or over the limit if the model's policy is to drop it, is refused alone; a request whose
    prompt the chat template refuses is refused as a whole.

    Args:
        loaded: model and tokenizer.
        spec: template and length limit.
        requests: few enough for their tokens to fit in memory.
        refused: rejected records of the same input; counted and passed on.
        micro_batch_tokens: token budget of one forward pass, padding included.

    Raises:
        ConfigError: if the budget is below the longest row, or the device's memory is too small for it.
        ModelError: if a reward is not finite, naming the record.
    """
    rows, rejections, totals = _Rows(), list(refused), Counter(dict.fromkeys(TOTALS, 0))
    totals.update(records=len(requests) + len(refused), records_refused=len(refused))
    filled = [_without_empty(request, rejections) for request in requests]
    for request, tokenized in zip(filled, _tokenize(filled, loaded, spec), strict=True):
        if isinstance(tokenized, TokenizedCompletions):
            found = [tokenized.special_in_prompt, *tokenized.special_in_completion]
            totals.update(SPECIAL_PREFIX + token for text in found for token in text)
            totals["records_with_special"] += any(found)
        if (reason := _why_refused(tokenized)) is not None:
            totals["records_refused"] += 1
            rejections.append(_refuse(request, reason, "$.prompt", request.prompt[-1]["content"]))
            continue
        assert isinstance(tokenized, TokenizedCompletions)
        totals["completions_truncated"] += tokenized.num_truncated
        for index, token_ids in enumerate(tokenized.row_ids):
            if token_ids is None:
                reason = tokenized.refused[index] or _OVER.format(spec.max_length)
                rejections.append(_refuse_completion(request, index, reason))
            elif _is_prompt_alone(request, token_ids, loaded, spec):
                totals["completions_truncated"] -= 1
                rejections.append(_refuse_completion(request, index, _PROMPT_ALONE.format(spec.max_length)))
            else:
                rows.ids.append(request.id)
                rows.completion_ids.append(request.completion_ids[index])
                rows.token_ids.append(token_ids)
    totals["completions"] = len(rows.ids)
    totals["completions_refused"] = len(rejections) - totals["records_refused"]
    totals["tokens"] = sum(map(len, rows.token_ids))
    return Scored(_scores(rows, loaded, micro_batch_tokens), rejections, dict(totals))


def _without_empty(request: ScoreRequest, rejections: list[Rejection]) -> ScoreRequest:
    """Return the request without its empty completions, which are added to ``rejections``."""
    empty = [
        index for index, reply in enumerate(request.replies) if not (reply["content"].strip() or _has_content(reply))
    ]
    if not empty:
        return request
    kept = sorted(set(range(len(request.replies))) - set(empty))
    rejections += [_refuse_completion(request, index, "expected text, got an empty completion") for index in empty]
    return replace(
        request,
        completion_ids=[request.completion_ids[index] for index in kept],
        replies=[request.replies[index] for index in kept],
        paths=[request.paths[index] for index in kept],
    )


def _has_content(reply: Turn) -> bool:
    """Return whether a completion has content beside its text."""
    fields = read_extra(reply.get("extra"))
    return any(not is_blank(fields.get(name)) for name in CONTENT_FIELDS)


def _why_refused(tokenized: TokenizedCompletions | Refusal) -> str | None:
    """Return the reason to refuse a whole request: the template, or special tokens in its prompt; None if none."""
    if isinstance(tokenized, Refusal):
        return tokenized.reason
    is_refused = bool(tokenized.special_in_prompt and tokenized.refused) and None not in tokenized.refused
    return tokenized.refused[0] if is_refused else None


def _tokenize(
    requests: Sequence[ScoreRequest], loaded: LoadedModel, spec: TokenSpec
) -> list[TokenizedCompletions | Refusal]:
    """Tokenise in batches: a tokenizer takes 180 bytes of memory for each character (measured)."""
    found: list[TokenizedCompletions | Refusal] = []
    batch: list[ScoreRequest] = []
    num_characters = 0
    for request in requests:
        if batch and num_characters + _num_characters(request) > CHARACTERS_AT_ONCE:
            found += _tokenize_batch(batch, loaded, spec)
            batch, num_characters = [], 0
        batch.append(request)
        num_characters += _num_characters(request)
    return found + (_tokenize_batch(batch, loaded, spec) if batch else [])


def _num_characters(request: ScoreRequest) -> int:
    prompt = sum(len(text) for turn in request.prompt for text in turn.values())
    return prompt * len(request.replies) + sum(len(text) for reply in request.replies for text in reply.values())


def _tokenize_batch(
    requests: Sequence[ScoreRequest], loaded: LoadedModel, spec: TokenSpec
) -> list[TokenizedCompletions | Refusal]:
    """Tokenise all at once; the completions of a single large request one by one."""
    prompts = [request.prompt for request in requests]
    replies = [request.replies for request in requests]
    if len(requests) > 1 or _num_characters(requests[0]) <= CHARACTERS_AT_ONCE:
        return tokenize_completions(prompts, replies, loaded.tokenizer, spec)
    each = [tokenize_completions(prompts, [[reply]], loaded.tokenizer, spec)[0] for reply in replies[0]]
    refusal = next((one for one in each if isinstance(one, Refusal)), None)
    whole = [one for one in each if isinstance(one, TokenizedCompletions)]
    return [joined(whole) if refusal is None else refusal]


def _is_prompt_alone(request: ScoreRequest, token_ids: Int32s, loaded: LoadedModel, spec: TokenSpec) -> bool:
    """Return whether a row was cut so early that nothing of its completion is left."""
    if len(token_ids) < spec.max_length:
        return False
    (alone,) = tokenize_completions([request.prompt], [[reply_of("")]], loaded.tokenizer, spec)
    if isinstance(alone, Refusal) or (prompt_ids := alone.row_ids[0]) is None:
        return False
    return np.array_equal(prompt_ids, token_ids)


def _refuse_completion(request: ScoreRequest, index: int, reason: str) -> Rejection:
    return _refuse(request, reason, request.paths[index], request.texts[index])


def _refuse(request: ScoreRequest, reason: str, path: str, text: str) -> Rejection:
    return Rejection(
        source=request.source, line=request.line, path=path, reason=reason, record=text[:MAX_RECORD_CHARACTERS]
    )


def rewards_of_rows(
    names: Sequence[str], row_ids: Sequence[Int32s], loaded: LoadedModel, *, micro_batch_tokens: int
) -> NDArray[np.float32]:
    """Return the reward of each tokenised text, float32; rows of similar length share a forward pass.

    Args:
        names: of the records, for messages.
        row_ids: tokens of prompt and completion together.
        loaded: the model.
        micro_batch_tokens: token budget of one forward pass, padding included.

    Raises:
        ConfigError: if the budget is below the longest row, or the device's memory is too small for it.
    """
    length_N = np.array([len(token_ids) for token_ids in row_ids], np.int32)
    reward_N = np.empty(len(length_N), np.float32)
    from pairwright.evaluation.rewards import plan_by_length, rewards_of_groups  # torch, which files of scores need not

    for positions in plan_by_length(np.ones_like(length_N), length_N, micro_batch_tokens=micro_batch_tokens):
        groups = [group_of_one(names[position], row_ids[position]) for position in positions]
        reward_N[positions] = np.concatenate(
            rewards_of_groups(
                loaded.model,
                groups,
                pad_token_id=loaded.pad_token_id,
                micro_batch_tokens=micro_batch_tokens,
                device=loaded.device,
            )
        )
    return reward_N


def _scores(rows: _Rows, loaded: LoadedModel, micro_batch_tokens: int) -> pa.Table:
    length_N = np.array([len(token_ids) for token_ids in rows.token_ids], np.int32)
    reward_N = rewards_of_rows(rows.ids, rows.token_ids, loaded, micro_batch_tokens=micro_batch_tokens)
    if not np.isfinite(reward_N).all():
        bad = int(np.flatnonzero(~np.isfinite(reward_N))[0])
        raise ModelError(
            f"record {rows.ids[bad]}, completion {rows.completion_ids[bad]}: the model's reward is {reward_N[bad]}, "
            "expected a finite number; its weights may hold NaN (a run that diverged), or its dtype may overflow"
        )
    columns = [rows.ids, rows.completion_ids, reward_N, length_N]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, SCORES_SCHEMA, strict=True)]
    return pa.Table.from_arrays(arrays, schema=SCORES_SCHEMA)


def group_of_one(name: str, token_ids: Int32s) -> TokenGroup:
    """Return a completion as a group without pairs."""
    no_pairs, no_weights = np.empty(0, np.int64), np.empty(0, np.float32)
    return TokenGroup(
        group_id=name,
        subset=None,
        prompt_ids=token_ids[:0],
        completion_ids=[token_ids],
        num_characters=np.zeros(1, np.int32),
        completion_index=np.zeros(1, np.int16),
        chosen_P=no_pairs,
        rejected_P=no_pairs,
        weight_P=no_weights,
        margin_P=no_weights,
    )
