"""Waits for texts of many requests, and computes those together that fill a forward pass or share a prefix.

While nothing is computed, texts wait until no other has come for ``QUIET_SHARE`` of ``max_wait_seconds``, and at most
``max_wait_seconds``; while something is, all that arrive wait for its end. Each forward pass is planned from the texts
that wait at its start: a text joins others with its prefix until the moment they are computed, is answered without the
passes behind its own, and is left out once its client went away. The pass runs in one thread, off the event loop.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from pairwright.errors import PairwrightError
from pairwright.serving.scorer import Int32s, PlannedBatch, Rewards, Scorer
from pairwright.serving.serving_metrics import ServingMetrics

logger = logging.getLogger(__name__)

POOL_FACTOR = 4
"""How many times the budget of a forward pass, in tokens with prefixes counted for each text, is looked at together."""
QUIET_SHARE = 0.2
T = TypeVar("T")


@dataclass(eq=False, slots=True)
class _Job:
    """The texts of one request."""

    row_ids: Sequence[Int32s]
    future: asyncio.Future[Rewards]
    num_left: int
    rewards: Rewards


@dataclass(frozen=True, slots=True)
class _Row:
    """A text that waits."""

    job: _Job
    index: int

    @property
    def token_ids(self) -> Int32s:
        return self.job.row_ids[self.index]


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
        self._waiting: list[_Row] = []
        self._num_announced = 0
        self._arrived = asyncio.Event()

    @contextmanager
    def announced(self) -> Iterator[None]:
        """Have the texts that wait do so for a request whose texts are being tokenised."""
        self._num_announced += 1
        try:
            yield
        finally:
            self._num_announced -= 1

    async def rewards(self, row_ids: Sequence[Int32s]) -> Rewards:
        """Return the rewards of one request's texts; cancel it, and they are not computed.

        Raises:
            PairwrightError: if they cannot be computed.
        """
        if not row_ids:
            return np.empty(0, np.float32)
        future = asyncio.get_running_loop().create_future()
        job = _Job(row_ids, future, len(row_ids), np.empty(len(row_ids), np.float32))
        self._waiting += [_Row(job, index) for index in range(len(row_ids))]
        self._arrived.set()
        return await future

    async def run(self) -> None:
        """Compute what arrives, for ever."""
        while True:
            await self._arrived.wait()
            await self._wait_for_more()
            await self._compute_next()
            self._waiting = [row for row in self._waiting if not row.job.future.done()]
            (self._arrived.set if self._waiting else self._arrived.clear)()

    async def _wait_for_more(self) -> None:
        until = time.monotonic() + self._max_wait_seconds
        while self._num_waiting_tokens() < self._scorer.filled_tokens and (left := until - time.monotonic()) > 0:
            self._arrived.clear()
            try:
                quiet = self._max_wait_seconds * QUIET_SHARE
                await asyncio.wait_for(self._arrived.wait(), min(left, quiet))
            except TimeoutError:
                if not self._num_announced:
                    break

    def _num_waiting_tokens(self) -> int:
        return sum(len(row.token_ids) for row in self._waiting)

    async def _compute_next(self) -> None:
        """Compute the forward pass of the text that has waited longest, with what fits into it."""
        if not (rows := self._pool()):
            return
        row_ids = [row.token_ids for row in rows]
        try:
            if self._scorer.is_exact:
                rewards = await self._in_thread(self._as_score, row_ids)
            else:
                batch = await self._in_thread(self._plan_next, row_ids)
                rows = [rows[position] for position in batch.rows]
                rewards = await self._in_thread(self._timed, row_ids, batch)
        except Exception as error:
            if not isinstance(error, PairwrightError):
                logger.exception("a forward pass failed")
            for job in {row.job for row in rows}:
                if not job.future.done():
                    job.future.set_exception(error)
            return
        for row, reward in zip(rows, rewards, strict=True):
            _finish(row, reward)
        done = set(map(id, rows))
        self._waiting = [row for row in self._waiting if id(row) not in done]

    async def _in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    def _pool(self) -> list[_Row]:
        """Return the texts to plan with: those that have waited longest and whose clients are still there."""
        alive = [row for row in self._waiting if not row.job.future.done()]
        if self._scorer.is_exact:
            return [row for row in alive if row.job is alive[0].job]
        num_tokens = np.cumsum([len(row.token_ids) for row in alive], dtype=np.int64)
        return alive[: 1 + int(np.searchsorted(num_tokens, POOL_FACTOR * self._scorer.micro_batch_tokens))]

    def _plan_next(self, row_ids: Sequence[Int32s]) -> PlannedBatch:
        return next(batch for batch in self._scorer.plan(row_ids) if 0 in batch.rows)

    def _timed(self, row_ids: Sequence[Int32s], batch: PlannedBatch) -> Rewards:
        started = time.monotonic()
        rewards = self._scorer.rewards(row_ids, batch)
        num_given = sum(len(row_ids[row]) for row in batch.rows)
        self._count(len(rewards), num_given, batch.num_tokens, time.monotonic() - started)
        return rewards

    def _as_score(self, row_ids: Sequence[Int32s]) -> Rewards:
        started = time.monotonic()
        rewards = self._scorer.rewards_as_score(row_ids)
        num_given = sum(map(len, row_ids))
        self._count(len(rewards), num_given, num_given, time.monotonic() - started)
        return rewards

    def _count(self, num_texts: int, num_given: int, num_computed: int, seconds: float) -> None:
        self._metrics.count_forward(num_texts, num_given, num_computed, seconds, self._scorer.filled_tokens)


def _finish(row: _Row, reward: float) -> None:
    job = row.job
    job.rewards[row.index] = reward
    job.num_left -= 1
    if not job.num_left and not job.future.done():
        job.future.set_result(job.rewards)
