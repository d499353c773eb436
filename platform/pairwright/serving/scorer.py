"""An exported model in memory that gives the rewards of tokenised texts, a shared prefix computed once.

Rewards are those of ``pairwright score``: raw, float32. The model runs in the fastest layout that it computes
correctly (model/layout_check.py), which differs from ``score`` by rounding; with ``is_exact`` it runs as in ``score``.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from pairwright.data.tokens.token_table import TokenGroup
from pairwright.errors import ConfigError, ModelError
from pairwright.evaluation.load_exported import ExportedModel, ModelIdentity, load_exported
from pairwright.evaluation.rewards import plan_by_length
from pairwright.evaluation.score import rewards_of_rows
from pairwright.model.batching.prefix_groups import PrefixGroup, fill_micro_batches, prefix_groups
from pairwright.model.collate import Layout, collate
from pairwright.model.layout_check import choose_layout
from pairwright.model.model_export import SELF_CHECK_FILE, SelfCheck
from pairwright.serving.text_tokens import InputTokens
from pairwright.serving.wire_format import conversation

Int32s = NDArray[np.int32]
Rewards = NDArray[np.float32]

logger = logging.getLogger(__name__)

MICRO_BATCH_TOKENS = 16384
"""Of one forward pass, unless the model's limit is larger."""
CPU_FILLED_TOKENS = 2048
"""To which texts are put together on a CPU: its caches hold no more, and a text costs 4 to 25 % more in a pass of 4,000
to 16,000 tokens (4 layers x 256, 2026-11-29). A larger group with one prefix stays whole."""
_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1}
"""Of the self-check, whose reward is a CPU's in float32, as a share of 1 + its size."""
_WARM_UP_TOKENS = 16


class TrainedOn(msgspec.Struct, frozen=True):
    """The pairs table that a model was trained on, from the ``run.json`` beside its directory."""

    pairs_url: str
    pairs_version: int


@dataclass(frozen=True, slots=True)
class PlannedBatch:
    """One forward pass: texts as indices, in groups with a common prefix each."""

    groups: tuple[PrefixGroup, ...]

    @property
    def rows(self) -> list[int]:
        """The texts' indices, in the order of their rewards."""
        return [row for group in self.groups for row in group.rows]

    @property
    def num_tokens(self) -> int:
        """Tokens computed, without padding."""
        return sum(group.num_tokens for group in self.groups)


class Scorer:
    """A loaded model with its input rules; ``plan`` and ``rewards`` run in one thread, the others in any.

    Args:
        exported: the model.
        device: on which it computes.
        micro_batch_tokens: token budget of one forward pass; None for 16,384, or the model's limit if that is larger.
        is_exact: compute each request alone, in padded rows and on one thread, as ``score`` computes it.

    Raises:
        ModelError: if the model cannot be used, or does not give the reward that its export recorded.
        ConfigError: if the budget is below the model's limit.
    """

    def __init__(
        self, exported: ExportedModel, *, device: torch.device, micro_batch_tokens: int | None, is_exact: bool
    ) -> None:
        limit = exported.rules.max_length
        self.micro_batch_tokens = micro_batch_tokens or max(MICRO_BATCH_TOKENS, limit)
        if self.micro_batch_tokens < limit:
            raise ConfigError(
                f"micro_batch_tokens is {self.micro_batch_tokens}, below the {limit} tokens of the model's longest "
                f"text; raise it to at least {limit}"
            )
        on_cpu = device.type == "cpu"
        self.filled_tokens = min(CPU_FILLED_TOKENS, self.micro_batch_tokens) if on_cpu else self.micro_batch_tokens
        """Up to which texts are put together."""
        self.is_exact = is_exact
        self.rules = exported.rules
        self.identity: ModelIdentity = exported.identity()
        self.trained_on = _trained_on(exported)
        if is_exact:
            torch.set_num_threads(1)
        self._loaded = load_exported(exported, device)
        self.inputs = InputTokens(self._loaded.tokenizer, exported.rules)
        choice = choose_layout(
            self._loaded.model,
            "padded" if is_exact else "auto",
            pad_token_id=self._loaded.pad_token_id,
            max_length=limit,
            device=device,
        )
        self.layout: Layout = choice.layout
        self._loaded.model.to(device)
        logger.info("%s: layout %s: %s", exported.path, choice.layout, choice.reason)
        self._check_itself(exported)

    def plan(self, row_ids: Sequence[Int32s]) -> list[PlannedBatch]:
        """Return the forward passes for texts: by common prefixes, or by length where the layout is padded."""
        budget = self.micro_batch_tokens
        if self.layout == "padded":
            length_N = [len(ids) for ids in row_ids]
            planned = plan_by_length(np.ones(len(row_ids), np.int64), length_N, micro_batch_tokens=budget)
            return [PlannedBatch(tuple(_alone(row, length_N[row]) for row in rows)) for rows in planned]
        if self.layout == "shared":
            groups = prefix_groups(row_ids)
        else:
            groups = [_alone(row, len(ids)) for row, ids in enumerate(row_ids)]
        filled = fill_micro_batches(row_ids, groups, micro_batch_tokens=budget, filled_tokens=self.filled_tokens)
        return [PlannedBatch(tuple(part)) for part in filled]

    def rewards(self, row_ids: Sequence[Int32s], batch: PlannedBatch) -> Rewards:
        """Return the rewards of one forward pass, float32, in the order of ``batch.rows``.

        Raises:
            ConfigError: if the device's memory is too small for it.
            ModelError: if a reward is not finite.
        """
        if self.layout == "padded":
            rows = [row_ids[row] for row in batch.rows]
            return self.rewards_as_score(rows)
        groups = [_token_group(row_ids, group) for group in batch.groups]
        micro_batch = collate(groups, self._loaded.pad_token_id, self.layout).to(self._loaded.device)
        try:
            with torch.inference_mode():
                found = self._loaded.model.rewards(micro_batch).float().cpu().numpy()
        except torch.OutOfMemoryError:
            raise ConfigError(
                f"the device's memory is too small for a forward pass of {batch.num_tokens} tokens; start the server "
                "with a lower --micro-batch-tokens"
            ) from None
        return _finite(found)

    def rewards_as_score(self, row_ids: Sequence[Int32s]) -> Rewards:
        """Return the rewards of one request's texts as ``pairwright score`` computes them, bit for bit."""
        names = ["request"] * len(row_ids)
        return _finite(rewards_of_rows(names, row_ids, self._loaded, micro_batch_tokens=self.micro_batch_tokens))

    def rewards_of_groups(self, groups: Sequence[tuple[Any, Sequence[Any]]]) -> list[list[float]]:
        """Return the rewards of several prompts' completions, each prompt a text or messages; for callers in Python.

        Raises:
            DataError: if a text cannot be scored.
        """
        row_ids: list[Int32s] = []
        for prompt, completions in groups:
            if completions:
                request = conversation({"prompt": prompt, "completions": list(completions)})
                row_ids += [tokens.token_ids for tokens in self.inputs.of_request(request)]
        reward_N = np.empty(len(row_ids), np.float32)
        for batch in self.plan(row_ids):
            reward_N[batch.rows] = self.rewards(row_ids, batch)
        found = iter(reward_N.tolist())
        return [[next(found) for _ in completions] for _, completions in groups]

    def _check_itself(self, exported: ExportedModel) -> None:
        """Compute the text of the export's self-check, and compare tokens and reward; any text where it has none."""
        file = exported.directory / SELF_CHECK_FILE
        if not file.is_file():
            self._compute_alone(np.zeros(min(_WARM_UP_TOKENS, self.rules.max_length), np.int32))
            return
        try:
            check = msgspec.json.decode(file.read_bytes(), type=SelfCheck)
        except msgspec.MsgspecError as error:
            raise ModelError(f"{file}: {error}; export the model again") from None
        ids = np.array(check.token_ids, np.int32)
        found = self.inputs.of_text(check.text, "self-check").token_ids
        request = conversation({"messages": check.messages})
        for kind, token_ids in (("text", found), ("messages", self.inputs.of_request(request)[0].token_ids)):
            if not np.array_equal(token_ids, ids):
                raise ModelError(
                    f"{exported.path}: the {kind} of {SELF_CHECK_FILE} become other tokens than at the export "
                    f"({token_ids.tolist()[:8]}..., expected {check.token_ids[:8]}...); install the transformers and "
                    "tokenizers of the export, or export the model again"
                )
        reward = self._compute_alone(ids)
        expected = check.reward
        tolerance = _TOLERANCE.get(exported.dtype, 0.1) * (1 + abs(expected or 0))
        if expected is None or not math.isclose(reward, expected, rel_tol=0, abs_tol=tolerance):
            raise ModelError(
                f"{exported.path}: the reward of {SELF_CHECK_FILE} is {reward:.5f}, expected {expected} as at the "
                f"export (+- {tolerance:.2g}); the weights are not what was exported, or this machine computes wrongly"
            )

    def _compute_alone(self, token_ids: Int32s) -> float:
        (batch,) = self.plan([token_ids])
        return float(self.rewards([token_ids], batch)[0])


def _trained_on(exported: ExportedModel) -> TrainedOn | None:
    try:
        return msgspec.json.decode((exported.directory.parent / "run.json").read_bytes(), type=TrainedOn)
    except (OSError, msgspec.MsgspecError):
        return None


def _finite(rewards: Rewards) -> Rewards:
    if not np.isfinite(rewards).all():
        raise ModelError(
            "the model's reward is not a finite number; its weights may hold NaN (a run that diverged), or its dtype "
            "may overflow"
        )
    return rewards


def _alone(row: int, num_tokens: int) -> PrefixGroup:
    return PrefixGroup((row,), 0, num_tokens)


def _token_group(row_ids: Sequence[Int32s], group: PrefixGroup) -> TokenGroup:
    nothing = np.zeros(0, np.int64)
    rows = [row_ids[row] for row in group.rows]
    return TokenGroup(
        group_id="request",
        subset=None,
        prompt_ids=rows[0][: group.prefix],
        completion_ids=[row[group.prefix :] for row in rows],
        num_characters=np.zeros(len(rows), np.int32),
        completion_index=np.arange(len(rows), dtype=np.int16),
        chosen_P=nothing,
        rejected_P=nothing,
        weight_P=np.zeros(0, np.float32),
        margin_P=np.zeros(0, np.float32),
    )
