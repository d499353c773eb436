"""The executor that the commands use: this process for small work, Ray Data for the rest; the same for models.

Starting Ray takes about five seconds, in which one process reads 400 MB of text: a command should not take longer to
start than to do its work. Where a cluster runs already (a submitted job, an open session) it is used. Ray is imported
only when it is needed.
"""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TypeVar

from pairwright.config import IngestConfig
from pairwright.data.executor import LOCAL, Broadcast, Executor, Failures
from pairwright.data.ingest.sources.connection_urls import ExternalSource
from pairwright.data.ingest.sources.source import SourceRef
from pairwright.data.table.table import Table

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")
ValueT = TypeVar("ValueT")

SMALL_BYTES = 64 * 1024 * 1024
"""Of text, or stored data: one to three seconds' work in one process."""


SMALL_MODEL_BYTES = 2 * 1024 * 1024 * 1024
"""Of a model's files: what this process holds as well as an actor would."""


def fits_this_process(model_bytes: int, input_bytes: int, *, num_workers: int, use_gpu: bool) -> bool:
    """Return whether one model in this process computes on an input, rather than actors of Ray.

    Starting Ray and an actor takes 15 seconds of processor time; one worker on a CPU is no faster there than here.
    """
    is_small = model_bytes <= SMALL_MODEL_BYTES and input_bytes <= SMALL_BYTES
    return is_small and num_workers == 1 and not use_gpu and "RAY_ADDRESS" not in os.environ and not _is_ray_up()


@dataclass(frozen=True, slots=True)
class SizedExecutor:
    """Chooses the executor by the bytes to read: Ray for more than ``small_bytes``, and where it runs already."""

    small_bytes: int = SMALL_BYTES
    small_on_cluster: bool = True
    """Whether small work, too, is a cluster's where ``RAY_ADDRESS`` names one."""

    def session(self, num_bytes: int) -> AbstractContextManager[None]:
        is_here = not self.small_on_cluster or "RAY_ADDRESS" not in os.environ
        if num_bytes <= self.small_bytes and is_here:
            return nullcontext()
        from pairwright.cluster.session import ray_session

        return ray_session()

    def map_items(
        self,
        work: Callable[[ItemT], Iterable[ResultT]],
        items: Sequence[ItemT],
        sizes: Sequence[int],
        result: type[ResultT],
        *,
        what: str,
    ) -> Iterator[ResultT]:
        if not _is_ray_up() and sum(sizes) <= self.small_bytes:
            yield from LOCAL.map_items(work, items, sizes, result, what=what)
            return
        from pairwright.cluster.ray_map import map_on_ray

        with self.session(sum(sizes)):
            yield from map_on_ray(work, items, sizes, result, what=what)

    def broadcast(self, value: ValueT) -> Broadcast[ValueT]:
        if not _is_ray_up():
            return LOCAL.broadcast(value)
        from pairwright.cluster.ray_map import put

        return put(value)

    def map_nodes(self, work: Callable[[], ResultT], *, seconds: float) -> list[tuple[str, ResultT | str]]:
        if not _is_ray_up():
            return LOCAL.map_nodes(work, seconds=seconds)
        from pairwright.cluster.ray_map import map_nodes

        return map_nodes(work, seconds=seconds)

    def num_nodes(self) -> int:
        if not _is_ray_up():
            return 1
        from pairwright.cluster.ray_map import num_nodes

        return num_nodes()

    def stage_rows(
        self, sources: Sequence[ExternalSource], table: Table, config: IngestConfig
    ) -> AbstractContextManager[tuple[list[SourceRef], Failures]]:
        if not _is_ray_up() and all(source.kind == "sqlite" for source in sources):
            return LOCAL.stage_rows(sources, table, config)
        from pairwright.cluster.stage_external import staged_rows

        return staged_rows(sources, table, config)


def _is_ray_up() -> bool:
    return "ray" in sys.modules and bool(sys.modules["ray"].is_initialized())


EXECUTOR: Executor = SizedExecutor()
