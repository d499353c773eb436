"""JSON Lines or a table, and an exported model -> a reward for every completion, in the order of the input.

Reading tasks cut the input into stretches of some hundred records (a compressed source is one stream, however many
workers there are); model actors parse, tokenise and score a stretch each; the driver writes. Stretches are a function
of the input, so the rewards do not depend on the number of workers.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

import msgspec
import pyarrow as pa
import ray.data
import torch
from ray.data import DataContext, Dataset

from pairwright.cluster.model_pool import Row, Worker, check_workers, run_on_models
from pairwright.cluster.read import plan_units
from pairwright.cluster.session import ray_session
from pairwright.data.annotations import rejection
from pairwright.data.formats import RecordError
from pairwright.data.lines import MAX_LINE_BYTES, LineRange, read_chunks
from pairwright.data.locations import absolute_url
from pairwright.data.sources import SourceRef, list_sources
from pairwright.data.store import DataFile, Input, Table
from pairwright.data.tokens import TokenSpec
from pairwright.errors import SourceError, StoreError
from pairwright.evaluation.exported import ExportedModel, InputRules, load_exported, open_exported
from pairwright.evaluation.requests import parse_requests, requests_of_rows
from pairwright.evaluation.score import Scored, score_requests
from pairwright.evaluation.score_files import FailedSource, ScoredSource, ScoreFiles, ScoresManifest
from pairwright.records import Rejection

RECORDS_AT_ONCE = 128
BYTES_AT_ONCE = 256 * 1024
RANGE_BYTES = 64 * 1024 * 1024
NUM_SHOWN = 20
"""Rejections that a summary shows; all of them are under ``refused/``."""
MAX_TASKS = 4096
# A block goes to one actor as a whole: about one stretch, so that all actors have work on a small input too.
_BLOCK_BYTES = 16 * 1024

Unit: TypeAlias = LineRange | DataFile
Outcome: TypeAlias = tuple[int, Scored | FailedSource]
"""Index of the source and what became of the stretch."""


@dataclass(frozen=True)
class ScoreSummary:
    """How a scoring ended."""

    url: str
    manifest: ScoresManifest
    rejections: list[Rejection]
    """The first of the refused."""

    @property
    def failed(self) -> list[FailedSource]:
        """Sources that could not be read to their end, of which nothing was kept."""
        return self.manifest.failed

    def text(self) -> str:
        """Return the summary for a person, a few lines."""
        totals = self.manifest.totals
        lines = [
            f"scores   {self.url}/scores: {totals['completions']:,} rewards of {totals['records']:,} records, "
            f"{totals['tokens']:,} tokens",
            f"refused  {totals['records_refused']:,} records and {totals['completions_refused']:,} completions of others"
            + (f", in {self.url}/refused" if self.manifest.refused_files else ""),
        ]
        if totals["completions_truncated"]:
            limit = self.manifest.model.max_length
            lines.append(f"cut      {totals['completions_truncated']:,} completions, at {limit:,} tokens")
        lines += [f"  {rejected}" for rejected in self.rejections]
        lines += [f"failed   {source.uri}: {source.reason}" for source in self.failed]
        return "\n".join(lines)


@dataclass(frozen=True)
class _Work:
    """What there is to read: units in order, and what each is a part of."""

    units: list[Unit]
    owners: list[int]
    """Index of each unit's source."""
    table: Table | None = None
    inputs: list[Input] = field(default_factory=list)
    sources: list[SourceRef] = field(default_factory=list)
    unreadable: dict[int, str] = field(default_factory=dict)
    """Index of a source that failed while its lines were counted, and why."""

    def stretches(self, row: Row) -> Iterator[Row]:
        """Yield a unit's stretches; a source that fails ends with one that says so."""
        unit = self.units[row["id"]]
        head = {"source": self.owners[row["id"]]}
        try:
            pieces = _of_lines(unit) if isinstance(unit, LineRange) else _of_file(unit, self.table)
            for piece in pieces:
                yield head | piece
        except (SourceError, StoreError) as error:
            yield head | {"kind": type(error).__name__, "name": _name(unit), "line": 0, "content": str(error).encode()}


@dataclass(frozen=True)
class _Task:
    """What every model actor is told."""

    model: str
    rules: InputRules
    micro_batch_tokens: int

    def load(self, device: torch.device) -> Worker[Outcome]:
        """Return what scores one stretch on a device."""
        loaded = load_exported(open_exported(self.model), device)
        spec = TokenSpec.of(loaded.tokenizer, self.rules.tokens_config())

        def score_stretch(row: Row) -> Outcome:
            kind, name, line, content = row["kind"], row["name"], row["line"], row["content"]
            requests, refused = [], []
            if kind == "StoreError":
                raise StoreError(content.decode())
            if kind == "SourceError":
                return row["source"], FailedSource(name, content.decode().removeprefix(f"{name}: "))
            if kind == "lines":
                requests, refused = parse_requests(content, line, name)
            elif kind == "rows":
                requests = requests_of_rows(pa.ipc.open_stream(content).read_all(), line, name)
            else:
                refused = [msgspec.json.decode(content, type=Rejection)]
            scored = score_requests(loaded, spec, requests, refused, micro_batch_tokens=self.micro_batch_tokens)
            return row["source"], scored

        return score_stretch


def score(
    model: str,
    input: str,  # noqa: A002 (its name on the command line)
    output: str,
    *,
    num_workers: int,
    use_gpu: bool,
    micro_batch_tokens: int,
    max_length: int | None = None,
    overwrite: bool = False,
) -> ScoreSummary:
    """Write the reward of every completion of an input, and return what was scored and what was not.

    Bad records never stop the job: they are refused with place and reason, counted and kept. A source that cannot be
    read to its end is left out as a whole and named.

    Args:
        model: directory or URL of an exported model.
        input: file, directory, pattern or URL of JSON Lines; or the URL of an annotations or pairs table, whose newest
            version is scored.
        output: directory or URL; gets ``scores/*.parquet`` in SCORES_SCHEMA, ``refused/*.jsonl`` and ``scores.json``.
        num_workers: models that work side by side; changes nothing in the rewards.
        use_gpu: give each a GPU.
        micro_batch_tokens: most tokens of one forward, padding included.
        max_length: longest prompt and completion in tokens; the model's own if None.
        overwrite: replace the scores that the output holds.

    Raises:
        ModelError: if the model cannot be used, or gives a reward that is not finite.
        SourceError: if the input is missing, or nothing of it could be read to its end.
        StoreError: if the output holds scores already, or holds a table.
        ConfigError: if there are too few workers or tokens to work with.
    """
    exported = open_exported(model)
    rules = exported.rules if max_length is None else msgspec.structs.replace(exported.rules, max_length=max_length)
    with ray_session():
        check_workers(num_workers, use_gpu=use_gpu)
        work = _plan(input)
        files = ScoreFiles(output, overwrite=overwrite)
        task = _Task(absolute_url(model), rules, micro_batch_tokens)
        try:
            with DataContext.current(_context()):
                outcomes = run_on_models(_read(work), task.load, num_workers=num_workers, use_gpu=use_gpu)
                failed, shown = _write(outcomes, files)
            return _finish(files, work, exported, rules, failed, shown)
        except BaseException:
            files.abandon()
            raise


def _plan(place: str) -> _Work:
    table = Table(place, "pairs")
    manifest = table.latest()
    if manifest is None:
        return _plan_sources(list_sources([place]))
    if manifest.kind not in ("annotations", "pairs"):
        raise StoreError(f"{place}: holds {manifest.kind}, expected annotations, pairs or JSON Lines")
    inputs = [Input(url=table.url, version=manifest.version, digest=manifest.digest)]
    units: list[Unit] = list(manifest.files)
    return _Work(units, list(range(len(units))), table=Table(place, manifest.kind), inputs=inputs)


def _plan_sources(sources: list[SourceRef]) -> _Work:
    ranges, failures = plan_units(sources, RANGE_BYTES)
    index = {source.uri: number for number, source in enumerate(sources)}
    return _Work(
        units=list(ranges),
        owners=[index[unit.source.uri] for unit in ranges],
        sources=sources,
        unreadable={index[uri]: reason.removeprefix(f"{uri}: ") for uri, reason in failures.items()},
    )


def _context() -> DataContext:
    context = DataContext.get_current().copy()
    context.execution_options.preserve_order = True
    context.target_max_block_size = _BLOCK_BYTES
    return context


def _read(work: _Work) -> Dataset:
    num_units = len(work.units)
    units = ray.data.range(num_units, override_num_blocks=max(1, min(num_units, MAX_TASKS)))
    # Readers ask for no CPU, since the actors may hold them all; they spend their time on input and output.
    return units.flat_map(work.stretches, num_cpus=0)


def _write(outcomes: Iterable[Outcome], files: ScoreFiles) -> tuple[dict[int, FailedSource], list[Rejection]]:
    """Write what comes in, source by source; return the sources that failed, and the first rejections."""
    failed: dict[int, FailedSource] = {}
    shown: list[Rejection] = []
    current, shown_of_current = None, []
    for source, outcome in outcomes:
        if source != current:
            files.finish_source()
            shown += shown_of_current
            current, shown_of_current = source, []
        if isinstance(outcome, FailedSource):
            failed.setdefault(source, outcome)
            files.drop_source()
            shown_of_current = []
        elif source not in failed:
            files.add(outcome)
            shown_of_current += outcome.rejections[: NUM_SHOWN - len(shown_of_current)]
    files.finish_source()
    return failed, [*shown, *shown_of_current][:NUM_SHOWN]


def _finish(
    files: ScoreFiles,
    work: _Work,
    exported: ExportedModel,
    rules: InputRules,
    failed: dict[int, FailedSource],
    shown: list[Rejection],
) -> ScoreSummary:
    unreadable = {i: FailedSource(work.sources[i].uri, reason) for i, reason in work.unreadable.items()}
    failures = [failure for _, failure in sorted((unreadable | failed).items())]
    if failures and len(failures) == len(work.sources):
        raise SourceError("\n".join(f"{failure.uri}: {failure.reason}" for failure in failures))
    gone = {failure.uri for failure in failures}
    identity = msgspec.structs.replace(exported.identity(), max_length=rules.max_length)
    manifest = files.commit(
        model=identity,
        inputs=work.inputs,
        sources=[ScoredSource(s.uri, s.size, s.etag) for s in work.sources if s.uri not in gone],
        failed=failures,
    )
    return ScoreSummary(url=files.url, manifest=manifest, rejections=shown)


# --------------------------------------------------------------------------------------------- stretches


def _of_lines(unit: LineRange) -> Iterator[Row]:
    name = unit.source.uri
    for chunk in read_chunks(unit):
        if chunk.overlong_bytes:
            reason = f"expected a line of at most {MAX_LINE_BYTES:,} bytes, got {chunk.overlong_bytes:,}"
            refused = rejection(RecordError(reason), chunk.text, name, chunk.first_line)
            yield {"kind": "refused", "name": name, "line": chunk.first_line, "content": msgspec.json.encode(refused)}
            continue
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
    rows = table.read_file(file, [key, "prompt", "completions"]).combine_chunks()
    for start in range(0, rows.num_rows, RECORDS_AT_ONCE):
        stretch = rows.slice(start, RECORDS_AT_ONCE)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, stretch.schema) as writer:
            writer.write_table(stretch)
        content = sink.getvalue().to_pybytes()
        yield {"kind": "rows", "name": f"{table.url}/{file.path}", "line": start + 1, "content": content}


def _name(unit: Unit) -> str:
    return unit.source.uri if isinstance(unit, LineRange) else unit.path
