"""The input of a scoring job, in chunks of about a hundred records, as rows in order.

The input alone decides the chunks, so a result does not depend on the worker that computes it. Unlike in an ingestion,
text goes through Ray's object store, where Ray computes: a compressed source is one stream and has to feed all actors.
Nothing here imports torch, which would cost every reading task seconds.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import msgspec
import pyarrow as pa

from pairwright.cluster.sized_executor import EXECUTOR
from pairwright.config import IngestConfig
from pairwright.data.ingest.adapters import RecordError
from pairwright.data.ingest.parse import rejection
from pairwright.data.ingest.shards import LINES_AT_ONCE, SplitCounts
from pairwright.data.ingest.sources.listing import list_sources
from pairwright.data.ingest.sources.scan import hash_sources, plan_splits
from pairwright.data.ingest.sources.source import SourceRef
from pairwright.data.ingest.sources.splits import InputSplit, read_chunks
from pairwright.data.table.table import DataFile, Input, Table
from pairwright.errors import SourceError, StoreError
from pairwright.evaluation.requests import DEFAULT_LIMITS, parse_requests

RECORDS_AT_ONCE = 128
BYTES_AT_ONCE = 256 * 1024
RANGE_BYTES = 64 * 1024 * 1024

Row: TypeAlias = dict[str, Any]
Unit: TypeAlias = InputSplit | DataFile


@dataclass(frozen=True)
class ScoringInput:
    """The input of a scoring job: its splits or files, in order, and the source that each belongs to."""

    units: list[Unit]
    source_indices: list[int]
    """Index of each unit's source."""
    table: Table | None = None
    inputs: list[Input] = field(default_factory=list)
    sources: list[SourceRef] = field(default_factory=list)
    unreadable: dict[int, str] = field(default_factory=dict)
    """Index of a source that failed while its lines were counted -> the reason."""
    config: IngestConfig = DEFAULT_LIMITS
    """Limits on sources and records."""

    @property
    def num_bytes(self) -> int:
        """Bytes of all units, as they are stored."""
        return sum(unit.end - unit.start if isinstance(unit, InputSplit) else unit.bytes for unit in self.units)

    def all_chunks(self, *, on_ray: bool) -> Iterator[Row]:
        """Yield the chunks of all units, in order: source (index), kind, name, line, content."""
        rows = [{"id": number} for number in range(len(self.units))]
        if not on_ray:
            return (chunk for row in rows for chunk in self.chunks(row))
        from pairwright.cluster.ray_map import flat_map_in_order

        return flat_map_in_order(rows, self.chunks)

    def chunks(self, row: Row) -> Iterator[Row]:
        """Yield a unit's chunks; the last chunk of a source that fails holds the error."""
        unit = self.units[row["id"]]
        head = {"source": self.source_indices[row["id"]]}
        try:
            pieces = _of_lines(unit, self.config) if isinstance(unit, InputSplit) else _of_file(unit, self.table)
            for piece in pieces:
                yield head | piece
        except (SourceError, StoreError) as error:
            yield head | {"kind": type(error).__name__, "name": _name(unit), "line": 0, "content": str(error).encode()}


def plan_input(url: str, version: int | None, config: IngestConfig) -> ScoringInput:
    """Return the input at a path or URL: a version of a table, the newest by default, or sources of JSON Lines.

    Raises:
        SourceError: if there is neither.
        StoreError: if it is a table of tokens, if the version does not exist, or if a version is given without a table.
    """
    table = Table(url, "pairs")
    manifest = table.latest()
    if manifest is None:
        if version is not None:
            raise StoreError(f"{url}: no table here, so no version {version}; leave --version out for sources")
        return _plan_sources(list_sources([url], config.limits, config.cells), config)
    if manifest.kind not in ("annotations", "pairs"):
        raise StoreError(f"{url}: holds {manifest.kind}, expected annotations, pairs or JSON Lines")
    manifest = table.manifest(version)
    inputs = [Input(url=table.url, version=manifest.version, digest=manifest.digest)]
    units: list[Unit] = list(manifest.files)
    return ScoringInput(units, list(range(len(units))), table=Table(url, manifest.kind), inputs=inputs)


def _plan_sources(sources: list[SourceRef], config: IngestConfig) -> ScoringInput:
    hashed, unreadable = hash_sources(sources, EXECUTOR)
    ranges, failures = plan_splits(hashed, RANGE_BYTES, EXECUTOR)
    as_read = {source.uri: source for source in hashed}
    index = {source.uri: number for number, source in enumerate(sources)}
    return ScoringInput(
        units=list(ranges),
        source_indices=[index[unit.source.uri] for unit in ranges],
        sources=[as_read.get(source.uri, source) for source in sources],
        config=config,
        unreadable={index[uri]: reason.removeprefix(f"{uri}: ") for uri, reason in (unreadable | failures).items()},
    )


def _of_lines(unit: InputSplit, config: IngestConfig) -> Iterator[Row]:
    """Yield the chunks of a line range; it is parsed here too, which is cheap beside a model, to count rejections."""
    name = unit.source.uri
    counts = SplitCounts(name, config)
    for chunk in (piece for whole in read_chunks(unit) for piece in whole.pieces(LINES_AT_ONCE)):
        if chunk.problem:
            refused = rejection(RecordError(chunk.problem), chunk.text, name, chunk.first_line)
            counts.add(0, [refused])
            yield {"kind": "refused", "name": name, "line": chunk.first_line, "content": msgspec.json.encode(refused)}
            continue
        requests, rejections = parse_requests(chunk.text, chunk.first_line, name, config)
        counts.add(len(requests), rejections)
        # Refused lines take no model: one row, since each costs an actor's call (62 kB of them took a minute).
        pieces = split_lines(chunk.text, chunk.first_line) if requests else [(chunk.first_line, chunk.text)]
        for first_line, text in pieces:
            yield {"kind": "lines", "name": name, "line": first_line, "content": text}


def split_lines(text: bytes, first_line: int) -> Iterator[tuple[int, bytes]]:
    """Yield chunks of complete lines, of about equal work: the number of the first line and the text."""
    lines: list[bytes] = []
    num_bytes = 0
    for line in text.removesuffix(b"\n").split(b"\n"):
        if lines and (len(lines) == RECORDS_AT_ONCE or num_bytes + len(line) > BYTES_AT_ONCE):
            yield first_line, b"\n".join(lines)
            first_line += len(lines)
            lines, num_bytes = [], 0
        lines.append(line)
        num_bytes += len(line)
    yield first_line, b"\n".join(lines)


def _of_file(file: DataFile, table: Table | None) -> Iterator[Row]:
    assert table is not None
    key = "id" if table.kind == "annotations" else "group_id"
    rows = table.read_file(file, [key, "prompt", "context", "completions"]).combine_chunks()
    for start in range(0, rows.num_rows, RECORDS_AT_ONCE):
        chunk = rows.slice(start, RECORDS_AT_ONCE)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, chunk.schema) as writer:
            writer.write_table(chunk)
        content = sink.getvalue().to_pybytes()
        yield {"kind": "rows", "name": f"{table.url}/{file.path}", "line": start + 1, "content": content}


def _name(unit: Unit) -> str:
    return unit.source.uri if isinstance(unit, InputSplit) else unit.path
