"""The passes of an ingestion that refuse repeated ids. Parts in -> parts without the records that repeat one.

Reads the ids of the table's files once (an ingestion that adds little to a large table pays for that), of its own files
only where hashes met, and writes only files that hold a repeat. The driver holds hashes and lines, never a record.
"""

from collections.abc import Iterator, Sequence

import msgspec
import numpy as np

from pairwright.cluster.passes import run_pass, share
from pairwright.data.ingest.dedup import (
    Places,
    Repeats,
    find_repeats,
    holds_any,
    places_of,
    repeated_hashes,
    without_repeats,
)
from pairwright.data.ingest.shards import Part
from pairwright.data.ingest.sources.splits import LineRange
from pairwright.data.table.table import DataFile, Table


class _Found(msgspec.Struct, frozen=True):
    item: int
    places: Places


def refuse_repeats(
    parts: Sequence[Part], units: Sequence[LineRange], files: Sequence[DataFile], known: Table, table: Table
) -> list[Part]:
    """Return the parts without the records whose id stands in ``files`` of the table, or earlier in the parts.

    Args:
        parts: in the order in which the earlier record wins.
        units: the ranges that the parts came from, by ``part.unit``.
        files: files of a table that the parts were not checked against before.
        known: the table that they are in.
        table: where the parts are, the same one but for `validate`.

    Raises:
        SourceError: if a source that holds a repeat is gone or has changed.
        StoreError: if a file cannot be read or written.
    """
    hashes = [part.hashes for part in parts]
    own = np.unique(np.concatenate([np.empty(0, "<u8"), *hashes]))
    before = _places(files, own, known)
    taken = np.unique(np.concatenate([np.empty(0, "<u8"), *(places.rows["hash"] for places in before)]))
    wanted = np.union1d(repeated_hashes(hashes), taken)
    affected = [part for part in parts if part.data is not None and holds_any(part, wanted)]
    places = _places([part.data for part in affected if part.data is not None], wanted, table)
    found = zip(affected, find_repeats(before, places), strict=True)
    smaller = _rewritten([(part, repeats) for part, repeats in found if len(repeats.rows)], units, table)
    return [smaller.get((part.unit, part.index), part) for part in parts]


def _places(files: Sequence[DataFile], hashes: np.ndarray, table: Table) -> list[Places]:
    """Return, for each file, where ids with these hashes (sorted, uint64) stand in it."""
    places = [Places([], b"") for _ in files]
    if not files or not len(hashes):
        return places
    shared = share(hashes)

    def work(index: int) -> Iterator[_Found]:
        yield _Found(index, places_of(table, files[index], shared.get()))

    sizes = [file.bytes for file in files]
    for found in run_pass(work, range(len(files)), sizes, _Found, what="files searched for repeated ids"):
        places[found.item] = found.places
    return places


def _rewritten(
    todo: Sequence[tuple[Part, Repeats]], units: Sequence[LineRange], table: Table
) -> dict[tuple[int, int], Part]:
    """Return the parts without their repeats; each task fetches its own, since all of them can be many."""
    shared = [share(item) for item in todo]

    def work(index: int) -> Iterator[Part]:
        part, repeats = shared[index].get()
        yield without_repeats(part, units[part.unit], repeats, table)

    sizes = [units[part.unit].end - units[part.unit].start for part, _ in todo]
    parts = run_pass(work, range(len(todo)), sizes, Part, what="files written without repeated ids")
    return {(part.unit, part.index): part for part in parts}
