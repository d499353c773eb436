"""Version log of a table: what each version is, what it changed since the one before, and how an old one is restored.

A restored version is a new one with the files of the old one: nothing in between is lost, and nothing is copied.
"""

from typing import Any

import msgspec

from pairwright.data.table.commit import commit_written
from pairwright.data.table.manifest import Manifest, Source
from pairwright.data.table.table import Table
from pairwright.errors import StoreError
from pairwright.terminal import counted, one_per_line

MAX_URIS = 3


def version_log(url: str, *, last: int) -> dict[str, Any]:
    """Return the newest versions of a table, newest first, in values that JSON holds.

    Args:
        url: a table of any kind.
        last: how many; each costs the reading of its manifest.

    Raises:
        StoreError: if there is no table, or a manifest cannot be read.
    """
    table = Table.open(url)
    numbers = table.versions()
    shown = numbers[-last:]
    before = numbers[-last - 1 : -last]
    manifests = [table.manifest(number) for number in [*before, *shown]]
    earlier: list[Manifest | None] = [*([] if before else [None]), *manifests]
    entries = [
        _entry(manifest, previous) for previous, manifest in zip(earlier, manifests[len(before) :], strict=False)
    ]
    return {
        "url": table.url,
        "kind": table.kind,
        "num_versions": len(numbers),
        "removed": table.removed_versions(),
        "versions": entries[::-1],
    }


def restore(url: str, version: int, *, is_dry_run: bool = False) -> dict[str, Any]:
    """Commit a version that holds what an older one held, and return what was done in values that JSON holds.

    Args:
        url: a table of any kind.
        version: the older one.
        is_dry_run: only say what would be done.

    Raises:
        StoreError: if there is no such version, or it holds what `forget` erased since.
    """
    table = Table.open(url)

    def build(newest: Manifest | None) -> Manifest | None:
        old = table.manifest(version)
        assert newest is not None
        _refuse_erased(table, old, newest)
        if is_dry_run or (old.digest, old.sources) == (newest.digest, newest.sources):
            return None
        return msgspec.structs.replace(old, operation="restore")

    before = table.manifest()
    committed = commit_written(table, build, list)
    old = table.manifest(version)
    return {
        "url": table.url,
        "restored": version,
        "version": before.version if committed is None else committed.version,
        "is_new": committed is not None,
        "is_dry_run": is_dry_run,
        "rows": sum(file.rows for file in old.files),
        "rows_before": sum(file.rows for file in before.files),
        "sources": changed_sources(before.sources, old.sources),
    }


def _refuse_erased(table: Table, old: Manifest, newest: Manifest) -> None:
    later = [number for number in table.versions() if old.version < number <= newest.version]
    forgotten = [number for number in later if table.manifest(number).operation == "forget"]
    if forgotten or changed_sources(old.sources, newest.sources)["thinned"]:
        since = f"version {forgotten[-1]}" if forgotten else "a later version"
        raise StoreError(
            f"{table.url}: version {old.version} holds what `pairwright forget` erased in {since}, and is not "
            f"restored; restore {since} or a newer one"
        )


def format_restored(found: dict[str, Any]) -> str:
    """Return what was restored as text."""
    rows = f"{counted(found['rows'], 'row')} in place of {found['rows_before']:,}"
    if found["is_dry_run"]:
        lines = [f"would hold again what version {found['restored']} held: {rows}"]
    elif found["is_new"]:
        lines = [
            f"version {found['version']} of {found['url']} holds again what version {found['restored']} held: {rows}"
        ]
    else:
        lines = [f"nothing to restore: version {found['version']} of {found['url']} holds the same already"]
    lines += [f"  {what} {_some(uris)}" for what, uris in found["sources"].items() if uris]
    if found["is_new"]:
        lines.append("the versions in between stay until `pairwright vacuum` removes them")
    return one_per_line(lines)


def _entry(manifest: Manifest, previous: Manifest | None) -> dict[str, Any]:
    # Against a parent that vacuum removed, everything would look new.
    known = manifest if previous is None and manifest.parent is not None else previous
    totals = {} if known is None else known.totals
    names = [*manifest.totals, *(name for name in totals if name not in manifest.totals)]
    changes = {name: manifest.totals.get(name, 0) - totals.get(name, 0) for name in names}
    return {
        "version": manifest.version,
        "parent": manifest.parent,
        "operation": manifest.operation,
        "created_at": manifest.created_at,
        "code_version": manifest.code_version,
        "digest": manifest.digest,
        "rows": sum(file.rows for file in manifest.files),
        "files": len(manifest.files),
        "bytes": sum(file.bytes for file in manifest.files),
        "changed_totals": {name: change for name, change in changes.items() if change},
        "sources": changed_sources([] if known is None else known.sources, manifest.sources),
        "inputs": [f"{given.url} version {given.version}" for given in manifest.inputs],
    }


def changed_sources(before: list[Source], after: list[Source]) -> dict[str, list[str]]:
    """Return the URIs of sources that were added, removed, replaced by other content, and thinned by `forget`."""
    old, new = ({source.uri: source for source in sources} for sources in (before, after))
    both = [uri for uri in new if uri in old]
    return {
        "added": [uri for uri in new if uri not in old],
        "removed": [uri for uri in old if uri not in new],
        "replaced": [uri for uri in both if new[uri].identity != old[uri].identity],
        "thinned": [
            uri for uri in both if new[uri].identity == old[uri].identity and new[uri].erased > old[uri].erased
        ],
    }


def format_version_log(found: dict[str, Any]) -> str:
    """Return the versions as text: a line each, and what it changed below."""
    lines = [f"{found['kind']} {found['url']}: {counted(found['num_versions'], 'version')}"]
    for entry in found["versions"]:
        parent = "" if entry["parent"] is None else f" on {entry['parent']}"
        size = f"{counted(entry['rows'], 'row')}, {entry['bytes'] / 1e6:,.1f} MB in {counted(entry['files'], 'file')}"
        lines.append(f"{entry['version']:>6}  {entry['operation']}{parent}, {entry['created_at'][:19]} UTC: {size}")
        lines += [f"        {line}" for line in _changes(entry)]
    if more := found["num_versions"] - len(found["versions"]):
        lines.append(f"        and {more:,} older ones; --limit {found['num_versions']} shows them")
    if found["removed"]:
        lines.append(f"removed by vacuum: {', '.join(map(str, found['removed']))}")
    return one_per_line(lines)


def _changes(entry: dict[str, Any]) -> list[str]:
    totals = [f"{name} {change:+,.6g}" for name, change in entry["changed_totals"].items()]
    sources = [f"{what} {_some(uris)}" for what, uris in entry["sources"].items() if uris]
    made_from = [f"from {given}" for given in entry["inputs"]]
    return [*([", ".join(totals)] if totals else []), *sources, *made_from]


def _some(uris: list[str]) -> str:
    more = len(uris) - MAX_URIS
    return ", ".join(uris[:MAX_URIS]) + (f" and {more:,} more" if more > 0 else "")
