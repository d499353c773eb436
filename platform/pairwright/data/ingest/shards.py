"""Parses one input split and writes it as uncommitted data files, with row counts.

This is all the work of one ingestion task, without Ray. A shard holds about ``split_bytes`` of text, so memory stays
flat on a stream of any length; nothing of it can be read before a commit names its files, so the files of a stream that
turns out to be truncated are simply not committed, and deleted.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

import msgspec
import pyarrow as pa

from pairwright.config import IngestConfig
from pairwright.data.id_index.id_index import write_indexed
from pairwright.data.ingest.adapters import (
    NATIVE,
    NUM_HEAD_RECORDS,
    NativeReader,
    Parse,
    RecordError,
    configured_format,
    groups_rows,
    parser_for,
    recognise,
)
from pairwright.data.ingest.fields.suggested_fields import SuggestedFields
from pairwright.data.ingest.fields.unknown_layout import UnknownLayout
from pairwright.data.ingest.parse import annotations_to_arrow, parse_lines, reason_key, rejection
from pairwright.data.ingest.row_groups import check_whole, grouped
from pairwright.data.ingest.sources.source import TEXT_CELLS
from pairwright.data.ingest.sources.splits import Chunk, InputSplit, read_chunks, source_note
from pairwright.data.table.manifest import IdIndex, IndexFile
from pairwright.data.table.table import DataFile, Table
from pairwright.errors import ConfigError, SourceError
from pairwright.progress_bar import note_progress
from pairwright.records import Rejection

NUM_SHOWN = 5
"""Rejections that a shard carries along for the summary; all of them are in its quarantine file."""
MAX_REASONS = 100
"""Kinds of reasons that are counted apart: a source may have one of its own for each record."""
OTHER_REASONS = "other reasons"
LINES_AT_ONCE = 8192
MAX_REFUSED_BYTES = 16 * 1024 * 1024
"""Refused text that one shard holds; a rejection takes about 500 bytes beside it."""
REFUSAL_BYTES = 500
MAX_SHARD_RECORDS = 100_000
"""Records that one shard holds at most, however short they are."""


class IngestShard(msgspec.Struct, frozen=True, kw_only=True):
    """Uncommitted files written from a part of an input split, with their counts."""

    split_index: int
    """Index of the input split among all of the ingestion, in the order of the sources."""
    index: int
    """Index of the shard in its split."""
    lines: int
    blank: int = 0
    """Lines without a record; the others hold ``accepted + refused`` judgements, at least one each."""
    accepted: int
    refused: int
    duplicates: int = 0
    """Of the refused: the same annotation once more."""
    completions: int
    data: DataFile | None
    quarantined_files: list[DataFile]
    reasons: dict[str, int]
    shown: list[Rejection]
    id_index: IdIndex | None
    """Index of the data file's ids."""
    format: str = ""
    """Name of the format that its records are read in; empty where none was recognised, and native was tried."""
    note: str | None = None
    """What a reader should know of how the source was read."""
    reading: dict[str, list[str]] = {}
    """Which fields were used for what, went into metadata, were not used."""
    suggestion: SuggestedFields | None = None
    """What an unknown layout may be, if that is why the source was not read."""
    error: str | None = None
    """Why the source could not be read to its end; earlier shards of it are then discarded too."""

    @property
    def files(self) -> list[DataFile | IndexFile]:
        """Every file that was written for it."""
        indexed = self.id_index.files if self.id_index else []
        return [*([self.data] if self.data else []), *self.quarantined_files, *indexed]


def write_shards(split_index: int, split: InputSplit, table: Table, config: IngestConfig) -> Iterator[IngestShard]:
    """Parse a split and write it into the table; yields at least one shard, the last one with ``error`` on failure.

    Raises:
        StoreError: if the table cannot be written.
    """
    writer = ShardWriter(split_index, 0, "")
    unknown = UnknownLayout(split.source.uri)
    try:
        writer.note = source_note(split.source) if split.start == 0 else None
        format_name, chunks = _detect_format(split, config)
        writer.format = format_name
        parse = parser_for(format_name or NATIVE.name, config)
        writer.parse = parse
        if isinstance(parse, NativeReader):
            parse.has_cells = split.source.file_format in TEXT_CELLS or split.source.staged_files is not None
        if keys := groups_rows(format_name, config):
            check_whole(split)
            chunks = grouped(chunks, keys, config.limits.max_record_bytes)
        counts = SplitCounts(split.source.uri, config)
        for piece in (piece for chunk in chunks for piece in chunk.pieces(LINES_AT_ONCE)):
            accepted, refused = writer.add(piece, split.source.uri, parse, config)
            if not format_name:
                unknown.add(piece.text, accepted, refused)
            counts.add(accepted, refused)
            note_progress(piece.num_lines, len(piece.text))
            if writer.is_full(config):
                yield writer.write(table, None)
                writer = ShardWriter(split_index, writer.index + 1, format_name)
                writer.parse = parse
        if not format_name:
            unknown.end()
    except (SourceError, ConfigError) as error:
        yield msgspec.structs.replace(writer.write(table, str(error)), suggestion=unknown.suggestion)
        return
    if writer.num_bytes or writer.index == 0:
        yield writer.write(table, None)


def _detect_format(split: InputSplit, config: IngestConfig) -> tuple[str, Iterator[Chunk]]:
    """Return the name of the format of a source, empty where it has none, and the chunks of the split.

    A split that does not begin at the head of its source reads the head too, so that all splits agree.
    """
    chunks = read_chunks(split)
    if (name := configured_format(config)) is not None:
        return name, chunks
    if split.start > 0 or split.lines_before > 0:
        head = next(read_chunks(split.head), None)
    else:
        head = next(chunks, None)
        chunks = chain([head] if head is not None else [], chunks)
    records = [] if head is None else head.text.split(b"\n", NUM_HEAD_RECORDS)[:NUM_HEAD_RECORDS]
    try:
        return recognise(records) or "", chunks
    except SourceError as error:
        raise SourceError(f"{split.source.uri}: {error}") from None


class SplitCounts:
    """Counts of a split so far; it fails where most is refused, since a rejection costs more than its record."""

    def __init__(self, source: str, config: IngestConfig) -> None:
        self._source = source
        self._config = config
        self._accepted = 0
        self._refused = 0
        self._first: Rejection | None = None

    def add(self, accepted: int, rejections: Sequence[Rejection]) -> None:
        """Count more of the split.

        Raises:
            SourceError: if it is mostly refused.
        """
        self._accepted += accepted
        self._refused += len(rejections)
        self._first = self._first or next(iter(rejections), None)
        if is_mostly_refused(self._accepted, self._refused, self._config):
            raise SourceError(f"{self._source}: {mostly_refused(self._accepted, self._first, self._config)}")


def is_mostly_refused(accepted: int, refused: int, config: IngestConfig) -> bool:
    """Return whether a source gives so many refusals, and so little beside them, that it is not taken."""
    return refused > max(config.limits.max_refused_records, accepted)


def mostly_refused(accepted: int, first: Rejection | None, config: IngestConfig) -> str:
    """Return why a source is not taken that is mostly refused.

    Args:
        accepted: judgements that it gave.
        first: the first that was refused.
        config: with the limit.
    """
    return (
        f"more than {config.limits.max_refused_records:,} of its records are refused, and more than are accepted "
        f"({accepted:,}); the first: {first}; name its layout (--format, or [fields] in --config), or set "
        "limits.max_refused_records"
    )


class ShardWriter:
    """Collects the records of one shard, and writes its files."""

    def __init__(self, split_index: int, index: int, format_name: str) -> None:
        self.split_index = split_index
        self.index = index
        self.format = format_name
        self.parse: Parse | None = None
        self.note: str | None = None
        self.num_bytes = 0
        self._num_lines = 0
        self._num_blank = 0
        self._num_accepted = 0
        self._refused_bytes = 0
        self._tables: list[pa.Table] = []
        self._rejections: list[Rejection] = []

    def is_full(self, config: IngestConfig) -> bool:
        """Return whether the shard is as large as one should be."""
        return (
            self.num_bytes >= config.split_bytes
            or self._refused_bytes >= MAX_REFUSED_BYTES
            or self._num_accepted >= MAX_SHARD_RECORDS
        )

    def add(self, chunk: Chunk, source: str, parse: Parse, config: IngestConfig) -> tuple[int, list[Rejection]]:
        """Add the records of a chunk; return how many were accepted, and what was refused."""
        self.num_bytes += len(chunk.text)
        self._num_lines += chunk.num_lines
        if chunk.problem:
            refused = rejection(RecordError(chunk.problem), chunk.text, source, chunk.first_line)
            self._refuse([refused])
            return 0, [refused]
        annotations, rejections = parse_lines(chunk.text, chunk.first_line, source, parse, config)
        self._refuse(rejections)
        self._num_accepted += len(annotations)
        filled = {annotation.line for annotation in annotations} | {refused.line for refused in rejections}
        self._num_blank += chunk.num_lines - len(filled)
        if annotations:
            self._tables.append(annotations_to_arrow(annotations))
        return len(annotations), rejections

    def _refuse(self, rejections: Sequence[Rejection]) -> None:
        self._rejections += rejections
        self._refused_bytes += sum(len(one.record) + REFUSAL_BYTES for one in rejections)

    def write(self, table: Table, error: str | None) -> IngestShard:
        """Write the files, unless the source failed: then nothing of it will be kept."""
        rows = pa.concat_tables(self._tables) if self._tables and error is None else None
        refused = self._rejections if error is None else []
        data, index = (None, None) if rows is None else write_indexed(table, rows)
        return IngestShard(
            split_index=self.split_index,
            index=self.index,
            lines=self._num_lines,
            blank=self._num_blank,
            format=self.format,
            note=self.note,
            reading={} if self.parse is None else self.parse.reading.as_dict(),
            accepted=0 if rows is None else rows.num_rows,
            refused=len(refused),
            completions=0 if rows is None else num_completions(rows),
            data=data,
            id_index=index,
            quarantined_files=[table.write_quarantined(refused)] if refused else [],
            reasons=most_common(Counter(map(reason_key, refused))),
            shown=refused[:NUM_SHOWN],
            error=error,
        )


def most_common(reasons: Counter[str]) -> dict[str, int]:
    """Return the most frequent reasons, and how often there were others."""
    found = dict(reasons.most_common(MAX_REASONS))
    others = reasons.total() - sum(found.values())
    return found | ({OTHER_REASONS: found.get(OTHER_REASONS, 0) + others} if others else {})


def num_completions(rows: pa.Table) -> int:
    """Return how many completions the rows hold together."""
    return sum(len(chunk.flatten()) for chunk in rows.column("completions").chunks)


def all_files(shards: Iterable[IngestShard]) -> list[DataFile | IndexFile]:
    """Return every file that was written for the shards."""
    return [file for shard in shards for file in shard.files]
