"""Erases annotators and prompts: commits a version of an annotations table without them, and verifies it by reading it.

The manifest of that version says which prompts (by id) and which annotators (by SHA-256 of the name) were erased, so
that who knows a name can look up when it was erased. Who guesses the name can do that too.
"""

import hashlib
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa

from pairwright.data.executor import LOCAL, Executor
from pairwright.data.id_index.index_merges import IndexMerger
from pairwright.data.identity import prompt_id
from pairwright.data.ingest.adapters import RecordError
from pairwright.data.ingest.prompts import prompt_of
from pairwright.data.storage.local_cache import ClearedCache, empty_cache
from pairwright.data.table.commit import commit_written
from pairwright.data.table.delete_rows import (
    DeletePredicate,
    RewrittenVersion,
    RowDeleter,
    folded,
    names_within,
    without_text,
)
from pairwright.data.table.manifest import Manifest, Source
from pairwright.data.table.table import DataFile, Table
from pairwright.errors import ConfigError, DataError, StoreError
from pairwright.suggestions import close_to
from pairwright.terminal import counted

MAX_PROMPT_BYTES = 64 * 1024 * 1024
"""Of a file that holds a prompt: a million characters, as many as a table takes by default, are 12 MB at most."""

MAX_NAMES = 10
_PROMPT_ID = re.compile(r"[0-9a-f]{32}")
_LONE_SURROGATE = re.compile(r"[\ud800-\udfff]")


CACHE_SECONDS = 300
"""How long a machine may take to empty its cache; beyond that it is named as one that was not reached."""


@dataclass(frozen=True)
class Verification:
    """Files and rows of a version that were read after an erasure, and found not to hold what was erased."""

    num_files: int
    num_rows: int
    num_refused_files: int
    num_refused: int


class ErasureCheck(msgspec.Struct, frozen=True):
    """How many rows, or refused records, one file holds, and how many of them should not be there."""

    path: str
    rows: int
    found: int
    similar_names: dict[str, int] = {}
    """Other annotators whose name holds an erased one as a word -> rows."""
    num_naming: int = 0
    """Rows whose id, subset or metadata hold an erased annotator's name as a word."""


@dataclass(frozen=True)
class ErasureSummary:
    """Result of an erasure: what was erased, and what still holds it."""

    url: str
    what: str
    version: int
    num_annotations: int
    spellings: dict[str, int]
    """Annotator, as spelled in the table -> how many annotations were erased for the name."""
    sources: dict[str, int]
    """Source -> how many of its annotations were erased."""
    num_refused_without_text: int
    verification: Verification
    similar_names: dict[str, int]
    """Annotators that stay although an erased name is a word of theirs -> annotations."""
    num_naming: int
    """Annotations that stay although their id, subset or metadata hold an erased name."""
    older_versions: list[int]
    """Versions that can still be read as they were."""
    named_in_sources: list[str]
    """Sources whose own name holds an annotator's; the manifest keeps it."""
    caches: list[ClearedCache]
    """One a machine."""
    caches_not_cleared: list[str]
    """Machines whose cache stays, each with the reason."""
    close_names: list[str]
    """Annotators that were perhaps meant, where no annotation matched."""

    def as_dict(self) -> dict[str, Any]:
        """Return the same for programs, JSON-able."""
        return asdict(self) | {"caches": msgspec.to_builtins(self.caches)}


@dataclass(frozen=True)
class ErasurePreview:
    """What an erasure would remove of the newest version."""

    url: str
    what: str
    version: int
    num_annotations: int
    num_refused_without_text: int
    similar_names: dict[str, int]
    num_naming: int
    close_names: list[str]
    """Annotators that were perhaps meant, where no annotation matches."""

    def as_dict(self) -> dict[str, Any]:
        """Return the same for programs, JSON-able."""
        return asdict(self)


def preview_erasure(
    url: str, *, annotators: Sequence[str], prompts: Sequence[str], is_exact: bool = False, executor: Executor = LOCAL
) -> ErasurePreview:
    """Return what ``erase`` would remove; changes nothing.

    Raises:
        ConfigError, DataError, StoreError: as ``erase``.
    """
    predicate = erase_predicate(annotators, prompts, is_exact=is_exact)
    table = _annotations_at(url)
    manifest = table.manifest()
    with executor.session(sum(file.bytes for file in manifest.all_files)):
        checks = _check_files(table, manifest, predicate, executor)
    if not any(each.found for each in checks):
        raise DataError(_nothing_found(table, annotators, prompts, checks, url))
    num_annotations = sum(each.found for each in checks if each.path.startswith("data/"))
    return ErasurePreview(
        url=url,
        what=_named(annotators, prompts),
        version=manifest.version,
        num_annotations=num_annotations,
        num_refused_without_text=sum(each.found for each in checks if not each.path.startswith("data/")),
        similar_names=_similar_names(checks, predicate),
        num_naming=sum(each.num_naming for each in checks),
        close_names=[] if num_annotations else _close_names(table, annotators),
    )


def erase(
    url: str, *, annotators: Sequence[str], prompts: Sequence[str], is_exact: bool = False, executor: Executor = LOCAL
) -> ErasureSummary:
    """Commit a version of an annotations table without some annotators and prompts, and verify that it is without them.

    Args:
        url: an annotations table.
        annotators: names.
        prompts: ids, or files that hold one.
        is_exact: whether a name stands for its own spelling alone, not for those that differ in case and such.
        executor: what maps over the files.

    Raises:
        ConfigError: if nothing is named, or a prompt is neither an id nor a file.
        DataError: if nothing of the newest version matches; then there is no new version.
        StoreError: if there is no annotations table, or a file cannot be read or written.
    """
    predicate = erase_predicate(annotators, prompts, is_exact=is_exact)
    table = _annotations_at(url)
    with executor.session(sum(file.bytes for file in table.manifest().all_files)):
        committed, left = _commit(table, predicate, executor)
        checks = _check_files(table, committed or table.manifest(), predicate, executor)
        if committed is None:
            raise DataError(_nothing_found(table, annotators, prompts, checks, url))
        verification = verify_erasure(committed, checks, table.url)
        caches, not_cleared = _empty_caches(executor)
    holds = names_within(annotators)
    return ErasureSummary(
        url=url,
        what=_named(annotators, prompts),
        version=committed.version,
        num_annotations=left.num_rows,
        spellings=left.names,
        sources=left.rows,
        num_refused_without_text=left.num_without_text,
        verification=verification,
        similar_names=_similar_names(checks, predicate),
        num_naming=sum(each.num_naming for each in checks),
        older_versions=[version for version in table.versions() if version < committed.version],
        named_in_sources=[source.uri for source in committed.sources if holds(source.uri)],
        caches=caches,
        caches_not_cleared=not_cleared,
        close_names=[] if left.num_rows else _close_names(table, annotators),
    )


def _named(annotators: Sequence[str], prompts: Sequence[str]) -> str:
    return " and ".join([*(f"annotator {name}" for name in annotators), *(f"prompt {name}" for name in prompts)])


def _similar_names(checks: Sequence[ErasureCheck], predicate: DeletePredicate) -> dict[str, int]:
    """Return the annotators that stay although an erased name is a word of theirs, with their annotations."""
    names = sum((Counter(each.similar_names) for each in checks), Counter[str]())
    return {name: count for name, count in names.items() if name not in predicate.annotators_among(names)}


def _nothing_found(
    table: Table, annotators: Sequence[str], prompts: Sequence[str], checks: Sequence[ErasureCheck], url: str
) -> str:
    similar_names = dict(sum((Counter(each.similar_names) for each in checks), Counter[str]()))
    others = f"other annotators with such a name: {counted_names(similar_names)}; " if similar_names else ""
    if not others:
        others = "".join(f"did you mean {name!r}? " for name in _close_names(table, annotators))
    return (
        f"{url}: nothing of the newest version holds {_named(annotators, prompts)}; {others}older versions were not "
        f"searched: `pairwright vacuum {url} --keep-versions 1` removes them"
    )


def _close_names(table: Table, annotators: Sequence[str]) -> list[str]:
    """Return the annotator of the newest version that is closest to each name, of those that are close.

    It reads one column of every file, which only a name that matches nothing costs.
    """
    if not annotators:
        return []
    found = table.read(table.manifest(), ["annotator"])
    known = {name for rows in found for name in rows.column("annotator").unique().to_pylist() if name is not None}
    return [close for name in annotators for close in close_to(name, sorted(known))[:1]]


def _commit(table: Table, predicate: DeletePredicate, executor: Executor) -> tuple[Manifest | None, RewrittenVersion]:
    """Return the version without what a predicate matches, None if nothing did, and what left the one before."""
    deleter, merger = RowDeleter(table, executor), IndexMerger(table, executor)
    last: list[RewrittenVersion] = []

    def build(newest: Manifest | None) -> Manifest | None:
        assert newest is not None
        last[:] = [deleter.rewrite(newest, predicate)]
        proposed = after_erasure(newest, last[0], predicate)
        if proposed is None:
            return None
        return msgspec.structs.replace(proposed, indexes=merger.without_removed(proposed.files, last[0].indexes))

    committed = commit_written(table, build, lambda: [*deleter.written(), *merger.written()])
    return committed, last[0]


def _annotations_at(url: str) -> Table:
    table = Table.open(url)
    if table.kind == "annotations":
        return table
    made_from = [given.url for given in table.manifest().inputs]
    where = made_from[0] if made_from else "ANNOTATIONS"
    raise StoreError(
        f"{url}: holds {table.kind}, which are made from annotations: forget there (`pairwright forget {where} ...`), "
        f"make the {table.kind} again, then remove the old ones with `pairwright vacuum {url} --keep-versions 1`"
    )


def _check_files(
    table: Table, manifest: Manifest, predicate: DeletePredicate, executor: Executor
) -> list[ErasureCheck]:
    def work(file: DataFile) -> Iterator[ErasureCheck]:
        yield count_matches(table, file, predicate)

    sizes = [file.bytes for file in manifest.all_files]
    return list(
        executor.map_items(work, manifest.all_files, sizes, ErasureCheck, what="files of the new version read again")
    )


def _empty_caches(executor: Executor) -> tuple[list[ClearedCache], list[str]]:
    """Empty the cache of this machine, or of all that are up where Ray runs; return what went, and what could not."""
    cleared, reasons = [], []
    for host, result in executor.map_nodes(empty_cache, seconds=CACHE_SECONDS):
        if isinstance(result, ClearedCache):
            cleared.append(result)
        else:
            reasons.append(f"{host}: {result}")
    return cleared, reasons


def erase_predicate(annotators: Sequence[str], prompts: Sequence[str], *, is_exact: bool = False) -> DeletePredicate:
    """Return what to remove.

    Args:
        annotators: names.
        prompts: each a prompt_id (32 hex digits), or a file: the text of one user turn, or a .json list of messages,
            or a .json object of ``prompt`` and the ``tools`` and ``chat_template_kwargs`` beside it.
        is_exact: whether a name stands for its own spelling alone.

    Raises:
        ConfigError: if nothing is named, or a prompt is neither.
    """
    if not annotators and not prompts:
        raise ConfigError("nothing to forget was named; give --annotator NAME or --prompt ID-OR-FILE")
    if any(not (name if is_exact else folded(name)) for name in annotators):
        raise ConfigError("--annotator: expected a name, got an empty one; annotations without an annotator have none")
    if odd := [name for name in annotators if _LONE_SURROGATE.search(name)]:
        raise ConfigError(f"--annotator {odd[0]!a}: expected UTF-8, as every name in a table is")
    return DeletePredicate(
        annotators=frozenset(annotators), prompt_ids=frozenset(map(_prompt_id, prompts)), is_exact=is_exact
    )


def _prompt_id(named: str) -> str:
    if _PROMPT_ID.fullmatch(named):
        return named
    try:
        text = _content(Path(named)).decode()
        is_json = Path(named).suffix == ".json"
        message = msgspec.json.decode(text) if is_json else text
        turns, context = prompt_of(message if isinstance(message, dict) else {"prompt": message})
    except (OSError, ValueError, RecordError, RecursionError) as error:  # no UTF-8, or no JSON, is a ValueError too
        raise ConfigError(
            f"--prompt {named}: neither a prompt_id (32 hex digits, shown by `pairwright inspect URL --json`) nor a "
            f"file with the prompt's text, or its messages as .json ({error})"
        ) from None
    return prompt_id(turns, context)


def _content(path: Path) -> bytes:
    state = path.stat()
    if not stat.S_ISREG(state.st_mode):
        raise ValueError("it is no regular file")
    if state.st_size > MAX_PROMPT_BYTES:
        raise ValueError(f"it has {state.st_size:,} bytes, expected at most {MAX_PROMPT_BYTES:,}")
    with path.open("rb") as content:
        return content.read(MAX_PROMPT_BYTES)


def after_erasure(newest: Manifest, left: RewrittenVersion, predicate: DeletePredicate) -> Manifest | None:
    """Return the version after ``newest`` without what was removed; None where nothing was."""
    if not left.num_rows and not left.num_without_text:
        return None
    totals = Counter(newest.totals)
    totals.update({"annotations": -left.num_rows, "erased": left.num_rows, "completions": -left.completions})
    config = {
        "annotators_sha256": sorted(hashlib.sha256(name.encode()).hexdigest() for name in predicate.annotators),
        "prompt_ids": sorted(predicate.prompt_ids),
    }
    return Manifest(
        kind=newest.kind,
        operation="forget",
        files=left.files,
        quarantined_files=left.quarantined_files,
        totals=dict(totals),
        sources=[_without(source, left.rows.get(source.uri, 0)) for source in newest.sources],
        inputs=[],
        config=config,
        config_digest=hashlib.sha256(msgspec.json.encode(config)).hexdigest(),
    )


def _without(source: Source, num_rows: int) -> Source:
    return msgspec.structs.replace(source, accepted=source.accepted - num_rows, erased=source.erased + num_rows)


def count_matches(table: Table, file: DataFile, predicate: DeletePredicate) -> ErasureCheck:
    """Return how many records of a file of any version a predicate still matches, and what else holds a name.

    Raises:
        StoreError: if the file cannot be read.
    """
    if not file.path.startswith("data/"):
        records = table.read_quarantined(file)
        return ErasureCheck(file.path, len(records), sum(without_text(record) != record for record in records))
    texts = ["id", "subset", "metadata"] if predicate.annotators else []
    rows = table.read_file(file, ["annotator", "prompt_id", *texts])
    found = int(predicate.rows_of(rows).sum())
    if not predicate.annotators:
        return ErasureCheck(file.path, rows.num_rows, found)
    names = Counter(rows.column("annotator").drop_null().to_pylist())
    holds = names_within(predicate.annotators)
    similar_names = {name: names[name] for name in sorted(names) if holds(name)}
    return ErasureCheck(file.path, rows.num_rows, found, similar_names, _num_naming(rows, holds))


def _num_naming(rows: pa.Table, holds: Callable[[str], bool]) -> int:
    columns = (rows.column(name).to_pylist() for name in ("id", "subset", "metadata"))
    texts = [
        "\n".join([name, subset or "", *(part for pair in metadata or () for part in pair)])
        for name, subset, metadata in zip(*columns, strict=True)
    ]
    # One search of all of them first: a name hardly ever stands there.
    return sum(map(holds, texts)) if holds("\n".join(texts)) else 0


def verify_erasure(manifest: Manifest, checks: Sequence[ErasureCheck], where: str) -> Verification:
    """Return the verification that no file of a version holds what was erased.

    Raises:
        StoreError: if one does, or was not checked, or holds another number of rows than the version says.
    """
    by_path = {each.path: each for each in checks}
    for file in manifest.all_files:
        each = by_path.get(file.path)
        if each is None or each.found or each.rows != file.rows:
            found = (
                "was not read"
                if each is None
                else f"has {counted(each.rows, 'row')}, {each.found} of them to be forgotten"
            )
            raise StoreError(f"{where}/{file.path}: {found}; expected {file.rows} and none; please report it")
    return Verification(
        num_files=len(manifest.files),
        num_rows=sum(by_path[file.path].rows for file in manifest.files),
        num_refused_files=len(manifest.quarantined_files),
        num_refused=sum(by_path[file.path].rows for file in manifest.quarantined_files),
    )


def counted_names(names: dict[str, int]) -> str:
    """Return the first names, each with its count, for a person."""
    shown = [f"{name} ({count:,})" for name, count in list(names.items())[:MAX_NAMES]]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more:,} more; --json has them all" if more else "")
