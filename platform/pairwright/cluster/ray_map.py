"""Maps a function over items with Ray Data, and broadcasts values to its tasks.

Small items share a task, since a task costs about 20 ms whatever it does. A ``PairwrightError`` is returned as data:
Ray would wrap it and print a traceback of its own first.
"""

import os
import threading
import time
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

import msgspec
import ray
import ray.data
from ray.data import Dataset
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pairwright import errors
from pairwright.cluster.session import ended_with_session, ray_resources
from pairwright.progress_bar import listening, note_progress, progress_bar

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")
ValueT = TypeVar("ValueT")

TASK_BYTES = 64 * 1024 * 1024
MIN_TASK_BYTES = 1024 * 1024
MIN_TASKS = 64
TASKS_PER_CPU = 8
"""Tasks to aim at where there is less than 64 MB for each: Ray Data takes 50 to 100 ms from one to the next."""

ACTOR_SECONDS = 5.0
"""After so long a map is worth an actor that shows its progress within items: it takes a process."""
PROGRESS_SECONDS = 2.0
PROGRESS_TIMEOUT_SECONDS = 10.0
MAX_ORDERED_TASKS = 4096
ORDERED_BLOCK_BYTES = 16 * 1024
"""So small that the first rows come while a task still reads."""

_DONE = "done"
_KINDS = {
    kind.__name__: kind
    for kind in (errors.PairwrightError, errors.ConfigError, errors.DataError, errors.SourceError, errors.StoreError)
}


@dataclass(frozen=True, slots=True)
class StoredValue(Generic[ValueT]):
    """A value in Ray's object store, which tasks fetch."""

    reference: Any

    def get(self) -> ValueT:
        """Return the value."""
        return cast("ValueT", ray.get(self.reference))


def put(value: ValueT) -> StoredValue[ValueT]:
    """Put a value into Ray's object store, once for all tasks."""
    return StoredValue(ray.put(value))


def map_on_ray(
    work: Callable[[ItemT], Iterable[ResultT]],
    items: Sequence[ItemT],
    sizes: Sequence[int],
    result: type[ResultT],
    *,
    what: str,
) -> Iterator[ResultT]:
    """Yield what ``work`` yields for each item, as tasks go on; see ``data.executor.Executor.map_items``."""
    if not items:
        return

    name = f"pairwright-progress-{uuid.uuid4().hex}"

    def run(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        try:
            for index in row["items"]:
                reporter = _Reporter(name, index)
                with listening(reporter.add):
                    for value in work(items[index]):
                        yield {"kind": "", "payload": msgspec.msgpack.encode(value)}
                yield {"kind": _DONE, "payload": msgspec.msgpack.encode(reporter.counts)}
        except errors.PairwrightError as error:
            kind = type(error).__name__
            yield {"kind": kind if kind in _KINDS else "PairwrightError", "payload": str(error).encode()}

    tasks = [{"items": indices} for indices in batch_items(sizes, _num_tasks())]
    rows = ray.data.from_items(tasks, override_num_blocks=len(tasks)).flat_map(run)
    # With its reservations Ray Data 2.60 starts one task where two CPUs are free, and waits between tasks.
    rows.context.op_resource_reservation_enabled = False
    with (
        progress_bar(what, total=len(items), resources=ray_resources) as advance,
        _running_counts(name) as finished,
    ):
        for row in rows_of(rows):
            if row["kind"] == _DONE:
                advance(1)
                finished(*msgspec.msgpack.decode(row["payload"]))
            elif row["kind"]:
                raise _KINDS[row["kind"]](row["payload"].decode())
            else:
                yield msgspec.msgpack.decode(row["payload"], type=result)


def rows_of(dataset: Dataset) -> Generator[dict[str, Any]]:
    """Return the rows of a dataset; an iteration that is left open ends with the session."""
    return ended_with_session(cast("Generator[dict[str, Any]]", iter(dataset.iter_rows())))


def flat_map_in_order(
    rows: list[dict[str, Any]], work: Callable[[dict[str, Any]], Iterator[dict[str, Any]]]
) -> Iterator[dict[str, Any]]:
    """Yield the rows that ``work`` makes of each row, in order; for reading, beside actors that hold all CPUs."""
    context = ray.data.DataContext.get_current().copy()
    context.execution_options.preserve_order = True
    context.execution_options.label_selector = {}  # on any node
    context.target_max_block_size = ORDERED_BLOCK_BYTES
    with ray.data.DataContext.current(context):
        # No CPU is reserved, since reading mostly waits for input. For the same reason this is not `ray.data.range`,
        # whose own reading tasks take a CPU each.
        blocks = ray.data.from_items(rows, override_num_blocks=max(1, min(len(rows), MAX_ORDERED_TASKS)))
        yield from rows_of(blocks.flat_map(work, num_cpus=0))


# ---------------------------------------------------------------------------------------------- progress


class _Counts:
    """An actor: the records and bytes of each item, as far as tasks have said."""

    def __init__(self) -> None:
        self._of_item: dict[int, tuple[int, int]] = {}

    def set(self, item: int, num_records: int, num_bytes: int) -> None:
        self._of_item[item] = num_records, num_bytes

    def every(self) -> list[tuple[int, int, int]]:
        return [(item, *counts) for item, counts in self._of_item.items()]


class _Reporter:
    """Counts what a task does of one item, and tells the actor every two seconds where there is one."""

    def __init__(self, name: str, item: int) -> None:
        self._name = name
        self._item = item
        self._sent_at = time.monotonic()
        self._num_records = 0
        self._num_bytes = 0

    @property
    def counts(self) -> tuple[int, int, int]:
        """The item, its records and its bytes."""
        return self._item, self._num_records, self._num_bytes

    def add(self, num_records: int, num_bytes: int) -> None:
        self._num_records += num_records
        self._num_bytes += num_bytes
        if time.monotonic() - self._sent_at < PROGRESS_SECONDS:
            return
        self._sent_at = time.monotonic()
        with suppress(ValueError, RayError):  # the driver makes it after some seconds, and ends it when it is done
            ray.get_actor(self._name).set.remote(*self.counts)


@contextmanager
def _running_counts(name: str) -> Iterator[Callable[[int, int, int], None]]:
    """Note the progress of items that tasks work on, by an actor that is made where a map takes some seconds.

    Yields:
        what to call with the counts of an item that is done: the item, its records and its bytes.
    """
    counts: dict[int, tuple[int, int]] = {}
    lock = threading.Lock()
    stop = threading.Event()

    def take(item: int, num_records: int, num_bytes: int) -> None:
        with lock:
            old_records, old_bytes = counts.get(item, (0, 0))
            counts[item] = max(old_records, num_records), max(old_bytes, num_bytes)
            note_progress(counts[item][0] - old_records, counts[item][1] - old_bytes)

    def watch() -> None:
        if stop.wait(ACTOR_SECONDS):
            return
        with suppress(RayError):
            actor: Any = cast("Any", ray.remote(num_cpus=0)(_Counts)).options(name=name).remote()
            while not stop.wait(PROGRESS_SECONDS):
                for found in ray.get(actor.every.remote(), timeout=PROGRESS_TIMEOUT_SECONDS):
                    take(*found)
            ray.kill(actor)

    thread = threading.Thread(target=watch, name="pairwright-running-counts", daemon=True)
    thread.start()
    try:
        yield take
    finally:
        stop.set()
        thread.join()


def map_nodes(work: Callable[[], ResultT], *, seconds: float) -> list[tuple[str, ResultT | str]]:
    """Return the name of each node that is up, with what ``work`` returned there, or why it returned nothing."""

    def run() -> ResultT | str:
        try:
            return work()
        except errors.PairwrightError as error:
            return str(error)

    task = ray.remote(num_cpus=0, max_retries=0)(run)
    asked = []
    for node in ray.nodes():
        if node["Alive"]:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            asked.append((node["NodeManagerHostname"], task.options(scheduling_strategy=there).remote()))
    ray.wait([answer for _, answer in asked], num_returns=len(asked), timeout=seconds)
    return [(host, _answer(answer, seconds)) for host, answer in asked]


def _answer(answer: "ray.ObjectRef[Any]", seconds: float) -> Any:
    try:
        return ray.get(answer, timeout=0)
    except GetTimeoutError:
        return f"did not answer within {seconds:g} s"
    except RayError as error:
        return str(error).partition("\n")[0]


def num_nodes() -> int:
    """Return how many machines are up."""
    return sum(bool(node["Alive"]) for node in ray.nodes())


def _num_tasks() -> int:
    """Return how many tasks there should be at least: as many as keep all CPUs busy to the end."""
    if "RAY_ADDRESS" in os.environ:  # a cluster, which may grow while it works
        return max(MIN_TASKS, TASKS_PER_CPU * int(ray.cluster_resources().get("CPU", 0)))
    return TASKS_PER_CPU * int(ray.cluster_resources()["CPU"])


def batch_items(sizes: Sequence[int], num_tasks: int) -> list[list[int]]:
    """Return indices of the items of each task: neighbours together until they are worth a task."""
    enough = min(TASK_BYTES, max(MIN_TASK_BYTES, sum(sizes) // num_tasks))
    tasks: list[list[int]] = []
    filled = enough
    for index, size in enumerate(sizes):
        if filled >= enough:
            tasks.append([])
            filled = 0
        tasks[-1].append(index)
        filled += size
    return tasks
