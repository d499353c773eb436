"""What is to be scored -> stretches of some hundred records each, as rows of a Ray Data pipeline, in order.

A stretch is a function of the input alone, so that what is computed from it does not depend on who computes it. Text
goes through Ray's object store here, unlike in an ingestion: a compressed source is one stream, and it has to feed all
the actors. Nothing here imports torch, which would cost every reading task seconds.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import msgspec
import pyarrow as pa
import ray.data
from ray.data import Dataset

from pairwright.cluster.executor import EXECUTOR
from pairwright.config import IngestConfig
from pairwright.data.ingest.adapters import RecordError
from pairwright.data.ingest.parse import rejection
from pairwright.data.ingest.shards import LINES_AT_ONCE, SplitCounts
from pairwright.data.ingest.sources.listing import list_sources
from pairwright.data.ingest.sources.scan import plan_splits
from pairwright.data.ingest.sources.source import SourceRef
from pairwright.data.ingest.sources.splits import InputSplit, read_chunks
from pairwright.data.table.table import DataFile, Input, Table
from pairwright.errors import SourceError, StoreError
from pairwright.evaluation.requests import DEFAULT_LIMITS, parse_requests

RECORDS_AT_ONCE = 128
BYTES_AT_ONCE = 256 * 1024
RANGE_BYTES = 64 * 1024 * 1024
MAX_TASKS = 4096

Row: TypeAlias = dict[str, Any]
Unit: TypeAlias = InputSplit | DataFile


@dataclass(frozen=True)
class Work:
    """What there is to read: units in order, and the source that each is a part of."""

    units: list[Unit]
    owners: list[int]
    """Index of each unit's source."""
    table: Table | None = None
    inputs: list[Input] = field(default_factory=list)
    sources: list[SourceRef] = field(default_factory=list)
    unreadable: dict[int, str] = field(default_factory=dict)
    """Index of a source that failed while its lines were counted, and why."""
    config: IngestConfig = DEFAULT_LIMITS
    """What a source and a record of it may cost."""

    def stretches(self, row: Row) -> Iterator[Row]:
        """Yield a unit's stretches; a source that fails ends with one that says so."""
        unit = self.units[row["id"]]
        head = {"source": self.owners[row["id"]]}
        try:
            pieces = _of_lines(unit, self.config) if isinstance(unit, InputSplit) else _of_file(unit, self.table)
            for piece in pieces:
                yield head | piece
        except (SourceError, StoreError) as error:
            yield head | {"kind": type(error).__name__, "name": _name(unit), "line": 0, "content": str(error).encode()}


def plan_work(place: str, version: int | None, config: IngestConfig) -> Work:
    """Return what there is to read at a place: a version of a table, the newest by default, or sources of JSON Lines.

    Raises:
        SourceError: if neither is there.
        StoreError: if it is a table of tokens, has no such version, or a version is asked of what is no table.
    """
    table = Table(place, "pairs")
    manifest = table.latest()
    if manifest is None:
        if version is not None:
            raise StoreError(f"{place}: no table here, so no version {version}; leave --version out for sources")
        return _plan_sources(list_sources([place], config.limits), config)
    if manifest.kind not in ("annotations", "pairs"):
        raise StoreError(f"{place}: holds {manifest.kind}, expected annotations, pairs or JSON Lines")
    manifest = table.manifest(version)
    inputs = [Input(url=table.url, version=manifest.version, digest=manifest.digest)]
    units: list[Unit] = list(manifest.files)
    return Work(units, list(range(len(units))), table=Table(place, manifest.kind), inputs=inputs)


def _plan_sources(sources: list[SourceRef], config: IngestConfig) -> Work:
    ranges, failures = plan_splits(sources, RANGE_BYTES, EXECUTOR)
    index = {source.uri: number for number, source in enumerate(sources)}
    return Work(
        units=list(ranges),
        owners=[index[unit.source.uri] for unit in ranges],
        sources=sources,
        config=config,
        unreadable={index[uri]: reason.removeprefix(f"{uri}: ") for uri, reason in failures.items()},
    )


def read_stretches(work: Work) -> Dataset:
    """Return the stretches of all units as rows: source (index), kind, name, line, content."""
    # Readers ask for no CPU, since the actors may hold them all, and no one would ever read: they mostly wait for
    # input and output. (So no `ray.data.range` either: its own reading tasks take a CPU each.)
    rows = [{"id": number} for number in range(len(work.units))]
    units = ray.data.from_items(rows, override_num_blocks=max(1, min(len(rows), MAX_TASKS)))
    return units.flat_map(work.stretches, num_cpus=0)


def _of_lines(unit: InputSplit, config: IngestConfig) -> Iterator[Row]:
    """Yield the stretches of a range; parsed here too, which costs little beside a model, to know what is refused."""
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
        for first_line, text in cut_lines(chunk.text, chunk.first_line):
            yield {"kind": "lines", "name": name, "line": first_line, "content": text}


def cut_lines(text: bytes, first_line: int) -> Iterator[tuple[int, bytes]]:
    """Yield the number of the first line and the text of stretches of whole lines, of about equal work."""
    stretch: list[bytes] = []
    num_bytes = 0
    for line in text.removesuffix(b"\n").split(b"\n"):
        if stretch and (len(stretch) == RECORDS_AT_ONCE or num_bytes + len(line) > BYTES_AT_ONCE):
            yield first_line, b"\n".join(stretch)
            first_line += len(stretch)
            stretch, num_bytes = [], 0
        stretch.append(line)
        num_bytes += len(line)
    yield first_line, b"\n".join(stretch)


def _of_file(file: DataFile, table: Table | None) -> Iterator[Row]:
    assert table is not None
    key = "id" if table.kind == "annotations" else "group_id"
    rows = table.read_file(file, [key, "prompt", "context", "completions"]).combine_chunks()
    for start in range(0, rows.num_rows, RECORDS_AT_ONCE):
        stretch = rows.slice(start, RECORDS_AT_ONCE)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, stretch.schema) as writer:
            writer.write_table(stretch)
        content = sink.getvalue().to_pybytes()
        yield {"kind": "rows", "name": f"{table.url}/{file.path}", "line": start + 1, "content": content}


def _name(unit: Unit) -> str:
    return unit.source.uri if isinstance(unit, InputSplit) else unit.path
