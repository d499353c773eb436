"""Sources -> a new version of an annotations table, on Ray Data; what could not be taken is named and counted.

Passes: hash local sources; count newlines, where a source has several ranges; parse and write the ranges; and, only
where hashes of ids meet, read those ids and write the files again without the records that repeat one. The driver holds
8 bytes a record. Nothing can be seen before the one commit at the end, and another ingestion that commits first makes
the check of ids run again, against what it added.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from pairwright.cluster.read import Failures, hash_sources, plan_units, write_units
from pairwright.cluster.repeats import refuse_repeats
from pairwright.cluster.session import ray_session
from pairwright.config import IngestConfig, config_digest
from pairwright.data.formats import parser_for
from pairwright.data.lines import LineRange
from pairwright.data.parts import Part, all_files
from pairwright.data.sources import SourceRef, file_state, find_sources
from pairwright.data.store import DataFile, Manifest, Source, Table
from pairwright.errors import SourceError
from pairwright.records import Rejection

NUM_SHOWN = 20
"""Lines of a kind that a summary shows; every rejection is under ``refused/``, and ``--json`` names every source."""


@dataclass(frozen=True)
class IngestSummary:
    """What became of every source that was named."""

    manifest: Manifest | None
    """The version that was committed; None where there was nothing to add."""
    sources: list[Source]
    """What went in, with the counts of its lines; one with 0 lines was empty."""
    skipped: list[str]
    """Sources that are in the table already."""
    failed: list[tuple[str, str]]
    """Sources that could not be read to their end, of which nothing was kept, and why."""
    ignored: list[str]
    """Files in named directories that are no JSON Lines by their name, or belong to the table itself."""
    reasons: dict[str, int]
    """How many records were refused for what, the most frequent first."""
    rejections: list[Rejection]
    """The first of them."""

    def as_dict(self) -> dict[str, Any]:
        """Return the same for programs, JSON-able."""
        return {
            "version": None if self.manifest is None else self.manifest.version,
            "totals": None if self.manifest is None else self.manifest.totals,
            "sources": msgspec.to_builtins(self.sources),
            "skipped": self.skipped,
            "failed": dict(self.failed),
            "ignored": self.ignored,
            "reasons": self.reasons,
            "rejections": msgspec.to_builtins(self.rejections),
        }

    def text(self) -> str:
        """Return the same for people: what went in, what did not, and why."""
        accepted, refused = (sum(getattr(s, name) for s in self.sources) for name in ("accepted", "refused"))
        lines = [f"accepted {accepted:,} and refused {refused:,} records of {len(self.sources):,} sources"]
        lines += _first(f"  {source.uri} is empty" for source in self.sources if source.lines == 0)
        lines += [f"  {count:,} refused: {reason}" for reason, count in self.reasons.items()]
        lines += [f"    {rejected}" for rejected in self.rejections]
        if refused > len(self.rejections):
            lines.append(f"    and {refused - len(self.rejections):,} more; all are kept under refused/")
        lines += _first(f"skipped {uri}: it is in the table already" for uri in self.skipped)
        lines += _first(f"ignored {uri}: not JSON Lines by its name, or part of the table" for uri in self.ignored)
        lines += _first(f"failed {uri}: {reason}" for uri, reason in self.failed)
        if self.manifest is None:
            return "\n".join([*lines, "nothing to add: the table is as it was"])
        total = self.manifest.totals["annotations"]
        return "\n".join([*lines, f"version {self.manifest.version} of the table holds {total:,} annotations"])


def _first(lines: Iterable[str]) -> list[str]:
    every = list(lines)
    more = len(every) - NUM_SHOWN
    return [*every[:NUM_SHOWN], *([f"  and {more:,} more such lines; --json has them all"] if more > 0 else [])]


def ingest(sources: Sequence[str], into: str, config: IngestConfig) -> IngestSummary:
    """Add the records of files, directories, patterns and URLs to the annotations table at ``into``.

    A source is taken whole or not at all; records are taken one by one. What is in the table already is skipped, so
    that a second run, or one after a crash, adds what is missing and nothing twice.

    Raises:
        ConfigError: if a field path cannot be read.
        SourceError: if something named is missing or holds no source; then nothing is read.
        StoreError: if ``into`` holds another kind of table or anything else, or cannot be written.
    """
    parser_for(config.fields)
    listing = find_sources(sources)
    table = Table.claim(into, "annotations")
    inside = [source.uri for source in listing.sources if source.uri.startswith(f"{table.url}/")]
    with ray_session():
        ingestion = _Ingestion(table, config)
        try:
            ingestion.read([source for source in listing.sources if source.uri not in inside])
            manifest = table.commit(ingestion.manifest_on)
        except BaseException:
            table.delete(all_files(ingestion.parts))
            raise
    return ingestion.summary(manifest, [*listing.ignored, *inside])


class _Ingestion:
    """One ingestion on its way from listed sources to a manifest: what is still to go in, and what is not, and why."""

    def __init__(self, table: Table, config: IngestConfig) -> None:
        self.parts: list[Part] = []
        self._table = table
        self._config = config
        self._sources: list[SourceRef] = []
        self._units: list[LineRange] = []
        self._skipped: list[str] = []
        self._failed: Failures = {}
        self._checked: set[str] = set()

    def read(self, sources: Sequence[SourceRef]) -> None:
        """Parse and write every source that the table has not got yet."""
        states, failures = _file_states(sources)
        self._drop([], failures)
        self._sources, failures = hash_sources([source for source in sources if source.uri in states])
        self._drop([], failures)
        self._drop(*_settled(self._sources, self._table.latest(), None))
        self._units, failures = plan_units(self._sources, self._config.range_bytes)
        self._drop([], failures)
        self.parts, failures = write_units(self._units, self._table, self._config)
        self._drop([], failures)
        after, failures = _file_states(self._sources)
        changed = [uri for uri, state in after.items() if state != states[uri]]
        self._drop(
            [], failures | dict.fromkeys(changed, "has changed while it was read; ingest it when it is finished")
        )

    def manifest_on(self, newest: Manifest | None) -> Manifest | None:
        """Return the version after ``newest``, or None where nothing is left to add; called again on a lost race."""
        self._drop(*_settled(self._sources, newest, self._accounts()))
        files = [] if newest is None else newest.files
        unchecked = [file for file in files if file.path not in self._checked]
        self.parts = refuse_repeats(self.parts, self._units, unchecked, self._table)
        self._checked |= {file.path for file in files}
        self._drop(*_settled(self._sources, newest, self._accounts()))
        if not self._sources:
            return None
        return _next_manifest(newest, self._accounts(), self.parts, self._table, self._config)

    def summary(self, manifest: Manifest | None, ignored: list[str]) -> IngestSummary:
        """Return what became of every source."""
        reasons: Counter[str] = Counter()
        for part in self.parts:
            reasons.update(part.reasons)
        return IngestSummary(
            manifest=manifest,
            sources=self._accounts(),
            skipped=self._skipped,
            failed=list(self._failed.items()),
            ignored=ignored,
            reasons=dict(reasons.most_common()),
            rejections=[rejected for part in self.parts for rejected in part.shown][:NUM_SHOWN],
        )

    def _drop(self, skipped: Sequence[str], failures: Failures) -> None:
        """Leave sources out, with everything that was written of them."""
        self._skipped += skipped
        self._failed |= {uri: reason.removeprefix(f"{uri}: ") for uri, reason in failures.items()}
        gone = {*skipped, *failures}
        dropped = [part for part in self.parts if self._units[part.unit].source.uri in gone]
        self._table.delete(all_files(dropped))
        self._sources = [source for source in self._sources if source.uri not in gone]
        self.parts = [part for part in self.parts if self._units[part.unit].source.uri not in gone]

    def _accounts(self) -> list[Source]:
        """Return each source that goes in with the counts of its lines."""
        parts: dict[str, list[Part]] = {source.uri: [] for source in self._sources}
        for part in self.parts:
            parts[self._units[part.unit].source.uri].append(part)
        return [
            Source(
                uri=source.uri,
                size=source.size,
                etag=source.etag,
                lines=sum(part.lines for part in parts[source.uri]),
                accepted=sum(part.accepted for part in parts[source.uri]),
                refused=sum(part.refused for part in parts[source.uri]),
                blank=sum(part.blank for part in parts[source.uri]),
                format=next((part.format for part in parts[source.uri]), ""),
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


def _settled(
    sources: Sequence[SourceRef], newest: Manifest | None, ours: Sequence[Source] | None
) -> tuple[list[str], Failures]:
    """Return the sources that a version has got already, and those that it has got with other content.

    A source of which nothing was accepted is read again, since another configuration may take it; what came of that
    replaces its entry, unless it is nothing again.

    Args:
        sources: what there is.
        newest: the version.
        ours: what reading the sources gave, once they were read.
    """
    known = {} if newest is None else {source.uri: source for source in newest.sources}
    accepted = None if ours is None else {source.uri: source.accepted for source in ours}
    skipped, failures = [], {}
    for source in sources:
        theirs = known.get(source.uri)
        if theirs is None:
            continue
        is_same = (theirs.size, theirs.etag) == (source.size, source.etag)
        adds_nothing = theirs.lines == 0 if accepted is None else accepted[source.uri] == 0
        if is_same and (theirs.accepted > 0 or adds_nothing):
            skipped.append(source.uri)
        elif theirs.accepted > 0:
            failures[source.uri] = "has changed since it was ingested; give what is new a file of its own"
    return skipped, failures


def _next_manifest(
    newest: Manifest | None, sources: list[Source], parts: Sequence[Part], table: Table, config: IngestConfig
) -> Manifest:
    uris = {source.uri for source in sources}
    replaced = [source for source in newest.sources if source.uri in uris] if newest else []
    totals = Counter(newest.totals if newest else {})
    totals.update(_totals(sources))
    totals.subtract(_totals(replaced))
    totals["completions"] += sum(part.completions for part in parts)
    refused_files = newest.refused_files if newest else []
    return Manifest(
        kind=table.kind,
        operation="ingest",
        files=[*(newest.files if newest else []), *(part.data for part in parts if part.data is not None)],
        refused_files=[
            *(_without_sources(refused_files, {source.uri for source in replaced}, table)),
            *(file for part in parts for file in part.refused_files),
        ],
        totals=dict(totals),
        sources=[*(source for source in (newest.sources if newest else []) if source.uri not in uris), *sources],
        inputs=[],
        config=config.model_dump(mode="json"),
        config_digest=config_digest(config),
    )


def _totals(sources: Sequence[Source]) -> dict[str, int]:
    return {
        "annotations": sum(source.accepted for source in sources),
        "refused": sum(source.refused for source in sources),
        "blank": sum(source.blank for source in sources),
        "lines": sum(source.lines for source in sources),
        "sources": len(sources),
    }


def _without_sources(files: list[DataFile], uris: set[str], table: Table) -> list[DataFile]:
    """Return the refused files but those of some sources; each file holds records of one source."""
    return [file for file in files if not uris or table.read_refused(file)[0].source not in uris]
