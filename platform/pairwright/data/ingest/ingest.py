"""Ingests sources into a new version of an annotations table; what could not be ingested is named and counted.

Local sources are hashed, which counts their lines; their splits are parsed and written, each file with an index of its
ids; and, only where hashes of ids collide, those ids are read and the files written again without the duplicates.
Nothing is visible before the one commit at the end, and if another ingestion commits first the ids are checked again,
against what it added.
"""

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from pairwright.config import IngestConfig
from pairwright.data.executor import LOCAL, Executor, Failures
from pairwright.data.id_index.id_index import IdSearch, unindexed
from pairwright.data.id_index.index_merges import IndexMerger
from pairwright.data.ingest.adapters import configured_format, parser_for
from pairwright.data.ingest.dedup import refuse_duplicates
from pairwright.data.ingest.fields.suggested_fields import SuggestedFields
from pairwright.data.ingest.ingest_summary import NUM_SHOWN, IngestSummary
from pairwright.data.ingest.reconcile import Identity, already_ingested, next_manifest, replaced_by, replacement
from pairwright.data.ingest.shards import IngestShard, all_files, is_mostly_refused, most_common, mostly_refused
from pairwright.data.ingest.sources.connection_urls import (
    ExternalSource,
    check_is_there,
    is_external_url,
    parse_connection_url,
)
from pairwright.data.ingest.sources.listing import Listing, find_sources
from pairwright.data.ingest.sources.scan import hash_sources, plan_splits, write_splits
from pairwright.data.ingest.sources.source import SourceRef, file_state
from pairwright.data.ingest.sources.splits import InputSplit
from pairwright.data.table.commit import commit_written
from pairwright.data.table.delete_rows import RewrittenVersion, RowDeleter
from pairwright.data.table.manifest import IdIndex, IndexFile
from pairwright.data.table.table import DataFile, Manifest, Source, Table
from pairwright.errors import SourceError
from pairwright.records import Rejection

_STAY = "; its old records stay"
UNPACKED = 5
"""About how many times more text there is in a compressed source than bytes."""


def ingest(
    sources: Sequence[str], into: str, config: IngestConfig, *, replace: bool = False, executor: Executor = LOCAL
) -> IngestSummary:
    """Add the records of files, directories, patterns, URLs, databases and topics to the annotations table at ``into``.

    A source is taken whole or not at all; records are taken one by one. What is in the table already is skipped, so
    that a second run, or one after a crash, adds what is missing and nothing twice. What has changed under its name
    fails, or with ``replace`` replaces its old records, in the same commit as all the rest.

    Raises:
        ConfigError: if a field path or the address of a database, a table or a topic cannot be read.
        SourceError: if something named is missing or holds no source; then nothing is read.
        StoreError: if ``into`` holds another kind of table or anything else, or cannot be written.
    """
    named = named_sources(sources, config)
    table = Table.claim(into, "annotations")
    with (
        executor.session(named.size_beside(table, replace=replace)),
        open_ingestion(named, table, config, known=table, replace=replace, executor=executor) as ingestion,
    ):
        manifest = commit_written(table, ingestion.manifest_on, ingestion.written)
    return ingestion.summary(manifest)


@dataclass(frozen=True)
class NamedSources:
    """The sources that a command names: listed files and objects, and external sources to stage first."""

    listing: Listing
    external: list[ExternalSource]

    def size_beside(self, known: Table | None, *, replace: bool) -> int:
        """Return about how many bytes an ingestion goes through: all sources, and files of a table that it reads.

        Args:
            known: the table, if any: of it data files without an index are read.
            replace: whether sources may replace their old content, which is looked for in all files.
        """
        if any(source.kind != "sqlite" for source in self.external):
            return sys.maxsize  # Ray Data's readers
        sources = sum(Path(source.address).stat().st_size for source in self.external)
        sources += sum(source.size * (1 if source.compression is None else UNPACKED) for source in self.listing.sources)
        newest = None if known is None else known.latest()
        if newest is None:
            return sources
        read = newest.files if replace else unindexed(newest.files, newest.indexes)
        return sources + sum(file.bytes for file in read)


def named_sources(sources: Sequence[str], config: IngestConfig) -> NamedSources:
    """Return the sources that the names stand for, before anything is read.

    Raises:
        ConfigError: if a field path or the address of a database, a table or a topic cannot be read.
        SourceError: if something named is missing or holds no source.
    """
    if (name := configured_format(config)) is not None:
        parser_for(name, config)
    external = [parse_connection_url(name, config.connectors) for name in sources if is_external_url(name)]
    for source in external:
        check_is_there(source)
    files = [name for name in sources if not is_external_url(name)]
    return NamedSources(
        find_sources(files, config.limits, config.cells) if files or not external else Listing([]), external
    )


@contextmanager
def open_ingestion(
    named: NamedSources, table: Table, config: IngestConfig, *, known: Table, replace: bool, executor: Executor
) -> Iterator["Ingestion"]:
    """Read sources into uncommitted files of a table; staged files are deleted at the end of the block.

    Args:
        named: the sources.
        table: where the files go.
        config: how to read.
        known: the table whose sources and ids count: the same one, but for `validate`.
        replace: whether sources may replace their old content.
        executor: what maps over sources and files.
    """
    inside = [source.uri for source in named.listing.sources if source.uri.startswith(f"{known.url}/")]
    with executor.stage_rows(named.external, table, config) as (rows, failures):
        ignored = named.listing.ignored | dict.fromkeys(inside, "part of the table itself")
        ingestion = Ingestion(table, config, known=known, replace=replace, ignored=ignored, executor=executor)
        try:
            ingestion.read(
                [*(s for s in named.listing.sources if s.uri not in inside), *rows], named.listing.failed | failures
            )
        except BaseException:
            table.delete(ingestion.written())
            raise
        yield ingestion


class Ingestion:
    """One ingestion, from listed sources to a manifest: the sources to add, and those dropped with the reason."""

    def __init__(
        self,
        table: Table,
        config: IngestConfig,
        *,
        known: Table,
        replace: bool,
        ignored: dict[str, str],
        executor: Executor,
    ) -> None:
        self.shards: list[IngestShard] = []
        self._ignored = ignored
        self._table = table
        self._known = known
        self._config = config
        self._executor = executor
        self._deleter = RowDeleter(table, executor)
        self._replaceable: dict[str, Identity] | None = {} if replace else None
        self._replaced: dict[str, int] = {}
        self._sources: list[SourceRef] = []
        self._splits: list[InputSplit] = []
        self._skipped: list[str] = []
        self._failed: Failures = {}
        self._suggestions: dict[str, SuggestedFields] = {}
        self._notes: dict[str, str] = {}
        self._checked: set[str] = set()
        self._merger = IndexMerger(table, executor)
        self._new_indexes: list[IdIndex] = []

    def read(self, sources: Sequence[SourceRef], unreadable: Failures) -> None:
        """Parse and write every source that the table does not have yet, except those that failed before."""
        self._drop([], unreadable)
        states, failures = _file_states(sources)
        self._drop([], failures)
        self._sources, failures = hash_sources([source for source in sources if source.uri in states], self._executor)
        self._drop([], failures)
        newest = self._known.latest()
        if self._replaceable is not None and newest is not None:
            self._replaceable |= {source.uri: source.identity for source in newest.sources}
        self._drop(*self._already_ingested(newest, None))
        self._splits, failures = plan_splits(self._sources, self._config.split_bytes, self._executor)
        self._drop([], failures)
        self.shards, failures = write_splits(self._splits, self._table, self._config, self._executor)
        for shard in self.shards:
            uri = self._splits[shard.split_index].source.uri
            if shard.suggestion is not None:
                self._suggestions.setdefault(uri, shard.suggestion)
            if shard.note is not None:
                self._notes.setdefault(uri, shard.note)
        taken = {source.uri for source in newest.sources if source.is_taken} if newest else set()
        self._drop([], {uri: f"{why}{_STAY if uri in taken else ''}" for uri, why in failures.items()})
        self._drop([], self._mostly_refused())
        after, failures = _file_states(self._sources)
        changed = [uri for uri, state in after.items() if state != states[uri]]
        self._drop(
            [], failures | dict.fromkeys(changed, "has changed while it was read; ingest it when it is finished")
        )
        self._drop([], self._replaced_by_nothing(newest))

    def manifest_on(self, newest: Manifest | None) -> Manifest | None:
        """Return the version after ``newest``, or None where nothing is left to add; called again on a lost race."""
        self._drop(*self._already_ingested(newest, self._source_entries()))
        left = self._left(newest)
        self.refuse_duplicates_in(left.files if left else [], left.indexes if left else [])
        self._drop(*self._already_ingested(newest, self._source_entries()))
        if not self._sources:
            return None
        left = self._left(newest)
        self._replaced = left.rows if left else {}
        proposed = next_manifest(newest, left, self._source_entries(), self.shards, self._config)
        added = [shard.id_index for shard in self.shards if shard.id_index is not None]
        indexes = [*(left.indexes if left else []), *self._new_indexes, *added]
        num_added = sum(index.rows for index in added)
        return msgspec.structs.replace(proposed, indexes=self._merger.next_indexes(proposed.files, indexes, num_added))

    def refuse_duplicates_in(
        self, files: Sequence[DataFile], indexes: Sequence[IdIndex], replaced: frozenset[str] = frozenset()
    ) -> None:
        """Refuse what has the id of an earlier record, here or in files of the known table, each searched once.

        Args:
            files: of the known table.
            indexes: of these files, and of others.
            replaced: sources whose records there are to be replaced, which do not count.
        """
        unchecked = [file for file in files if file.path not in self._checked]
        known = IdSearch(self._known, unchecked, indexes, self._table, self._executor, written=self._new_indexes)
        self.shards = refuse_duplicates(
            self.shards, self._splits, known, self._table, self._executor, replaced=replaced
        )
        self._checked |= {file.path for file in unchecked}

    def replaced_in(self, newest: Manifest | None) -> dict[str, int]:
        """Return the sources that would replace their old content, and how many old annotations would be removed."""
        return {source.uri: source.accepted for source in replaced_by(newest, self._sources) if source.is_taken}

    def written(self) -> list[DataFile | IndexFile]:
        """Return every file that was written and not deleted again."""
        indexed = [file for index in self._new_indexes for file in index.files]
        return [*all_files(self.shards), *self._deleter.written(), *indexed, *self._merger.written()]

    def summary(self, manifest: Manifest | None) -> IngestSummary:
        """Return what became of every source."""
        reasons: Counter[str] = Counter()
        for shard in self.shards:
            reasons.update(shard.reasons)
        return IngestSummary(
            manifest=manifest,
            sources=self._source_entries(),
            skipped=self._skipped,
            replaced=self._replaced,
            failed=list(self._failed.items()),
            ignored=self._ignored,
            reasons=most_common(reasons),
            rejections=[rejected for shard in self.shards for rejected in shard.shown][:NUM_SHOWN],
            readings=self._readings(),
            suggestions=self._suggestions,
            notes=self._notes,
        )

    def _readings(self) -> dict[str, dict[str, list[str]]]:
        """Return for each source which of its fields were used for what, kept, or not used."""
        found: dict[str, dict[str, list[str]]] = {}
        for shard in self.shards:
            fates = found.setdefault(self._splits[shard.split_index].source.uri, {})
            for fate, names in shard.reading.items():
                fates[fate] = list(dict.fromkeys([*fates.get(fate, ()), *names]))
        return found

    def _already_ingested(self, newest: Manifest | None, ours: Sequence[Source] | None) -> tuple[list[str], Failures]:
        return already_ingested(self._sources, newest, ours, replaceable=self._replaceable)

    def _left(self, newest: Manifest | None) -> RewrittenVersion | None:
        """Return the files of a version without the sources to be replaced."""
        if newest is None:
            return None
        predicate, in_rows, in_refused = replacement(newest, self._source_entries())
        return self._deleter.rewrite(newest, predicate, rows=in_rows, refused=in_refused)

    def _mostly_refused(self) -> Failures:
        """Return the sources of which so much is refused, over all their splits, that they are not ingested."""
        failures: Failures = {}
        for source in self._source_entries():
            if is_mostly_refused(source.accepted, source.refused, self._config):
                failures[source.uri] = mostly_refused(source.accepted, self._first_refused(source), self._config)
        return failures

    def _first_refused(self, source: Source) -> Rejection | None:
        return next((shown for shard in self.shards for shown in shard.shown if shown.source == source.uri), None)

    def _replaced_by_nothing(self, newest: Manifest | None) -> Failures:
        """Return the sources that would replace records, but of which nothing was accepted."""
        taken = {source.uri for source in newest.sources if source.is_taken} if newest else set()
        failures: Failures = {}
        for source in self._source_entries():
            if source.uri in taken and source.refused and not source.accepted:
                first = self._first_refused(source)
                failures[source.uri] = (
                    "nothing of its new content was accepted, so its old records stay; the first of "
                    f"{source.refused:,} refused: {first}"
                )
        return failures

    def _drop(self, skipped: Sequence[str], failures: Failures) -> None:
        """Drop sources, and delete everything that was written of them."""
        self._skipped += skipped
        self._failed |= {uri: reason.removeprefix(f"{uri}: ") for uri, reason in failures.items()}
        gone = {*skipped, *failures}
        dropped = [shard for shard in self.shards if self._splits[shard.split_index].source.uri in gone]
        self._table.delete(all_files(dropped))
        self._sources = [source for source in self._sources if source.uri not in gone]
        self.shards = [shard for shard in self.shards if self._splits[shard.split_index].source.uri not in gone]

    def _source_entries(self) -> list[Source]:
        """Return the manifest entry of each source that is added, with the counts of its lines."""
        shards: dict[str, list[IngestShard]] = {source.uri: [] for source in self._sources}
        for shard in self.shards:
            shards[self._splits[shard.split_index].source.uri].append(shard)
        return [
            Source(
                uri=source.uri,
                size=source.size,
                etag=source.etag,
                lines=sum(shard.lines for shard in shards[source.uri]),
                accepted=sum(shard.accepted for shard in shards[source.uri]),
                refused=sum(shard.refused for shard in shards[source.uri]),
                duplicates=sum(shard.duplicates for shard in shards[source.uri]),
                blank=sum(shard.blank for shard in shards[source.uri]),
                format=next((shard.format for shard in shards[source.uri]), ""),
            )
            for source in self._sources
        ]


def _file_states(sources: Sequence[SourceRef]) -> tuple[dict[str, tuple[int, ...]], Failures]:
    states, failures = {}, {}
    for source in sources:
        try:
            states[source.uri] = file_state(source)
        except SourceError as error:
            failures[source.uri] = str(error)
    return states, failures
