"""Executor protocol for table operations, and its implementation in this process.

A table operation says what is done to each item and what is done with the results. It is handed an executor and
cannot tell which one: both implementations give the same bytes. The one on Ray Data is in
``cluster/sized_executor.py``, which also decides by the bytes to read which of them works.
"""

import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Protocol, TypeAlias, TypeVar

from pairwright.errors import ConfigError, PairwrightError
from pairwright.progress_bar import progress_bar

if TYPE_CHECKING:
    from pairwright.config import IngestConfig
    from pairwright.data.ingest.sources.connection_urls import ExternalSource
    from pairwright.data.ingest.sources.source import SourceRef
    from pairwright.data.table.table import Table

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")
ValueT = TypeVar("ValueT")
ValueT_co = TypeVar("ValueT_co", covariant=True)

Failures: TypeAlias = dict[str, str]
"""URI of a source -> why it could not be read to its end."""


class Broadcast(Protocol[ValueT_co]):
    """A value that every task can get; it is sent once, not with every item."""

    def get(self) -> ValueT_co:
        """Return the value."""
        ...


class Executor(Protocol):
    """Maps work over items, in one process or on a cluster."""

    def session(self, num_bytes: int) -> AbstractContextManager[None]:
        """Keep a cluster, started where so many bytes are worth it, for the maps of the block."""
        ...

    def map_items(
        self,
        work: Callable[[ItemT], Iterable[ResultT]],
        items: Sequence[ItemT],
        sizes: Sequence[int],
        result: type[ResultT],
        *,
        what: str,
    ) -> Iterator[ResultT]:
        """Yield what ``work`` yields for each item, in no order of items, and show how many items are done.

        Items should be few and tiny (byte ranges, files); what is large goes through storage.

        Args:
            work: may be a generator; may be pickled and called in another process.
            items: what there is to do.
            sizes: bytes that each item has to go through.
            result: type of the results, for msgpack.
            what: label of the progress bar: ``sources hashed``.

        Raises:
            PairwrightError: the first one that ``work`` raised anywhere.
        """
        ...

    def broadcast(self, value: ValueT) -> Broadcast[ValueT]:
        """Return a handle of a value, by which ``work`` gets it."""
        ...

    def map_nodes(self, work: Callable[[], ResultT], *, seconds: float) -> list[tuple[str, ResultT | str]]:
        """Return the name of each machine with what ``work`` returned there, or why it did not within ``seconds``."""
        ...

    def num_nodes(self) -> int:
        """Return on how many machines items may be worked on."""
        ...

    def stage_rows(
        self, sources: Sequence["ExternalSource"], table: "Table", config: "IngestConfig"
    ) -> AbstractContextManager[tuple[list["SourceRef"], Failures]]:
        """Write the rows of databases, lakehouse tables and topics into files of ``table`` that last for the block."""
        ...


@dataclass(frozen=True, slots=True)
class LocalValue(Generic[ValueT]):
    """A value of this process."""

    value: ValueT

    def get(self) -> ValueT:
        """Return the value."""
        return self.value


class LocalExecutor:
    """Maps items in this process, one after the other."""

    def session(self, num_bytes: int) -> AbstractContextManager[None]:
        return nullcontext()

    def map_items(
        self,
        work: Callable[[ItemT], Iterable[ResultT]],
        items: Sequence[ItemT],
        sizes: Sequence[int],
        result: type[ResultT],
        *,
        what: str,
    ) -> Iterator[ResultT]:
        if not items:
            return
        with progress_bar(what, total=len(items)) as advance:
            for item in items:
                yield from work(item)
                advance(1)

    def broadcast(self, value: ValueT) -> Broadcast[ValueT]:
        return LocalValue(value)

    def map_nodes(self, work: Callable[[], ResultT], *, seconds: float) -> list[tuple[str, ResultT | str]]:
        try:
            return [(socket.gethostname(), work())]
        except PairwrightError as error:
            return [(socket.gethostname(), str(error))]

    def num_nodes(self) -> int:
        return 1

    @contextmanager
    def stage_rows(
        self, sources: Sequence["ExternalSource"], table: "Table", config: "IngestConfig"
    ) -> Iterator[tuple[list["SourceRef"], Failures]]:
        from pairwright.data.ingest.sources.staged_rows import staged_databases

        if (other := next((source for source in sources if source.kind != "sqlite"), None)) is not None:
            raise ConfigError(f"{other.uri}: its rows are read by Ray Data; pass its executor")
        with staged_databases(sources, table, config) as staged:
            yield staged


LOCAL: Executor = LocalExecutor()
