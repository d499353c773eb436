"""Waits for texts of many requests, and computes those together that fill a forward pass or share a prefix.

A text waits at most ``max_wait_seconds`` while nothing is computed; while something is, all that arrives is taken
together next. The forward pass runs in one thread, off the event loop, and a request whose client went away is left
out of it.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from pairwright.errors import PairwrightError
from pairwright.model.batching.prefix_groups import PrefixGroup
from pairwright.serving.scorer import Int32s, PlannedBatch, Rewards, Scorer
from pairwright.serving.serving_metrics import ServingMetrics

logger = logging.getLogger(__name__)

POOL_FACTOR = 4
"""How many times the budget of a forward pass, in tokens with prefixes counted for each text, is planned together."""


@dataclass(eq=False, slots=True)
class _Job:
    """The texts of one request."""

    row_ids: Sequence[Int32s]
    future: asyncio.Future[Rewards]
    num_left: int
    rewards: Rewards
    arrived: float = field(default_factory=time.monotonic)

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.row_ids))


class Batcher:
    """The queue in front of one model.

    Args:
        scorer: the model.
        thread: in which all models of this process compute.
        max_wait_seconds: how long a text waits for others while nothing is computed.
        metrics: gets what each forward pass took and saved.
    """

    def __init__(
        self, scorer: Scorer, thread: ThreadPoolExecutor, *, max_wait_seconds: float, metrics: ServingMetrics
    ) -> None:
        self._scorer = scorer
        self._thread = thread
        self._max_wait_seconds = max_wait_seconds
        self._metrics = metrics
        self._waiting: list[_Job] = []
        self._arrived = asyncio.Event()

    async def rewards(self, row_ids: Sequence[Int32s]) -> Rewards:
        """Return the rewards of one request's texts; cancel it, and they are not computed.

        Raises:
            PairwrightError: if they cannot be computed.
        """
        if not row_ids:
            return np.empty(0, np.float32)
        future = asyncio.get_running_loop().create_future()
        self._waiting.append(_Job(row_ids, future, len(row_ids), np.empty(len(row_ids), np.float32)))
        self._arrived.set()
        return await future

    async def run(self) -> None:
        """Compute what arrives, for ever."""
        while True:
            await self._arrived.wait()
            await self._wait_for_more()
            jobs = self._take()
            try:
                await self._compute(jobs)
            except asyncio.CancelledError:
                raise
            except Exception as error:
                if not isinstance(error, PairwrightError):
                    logger.exception("a forward pass failed")
                for job in jobs:
                    if not job.future.done():
                        job.future.set_exception(error)

    async def _wait_for_more(self) -> None:
        until = self._waiting[0].arrived + self._max_wait_seconds
        while (left := until - time.monotonic()) > 0 and self._num_waiting_tokens() < self._scorer.micro_batch_tokens:
            self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), left)
            except TimeoutError:
                break

    def _num_waiting_tokens(self) -> int:
        return sum(job.num_tokens for job in self._waiting)

    def _take(self) -> list[_Job]:
        """Take the oldest jobs whose clients are still there, up to the pool's size."""
        alive = [job for job in self._waiting if not job.future.done()]
        taken, num_tokens = 0, 0
        for job in alive:
            if taken and (self._scorer.is_exact or num_tokens > POOL_FACTOR * self._scorer.micro_batch_tokens):
                break
            num_tokens += job.num_tokens
            taken += 1
        self._waiting = alive[taken:]
        (self._arrived.set if self._waiting else self._arrived.clear)()
        return alive[:taken]

    async def _compute(self, jobs: Sequence[_Job]) -> None:
        loop = asyncio.get_running_loop()
        if self._scorer.is_exact:
            for job in jobs:
                rewards = await loop.run_in_executor(self._thread, self._timed_as_score, job.row_ids)
                _finish(job, range(len(rewards)), rewards)
            return
        rows = [(job, index) for job in jobs for index in range(len(job.row_ids))]
        row_ids = [job.row_ids[index] for job, index in rows]
        for planned in await loop.run_in_executor(self._thread, self._scorer.plan, row_ids):
            batch = _without_gone(planned, rows, row_ids)
            if not batch.groups:
                continue
            rewards = await loop.run_in_executor(self._thread, self._timed, row_ids, batch)
            for row, reward in zip(batch.rows, rewards, strict=True):
                job, index = rows[row]
                _finish(job, [index], reward)

    def _timed(self, row_ids: Sequence[Int32s], batch: PlannedBatch) -> Rewards:
        started = time.monotonic()
        rewards = self._scorer.rewards(row_ids, batch)
        num_given = sum(len(row_ids[row]) for row in batch.rows)
        self._count(len(rewards), num_given, batch.num_tokens, time.monotonic() - started)
        return rewards

    def _timed_as_score(self, row_ids: Sequence[Int32s]) -> Rewards:
        started = time.monotonic()
        rewards = self._scorer.rewards_as_score(row_ids)
        num_given = sum(map(len, row_ids))
        self._count(len(rewards), num_given, num_given, time.monotonic() - started)
        return rewards

    def _count(self, num_texts: int, num_given: int, num_computed: int, seconds: float) -> None:
        self._metrics.count_forward(num_texts, num_given, num_computed, seconds, self._scorer.micro_batch_tokens)


def _finish(job: _Job, indices: Sequence[int], rewards: Rewards) -> None:
    job.rewards[list(indices)] = rewards
    job.num_left -= len(indices)
    if not job.num_left and not job.future.done():
        job.future.set_result(job.rewards)


def _without_gone(batch: PlannedBatch, rows: Sequence[tuple[_Job, int]], row_ids: Sequence[Int32s]) -> PlannedBatch:
    """Return a forward pass without the texts whose clients went away since it was planned."""
    if not any(rows[row][0].future.done() for row in batch.rows):
        return batch
    kept: list[PrefixGroup] = []
    for group in batch.groups:
        if left := tuple(row for row in group.rows if not rows[row][0].future.done()):
            num_tokens = group.prefix + sum(len(row_ids[row]) - group.prefix for row in left)
            kept.append(PrefixGroup(left, group.prefix, num_tokens))
    return PlannedBatch(tuple(kept))
