"""Ids that stand twice: 64-bit hashes find who might, the ids themselves decide, and the later record is refused.

In: ``Part``s of one ingestion and the files already in the table; out: ``Part``s without the repeated records. Hashes
keep the check at 8 bytes a record; that two ids share one by chance costs a look at both, never a record.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
import pyarrow as pa

from pairwright.data.annotations import reason_key, rejection
from pairwright.data.formats import RecordError
from pairwright.data.lines import LineRange, pick_lines
from pairwright.data.parts import NUM_SHOWN, Part, hash_ids, num_completions
from pairwright.data.store import DataFile, Table
from pairwright.errors import SourceError


class Place(msgspec.Struct, frozen=True):
    """Where a record stands: its row in a data file, and its line in the source."""

    row: int
    id: str
    source: str
    line: int


def repeated_hashes(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Return the hashes that occur more than once in all arrays together, sorted."""
    values, counts = np.unique(np.concatenate([np.empty(0, "<u8"), *arrays]), return_counts=True)
    return values[counts > 1]


def holds_any(part: Part, hashes: np.ndarray) -> bool:
    """Return whether any of the part's ids has one of ``hashes`` (sorted, uint64)."""
    return bool(_is_in(hashes, part.hashes).any())


def places_of(table: Table, file: DataFile, hashes: np.ndarray) -> list[Place]:
    """Return the places of a file's records whose ids' hashes are among ``hashes`` (sorted, uint64), in row order."""
    rows = table.read_file(file, ["id", "source", "line"])
    found = np.flatnonzero(_is_in(hashes, hash_ids(rows.column("id").to_pylist())))
    taken = rows.take(pa.array(found)).to_pylist()
    return [Place(row=row, **record) for row, record in zip(found.tolist(), taken, strict=True)]


def repeats(places: Sequence[Place], first: dict[str, Place]) -> dict[int, Place]:
    """Return row -> the place that had its id first, of the records of a file whose id stands somewhere already.

    Args:
        places: records of one file; files come in the order in which the earlier record wins.
        first: id -> place of the first record; gets the ids that are new.
    """
    found = {}
    for place in places:
        earlier = first.setdefault(place.id, place)
        if earlier is not place:
            found[place.row] = earlier
    return found


def without_repeats(part: Part, lines: LineRange, earlier: Mapping[int, Place], table: Table) -> Part:
    """Return the part without the rows that repeat an id; they are kept as refused, with the text of their lines.

    Args:
        part: what was written; its data file is written anew and the old one deleted.
        lines: the range it came from, read again for the text of the refused lines.
        earlier: row -> the place that had the id first.
        table: where the part's files are.

    Raises:
        SourceError: if the source is gone or has changed meanwhile.
    """
    assert part.data is not None
    before = table.read_file(part.data)
    rows = sorted(earlier)
    numbers = before.column("line").take(pa.array(rows)).to_pylist()
    texts = pick_lines(lines, numbers)
    if len(texts) < len(numbers):
        raise SourceError(f"{lines.source.uri}: has changed while it was read; run the command again")
    refused = [
        rejection(_repeat_error(earlier[row]), texts[number], lines.source.uri, number)
        for row, number in zip(rows, numbers, strict=True)
    ]
    kept = np.setdiff1d(np.arange(part.accepted), rows)
    left = before.take(pa.array(kept))
    smaller = msgspec.structs.replace(
        part,
        accepted=len(kept),
        refused=part.refused + len(refused),
        completions=num_completions(left),
        data=table.write_data(left) if len(kept) else None,
        refused_files=[*part.refused_files, table.write_refused(refused)],
        reasons=dict(Counter(part.reasons) + Counter(map(reason_key, refused))),
        shown=[*part.shown, *refused][:NUM_SHOWN],
        id_hashes=part.hashes[kept].tobytes(),
    )
    table.delete([part.data])
    return smaller


def _repeat_error(earlier: Place) -> RecordError:
    found = f"`{earlier.id}`, which stands at {earlier.source}:{earlier.line}"
    return RecordError(f"duplicate id, got {found}; ids are unique in a table", path="$.id")


def _is_in(sorted_values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    if not len(sorted_values):
        return np.zeros(len(wanted), dtype=bool)
    index = np.minimum(np.searchsorted(sorted_values, wanted), len(sorted_values) - 1)
    return sorted_values[index] == wanted
