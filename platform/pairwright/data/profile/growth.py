"""Versions of an annotations table -> how it grew, and which version first had which source. Manifests in, rows out."""

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from pairwright.data.table.table import Manifest, Table

MAX_VERSIONS = 200
"""Manifests that are read, evenly over all versions: each lists every file of its version."""


class VersionFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What one version held."""

    version: int
    created_at: str
    operation: str
    annotations: int
    refused: int
    sources: int


@dataclass(frozen=True, slots=True)
class History:
    """How a table came to the version that is reported on.

    Attributes:
        versions: oldest first, the last one the version itself.
        num_versions: how many there are up to it; more than are listed in a table of more than MAX_VERSIONS.
        first_versions: URI of each source of the version -> the first listed version that had it with this content.
    """

    versions: list[VersionFacts]
    num_versions: int
    first_versions: Mapping[str, int]


def history_of(table: Table, manifest: Manifest) -> History:
    """Return the history of a version.

    Raises:
        StoreError: if a manifest cannot be read.
    """
    numbers = [number for number in table.versions() if number <= manifest.version]
    facts, first = [], {}
    now = {source.uri: source.identity for source in manifest.sources}
    for number in _evenly(numbers):
        held = manifest if number == manifest.version else table.manifest(number)
        facts.append(_facts(held))
        for source in held.sources:
            if source.accepted and now.get(source.uri) == source.identity:
                first.setdefault(source.uri, number)
    return History(versions=facts, num_versions=len(numbers), first_versions=first)


def _evenly(numbers: list[int]) -> list[int]:
    """Return at most MAX_VERSIONS of the numbers, evenly, the first and the last among them."""
    if len(numbers) <= MAX_VERSIONS:
        return numbers
    last = len(numbers) - 1
    return [numbers[place * last // (MAX_VERSIONS - 1)] for place in range(MAX_VERSIONS)]


def _facts(manifest: Manifest) -> VersionFacts:
    return VersionFacts(
        version=manifest.version,
        created_at=manifest.created_at,
        operation=manifest.operation,
        annotations=sum(file.rows for file in manifest.files),
        refused=sum(file.rows for file in manifest.refused_files),
        sources=len(manifest.sources),
    )
