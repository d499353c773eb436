"""One or several models served as one: tokenises a call, has each model compute it, and combines their rewards.

Rewards of several models are combined as mean, as min (the worst case, against over-optimisation), or as mean minus
lambda standard deviations over the models (Coste et al. 2023, arXiv:2310.02743, eq. 3 to 5).
"""

import asyncio
import math
import re
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from pairwright.errors import ConfigError, DataError, ModelError
from pairwright.evaluation.load_exported import open_exported
from pairwright.evaluation.requests import ScoreRequest
from pairwright.serving.batcher import Batcher
from pairwright.serving.scorer import Int32s, Rewards, Scorer
from pairwright.serving.serving_metrics import ServingMetrics
from pairwright.serving.text_tokens import InputTokens, TextTokens
from pairwright.serving.wire_format import Answer, Call, Item

_COMBINATION = re.compile(r"mean|min|mean-std:(\d+(?:\.\d+)?)")
_RATE_SECONDS = 30


class QueueFullError(Exception):
    """There are more texts than may wait."""

    def __init__(self, retry_after_seconds: int) -> None:
        super().__init__(retry_after_seconds)
        self.retry_after_seconds = retry_after_seconds


@dataclass(frozen=True, slots=True)
class Combination:
    """How the rewards of several models become one: mean - ``std_factor`` * std, or min."""

    name: str
    std_factor: float = 0.0

    @classmethod
    def parse(cls, text: str) -> "Combination":
        """Return what ``mean``, ``min`` or ``mean-std:LAMBDA`` says.

        Raises:
            ConfigError: if it is none of them.
        """
        if (match := _COMBINATION.fullmatch(text)) is None:
            raise ConfigError(f"--combine is {text}, expected mean, min or mean-std:LAMBDA, such as mean-std:0.5")
        return cls(text, float(match[1] or 0))

    def __call__(self, reward_MN: Sequence[Rewards]) -> Rewards:
        """Return one reward a text from those of M models, float32, shape (N,); one model's stay as they are."""
        if len(reward_MN) == 1:
            return reward_MN[0]
        stacked = np.stack(reward_MN).astype(np.float64)
        if self.name == "min":
            return stacked.min(0).astype(np.float32)
        return (stacked.mean(0) - self.std_factor * stacked.std(0)).astype(np.float32)


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model under the name that replies and ``/v1/models`` give it."""

    name: str
    scorer: Scorer


@dataclass(frozen=True, slots=True)
class ServiceSettings:
    """What ``pairwright serve`` was asked for; the same in every replica."""

    models: tuple[str, ...]
    combine: str
    is_normalized: bool
    micro_batch_tokens: int | None
    max_wait_seconds: float
    max_queue: int
    is_exact: bool
    use_gpu: bool


def load_service(settings: ServiceSettings) -> "RewardService":
    """Return the service of these models, loaded, each after its self-check.

    Raises:
        ConfigError: if a setting cannot be used.
        ModelError: if a model cannot be used.
    """
    combination = Combination.parse(settings.combine)
    if settings.use_gpu and not torch.cuda.is_available():
        raise ConfigError("--use-gpu: torch finds no GPU on this machine; leave it out")
    models = [
        ServedModel(
            path,
            Scorer(
                open_exported(path),
                device=torch.device("cuda" if settings.use_gpu else "cpu"),
                micro_batch_tokens=settings.micro_batch_tokens,
                is_exact=settings.is_exact,
            ),
        )
        for path in (model.rstrip("/") or model for model in settings.models)
    ]
    return RewardService(
        models,
        combination=combination,
        is_normalized=settings.is_normalized,
        max_wait_seconds=settings.max_wait_seconds,
        max_queue=settings.max_queue,
    )


class RewardService:
    """Answers calls of any wire format.

    Args:
        models: served as one; at least one.
        combination: of their rewards.
        is_normalized: subtract each model's reference mean and divide by its standard deviation.
        max_wait_seconds: how long a text waits for others while nothing is computed.
        max_queue: texts that may wait or be computed at once.

    Raises:
        ConfigError: if two models have one name.
        ModelError: if rewards are to be normalised and a model has no reference.
    """

    def __init__(
        self,
        models: Sequence[ServedModel],
        *,
        combination: Combination,
        is_normalized: bool,
        max_wait_seconds: float,
        max_queue: int,
    ) -> None:
        names = [model.name for model in models]
        if len(set(names)) < len(names):
            raise ConfigError(f"models {', '.join(names)}: expected names of their own; name each model once")
        for model in models if is_normalized else ():
            if model.scorer.rules.normalization is None:
                raise ModelError(
                    f"{model.name}: has no reference rewards; run `pairwright normalize {model.name} --reference TABLE`"
                )
        self.models = tuple(models)
        self.name = names[0] if len(names) == 1 else f"{combination.name}({', '.join(names)})"
        self.metrics = ServingMetrics()
        self.is_normalized = is_normalized
        self.max_queue = max_queue
        self._combination = combination
        self._tokenizing = ThreadPoolExecutor(1, "tokenize")
        self._computing = ThreadPoolExecutor(1, "compute")
        self._batchers = [
            Batcher(model.scorer, self._computing, max_wait_seconds=max_wait_seconds, metrics=self.metrics)
            for model in models
        ]
        self._num_texts = 0
        self._answered: list[tuple[float, int]] = []

    async def run(self) -> None:
        """Compute what arrives until it is cancelled."""
        async with asyncio.TaskGroup() as group:
            for batcher in self._batchers:
                group.create_task(batcher.run())

    async def answer(self, call: Call) -> Answer:
        """Return the rewards of a call's texts; cancel it, and what is not computed yet is left out.

        Raises:
            DataError: if a text cannot be scored.
            QueueFullError: if too many texts wait.
        """
        if (num_texts := call.num_texts) > self.max_queue:
            raise DataError(f"{num_texts:,} texts, and one request may hold {self.max_queue:,}; send several")
        with self._admitted(num_texts):
            found = await asyncio.gather(*(self._of_model(index, call) for index in range(len(self.models))))
        tokens, rewards = zip(*found, strict=True)
        self._answered.append((time.monotonic(), num_texts))
        combined = self._combination(rewards)
        members = {m.name: r.tolist() for m, r in zip(self.models, rewards, strict=True)} if len(rewards) > 1 else {}
        num_tokens = [len(one.token_ids) for one in tokens[0]]
        return Answer(self.name, combined.tolist(), num_tokens, members)

    async def _of_model(self, index: int, call: Call) -> tuple[list[TextTokens], Rewards]:
        loop, scorer = asyncio.get_running_loop(), self.models[index].scorer
        with self._batchers[index].announced():
            tokens = await loop.run_in_executor(self._tokenizing, _tokenize, scorer.inputs, call)
        self.metrics.count_texts(sum(one.is_cut for one in tokens), sum(one.is_completed for one in tokens))
        row_ids: list[Int32s] = [one.token_ids for one in tokens]
        rewards = await self._batchers[index].rewards(row_ids)
        normalization = scorer.rules.normalization
        if self.is_normalized and normalization is not None:
            rewards = ((rewards.astype(np.float64) - normalization.mean) / normalization.std).astype(np.float32)
        return tokens, rewards

    @contextmanager
    def _admitted(self, num_texts: int) -> Iterator[None]:
        if self._num_texts + num_texts > self.max_queue:
            raise QueueFullError(self._seconds_until_free(num_texts))
        self._num_texts += num_texts
        self.metrics.set_waiting(self._num_texts)
        try:
            yield
        finally:
            self._num_texts -= num_texts
            self.metrics.set_waiting(self._num_texts)

    def _seconds_until_free(self, num_texts: int) -> int:
        """Return how long so many texts take at the rate of late, in whole seconds from 1 to 30."""
        now = time.monotonic()
        self._answered = [(when, n) for when, n in self._answered if now - when < _RATE_SECONDS]
        rate = sum(n for _, n in self._answered) / _RATE_SECONDS
        return min(_RATE_SECONDS, max(1, math.ceil(num_texts / rate))) if rate else 1


def _tokenize(inputs: InputTokens, call: Call) -> list[TextTokens]:
    tokens: list[TextTokens] = []
    for index, item in enumerate(call.items):
        tokens += _tokens_of(inputs, item, f"text {index}", call.max_length)
    return tokens


def _tokens_of(inputs: InputTokens, item: Item, path: str, max_length: int | None) -> list[TextTokens]:
    if isinstance(item, ScoreRequest):
        return inputs.of_request(item, max_length)
    if isinstance(item, str):
        return [inputs.of_text(item, path, max_length)]
    return [inputs.of_token_ids(item, path, max_length)]
