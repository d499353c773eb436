"""Signals and Ray's notices of preemption -> what every rank is asked to do, at one step.

Three ways in: a signal to the driver, which its ``Board`` hands to rank 0 with the next answer; a SIGTERM to a worker;
a node that Ray drains, which its watcher tells the workers. Ranks agree in one reduction of two numbers a step, and ask
Ray only now and then: ``get_preemption_info`` is a barrier over an actor, too slow for every step.
"""

import os
import signal
import threading
import time
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from types import FrameType
from typing import Any, Literal, Self

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from ray import ObjectRef
from ray.actor import ActorProxy
from ray.train import PreemptionInfo
from ray.train.v2._internal.execution.callback import WorkerCallback

from pairwright.cluster.train.coordinator import Asked, Board

PREEMPTION_LOOK_SECONDS = 1.0
STOP_SECONDS = 600.0
"""Most that a driver waits, after a signal, for the checkpoint; who sent the signal rarely waits so long."""

_NOTHING, _SAVE, _STOP = 0, 1, 2
_terminated = threading.Event()


# ------------------------------------------------------------------------------------------------ a rank


class TerminationNotice(WorkerCallback):
    """Takes a worker's first SIGTERM as a notice; Ray Train calls it in every worker's main thread."""

    def after_init_train_context(self) -> None:
        before = signal.getsignal(signal.SIGTERM)

        def take(signum: int, frame: FrameType | None) -> None:
            if _terminated.is_set() and callable(before):
                before(signum, frame)
            _terminated.set()

        signal.signal(signal.SIGTERM, take)


class RankNotices:
    """What was asked of the run since the last step, as this rank takes part in it."""

    def __init__(self, board: ActorProxy[Board], rank: int) -> None:
        self._board = board
        self._rank = rank
        self._answer: ObjectRef[Any] | None = None
        self._asked = Asked()
        self._num_saves: int | None = None
        self._looked = time.monotonic()
        self._preemption: PreemptionInfo | None = None
        self._told_terminated = False

    def put(self, record: dict[str, Any]) -> None:
        """Show a record, and keep the board's answer: what the driver asks for."""
        answer = self._board.put.remote(record)
        # Where steps are faster than answers, the one that is waited for must not be replaced by the next.
        if self._answer is None:
            self._answer = answer

    def agreed(self, steps_taken: int) -> Literal["save", "stop"] | None:
        """Return what all ranks are to do after this step; rank 0 says why. A collective."""
        asks = [self._ask(steps_taken), int(self._rank == 0 and self._looks_again())]
        agreed = torch.tensor(asks, device=ray.train.torch.get_device())
        dist.all_reduce(agreed, op=dist.ReduceOp.MAX)
        ask, look = agreed.tolist()
        if look and self._is_preempted(steps_taken):
            ask = max(ask, _SAVE)
        return {_NOTHING: None, _SAVE: "save", _STOP: "stop"}[ask]

    def _ask(self, steps_taken: int) -> int:
        self._take_answer()
        if self._asked.stop is not None:
            self._show(steps_taken, f"{self._asked.stop} to the driver: a checkpoint, then the end")
            return _STOP
        if self._num_saves is not None and self._asked.num_saves > self._num_saves:
            self._num_saves = self._asked.num_saves
            self._show(steps_taken, f"{self._asked.save}: a checkpoint now")
            return _SAVE
        if _terminated.is_set() and not self._told_terminated:
            self._told_terminated = True
            self._show(steps_taken, f"SIGTERM to rank {self._rank}: a checkpoint now")
            return _SAVE
        return _NOTHING

    def _take_answer(self) -> None:
        if self._answer is not None and ray.wait([self._answer], timeout=0)[0]:
            self._asked = ray.get(self._answer)
            self._answer = None
            if self._num_saves is None:
                # What was asked for before this rank's first look was asked of the workers before it.
                self._num_saves = self._asked.num_saves

    def _looks_again(self) -> bool:
        if time.monotonic() - self._looked < PREEMPTION_LOOK_SECONDS:
            return False
        self._looked = time.monotonic()
        return True

    def _is_preempted(self, steps_taken: int) -> bool:
        """Whether Ray gives notice of a node that it had not told of before; the same on every rank."""
        found = ray.train.get_preemption_info()
        if found is None or found == self._preemption:
            return False
        self._preemption = found
        if self._rank == 0:
            self._show(steps_taken, f"{describe_preemption(found, now=time.time())}: a checkpoint now")
        return True

    def _show(self, steps_taken: int, reason: str) -> None:
        self.put({"kind": "notice", "step": steps_taken, "reason": reason})


def describe_preemption(info: PreemptionInfo, *, now: float) -> str:
    """Return which nodes are to be taken, with the ranks on them, and when; ``now`` in seconds since 1970."""
    nodes = ", ".join(
        f"node {node[:12]} (rank {', '.join(map(str, ranks))})"
        for node, ranks in sorted(info.preempted_node_to_ranks.items())
    )
    if info.deadline_ms is None:
        return f"{nodes} will be taken away, no deadline known"
    at = datetime.fromtimestamp(info.deadline_ms / 1000, UTC)
    return f"{nodes} will be taken away at {at:%H:%M:%S} UTC, in {info.deadline_ms / 1000 - now:.0f} s"


# ---------------------------------------------------------------------------------------------- the driver


class StopSignals(AbstractContextManager["StopSignals"]):
    """Takes SIGTERM and Ctrl-C on the driver: the first asks the ranks for a checkpoint, the second ends at once.

    Before there is a board to ask through, the first ends at once too. Ending at once is a KeyboardInterrupt in the
    main thread, the one exception besides SystemExit that Ray lets through while it waits.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._board: ActorProxy[Board] | None = None
        self._ended = threading.Event()
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        # Python takes handlers in the main thread alone; elsewhere signals stay what they were.
        if threading.current_thread() is threading.main_thread():
            for which in (signal.SIGTERM, signal.SIGINT):
                if signal.getsignal(which) != signal.SIG_IGN:  # as a shell sets it for what runs in the background
                    self._before[which] = signal.signal(which, self._take)
        return self

    def __exit__(self, *exc: object) -> None:
        self._ended.set()
        for which, handler in self._before.items():
            signal.signal(which, handler)

    def ask_through(self, board: ActorProxy[Board]) -> None:
        """From now on ask the ranks behind this board."""
        self._board = board

    def end_now(self) -> None:
        """End the run at once, from another thread, without a checkpoint."""
        self.received = self.received or signal.SIGTERM
        os.kill(os.getpid(), signal.SIGTERM)

    def _take(self, signum: int, frame: FrameType | None) -> None:
        if self.received is not None or self._board is None:
            self.received = self.received or signal.Signals(signum)
            raise KeyboardInterrupt
        self.received = signal.Signals(signum)
        # Ray must not be called from here: the main thread is in the middle of a call to it.
        threading.Thread(target=self._ask, args=(self._board, self.received.name), daemon=True).start()

    def _ask(self, board: ActorProxy[Board], name: str) -> None:
        print(f"{name}: asking the workers for a checkpoint; a second signal ends the run at once", flush=True)
        board.ask_to_stop.remote(name)
        if not self._ended.wait(STOP_SECONDS):
            print(f"the workers have not stopped within {STOP_SECONDS:.0f} s: ending the run", flush=True)
            os.kill(os.getpid(), signal.SIGTERM)
