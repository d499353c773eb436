"""Rewards of texts that are no answer to anything, beside those of the real completions of the same prompt.

A model that puts such a text above real completions can be gamed: what is optimised against it will find that text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from pairwright.data.extras import Turn, reply_of, turns_of
from pairwright.data.tokens.conversation_tokens import TokenizedCompletions, TokenSpec, tokenize_completions
from pairwright.data.tokens.template_sandbox import Conversation
from pairwright.evaluation.load_exported import LoadedModel
from pairwright.evaluation.rewards import rewards_in_layout
from pairwright.evaluation.score import group_of_one
from pairwright.evaluation.statistics.intervals import Estimate, Resamples
from pairwright.evaluation.statistics.pair_arrays import PairArrays
from pairwright.evaluation.statistics.pair_metrics import correct
from pairwright.model.collate import Layout

NUM_PROMPTS = 32
"""Prompts that the texts are tried under."""
_GENERIC = (
    "That is a great question! I would be happy to help. There are many aspects to consider, and the best answer "
    "depends on your needs. Please let me know if there is anything else that I can do for you."
)
ANOTHER = "answer to another prompt"


class DegenerateReward(NamedTuple):
    """The reward of one degenerate text under the prompt of one group."""

    kind: str
    group_id: str
    reward: float


@dataclass(frozen=True, slots=True)
class TriedPrompt:
    """A prompt that degenerate texts are tried under."""

    group_id: str
    prompt: Conversation
    texts: dict[str, str]
    """Kind -> the text."""


@dataclass(frozen=True, slots=True)
class DegenerateText:
    """What the model thinks of one kind of degenerate text."""

    kind: str
    prompts: int
    mean_reward: float
    mean_reward_of_real: float
    """Of the real completions of the same groups."""
    worth: Estimate
    """Share of the real completions with a lower reward; equal is half. 0 is right, 0.5 is a model that cannot tell."""
    above_best: Estimate
    """Share of the prompts where the text is above every real completion."""


def tried_prompts(rows: Sequence[Mapping[str, Any]], special_tokens: Sequence[str]) -> tuple[TriedPrompt, ...]:
    """Return the prompts of some groups of a pairs table, at most one of each, with the texts to try under them."""
    first = {row["prompt_id"]: row for row in reversed(rows)}
    kept = [first[name] for name in sorted(first)][:NUM_PROMPTS]
    tried = []
    for position, row in enumerate(kept):
        texts = {
            "empty": "",
            "one character": ".",
            "one word, repeated": "good " * 60,
            "template tokens": " ".join(special_tokens),
            "the prompt again": row["prompt"][-1]["content"],
            "one text for every prompt": _GENERIC,
        }
        if len(kept) > 1:
            texts[ANOTHER] = max((c["text"] for c in kept[position - 1]["completions"]), key=len)
        texts = {kind: text for kind, text in texts.items() if text or kind == "empty"}
        tried.append(TriedPrompt(row["group_id"], turns_of(row["prompt"], row["context"]), texts))
    return tuple(tried)


def degenerate_rewards(
    loaded: LoadedModel, spec: TokenSpec, tried: Sequence[TriedPrompt], *, layout: Layout, micro_batch_tokens: int
) -> tuple[DegenerateReward, ...]:
    """Return the reward of each text under its prompt; without those that the template or the limit does not take."""
    names, token_ids = [], []
    for one in tried:
        replies: list[Sequence[Turn]] = [[reply_of(text)] for text in one.texts.values()]
        found = tokenize_completions([one.prompt] * len(replies), replies, loaded.tokenizer, spec)
        for kind, tokenized in zip(one.texts, found, strict=True):
            if isinstance(tokenized, TokenizedCompletions) and (ids := tokenized.row_ids[0]) is not None and ids.size:
                names.append((kind, one.group_id))
                token_ids.append(ids)
    groups = [group_of_one(group, ids) for (_, group), ids in zip(names, token_ids, strict=True)]
    rewards = rewards_in_layout(
        loaded.model,
        groups,
        layout=layout,
        pad_token_id=loaded.pad_token_id,
        micro_batch_tokens=micro_batch_tokens,
        device=loaded.device,
    )
    found = zip(names, rewards, strict=True)
    return tuple(DegenerateReward(kind, group, float(reward_K[0])) for (kind, group), reward_K in found)


def degenerate_texts(
    arrays: PairArrays, rewards: Sequence[DegenerateReward], resamples: Resamples
) -> list[DegenerateText]:
    """Return one row for each kind of text, those that the model likes best first."""
    position = {name: index for index, name in enumerate(arrays.group_ids)}
    rows = []
    for kind in sorted({reward.kind for reward in rewards}):
        tried = [reward for reward in rewards if reward.kind == kind and np.isfinite(reward.reward)]
        groups = np.array([position[reward.group_id] for reward in tried], np.int64)
        if not len(groups):
            continue
        real = [arrays.reward_N[arrays.starts_G[group] : arrays.starts_G[group + 1]] for group in groups]
        worth = np.array([correct(one.reward - real_K).mean() for one, real_K in zip(tried, real, strict=True)])
        best = np.array([float(one.reward > real_K.max()) for one, real_K in zip(tried, real, strict=True)])
        prompt = arrays.prompt_G[groups]
        rows.append(
            DegenerateText(
                kind=kind,
                prompts=len(groups),
                mean_reward=float(np.mean([one.reward for one in tried])),
                mean_reward_of_real=float(np.mean([real_K.mean() for real_K in real])),
                worth=resamples.mean(worth, prompt, is_share=True),
                above_best=resamples.mean(best, prompt, is_share=True),
            )
        )
    return sorted(rows, key=lambda row: (-(row.worth.value or 0.0), row.kind))
