"""Version log of a table: what each version is, and what it changed since the one before."""

from typing import Any

from pairwright.data.table.manifest import Manifest, Source
from pairwright.data.table.table import Table
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
        lines.append(f"        and {more:,} older ones; --last {found['num_versions']} shows them")
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
