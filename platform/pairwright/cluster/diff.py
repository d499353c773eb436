"""Two versions of a table -> what changed between them, by hashes of the rows of files that only one of them names."""

from collections.abc import Iterator
from typing import Any

from pairwright.cluster.sized import sized_pass
from pairwright.data.table.diff import (
    KEYS,
    Prints,
    changes_between,
    difference,
    examples,
    files_of_one,
    gathered,
    prints_of,
)
from pairwright.data.table.table import DataFile, Table
from pairwright.errors import StoreError
from pairwright.terminal import one_per_line

NUM_SHOWN = 5


def diff(url: str, first: int, second: int) -> dict[str, Any]:
    """Return what a version of a table has against another one, in values that JSON holds.

    Raises:
        StoreError: if there is no such table or version, or a file cannot be read.
    """
    table = Table.open(url)
    if table.kind not in KEYS:
        raise StoreError(f"{url}: holds {table.kind}, which are made anew from pairs; compare those")
    before, after = table.manifest(first), table.manifest(second)
    old, new = files_of_one(before, after) if before.digest != after.digest else ([], [])

    def work(file: DataFile) -> Iterator[Prints]:
        yield prints_of(table, file)

    files = [*old, *new]
    found = sized_pass(work, files, [file.bytes for file in files], Prints, what="files compared")
    prints = {each.path: each for each in found}
    rows = gathered(old, prints), gathered(new, prints)
    changes = changes_between(*rows)
    return {
        "url": table.url,
        "kind": table.kind,
        **difference(before, after),
        "rows": {
            "added": len(changes.added),
            "removed": len(changes.removed),
            "changed": len(changes.changed),
            "unchanged": sum(file.rows for file in after.files) - len(changes.added) - len(changes.changed),
        },
        "examples": {
            "added": examples(table, new, rows[1], changes.added, NUM_SHOWN),
            "removed": examples(table, old, rows[0], changes.removed, NUM_SHOWN),
            "changed": examples(table, new, rows[1], changes.changed, NUM_SHOWN),
        },
    }


def format_diff(found: dict[str, Any]) -> str:
    """Return a difference as text."""
    first, second = found["versions"]
    what = "annotations" if found["kind"] == "annotations" else "groups"
    files = found["files"]
    lines = [
        f"{found['kind']} {found['url']}: version {first} -> {second}",
        f"files: {files['common']:,} in both, {files['only_first']:,} only in {first}, "
        f"{files['only_second']:,} only in {second}",
    ]
    if found["is_same_content"]:
        return one_per_line([*lines, "the same content"])
    for name, count in found["rows"].items():
        shown = found["examples"].get(name, [])
        told = f" ({', '.join(shown)}{', ...' if count > len(shown) else ''})" if shown else ""
        lines.append(f"{what} {name}: {count:,}{told}")
    for name, uris in found["sources"].items():
        lines += [f"source {name}: {uri}" for uri in uris[:NUM_SHOWN]]
        lines += [f"  and {len(uris) - NUM_SHOWN:,} more; --json has them all"] if len(uris) > NUM_SHOWN else []
    lines += [f"{name}: {old:,.6g} -> {new:,.6g}" for name, (old, new) in found["totals"].items()]
    return one_per_line(lines)
