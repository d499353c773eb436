"""A pool of Ray actors, each with a model, that maps rows to results in order.

Each actor has one CPU or one GPU: with a fixed number of threads a reward is the same to the last digit on any number
of actors. An error of ours is returned as data. Ray restarts an actor that is lost, and sends it its rows again.
Not Ray Data's own pool: that hands its actors references when it creates them, of which Ray 2.60 prints a red line
("... the actor restart will fail", ray-project/ray#53727), and takes minutes to end after Ctrl-C.
"""

import pickle
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import ray
import torch

from pairwright import errors
from pairwright.cluster.models.model_runner import CPUS_PER_WORKER, Row, Worker
from pairwright.cluster.node_pools import model_pool, pool_labels

ResultT = TypeVar("ResultT")

ROWS_PER_ACTOR = 2
"""That are with an actor at a time: one is computed, one waits."""
ROWS_AHEAD = 8
"""For each actor: results that may wait for an earlier one."""


def run_on_actors(
    rows: Iterable[Row], load: Callable[[torch.device], Worker[ResultT]], *, num_workers: int, use_gpu: bool
) -> Iterator[ResultT]:
    """Yield the result of each row, in order; see ``model_runner.ModelRunner``.

    Actors end when nothing refers to them, or with the session.
    """
    remote: Any = ray.remote(
        num_cpus=CPUS_PER_WORKER,
        num_gpus=1 if use_gpu else 0,
        label_selector=pool_labels(model_pool(use_gpu=use_gpu)),
        max_restarts=-1,
        max_task_retries=-1,
    )(_ModelActor)
    actors = [remote.remote(use_gpu=use_gpu) for _ in range(num_workers)]
    for row in _in_order(rows, actors, ray.put(load)):
        if row["kind"]:
            raise getattr(errors, row["kind"])(row["payload"].decode())
        # Bytes that an actor of this command made and Ray transferred; none of it comes from a file, a record or a
        # model.
        yield pickle.loads(row["payload"])  # noqa: S301


def _in_order(rows: Iterable[Row], actors: list[Any], load: "ray.ObjectRef[Any]") -> Iterator[Row]:
    """Yield what actors make of rows, in the order of the rows; an actor gets none before it has started."""
    starting = {actor.start.remote(): actor for actor in actors}
    running: dict[Any, tuple[int, Any]] = {}
    free: deque[Any] = deque()
    done: dict[int, Any] = {}
    source, num_taken, num_given = iter(rows), 0, 0
    is_over = False
    while True:
        while free and not is_over and num_taken - num_given < ROWS_AHEAD * len(actors):
            row = next(source, None)
            if row is None:
                is_over = True
                break
            actor = free.popleft()
            # In a list, so that the actor fetches it once and not with every row.
            running[actor.work.remote([load], row)] = (num_taken, actor)
            num_taken += 1
        if num_given in done:
            yield ray.get(done.pop(num_given))
            num_given += 1
            continue
        if is_over and num_given == num_taken:
            return
        [ready], _ = ray.wait([*running, *starting], num_returns=1)
        if ready in starting:
            ray.get(ready)
            free.extend([starting.pop(ready)] * ROWS_PER_ACTOR)
        else:
            number, actor = running.pop(ready)
            done[number] = ready
            free.append(actor)


class _ModelActor:
    """Loads the model at the first row and not when it is created, so that errors are returned as data."""

    def __init__(self, *, use_gpu: bool) -> None:
        self._device = torch.device("cuda" if use_gpu else "cpu")
        self._work: Worker[Any] | None = None
        torch.set_num_threads(CPUS_PER_WORKER)

    def start(self) -> None:
        """Do nothing; the actor has started."""

    def work(self, load: list[Any], row: Row) -> Row:
        try:
            work = self._work
            if work is None:
                load_model: Any = ray.get(load[0])
                work = self._work = load_model(self._device)
            return {"kind": "", "payload": pickle.dumps(work(row))}
        except errors.PairwrightError as error:
            return {"kind": type(error).__name__, "payload": str(error).encode()}
