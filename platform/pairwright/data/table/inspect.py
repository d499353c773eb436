"""Describes a table for `inspect`: versions, totals, lineage and a sample of rows.

Totals come from manifests, and only the files of the sample are read, so that it costs the same on any size, unless
all are to be verified.
"""

from collections.abc import Iterator
from typing import Any

import msgspec
import pyarrow as pa

from pairwright.data.executor import LOCAL, Executor
from pairwright.data.id_index.verify_table import VerifiedTable, verify_table
from pairwright.data.pairs import exclusions
from pairwright.data.pairs.near_duplicates.evaluation_sets import SOURCE_VERSION
from pairwright.data.table.table import Input, Manifest, Table
from pairwright.errors import StoreError
from pairwright.records import Rejection
from pairwright.terminal import counted, one_per_line

MAX_VERSIONS = 10
MAX_REJECTIONS = 3
MAX_SOURCES = 10
MAX_PAIRS = 12
MAX_CHARACTERS = 160
MAX_DEPTH = 16
MAX_TABLES = 256
"""Tables that a lineage is followed through: in one line, and in all. What we make has a line of three."""


def inspect_version(
    url: str, *, version: int | None, num_sample: int, verify: bool = False, executor: Executor = LOCAL
) -> dict[str, Any]:
    """Return the description of one version of a table, JSON-able.

    Args:
        url: a table of any kind.
        version: the version to describe, the newest by default.
        num_sample: how many rows to show, spread evenly over the version: the same ones each time.
        verify: whether to read every file of the version and compare hashes.
        executor: what maps over the files.

    Raises:
        StoreError: if there is no such table or version, or a file of the sample is damaged.
    """
    table = Table.open(url)
    manifest = table.manifest(version)
    verified = {"verified": verify_table(table, manifest, executor=executor).as_dict()} if verify else {}
    return {
        "url": table.url,
        "kind": table.kind,
        **_facts(manifest),
        **verified,
        "code_version": manifest.code_version,
        "config": manifest.config,
        "totals": manifest.totals,
        "warnings": _warnings(manifest),
        "refused": _refused(table, manifest),
        "sources": [msgspec.to_builtins(source) for source in manifest.sources],
        "lineage": _Lineage().of(table, manifest),
        "versions": _versions(table),
        "sample": [_plain(row, table.kind) for row in _sample(table, manifest, num_sample)],
    }


def _facts(manifest: Manifest) -> dict[str, Any]:
    return {
        "version": manifest.version,
        "operation": manifest.operation,
        "created_at": manifest.created_at,
        "digest": manifest.digest,
        "rows": sum(file.rows for file in manifest.files),
        "files": len(manifest.files),
        "bytes": sum(file.bytes for file in manifest.files),
    }


def _warnings(manifest: Manifest) -> list[str]:
    """Return a line for each thing that the configuration of pairs asked for and that was not found."""
    num_without = manifest.totals.get("pairs_without_margin", 0)
    margin = (
        f"margin: {num_without:,} of {counted(int(manifest.totals['pairs']), 'pair')} have none" if num_without else ""
    )
    return [*([margin] if margin else []), *exclusions.unused_exclusions(manifest.totals, manifest.config)]


def _versions(table: Table) -> dict[str, Any]:
    numbers = table.versions()
    newest = [_facts(table.manifest(number)) for number in numbers[-MAX_VERSIONS:]]
    return {"number": len(numbers), "first": numbers[0], "last": numbers[-1], "newest": newest[::-1]}


def _refused(table: Table, manifest: Manifest) -> dict[str, Any]:
    examples: list[Rejection] = []
    for file in manifest.quarantined_files:
        if len(examples) >= MAX_REJECTIONS:
            break
        examples += table.read_quarantined(file)
    return {
        "records": sum(file.rows for file in manifest.quarantined_files),
        "files": [file.path for file in manifest.quarantined_files],
        "examples": [str(rejection) for rejection in examples[:MAX_REJECTIONS]],
    }


class _Lineage:
    """Follows tables to those that they were made from, each with its own sources and lineage, back to the files.

    A manifest can name anything, itself too: what leads in a circle, or too far, ends with a word on it.
    """

    def __init__(self) -> None:
        self._num_tables = 0
        self._above: list[tuple[str, int]] = []

    def of(self, table: Table, manifest: Manifest) -> list[dict[str, Any]]:
        self._above.append((table.url, manifest.version))
        found = [self._entry(made_from, manifest) for made_from in manifest.inputs]
        self._above.pop()
        return found

    def _entry(self, made_from: Input, manifest: Manifest) -> dict[str, Any]:
        entry: dict[str, Any] = msgspec.to_builtins(made_from)
        if made_from.version == SOURCE_VERSION:
            is_list = entry["url"] == ", ".join(manifest.config.get("leave_out_texts", []))
            return entry | {"kind": "texts left out" if is_list else "evaluation set"}
        self._num_tables += 1
        if len(self._above) >= MAX_DEPTH or self._num_tables > MAX_TABLES:
            return entry | {"not_followed": f"more than {MAX_DEPTH} tables in a row, or {MAX_TABLES} in all"}
        try:
            table = Table.open(made_from.url)
            parent = table.manifest(made_from.version)
        except StoreError as error:
            return entry | {"missing": str(error)}
        if (table.url, parent.version) in self._above:
            return entry | {"not_followed": "by its manifests it was made from itself; one of them is damaged"}
        if parent.digest != made_from.digest:
            entry["missing"] = f"version {made_from.version} there now has digest {parent.digest[:12]}..."
        sources = [msgspec.to_builtins(source) for source in parent.sources]
        return entry | {"kind": table.kind, "sources": sources, "lineage": self.of(table, parent)}


def _sample(table: Table, manifest: Manifest, num_sample: int) -> Iterator[dict[str, Any]]:
    num_rows = sum(file.rows for file in manifest.files)
    num_shown = min(num_sample, num_rows)
    wanted = [(2 * i + 1) * num_rows // (2 * num_shown) for i in range(num_shown)]
    start = 0
    for file in manifest.files:
        here = [row - start for row in wanted if start <= row < start + file.rows]
        if here:
            yield from table.read_file(file).take(pa.array(here)).to_pylist()
        start += file.rows


def _plain(row: dict[str, Any], kind: str) -> dict[str, Any]:
    """Return a row as JSON holds it; token ids as their number, since nobody reads them."""
    if kind == "tokens":
        row["prompt_tokens"] = len(row.pop("prompt_ids"))
        row["completion_tokens"] = [len(ids) for ids in row.pop("completion_ids")]
    else:
        row["metadata"] = None if row["metadata"] is None else dict(row["metadata"])
    if kind == "annotations" and row["created_at"] is not None:
        row["created_at"] = row["created_at"].isoformat()
    return row


def format_inspection(description: dict[str, Any]) -> str:
    """Return a description as text that reads well without a terminal; long texts are cut, with their length."""
    head = [
        f"{description['kind']} {description['url']}",
        f"version {description['version']} of {description['versions']['last']}: {_made(description)}",
    ]
    sections = [
        ("totals", _aligned(description["totals"])),
        ("warnings", description["warnings"]),
        ("verified", VerifiedTable(**description["verified"]).lines() if "verified" in description else []),
        ("refused", _refused_lines(description["refused"])),
        ("sources", _source_lines(description["sources"])),
        ("made from", _lineage_lines(description["lineage"], indent=0)),
        ("configuration", _aligned(description["config"])),
        ("versions", [f"{facts['version']:>6}  {_made(facts)}" for facts in description["versions"]["newest"]]),
        ("sample", [line for row in description["sample"] for line in _row_lines(row, description["kind"])]),
    ]
    blocks = [[title, *(f"  {line}" for line in lines)] for title, lines in sections if lines]
    return "\n\n".join(map(one_per_line, [head, *blocks]))


def _made(facts: dict[str, Any]) -> str:
    size = f"{counted(facts['rows'], 'row')}, {facts['bytes'] / 1e6:,.1f} MB in {counted(facts['files'], 'file')}"
    return f"{size}, {facts['operation']} {facts['created_at'][:19]} UTC"


def _aligned(values: dict[str, Any]) -> list[str]:
    width = max(map(len, values), default=0)
    return [f"{name:<{width}}  {_value(value)}" for name, value in values.items()]


def _value(value: Any) -> str:
    match value:
        case bool() | None:
            return str(value).lower() if value is not None else "none"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:,.6g}"
        case _:
            return _cut(str(value))


def _refused_lines(refused: dict[str, Any]) -> list[str]:
    if not refused["records"]:
        return []
    examples = [_cut(example) for example in refused["examples"]]
    more = refused["records"] - len(examples)
    return [
        f"{counted(refused['records'], 'record')}, kept in {_some(refused['files'])}",
        *(f"  {example}" for example in examples),
        *([f"  ... and {more:,} more"] if more else []),
    ]


def _source_lines(sources: list[dict[str, Any]]) -> list[str]:
    lines = [
        f"{source['uri']}: {counted(source['lines'], 'line')}, {source['accepted']:,} accepted, {source['refused']:,} "
        "refused"
        for source in sources[:MAX_SOURCES]
    ]
    more = len(sources) - len(lines)
    return lines + ([f"... and {counted(more, 'more source')}"] if more else [])


def _lineage_lines(lineage: list[dict[str, Any]], *, indent: int) -> list[str]:
    lines = []
    for entry in lineage:
        version = "" if entry["version"] == SOURCE_VERSION else f" version {entry['version']}"
        digest = entry["digest"].removeprefix("sha256:")[:12]
        lines.append(f"{entry.get('kind', 'table')} {entry['url']}{version} ({digest})")
        if "missing" in entry:
            lines.append(f"  no longer there: {entry['missing']}")
        if "not_followed" in entry:
            lines.append(f"  not followed: {entry['not_followed']}")
        lines += [f"  {line}" for line in _source_lines(entry.get("sources", []))]
        lines += _lineage_lines(entry.get("lineage", []), indent=2)
    return [" " * indent + line for line in lines]


def _row_lines(row: dict[str, Any], kind: str) -> list[str]:
    facts = [
        f"{name} {_cut(str(row[name]))}"
        for name in ("split", "subset", "more_subsets", "annotator", "num_annotations")
        if row.get(name)
    ]
    name = _cut(row["id"]) if kind == "annotations" else f"group {row['group_id']}"
    head = f"{name}: {', '.join(facts)}" if facts else f"{name}:"
    if kind == "tokens":
        completions = [f"  prompt {row['prompt_tokens']} tokens, completions {row['completion_tokens']}"]
    else:
        context = [f"  {_cut(row['context'])}"] if row["context"] else []
        turns = [f"  {_cut(turn['role'])}: {_shown(turn['content'], turn['extra'])}" for turn in row["prompt"]]
        answers = [f"  [{i}] {_shown(one['text'], one['extra'])}" for i, one in enumerate(row["completions"])]
        completions = [*context, *turns, *answers]
    if kind == "annotations":
        return [
            head,
            *completions,
            f"  ranks {row['ranks']}"
            + (f", scores {row['scores']}" if row["scores"] else "")
            + (f", {row['grade']}" if row["grade"] else ""),
        ]
    pairs = [
        f"{pair['chosen']} > {pair['rejected']} weight {pair['weight']:.4g}"
        + ("" if pair["margin"] is None else f" margin {pair['margin']:.4g}")
        for pair in row["pairs"][:MAX_PAIRS]
    ]
    more = len(row["pairs"]) - len(pairs)
    return [head, *completions, "  " + ("; ".join(pairs) or "no pairs") + (f"; and {more} more" if more else "")]


def _some(names: list[str]) -> str:
    return ", ".join(names[:MAX_REJECTIONS]) + (
        f" and {len(names) - MAX_REJECTIONS} more" if len(names) > MAX_REJECTIONS else ""
    )


def _shown(text: str, extra: str | None) -> str:
    """Return a text with what stands beside it, each cut."""
    return " ".join(part for part in (_cut(text), _cut(extra or "")) if part)


def _cut(text: str) -> str:
    """Return a text on one line, cut at 160 characters with its length."""
    line = " ".join(text.split())
    return line if len(line) <= MAX_CHARACTERS else f"{line[:MAX_CHARACTERS]}... ({len(text):,} characters)"
