"""Decides which sources an ingestion adds, skips or replaces, and computes the next manifest's counts.

Everything about sources and totals that reads no file, so that it can be tested against a model in no time. The
invariant: each judgement of each line is in one of three counts: accepted and there, refused, or erased.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from pairwright.config import IngestConfig, config_digest
from pairwright.data.ingest.shards import IngestShard
from pairwright.data.ingest.sources.source import SourceRef
from pairwright.data.table.delete_rows import DeletePredicate, RewrittenVersion
from pairwright.data.table.manifest import Manifest, Source

CHANGED = (
    "has changed since it was ingested; put its new records in place of the old ones with --replace, or give what is "
    "new a file of its own"
)
CONCURRENT_CHANGE = "another ingestion brought other content under this name meanwhile; run the command again"

Identity = tuple[int, str | None]


def already_ingested(
    sources: Iterable[SourceRef],
    newest: Manifest | None,
    ours: Sequence[Source] | None,
    *,
    replaceable: Mapping[str, Identity] | None,
) -> tuple[list[str], dict[str, str]]:
    """Return the sources that a version has already, and why others conflict: it has them with other content.

    A source of which nothing was accepted is read again, since another configuration may take it; what came of that
    replaces its entry, unless it is nothing again.

    Args:
        sources: what there is.
        newest: the version.
        ours: entries of the sources, once they were read.
        replaceable: the content of each source that was there when this ingestion began, which alone it may replace:
            of two that replace one source at once the second finds another; None where nothing is to be replaced.
    """
    known = {} if newest is None else {source.uri: source for source in newest.sources}
    accepted = None if ours is None else {source.uri: source.accepted for source in ours}
    skipped, failures = [], {}
    for source in sources:
        theirs = known.get(source.uri)
        if theirs is None:
            continue
        is_same = theirs.identity == (source.size, source.etag)
        adds_nothing = theirs.lines == 0 if accepted is None else accepted[source.uri] == 0
        if is_same and (theirs.is_taken or adds_nothing):
            skipped.append(source.uri)
        elif theirs.is_taken and replaceable is None:
            failures[source.uri] = CHANGED
        elif theirs.is_taken and replaceable is not None and replaceable.get(source.uri) != theirs.identity:
            failures[source.uri] = CONCURRENT_CHANGE
    return skipped, failures


def replaced_by(newest: Manifest | None, sources: Iterable[Source | SourceRef]) -> list[Source]:
    """Return the sources of a version that others of the same name replace."""
    uris = {source.uri for source in sources}
    return [] if newest is None else [source for source in newest.sources if source.uri in uris]


def totals_of(sources: Sequence[Source]) -> dict[str, int]:
    """Return what sources add up to: ``annotations + refused + erased`` is their judgements."""
    return {
        "annotations": sum(source.accepted for source in sources),
        "refused": sum(source.refused for source in sources),
        "duplicates": sum(source.duplicates for source in sources),
        "erased": sum(source.erased for source in sources),
        "blank": sum(source.blank for source in sources),
        "lines": sum(source.lines for source in sources),
        "sources": len(sources),
    }


def next_manifest(
    newest: Manifest | None,
    left: RewrittenVersion | None,
    sources: list[Source],
    shards: Sequence[IngestShard],
    config: IngestConfig,
) -> Manifest:
    """Return the version after ``newest`` with the shards of some sources added, in place of their old content.

    Args:
        newest: the version to go on from, if any.
        left: its files without the sources that are replaced; None where there is no version.
        sources: what goes in.
        shards: what was written of it.
        config: how it was read.
    """
    uris = {source.uri for source in sources}
    totals = Counter(newest.totals if newest else {})
    totals.update(totals_of(sources))
    totals.subtract(totals_of(replaced_by(newest, sources)))
    totals["completions"] += sum(shard.completions for shard in shards) - (left.completions if left else 0)
    return Manifest(
        kind="annotations",
        operation="ingest",
        files=[*(left.files if left else []), *(shard.data for shard in shards if shard.data is not None)],
        quarantined_files=[
            *(left.quarantined_files if left else []),
            *(file for shard in shards for file in shard.quarantined_files),
        ],
        totals=dict(totals),
        sources=[*(source for source in (newest.sources if newest else []) if source.uri not in uris), *sources],
        inputs=[],
        config=config.model_dump(mode="json"),
        config_digest=config_digest(config),
    )


def replacement(newest: Manifest, sources: Iterable[Source]) -> tuple[DeletePredicate, bool, bool]:
    """Return the predicate of replaced sources, and whether it can match data rows and quarantined records."""
    replaced = replaced_by(newest, sources)
    predicate = DeletePredicate(sources=frozenset(source.uri for source in replaced))
    return predicate, any(source.accepted for source in replaced), any(source.refused for source in replaced)
