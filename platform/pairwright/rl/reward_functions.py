"""Reward functions as RL trainers call them: for TRL's GRPO and RLOO, and for verl.

Completions of one prompt that stand together are one group: the prompt is computed once.
"""

import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import groupby
from typing import TYPE_CHECKING, Any, TypeAlias

from pairwright.errors import ConfigError, RewardError
from pairwright.rl.reward_client import Completion, Prompt, RewardClient

if TYPE_CHECKING:
    from pairwright.serving.scorer import Scorer

RewardFunction: TypeAlias = Callable[..., list[float]]
URL_VARIABLE = "PAIRWRIGHT_REWARD_URL"
_Group: TypeAlias = tuple[Prompt, list[Completion]]


def reward_function(path_or_url: str, *, token: str | None = None, device: str | None = None) -> RewardFunction:
    """Return a function for ``reward_funcs=[...]`` of TRL's trainers.

    Prompts may be conversations or plain strings; a string is the user's turn. The model's own chat template is used in
    either case, unlike by TRL itself, which joins strings without one.

    Args:
        path_or_url: an exported model's directory, loaded in this process at the first call; or a server's URL.
        token: the server's; that of ``PAIRWRIGHT_TOKEN`` if None.
        device: of a model in this process; a GPU where there is one if None.

    Raises:
        ConfigError: if the URL is not one of a server.
    """
    if path_or_url.startswith(("http://", "https://")):
        rewards_of, name = RewardClient(path_or_url, token).rewards_of_groups, "pairwright_http"
    else:
        rewards_of, name = _in_this_process(path_or_url, device), "pairwright_model"

    def pairwright_reward(prompts: Sequence[Prompt], completions: Sequence[Any], **_: Any) -> list[float]:
        pairs = [(prompt, _text_of(completion)) for prompt, completion in zip(prompts, completions, strict=True)]
        groups: list[_Group] = [
            (key, [text for _, text in found]) for key, found in groupby(pairs, lambda pair: pair[0])
        ]
        return [reward for rewards in rewards_of(groups) for reward in rewards]

    pairwright_reward.__name__ = name  # under which TRL logs it
    return pairwright_reward


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any = None,
    extra_info: dict[str, Any] | None = None,
    *,
    url: str | None = None,
    prompt_key: str = "prompt",
    **_: Any,
) -> float:
    """Return the reward of one completion, as verl's ``custom_reward_function`` is called.

    Args:
        data_source: ignored.
        solution_str: the completion.
        ground_truth: ignored.
        extra_info: the row's; holds the prompt, text or messages.
        url: of the server; that of ``PAIRWRIGHT_REWARD_URL`` if None (``custom_reward_function.reward_kwargs.url``).
        prompt_key: where ``extra_info`` holds the prompt.

    Raises:
        RewardError: if there is no reward; verl must not take it for 0.
    """
    address = url or os.environ.get(URL_VARIABLE)
    if not address:
        raise ConfigError(f"no reward server: set custom_reward_function.reward_kwargs.url, or {URL_VARIABLE}")
    prompt = (extra_info or {}).get(prompt_key)
    if prompt is None or not len(prompt):
        known = ", ".join(extra_info or {}) or "nothing"
        raise RewardError(
            f"extra_info of a row of {data_source} holds no `{prompt_key}` (it has {known}); write the prompt into the "
            "dataset's extra_info, or name its key with custom_reward_function.reward_kwargs.prompt_key"
        )
    messages = prompt if isinstance(prompt, str) else [dict(turn) for turn in prompt]
    (reward,) = _client(address).rewards(messages, [solution_str])
    return reward


@lru_cache(maxsize=8)
def _client(url: str) -> RewardClient:
    return RewardClient(url)


def _text_of(completion: Any) -> Completion:
    """Return a completion as a text or an object with ``text``; TRL's conversational ones are a list of turns."""
    if isinstance(completion, str):
        return completion
    turns = [completion] if isinstance(completion, dict) else list(completion)
    if len(turns) != 1 or turns[0].get("role", "assistant") != "assistant":
        roles = ", ".join(str(turn.get("role")) for turn in turns) or "none"
        raise RewardError(f"expected a completion of one assistant turn, got turns of {roles}; score the last alone")
    fields = {name: value for name, value in turns[0].items() if name != "role"}
    return fields["content"] if fields.keys() == {"content"} else fields


def _in_this_process(path: str, device: str | None) -> Callable[[Sequence[_Group]], list[list[float]]]:
    loaded: list[Scorer] = []

    def rewards_of(groups: Sequence[_Group]) -> list[list[float]]:
        if not loaded:
            loaded.append(_scorer(path, device))
        return loaded[0].rewards_of_groups(groups)

    return rewards_of


def _scorer(path: str, device: str | None) -> "Scorer":
    import torch

    from pairwright.evaluation.load_exported import open_exported
    from pairwright.serving.scorer import Scorer

    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return Scorer(open_exported(path), device=torch.device(where), micro_batch_tokens=None, is_exact=False)
