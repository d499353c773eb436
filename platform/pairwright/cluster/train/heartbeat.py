"""Heartbeats of the ranks, and the watchdog that finds a hanging run and has Ray replace its workers.

A collective waits for its last rank, for half an hour by default, and Ray checks only whether processes answer. So a
thread of each rank sends the coordinator what the rank is doing, and the driver checks whether any rank makes progress.
If none does, it names the ranks that are silent or behind. Every rank that still sends heartbeats ends itself with the
answer to the next one; Ray then kills the rest and replaces the group. Only the driver's clock is read.
"""

import faulthandler
import os
import signal
import socket
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import ray
from ray.actor import ActorProxy
from ray.exceptions import GetTimeoutError, RayError

from pairwright.cluster.train.coordinator import Heartbeat, RunCoordinator
from pairwright.training.context import RankStatus, StatusTracker

MAX_HEARTBEAT_SECONDS = 5.0
HEARTBEATS_PER_HANG_TIMEOUT = 10
MIN_LONGEST_PAUSES = 5.0
"""The timeout is at least this many times the longest pause between two signs of progress that the run has had."""


@dataclass(frozen=True)
class Hang:
    """A group of workers without progress."""

    attempt: str
    reason: str


def heartbeat_interval(hang_seconds: float) -> float:
    """Return the seconds between two heartbeats."""
    return min(MAX_HEARTBEAT_SECONDS, hang_seconds / HEARTBEATS_PER_HANG_TIMEOUT)


# ------------------------------------------------------------------------------------------------ a rank


class HeartbeatSender:
    """Sends this rank's status to the coordinator, in a thread of its own; a context manager around the training."""

    def __init__(
        self,
        coordinator: ActorProxy[RunCoordinator],
        status: StatusTracker,
        *,
        rank: int,
        world_size: int,
        attempt: str,
        hang_seconds: float,
    ) -> None:
        self._coordinator, self._status = coordinator, status
        self._rank, self._world_size, self._attempt = rank, world_size, attempt
        self._interval = heartbeat_interval(hang_seconds)
        self._number = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._send, name="pairwright-heartbeat", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._coordinator.report_alive.remote(replace(self._next(), is_last=True))

    def _next(self) -> Heartbeat:
        self._number += 1
        return Heartbeat(
            rank=self._rank,
            world_size=self._world_size,
            attempt=self._attempt,
            number=self._number,
            pid=os.getpid(),
            node=socket.gethostname(),
            now=self._status.now,
        )

    def _send(self) -> None:
        while not self._stop.wait(self._interval):
            try:
                is_over = ray.get(self._coordinator.report_alive.remote(self._next()), timeout=self._interval)
            except (RayError, GetTimeoutError):
                continue
            if is_over and not self._stop.is_set():
                # The stack of each thread goes to this rank's log. Only SIGKILL ends a rank that waits in a collective.
                faulthandler.dump_traceback()
                os.kill(os.getpid(), signal.SIGKILL)


# --------------------------------------------------------------------------------------------- the driver


class Watchdog:
    """Finds a group of workers without progress; times are seconds of one clock, the caller's."""

    def __init__(self, hang_seconds: float) -> None:
        self._hang_seconds = hang_seconds
        self._longest_pause = 0.0
        self._attempt = ""
        self._heartbeats: dict[int, Heartbeat] = {}
        self._received_at: dict[int, float] = {}
        self._progress_at = 0.0
        self._ended_groups: set[str] = set()

    @property
    def limit_seconds(self) -> float:
        """Time without any progress after which the group is reported to hang."""
        return max(self._hang_seconds, MIN_LONGEST_PAUSES * self._longest_pause)

    def check(self, heartbeats: Sequence[Heartbeat], now: float) -> Hang | None:
        """Take the newest heartbeat of each rank; return a hang of the group, once for each group."""
        for heartbeat in heartbeats:
            self._add(heartbeat, now)
        if not self._heartbeats or self._attempt in self._ended_groups:
            return None
        if now - self._progress_at <= self.limit_seconds:
            return None
        silent = self._silent(now, self.limit_seconds)
        if not silent and not all(heartbeat.now.is_monitored for heartbeat in self._heartbeats.values()):
            return None
        self._ended_groups.add(self._attempt)
        return Hang(self._attempt, self._describe(now))

    def worker_group_ended(self) -> None:
        """Ignore the group that sent the newest heartbeats from now on: it has ended, or Ray is replacing it."""
        self._ended_groups.add(self._attempt)

    def micro_batches(self) -> int:
        """Return how many forward passes the slowest rank has begun in what it does; 0 where no rank has reported."""
        return min((heartbeat.now.micro_batch for heartbeat in self._heartbeats.values()), default=0)

    def _add(self, heartbeat: Heartbeat, now: float) -> None:
        if heartbeat.is_last:
            self._ended_groups.add(heartbeat.attempt)
        if heartbeat.attempt in self._ended_groups:
            return
        if heartbeat.attempt != self._attempt:
            self._ended_groups.add(self._attempt)
            self._attempt, self._heartbeats, self._received_at, self._progress_at = heartbeat.attempt, {}, {}, now
        before = self._heartbeats.get(heartbeat.rank)
        if before is not None and before.number == heartbeat.number:
            return
        self._received_at[heartbeat.rank] = now
        self._heartbeats[heartbeat.rank] = heartbeat
        if before is None or before.now.count != heartbeat.now.count:
            if before is not None and before.now.is_monitored:
                self._longest_pause = max(self._longest_pause, now - self._progress_at)
            self._progress_at = now

    def _silent(self, now: float, seconds: float) -> list[int]:
        world_size = next(iter(self._heartbeats.values())).world_size
        return [rank for rank in range(world_size) if now - self._received_at.get(rank, -seconds) >= seconds]

    def _describe(self, now: float) -> str:
        stood = f"no progress for {now - self._progress_at:.0f} s"
        if silent := self._silent(now, self.limit_seconds / 2):
            return f"{stood}: {'; '.join(self._describe_silent(rank, now) for rank in silent)}"
        counts = {rank: heartbeat.now.count for rank, heartbeat in self._heartbeats.items()}
        behind = sorted(rank for rank, count in counts.items() if count == min(counts.values()))
        if len(behind) == len(counts):
            return f"{stood}: all ranks are {_where(self._heartbeats[0].now)}"
        return f"{stood}: " + "; ".join(
            f"{_who(self._heartbeats[rank])} is behind the others, {_where(self._heartbeats[rank].now)}"
            for rank in behind
        )

    def _describe_silent(self, rank: int, now: float) -> str:
        if rank not in self._heartbeats:
            return f"rank {rank} has never sent a heartbeat"
        heartbeat = self._heartbeats[rank]
        silence = f"has been silent for {now - self._received_at[rank]:.0f} s"
        return f"{_who(heartbeat)} {silence}, last seen {_where(heartbeat.now)}"


def _who(heartbeat: Heartbeat) -> str:
    return f"rank {heartbeat.rank} (process {heartbeat.pid} on {heartbeat.node})"


def _where(moment: RankStatus) -> str:
    return f"{moment.phase} at step {moment.step}, micro-batch {moment.micro_batch}"
