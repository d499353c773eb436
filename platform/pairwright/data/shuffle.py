"""Shuffle on disk between two passes: rows are written by bucket and read bucket by bucket.

A task of the first pass writes one file for its partition, an Arrow stream for each bucket, one behind the other; a
task of the second pass reads its bucket's byte range of every file. Only byte ranges pass through the driver, and
memory holds one partition or one bucket at a time, whatever the total. The price is a write and a read of the shuffled
rows, and on object storage one request for each byte range.
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
class Shuffle:
    """A folder of files that lasts from the first pass to the end of the second.

    Attributes:
        url: of the folder.
        num_buckets: how many buckets rows are dealt to.
    """

    url: str
    num_buckets: int

    def write(self, partition: int, rows: pa.Table, buckets: NDArray[np.integer]) -> list[int]:
        """Write the rows that a partition gives away; return where each bucket starts, and last where the file ends.

        Args:
            partition: number of the partition.
            rows: any rows.
            buckets: bucket of each, shape (rows,).
        """
        order = np.argsort(buckets, kind="stable")
        first = np.searchsorted(buckets[order], np.arange(self.num_buckets + 1))
        rows = rows.take(pa.array(order)).combine_chunks()
        sink = pa.BufferOutputStream()
        starts = [0]
        for start, end in itertools.pairwise(first.tolist()):
            if end > start:
                _write_stream(sink, rows.slice(start, end - start))
            starts.append(sink.tell())
        with store_errors(f"{self.url}/{partition}"):
            obstore.put(open_store(self.url), str(partition), memoryview(sink.getvalue()).cast("B"))
        return starts

    def read(self, bucket: int, starts: Sequence[Sequence[int]]) -> pa.Table:
        """Return the rows of a bucket, in the order of partitions and of their rows.

        Args:
            bucket: number of the bucket; it must have rows.
            starts: what ``write`` returned for each partition; empty for one that wrote nothing.

        Raises:
            StoreError: if a file is gone or cannot be read.
        """
        store = open_store(self.url)

        def fetch(partition: int) -> pa.Table:
            start, end = starts[partition][bucket : bucket + 2]
            where = f"{self.url}/{partition}"
            try:
                with store_errors(where):
                    found = obstore.get_range(store, str(partition), start=start, end=end)
                return pa.ipc.open_stream(pa.py_buffer(found)).read_all()
            except FileNotFoundError:
                raise StoreError(f"{where}: what another task wrote there is gone; run the command again") from None
            except pa.ArrowInvalid as error:
                raise StoreError(f"{where}: damaged on the way ({error}); run the command again") from None

        holders = [number for number, at in enumerate(starts) if at and at[bucket + 1] > at[bucket]]
        with ThreadPoolExecutor(REQUESTS_AT_ONCE) as threads:
            return pa.concat_tables(threads.map(fetch, holders))


def _write_stream(sink: pa.BufferOutputStream, rows: pa.Table) -> None:
    with pa.ipc.new_stream(sink, rows.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer:
        writer.write_table(rows)
