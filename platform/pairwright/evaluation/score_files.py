"""Writes the output of a scoring run: ``scores/*.parquet``, ``quarantine/*.jsonl`` and, last, ``scores.json``.

An output is complete if and only if ``scores.json`` exists, which lists every file. One process writes: a row has about
60 bytes, so a thousand GPUs do not saturate it, and the files are few, large and in the order of the input. The rows of
a source that turns out to be unreadable are removed, as in an ingestion. Scores that are replaced stay until the new
ones are complete: first the new files, then the manifest, then the old files are deleted.
"""

import hashlib
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Generic, Literal, TypeVar

import msgspec
import obstore
import pyarrow as pa
import pyarrow.parquet as pq
from obstore.exceptions import AlreadyExistsError

from pairwright import __version__
from pairwright.data.ingest.parse import reason_key
from pairwright.data.storage.object_store import absolute_url, open_store, store_errors
from pairwright.data.storage.ownership import OLD_NAMES, QUARANTINE, SCORES, delete_files, refuse_occupied, stored_files
from pairwright.data.table.manifest import DataFile, Input
from pairwright.errors import StoreError
from pairwright.evaluation.load_exported import ModelIdentity
from pairwright.evaluation.score import TOTALS, Scored
from pairwright.records import UNREADABLE_JSON, Rejection
from pairwright.terminal import safe_json

FORMAT_VERSION = 1
MANIFEST_NAME = "scores.json"
ROWS_PER_FILE = 1_000_000
REJECTIONS_PER_FILE = 10_000
FOLDERS = ("scores", QUARANTINE, OLD_NAMES[QUARANTINE])
LEFTOVER_AGE = timedelta(days=1)
"""Files that no manifest lists are deleted when older: a younger run may still be writing."""

ItemT = TypeVar("ItemT")


class ScoredSource(msgspec.Struct, frozen=True):
    """A source that was read to its end."""

    uri: str
    size: int
    etag: str | None


class FailedSource(msgspec.Struct, frozen=True):
    """A source that could not be read to its end: none of its records are in the output."""

    uri: str
    reason: str


class ScoresManifest(msgspec.Struct, frozen=True, kw_only=True):
    """The content of an output: which rewards, of which input, by which model."""

    format_version: Literal[1] = FORMAT_VERSION
    created_at: str
    code_version: str
    model: ModelIdentity
    inputs: Annotated[list[Input], msgspec.Meta(description="the version of the table that was scored, if it was one")]
    sources: Annotated[list[ScoredSource], msgspec.Meta(description="the JSON Lines that were scored, if any")]
    failed: Annotated[list[FailedSource], msgspec.Meta(description="sources without a record in this output")]
    files: Annotated[list[DataFile], msgspec.Meta(description="Parquet, in the order of the input")]
    quarantined_files: Annotated[list[DataFile], msgspec.Meta(description="JSON Lines of what was refused, and why")]
    totals: Annotated[
        dict[str, int],
        msgspec.Meta(
            description="records read, refused and with special tokens in texts; completions scored, refused and "
            "truncated; tokens of the scored; `special_in_text:` and a token: texts that hold it"
        ),
    ]
    reasons: Annotated[dict[str, int], msgspec.Meta(description="how many were refused for what, most frequent first")]


class _AnyScores(msgspec.Struct, frozen=True):
    """The fields of ``scores.json`` of any version of Pairwright."""

    format_version: int
    code_version: str
    model: dict[str, Any]
    files: list[DataFile]
    quarantined_files: list[DataFile]
    totals: dict[str, int]


@dataclass(slots=True)
class _Rolling(Generic[ItemT]):
    """Writes files of about ``limit`` items, in order, from finished sources and the one being read."""

    write: Callable[[Sequence[ItemT]], DataFile]
    size: Callable[[ItemT], int]
    limit: int
    files: list[DataFile] = field(default_factory=list)
    finished: list[ItemT] = field(default_factory=list)
    current: list[ItemT] = field(default_factory=list)
    current_files: list[DataFile] = field(default_factory=list)
    num_finished: int = 0
    num_current: int = 0

    def add(self, item: ItemT) -> None:
        size = self.size(item)
        if not size:
            return
        self.current.append(item)
        self.num_current += size
        if self.num_current >= self.limit:
            self._flush_finished()
            self.current_files.append(self.write(self.current))
            self.current, self.num_current = [], 0

    def finish_source(self) -> None:
        self.files += self.current_files
        self.finished += self.current
        self.num_finished += self.num_current
        self.current, self.current_files, self.num_current = [], [], 0
        if self.num_finished >= self.limit:
            self._flush_finished()

    def drop_source(self) -> list[DataFile]:
        """Drop the current source; return the files that it has filled."""
        dropped, self.current, self.current_files, self.num_current = self.current_files, [], [], 0
        return dropped

    def close(self) -> list[DataFile]:
        self._flush_finished()
        return self.files

    def _flush_finished(self) -> None:
        if self.finished:
            self.files.append(self.write(self.finished))
            self.finished, self.num_finished = [], 0


class ScoreFiles:
    """An output being written. Use: ``add`` parts, finish or drop each source, then ``commit``.

    Args:
        url: directory or URL of the output.
        overwrite: whether to replace the scores that it holds, once the new ones are complete.
        rows_per_file: most rewards in a file.

    Raises:
        StoreError: if it holds scores and ``overwrite`` is False, or if it holds anything else.
    """

    def __init__(self, url: str, *, overwrite: bool, rows_per_file: int = ROWS_PER_FILE) -> None:
        self.url = absolute_url(url)
        self._store = open_store(self.url)
        self._run = uuid.uuid4().hex[:12]
        self._scores = _Rolling(self._write_scores, lambda table: table.num_rows, rows_per_file)
        self._refused = _Rolling(self._write_refused, lambda _: 1, REJECTIONS_PER_FILE)
        self.totals = Counter(dict.fromkeys(TOTALS, 0))
        self._current_totals: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self._current_reasons: Counter[str] = Counter()
        self._replaced = self._claim(overwrite=overwrite)

    def add(self, scored: Scored) -> None:
        """Add the next part of the current source."""
        self._scores.add(scored.scores)
        for rejected in scored.rejections:
            self._refused.add(rejected)
            self._current_reasons[reason_key(rejected)] += 1
        self._current_totals.update(scored.totals)

    def finish_source(self) -> None:
        """Keep the current source's parts."""
        self._scores.finish_source()
        self._refused.finish_source()
        self.totals.update(self._current_totals)
        self.reasons.update(self._current_reasons)
        self._forget_counts()

    def drop_source(self) -> None:
        """Remove the current source's parts."""
        dropped = (*self._scores.drop_source(), *self._refused.drop_source())
        delete_files(self.url, [file.path for file in dropped], SCORES)
        self._forget_counts()

    def abandon(self) -> None:
        """Remove everything that this run has written, after a failure."""
        ours = [path for path, _ in self._listed() if path.partition("/")[2].startswith(f"{self._run}-")]
        delete_files(self.url, ours, SCORES)

    def commit(
        self,
        *,
        model: ModelIdentity,
        inputs: Sequence[Input],
        sources: Sequence[ScoredSource],
        failed: Sequence[FailedSource],
    ) -> ScoresManifest:
        """Write the manifest, with which the output is complete.

        Raises:
            StoreError: if another run wrote to this output meanwhile.
        """
        manifest = ScoresManifest(
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            code_version=__version__,
            model=model,
            inputs=list(inputs),
            sources=list(sources),
            failed=list(failed),
            files=self._scores.close(),
            quarantined_files=self._refused.close(),
            totals=dict(self.totals),
            reasons=dict(self.reasons.most_common()),
        )
        listed, ours = dict(self._listed()), _paths(manifest)
        if not ours <= set(listed):
            raise StoreError(self._other_run("removed this run's files"))
        content = msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"
        self._put_manifest(safe_json(content.decode()).encode())
        replaced = _paths(msgspec.json.decode(self._replaced, type=_AnyScores)) if self._replaced else set()
        before = datetime.now(UTC) - LEFTOVER_AGE
        old = [path for path, modified in listed.items() if path in replaced or modified < before]
        delete_files(self.url, [path for path in old if path not in ours], SCORES)
        return manifest

    def _put_manifest(self, content: bytes) -> None:
        """Write the manifest, unless another run has written one since the start."""
        try:
            with store_errors(f"{self.url}/{MANIFEST_NAME}"):
                if self._replaced is None:
                    obstore.put(self._store, MANIFEST_NAME, content, mode="create")
                    return
                if self._found_manifest() != self._replaced:
                    raise StoreError(self._other_run("was finished first"))
                obstore.put(self._store, MANIFEST_NAME, content)
        except AlreadyExistsError:
            raise StoreError(self._other_run("was finished first")) from None

    def _forget_counts(self) -> None:
        self._current_totals = Counter()
        self._current_reasons = Counter()

    def _claim(self, *, overwrite: bool) -> bytes | None:
        """Return the content of the manifest to replace, None if there is none."""
        content = self._found_manifest()
        if content is None:
            refuse_occupied(self.url, SCORES, advice="give the scores a folder of their own")
            return None
        try:
            msgspec.json.decode(content, type=_AnyScores)
        except UNREADABLE_JSON:
            raise StoreError(
                f"{self.url}/{MANIFEST_NAME}: is not of `pairwright score`, and is not replaced; give the scores a "
                "folder of their own"
            ) from None
        if not overwrite:
            raise StoreError(
                f"{self.url}: holds the scores of an earlier run already; replace them with --overwrite, or choose "
                "another output"
            )
        return content

    def _found_manifest(self) -> bytes | None:
        try:
            with store_errors(f"{self.url}/{MANIFEST_NAME}"):
                return bytes(obstore.get(self._store, MANIFEST_NAME).bytes())
        except FileNotFoundError:
            return None

    def _listed(self) -> list[tuple[str, datetime]]:
        """Return the files that any scoring run has written to this output, and when."""
        found = [file for folder in FOLDERS for file in stored_files(self.url, below=folder)]
        return [(f.path, f.modified) for f in found if not f.is_link and SCORES.deletable.fullmatch(f.path)]

    def _write_scores(self, tables: Sequence[pa.Table]) -> DataFile:
        sink = pa.BufferOutputStream()
        whole = pa.concat_tables(tables).combine_chunks()
        pq.write_table(whole, sink, compression="zstd")
        number = len(self._scores.files) + len(self._scores.current_files)
        return self._put(f"scores/{self._run}-{number:05d}.parquet", memoryview(sink.getvalue()), whole.num_rows)

    def _write_refused(self, rejections: Sequence[Rejection]) -> DataFile:
        number = len(self._refused.files) + len(self._refused.current_files)
        content = memoryview(msgspec.json.Encoder().encode_lines(rejections))
        return self._put(f"{QUARANTINE}/{self._run}-{number:05d}.jsonl", content, len(rejections))

    def _put(self, path: str, content: memoryview, rows: int) -> DataFile:
        with store_errors(f"{self.url}/{path}"):
            obstore.put(self._store, path, content.cast("B"))
        return DataFile(path=path, rows=rows, bytes=content.nbytes, sha256=hashlib.sha256(content).hexdigest())

    def _other_run(self, what: str) -> str:
        return (
            f"{self.url}: another run writes here too and {what}; nothing of this one was kept; choose another output"
        )


def _paths(manifest: "ScoresManifest | _AnyScores") -> set[str]:
    return {file.path for file in (*manifest.files, *manifest.quarantined_files)}


def read_scores_manifest(url: str) -> ScoresManifest:
    """Return the manifest of a finished scoring run.

    Raises:
        StoreError: if there is none.
    """
    where = f"{absolute_url(url)}/{MANIFEST_NAME}"
    try:
        with store_errors(where):
            content = obstore.get(open_store(url), MANIFEST_NAME).bytes()
    except FileNotFoundError:
        raise StoreError(f"{where}: no such file, so no finished scores are here; run `pairwright score`") from None
    try:
        return msgspec.json.decode(content, type=ScoresManifest)
    except UNREADABLE_JSON as error:
        raise StoreError(f"{where}: not a scores manifest: {error}; run `pairwright score --overwrite`") from None
