"""Every rank's beats -> the ranks that a run hangs on, and its end, after which Ray starts the group again.

A collective waits for its last rank, for half an hour by default, and Ray asks only whether processes answer. So a
thread of each rank tells the board what the rank is doing, and the driver looks whether anything still goes on. If not,
it names the ranks that are silent or behind, and every rank that still beats ends itself with the answer to its next
beat: Ray then kills the rest and replaces all. Only the driver's clock is read.
"""

import faulthandler
import os
import signal
import socket
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import ray
from ray.actor import ActorProxy
from ray.exceptions import GetTimeoutError, RayError

from pairwright.training.context import RankStatus, StatusTracker

if TYPE_CHECKING:
    from pairwright.cluster.train.coordinator import Board

MOST_BEAT_SECONDS = 5.0
BEATS_IN_TIME = 10
"""How often a rank beats in the time after which it is taken to hang."""
SLOWEST_GAPS = 5.0
"""As many times the longest pause that a run has had are waited for in any case."""


@dataclass(frozen=True)
class Beat:
    """What one rank says of itself."""

    rank: int
    world_size: int
    attempt: str
    """Names the group of ranks, as in a checkpoint's folder."""
    number: int
    pid: int
    node: str
    now: RankStatus
    is_last: bool = False


@dataclass(frozen=True)
class Hang:
    """A group of ranks in which nothing goes on."""

    attempt: str
    reason: str


def beat_seconds(hang_seconds: float) -> float:
    """Return the pause between two beats."""
    return min(MOST_BEAT_SECONDS, hang_seconds / BEATS_IN_TIME)


# ------------------------------------------------------------------------------------------------ a rank


class Heart:
    """Tells the board what this rank is doing, from a thread of its own; a context manager around the training."""

    def __init__(
        self,
        board: "ActorProxy[Board]",
        pulse: StatusTracker,
        *,
        rank: int,
        world_size: int,
        attempt: str,
        hang_seconds: float,
    ) -> None:
        self._board, self._pulse = board, pulse
        self._rank, self._world_size, self._attempt = rank, world_size, attempt
        self._pause = beat_seconds(hang_seconds)
        self._number = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="pairwright-heart", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._board.beat.remote(replace(self._next(), is_last=True))

    def _next(self) -> Beat:
        self._number += 1
        return Beat(
            rank=self._rank,
            world_size=self._world_size,
            attempt=self._attempt,
            number=self._number,
            pid=os.getpid(),
            node=socket.gethostname(),
            now=self._pulse.now,
        )

    def _beat(self) -> None:
        while not self._stop.wait(self._pause):
            try:
                is_over = ray.get(self._board.beat.remote(self._next()), timeout=self._pause)
            except (RayError, GetTimeoutError):
                continue
            if is_over and not self._stop.is_set():
                # Into this rank's log: where each thread stands. Nothing gentler ends one that waits in a collective.
                faulthandler.dump_traceback()
                os.kill(os.getpid(), signal.SIGKILL)


# --------------------------------------------------------------------------------------------- the driver


class Watchdog:
    """Finds the group of ranks in which nothing goes on; times are seconds of one clock, the caller's."""

    def __init__(self, hang_seconds: float) -> None:
        self._hang_seconds = hang_seconds
        self._longest_pause = 0.0
        self._attempt = ""
        self._beats: dict[int, Beat] = {}
        self._heard: dict[int, float] = {}
        self._advanced = 0.0
        self._ended: set[str] = set()

    @property
    def limit_seconds(self) -> float:
        """Time without any progress after which the ranks are taken to hang."""
        return max(self._hang_seconds, SLOWEST_GAPS * self._longest_pause)

    def look(self, beats: Sequence[Beat], now: float) -> Hang | None:
        """Take the newest beat of each rank and say whether the group hangs; each group is found to hang once."""
        for beat in beats:
            self._take(beat, now)
        if not self._beats or self._attempt in self._ended or now - self._advanced <= self.limit_seconds:
            return None
        silent = self._silent(now, self.limit_seconds)
        if not silent and not all(beat.now.is_monitored for beat in self._beats.values()):
            return None
        self._ended.add(self._attempt)
        return Hang(self._attempt, self._describe(now))

    def group_is_gone(self) -> None:
        """Look no more after the group of which the newest beats are: it has ended, or Ray is replacing it."""
        self._ended.add(self._attempt)

    def doing(self) -> str:
        """Return what the ranks said last, for the log."""
        return "; ".join(f"rank {rank} {_where(beat.now)}" for rank, beat in sorted(self._beats.items()))

    def _take(self, beat: Beat, now: float) -> None:
        if beat.is_last:
            self._ended.add(beat.attempt)
        if beat.attempt in self._ended:
            return
        if beat.attempt != self._attempt:
            self._ended.add(self._attempt)
            self._attempt, self._beats, self._heard, self._advanced = beat.attempt, {}, {}, now
        before = self._beats.get(beat.rank)
        if before is not None and before.number == beat.number:
            return
        self._heard[beat.rank] = now
        self._beats[beat.rank] = beat
        if before is None or before.now.count != beat.now.count:
            if before is not None and before.now.is_monitored:
                self._longest_pause = max(self._longest_pause, now - self._advanced)
            self._advanced = now

    def _silent(self, now: float, seconds: float) -> list[int]:
        world_size = next(iter(self._beats.values())).world_size
        return [rank for rank in range(world_size) if now - self._heard.get(rank, -seconds) >= seconds]

    def _describe(self, now: float) -> str:
        stood = f"nothing has gone on for {now - self._advanced:.0f} s"
        if silent := self._silent(now, self.limit_seconds / 2):
            return f"{stood}: {'; '.join(self._last_word(rank, now) for rank in silent)}"
        counts = {rank: beat.now.count for rank, beat in self._beats.items()}
        behind = sorted(rank for rank, count in counts.items() if count == min(counts.values()))
        if len(behind) == len(counts):
            return f"{stood}: all ranks are {_where(self._beats[0].now)}"
        return f"{stood}: " + "; ".join(
            f"{_who(self._beats[rank])} is behind the others, {_where(self._beats[rank].now)}" for rank in behind
        )

    def _last_word(self, rank: int, now: float) -> str:
        if rank not in self._beats:
            return f"rank {rank} has never been heard of"
        beat = self._beats[rank]
        return f"{_who(beat)} has been silent for {now - self._heard[rank]:.0f} s, last {_where(beat.now)}"


def _who(beat: Beat) -> str:
    return f"rank {beat.rank} (process {beat.pid} on {beat.node})"


def _where(moment: RankStatus) -> str:
    return f"{moment.phase} at step {moment.step}, micro-batch {moment.micro_batch}"
