"""Preemption: turns signals and Ray's drain notices into one request to all ranks, for a checkpoint or for the end.

There are three sources: a signal to the driver, which the coordinator passes to rank 0 with its next answer; a SIGTERM
to a worker; a node that Ray drains, of which Ray informs the workers. The ranks agree in one reduction of two numbers a
step. They query Ray once a second at most: ``get_preemption_info`` is a barrier over an actor, too slow for each step.
"""

import os
import signal
import sys
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

from pairwright.cluster.train.coordinator import ControlRequest, RunCoordinator
from pairwright.cluster.train.ray_workarounds import WorkerCallback
from pairwright.events import Preemption, RunEvent
from pairwright.terminal import say

PREEMPTION_POLL_SECONDS = 1.0
STOP_TIMEOUT_SECONDS = 600.0
"""How long a driver waits at most for the checkpoint after a signal; the sender of the signal rarely waits so long."""

_NOTHING, _SAVE, _STOP = 0, 1, 2
_sigterm_received = threading.Event()


# ------------------------------------------------------------------------------------------------ a rank


class SigtermHandler(WorkerCallback):
    """Makes a worker's first SIGTERM request a checkpoint; Ray Train calls it in every worker's main thread."""

    def after_init_train_context(self) -> None:
        before = signal.getsignal(signal.SIGTERM)

        def handle(signum: int, frame: FrameType | None) -> None:
            if _sigterm_received.is_set() and callable(before):
                before(signum, frame)
            _sigterm_received.set()

        signal.signal(signal.SIGTERM, handle)


class PreemptionMonitor:
    """Collects the requests for a checkpoint or for the end on one rank, and agrees on them with the other ranks.

    Args:
        coordinator: of the run.
        rank: of this process.
    """

    def __init__(self, coordinator: ActorProxy[RunCoordinator], rank: int) -> None:
        self._coordinator = coordinator
        self._rank = rank
        self._answer: ObjectRef[Any] | None = None
        self._request = ControlRequest()
        self._num_checkpoints: int | None = None
        self._polled_at = time.monotonic()
        self._preemption: PreemptionInfo | None = None
        self._sigterm_reported = False

    def push(self, event: RunEvent) -> None:
        """Send an event to the coordinator, whose answer holds what the driver requests."""
        answer = self._coordinator.push.remote(event)
        # Where steps are faster than answers, the pending answer must not be replaced by the next one.
        if self._answer is None:
            self._answer = answer

    def poll(self, steps_taken: int) -> Literal["save", "stop"] | None:
        """Return what all ranks are to do after this step; one rank logs the reason. A collective."""
        local = [self._local_request(steps_taken), int(self._rank == 0 and self._is_poll_due())]
        agreed = torch.tensor(local, device=ray.train.torch.get_device())
        dist.all_reduce(agreed, op=dist.ReduceOp.MAX)
        request, poll_ray = agreed.tolist()
        if poll_ray and self._is_preempted(steps_taken):
            request = max(request, _SAVE)
        return {_NOTHING: None, _SAVE: "save", _STOP: "stop"}[request]

    def _local_request(self, steps_taken: int) -> int:
        self._receive_answer()
        request = self._request
        if request.stop_signal is not None:
            self._log(steps_taken, f"{request.stop_signal} to the driver: writing a checkpoint, then stopping")
            return _STOP
        if self._num_checkpoints is not None and request.num_checkpoints > self._num_checkpoints:
            self._num_checkpoints = request.num_checkpoints
            self._log(steps_taken, f"{request.checkpoint_reason}: writing a checkpoint now")
            return _SAVE
        if _sigterm_received.is_set() and not self._sigterm_reported:
            self._sigterm_reported = True
            self._log(steps_taken, f"SIGTERM to rank {self._rank}: writing a checkpoint now")
            return _SAVE
        return _NOTHING

    def _receive_answer(self) -> None:
        if self._answer is not None and ray.wait([self._answer], timeout=0)[0]:
            self._request = ray.get(self._answer)
            self._answer = None
            if self._num_checkpoints is None:
                # Earlier requests went to the workers before these.
                self._num_checkpoints = self._request.num_checkpoints

    def _is_poll_due(self) -> bool:
        if time.monotonic() - self._polled_at < PREEMPTION_POLL_SECONDS:
            return False
        self._polled_at = time.monotonic()
        return True

    def _is_preempted(self, steps_taken: int) -> bool:
        """Whether Ray reports a preemption that it had not reported before; the same on every rank."""
        found = ray.train.get_preemption_info()
        if found is None or found == self._preemption:
            return False
        self._preemption = found
        if self._rank == 0:
            self._log(steps_taken, f"{describe_preemption(found, now=time.time())}: writing a checkpoint now")
        return True

    def _log(self, steps_taken: int, reason: str) -> None:
        self.push(Preemption(step=steps_taken, reason=reason))


def describe_preemption(info: PreemptionInfo, *, now: float) -> str:
    """Return which nodes are preempted, with the ranks on them, and when; ``now`` in seconds since 1970."""
    nodes = ", ".join(
        f"node {node[:12]} (rank {', '.join(map(str, ranks))})"
        for node, ranks in sorted(info.preempted_node_to_ranks.items())
    )
    if info.deadline_ms is None:
        return f"{nodes} will be preempted, no deadline known"
    at = datetime.fromtimestamp(info.deadline_ms / 1000, UTC)
    return f"{nodes} will be preempted at {at:%H:%M:%S} UTC, in {info.deadline_ms / 1000 - now:.0f} s"


# ---------------------------------------------------------------------------------------------- the driver


class ShutdownSignals(AbstractContextManager["ShutdownSignals"]):
    """Handles SIGTERM and Ctrl-C on the driver: the first requests a checkpoint, the second ends the run at once.

    Before there is a coordinator, the first one ends the run at once too. That is a KeyboardInterrupt in the main
    thread, the one exception besides SystemExit that Ray lets through while it waits. A block may follow another.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._coordinator: ActorProxy[RunCoordinator] | None = None
        self._ended = threading.Event()
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self._ended.clear()
        self._before = {}
        # Python sets handlers in the main thread only; elsewhere signals keep theirs.
        if threading.current_thread() is threading.main_thread():
            for which in (signal.SIGTERM, signal.SIGINT):
                if signal.getsignal(which) != signal.SIG_IGN:  # as a shell sets it for background jobs
                    self._before[which] = signal.signal(which, self._handle)
        return self

    def __exit__(self, *exc: object) -> None:
        self._ended.set()
        for which, handler in self._before.items():
            signal.signal(which, handler)

    def connect(self, coordinator: ActorProxy[RunCoordinator]) -> None:
        """From now on request checkpoints through this coordinator."""
        self._coordinator = coordinator

    def end_now(self) -> None:
        """End the run at once, from another thread, without a checkpoint."""
        self.received = self.received or signal.SIGTERM
        os.kill(os.getpid(), signal.SIGTERM)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.received is not None or self._coordinator is None:
            self.received = self.received or signal.Signals(signum)
            raise KeyboardInterrupt
        self.received = signal.Signals(signum)
        # Ray must not be called from here: the main thread may be inside a call to it.
        threading.Thread(target=self._request_stop, args=(self._coordinator, self.received.name), daemon=True).start()

    def _request_stop(self, coordinator: ActorProxy[RunCoordinator], name: str) -> None:
        say(f"{name}: requesting a checkpoint; a second signal ends the run at once", to=sys.stderr)
        coordinator.request_stop.remote(name)
        if not self._ended.wait(STOP_TIMEOUT_SECONDS):
            say(f"the workers have not stopped within {STOP_TIMEOUT_SECONDS:.0f} s: ending the run", to=sys.stderr)
            os.kill(os.getpid(), signal.SIGTERM)
