"""An executor that lets another command commit in the middle of an operation: a race that happens every time."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from pairwright.data.executor import LocalExecutor

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

READ = "splits of sources read"
"""What an ingestion maps before it looks at the table for its commit."""
CHECKED = "files written without duplicate ids"
"""What an ingestion maps between its look at the table and its commit."""


class RacingExecutor(LocalExecutor):
    """Works in this process, and does ``command`` right before the first map of this name."""

    def __init__(self, command: Callable[[], object], *, before: str) -> None:
        self.num_maps = 0
        """How many maps had this name: a commit that lost the race goes again."""
        self._command = command
        self._before = before

    def map_items(
        self,
        work: Callable[[ItemT], Iterable[ResultT]],
        items: Sequence[ItemT],
        sizes: Sequence[int],
        result: type[ResultT],
        *,
        what: str,
    ) -> Iterator[ResultT]:
        if what == self._before:
            self.num_maps += 1
            if self.num_maps == 1:
                self._command()
        yield from super().map_items(work, items, sizes, result, what=what)
