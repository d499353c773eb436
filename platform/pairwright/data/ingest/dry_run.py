"""Validates sources: reports what an ingestion would refuse of them, and keeps nothing.

It is the ingestion itself without the commit, into a temporary table that is deleted at the end: what `ingest` refuses
is a finding here, in the same words, and nothing else is. Sources and ids of a table may count as well; that table is
only read.
"""

import shutil
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

import msgspec

from pairwright.config import IngestConfig
from pairwright.data.executor import LOCAL, Executor
from pairwright.data.ingest.findings_file import Finding, check_findings_file, finding_of, write_findings
from pairwright.data.ingest.ingest import named_sources, open_ingestion
from pairwright.data.ingest.ingest_summary import IngestSummary
from pairwright.data.ingest.quality_warnings import QualityWarnings, count_quality_warnings
from pairwright.data.ingest.reconcile import already_ingested
from pairwright.data.ingest.shards import IngestShard
from pairwright.data.ingest.sources.scan import hash_sources
from pairwright.data.storage.ownership import INDEX, QUARANTINE, STAGING, TABLE, delete_folder
from pairwright.data.table.table import DataFile, Table
from pairwright.errors import ConfigError
from pairwright.records import Rejection
from pairwright.terminal import counted, one_per_line

_OF_SUMMARY = ("sources", "skipped", "failed", "ignored", "reasons", "notes", "suggestions")


@dataclass(frozen=True)
class Findings:
    """Result of a validation: what became of every source, and what would be refused of it."""

    summary: IngestSummary
    refused: list[Rejection]
    """The first of them, in order of sources and lines."""
    quality_warnings: QualityWarnings
    replaced: dict[str, int] = field(default_factory=dict)
    """Sources that would replace their old content, and how many old annotations would be removed with it."""

    @property
    def num_accepted(self) -> int:
        """How many judgements would be accepted."""
        return sum(source.accepted for source in self.summary.sources)

    @property
    def num_refused(self) -> int:
        """How many judgements would be refused."""
        return sum(source.refused for source in self.summary.sources)

    def is_clean(self, allowance: str | None) -> bool:
        """Return whether all sources could be read, and no more was refused than is allowed.

        Args:
            allowance: a number of judgements, or a percentage of them such as ``0.5%``; None for none.

        Raises:
            ConfigError: if it is neither.
        """
        return not self.summary.failed and self.num_refused <= num_allowed(
            allowance, self.num_accepted + self.num_refused
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the findings for programs, JSON-able."""
        summary = self.summary.as_dict()
        return {
            "accepted": self.num_accepted,
            "refused": self.num_refused,
            **{name: summary[name] for name in _OF_SUMMARY},
            "replaced": self.replaced,
            "findings": msgspec.to_builtins(self.refused),
            "warnings": msgspec.to_builtins(self.quality_warnings),
        }

    def text(self) -> str:
        """Return the findings as text: a line a finding, then counts by kind."""
        lines = [str(refused) for refused in self.refused]
        more = self.num_refused - len(self.refused)
        lines += [f"and {more:,} more; --limit {self.num_refused} lists them all"] if more > 0 else []
        lines += self.summary.failure_lines()
        lines += [f"read {uri}: {note}" for uri, note in self.summary.notes.items()]
        lines += [f"skipped {uri}: it is in the table already" for uri in self.summary.skipped]
        old = {uri: counted(number, "old annotation") for uri, number in self.replaced.items()}
        lines += [f"would replace {uri}: {number} would be removed" for uri, number in old.items()]
        lines += [f"{count:,} refused: {reason}" for reason, count in self.summary.reasons.items()]
        lines += [f"warning: {line}" for line in self.quality_warnings.lines()]
        num_sources = len(self.summary.sources) + len(self.summary.failed)
        return one_per_line(
            [
                *lines,
                f"{self.num_accepted:,} accepted and {self.num_refused:,} refused of {counted(num_sources, 'source')}",
            ]
        )


def num_allowed(allowance: str | None, num_judgements: int) -> float:
    """Return how many refused judgements an allowance covers.

    Raises:
        ConfigError: if it is neither a number nor a percentage.
    """
    if allowance is None:
        return 0
    share = allowance.endswith("%")
    try:
        value = float(allowance.removesuffix("%"))
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf") or (share and value > 100):
        raise ConfigError(f"--max-refused {allowance}: expected a number such as 10, or a percentage such as 0.5%")
    return value / 100 * num_judgements if share else value


def validate(
    sources: Sequence[str],
    config: IngestConfig,
    *,
    against: str | None,
    limit: int,
    scratch: str | None,
    replace: bool = False,
    output: str | None = None,
    overwrite: bool = False,
    executor: Executor = LOCAL,
) -> Findings:
    """Return what `ingest` would refuse of some sources, without changing any table.

    Args:
        sources: as for `ingest`.
        config: as for `ingest`.
        against: URL of an annotations table whose sources and ids count too.
        limit: how many findings to list.
        scratch: URL that all machines of the cluster reach, for what has to be written while it runs; this machine's
            folder for temporary files if None.
        replace: whether sources that have changed count as with `ingest --replace`.
        output: file or URL for all findings, .csv or .jsonl; none is written if None.
        overwrite: whether older findings there are replaced.
        executor: what maps over sources and files.

    Raises:
        ConfigError: if a field path cannot be read, several machines have no scratch in common, ``replace`` has no
            table, or ``output`` is neither .csv nor .jsonl.
        SourceError: if something named is missing or holds no source.
        StoreError: if ``against`` holds no annotations table, or the output cannot be written.
    """
    if output is not None:
        check_findings_file(output, overwrite=overwrite)
    if replace and against is None:
        raise ConfigError("--replace says what would be replaced in a table: name it with --against URL")
    known = None if against is None else Table.open(against, "annotations")
    named = named_sources(sources, config)
    with (
        executor.session(named.size_beside(known, replace=replace)),
        _temporary_table(scratch, executor) as table,
        open_ingestion(named, table, config, known=known or table, replace=replace, executor=executor) as ingestion,
    ):
        newest = None if known is None else known.latest()
        replaced = ingestion.replaced_in(newest)
        files, indexes = (newest.files, newest.indexes) if newest else ([], [])
        ingestion.refuse_duplicates_in(files, indexes, frozenset(replaced))
        refused = list(islice(_rejections(ingestion.shards, table), limit))
        summary = ingestion.summary(None)
        if output is not None:
            failed = (Finding(uri, None, "$", reason, "", "") for uri, reason in summary.failed)
            found = map(finding_of, _rejections(ingestion.shards, table))
            write_findings(output, chain(found, failed), overwrite=overwrite)
        data = [shard.data for shard in ingestion.shards if shard.data is not None]

        def work(file: DataFile) -> Iterator[QualityWarnings]:
            yield count_quality_warnings(table, file)

        odd = executor.map_items(work, data, [file.bytes for file in data], QualityWarnings, what="files checked")
        return Findings(summary, refused, QualityWarnings.sum(odd), replaced)


def _rejections(shards: Sequence[IngestShard], table: Table) -> Iterator[Rejection]:
    """Yield every refused judgement, in order of sources and lines."""
    for shard in shards:
        for file in shard.quarantined_files:
            yield from table.read_quarantined(file)


@contextmanager
def _temporary_table(url: str | None, executor: Executor) -> Iterator[Table]:
    """Yield a table that is deleted, with all that it holds, when the block ends."""
    if url is None:
        if executor.num_nodes() > 1:
            raise ConfigError(
                "validate on several machines needs a folder that all of them reach: give its URL with --staging-url"
            )
        folder = tempfile.mkdtemp(prefix="pairwright-validate-")
        try:
            yield Table(folder, "annotations")
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return
    table = Table(f"{url.rstrip('/')}/pairwright-validate-{uuid.uuid4().hex}", "annotations")
    try:
        yield table
    finally:
        for folder in ("data", INDEX, QUARANTINE, STAGING, ""):
            delete_folder(table.url, folder, TABLE)


def new_sources(
    sources: Sequence[str], into: str, config: IngestConfig, *, replace: bool, executor: Executor = LOCAL
) -> tuple[list[str], list[str]]:
    """Return the sources that an ingestion would read, and those that the table has already; each is hashed.

    What is in a database, a table of another kind or a topic is known only once it has been read, so it is among the
    first. One whose content has changed is too: ``ingest`` replaces its records, or refuses it.

    Args:
        sources: as a user names them.
        into: URL of the annotations table, there or not.
        config: how to read.
        replace: whether sources may replace their old content.
        executor: what hashes.

    Raises:
        ConfigError, SourceError, StoreError: as ``ingest`` would, for what is named wrongly.
    """
    named = named_sources(sources, config)
    newest = Table.claim(into, "annotations").latest()
    with executor.session(named.size_beside(None, replace=replace)):
        hashed, failed = hash_sources(named.listing.sources, executor)
    known = {source.uri: source.identity for source in newest.sources} if newest is not None else {}
    there, _ = already_ingested(hashed, newest, None, replaceable=known if replace else None)
    ours = [source.uri for source in hashed if source.uri not in there]
    return [*failed, *ours, *(source.uri for source in named.external)], there
