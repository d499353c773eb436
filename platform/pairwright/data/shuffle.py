"""Rows of many stretches of files -> a file a stretch, cut by partition -> the rows of a partition: a shuffle on disk.

Between two passes: a task of the first writes what its stretch holds, one Arrow stream a partition, one behind the
other; a task of the second reads its partition's range of every file. Nothing but ranges passes through the driver, and
memory holds one stretch or one partition at a time, however much there is. The price is a write and a read of what is
exchanged, and on object storage one request for each range.
"""

import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import obstore
import pyarrow as pa
from numpy.typing import NDArray

from pairwright.data.storage.object_store import open_store, store_errors
from pairwright.errors import StoreError

REQUESTS_AT_ONCE = 16
"""Of one task: most of a range's time on object storage is waiting."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """A folder of files that lasts from the first pass to the end of the second.

    Attributes:
        url: of the folder.
        num_partitions: how many partitions there are.
    """

    url: str
    num_partitions: int

    def write(self, stretch: int, rows: pa.Table, partitions: NDArray[np.integer]) -> list[int]:
        """Write the rows that a stretch exchanges; return where each partition starts, and last where the file ends.

        Args:
            stretch: number of the stretch.
            rows: any rows.
            partitions: partition of each, shape (rows,).
        """
        order = np.argsort(partitions, kind="stable")
        first = np.searchsorted(partitions[order], np.arange(self.num_partitions + 1))
        rows = rows.take(pa.array(order)).combine_chunks()
        sink = pa.BufferOutputStream()
        starts = [0]
        for start, end in itertools.pairwise(first.tolist()):
            if end > start:
                _write_stream(sink, rows.slice(start, end - start))
            starts.append(sink.tell())
        with store_errors(f"{self.url}/{stretch}"):
            obstore.put(open_store(self.url), str(stretch), memoryview(sink.getvalue()).cast("B"))
        return starts

    def read(self, partition: int, starts: Sequence[Sequence[int]]) -> pa.Table:
        """Return the rows of a partition, in the order of stretches and of their rows.

        Args:
            partition: number of the partition; it must have rows.
            starts: what ``write`` returned for each stretch; empty for one that wrote nothing.

        Raises:
            StoreError: if a file is gone or cannot be read.
        """
        store = open_store(self.url)

        def fetch(stretch: int) -> pa.Table:
            start, end = starts[stretch][partition : partition + 2]
            where = f"{self.url}/{stretch}"
            try:
                with store_errors(where):
                    found = obstore.get_range(store, str(stretch), start=start, end=end)
                return pa.ipc.open_stream(pa.py_buffer(found)).read_all()
            except FileNotFoundError:
                raise StoreError(f"{where}: what another task wrote there is gone; run the command again") from None
            except pa.ArrowInvalid as error:
                raise StoreError(f"{where}: damaged on the way ({error}); run the command again") from None

        holders = [number for number, at in enumerate(starts) if at and at[partition + 1] > at[partition]]
        with ThreadPoolExecutor(REQUESTS_AT_ONCE) as threads:
            return pa.concat_tables(threads.map(fetch, holders))


def _write_stream(sink: pa.BufferOutputStream, rows: pa.Table) -> None:
    with pa.ipc.new_stream(sink, rows.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer:
        writer.write_table(rows)
