"""The tables behind the pairs of an evaluation, back to the sources that somebody named."""

from collections.abc import Iterator
from dataclasses import dataclass

from pairwright.data.table.table import Manifest, Table
from pairwright.errors import StoreError

MAX_DEPTH = 8
MAX_SOURCES = 200


@dataclass(frozen=True, slots=True)
class Ancestor:
    """A table version or a source that pairs were made from."""

    kind: str
    url: str
    detail: str
    digest: str


def ancestors(url: str, manifest: Manifest) -> list[Ancestor]:
    """Return a table version, the tables that it was made from, and their sources; a table that is gone says so."""
    return list(_of(url, manifest, MAX_DEPTH))


def _of(url: str, manifest: Manifest, depth: int) -> Iterator[Ancestor]:
    yield Ancestor(manifest.kind, url, f"version {manifest.version}, {manifest.created_at[:10]}", manifest.digest)
    for source in manifest.sources[:MAX_SOURCES]:
        detail = f"{source.accepted:,} records accepted, {source.refused:,} refused"
        yield Ancestor("source", source.uri, detail, source.etag or "")
    for parent in manifest.inputs if depth else []:
        try:
            table = Table.open(parent.url)
            found = table.manifest(parent.version)
        except StoreError:
            yield Ancestor("table", parent.url, f"version {parent.version}, not to be read any more", parent.digest)
            continue
        if found.digest != parent.digest:
            yield Ancestor(table.kind, parent.url, f"version {parent.version}, holds other data now", parent.digest)
            continue
        yield from _of(parent.url, found, depth - 1)
