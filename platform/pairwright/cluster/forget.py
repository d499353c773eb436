"""An annotations table and what is to be forgotten -> a version without it, the proof, and what holds it elsewhere.

All files of the new version are read again, and the caches of all machines are emptied, since nothing there says which
table a copy came from. What else was made from the table is not known here: the summary names each kind, and what
removes it.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import msgspec

from pairwright.cluster.removal import Remover
from pairwright.cluster.sized import on_every_node, sized_pass, sized_session
from pairwright.data.storage.local_cache import EmptiedCache, empty_cache
from pairwright.data.table.commit import commit_written
from pairwright.data.table.delete_rows import Removal, Thinner, names_within
from pairwright.data.table.erase import Looked, Proof, after_forgetting, look, proof_of, removal_of
from pairwright.data.table.table import DataFile, Manifest, Table
from pairwright.errors import DataError, StoreError
from pairwright.terminal import one_per_line

MAX_NAMES = 10
CACHE_SECONDS = 300
"""How long a machine may take to empty its cache; beyond that it is named as one that was not reached."""


@dataclass(frozen=True)
class ForgetSummary:
    """What was forgotten, and what still holds it."""

    url: str
    what: str
    version: int
    num_annotations: int
    spellings: dict[str, int]
    """Annotator, as spelled in the table -> how many of the annotations were forgotten for the name."""
    sources: dict[str, int]
    """Source -> how many of its annotations were forgotten."""
    num_refused_without_text: int
    proof: Proof
    alike: dict[str, int]
    """Annotators that stay although a forgotten name is a word of theirs -> annotations."""
    num_naming: int
    """Annotations that stay although their id, subset or metadata hold a forgotten name."""
    older_versions: list[int]
    """Versions that can still be read as they were."""
    named_in_sources: list[str]
    """Sources whose own name holds an annotator's; the manifest keeps it."""
    caches: list[EmptiedCache]
    """One a machine."""
    caches_not_emptied: list[str]
    """Machines whose cache stays, each with the reason."""

    def as_dict(self) -> dict[str, Any]:
        """Return the same for programs, JSON-able."""
        return asdict(self) | {"caches": msgspec.to_builtins(self.caches)}

    def text(self) -> str:
        """Return the same for people."""
        return one_per_line(
            [
                *self._in_the_table(),
                *self._caches(),
                "what was made from it before holds them still; to be removed in this order:",
                *(f"- {line}" for line in self._elsewhere()),
            ]
        )

    def _in_the_table(self) -> Iterator[str]:
        proof = self.proof
        yield (
            f"version {self.version} of {self.url} is without {self.what}: {self.num_annotations:,} annotations of "
            f"{len(self.sources):,} sources left it, {self.num_refused_without_text:,} refused records their text"
        )
        if self.spellings:
            yield f"  annotators, as spelled there: {_counts(self.spellings)}"
        if not self.num_annotations:
            yield "  no annotation matched: if that is a surprise, look at the spelling"
        yield (
            f"proof: version {self.version} was read again: of {proof.num_rows:,} rows in {proof.num_files:,} files "
            f"none has this annotator or prompt, of {proof.num_refused:,} refused records in "
            f"{proof.num_refused_files:,} files none has a text; the texts of other prompts and completions were not "
            "searched"
        )
        if self.alike:
            yield f"other annotators with such a name stay; forget them too if they are the same: {_counts(self.alike)}"
        if self.num_naming:
            yield f"{self.num_naming:,} annotations of others have the name in their id, subset or metadata, and stay"
        for uri in self.named_in_sources:
            yield f"the name of source {uri} holds the annotator's, and stays"

    def _caches(self) -> Iterator[str]:
        num_files, num_bytes = (sum(getattr(each, name) for each in self.caches) for name in ("num_files", "bytes"))
        yield (
            f"caches of tokens and models emptied on {len(self.caches):,} machines: {num_files:,} files, "
            f"{num_bytes / 1e6:,.1f} MB"
        )
        for each in self.caches:
            if each.num_in_use:
                yield f"  {each.host}: {each.num_in_use:,} models in use stay; `rm -r {each.folder}/models` later"
        for reason in self.caches_not_emptied:
            yield f"  not emptied: {reason}; `rm -r ~/.cache/pairwright` there"

    def _elsewhere(self) -> Iterator[str]:
        yield (
            f"{len(self.older_versions):,} older versions, while nothing else uses the table: "
            f"`pairwright vacuum {self.url} --keep-versions 1 --older-than 0`"
        )
        yield (
            f"pairs tables: `pairwright expand {self.url} --into PAIRS` again, then "
            "`pairwright vacuum PAIRS --keep-versions 1 --older-than 0`"
        )
        yield "tokens of those pairs: `rm -r tokens` beside each run and evaluation; caches that a run filled again"
        yield "runs and models trained on them: train again, remove the old ones"
        yield "pages and JSON of `report` and `evaluate`, outputs of `score` and `export-pairs`: make again"
        if self.sources:
            yield f"the sources, which bring it in again with --replace or under another name: {_counts(self.sources)}"


def _counts(names: dict[str, int]) -> str:
    shown = [f"{name} ({count:,})" for name, count in list(names.items())[:MAX_NAMES]]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more:,} more; --json has them all" if more else "")


def forget(url: str, *, annotators: Sequence[str], prompts: Sequence[str], is_exact: bool = False) -> ForgetSummary:
    """Commit a version of an annotations table without some annotators and prompts, and prove that it is without them.

    Args:
        url: an annotations table.
        annotators: names.
        prompts: ids, or files that hold one.
        is_exact: whether a name stands for its own spelling alone, not for those that differ in case and such.

    Raises:
        ConfigError: if nothing is named, or a prompt is neither an id nor a file.
        DataError: if nothing of the newest version matches; then there is no new version.
        StoreError: if there is no annotations table, or a file cannot be read or written.
    """
    removal = removal_of(annotators, prompts, is_exact=is_exact)
    table = _annotations_at(url)
    what = " and ".join([*(f"annotator {name}" for name in annotators), *(f"prompt {name}" for name in prompts)])
    with sized_session(sum(file.bytes for file in table.manifest().all_files)):
        committed, left = _commit(table, removal)
        looked = _look(table, committed or table.manifest(), removal)
        alike = dict(sum((Counter(each.alike) for each in looked), Counter[str]()))
        if committed is None:
            others = f"other annotators with such a name: {_counts(alike)}; " if alike else ""
            raise DataError(
                f"{url}: nothing of the newest version holds {what}; {others}older versions were not searched: "
                f"`pairwright vacuum {url} --keep-versions 1` removes them"
            )
        proof = proof_of(committed, looked, table.url)
        caches, not_emptied = _empty_caches()
    holds = names_within(annotators)
    return ForgetSummary(
        url=url,
        what=what,
        version=committed.version,
        num_annotations=left.num_rows,
        spellings=left.names,
        sources=left.rows,
        num_refused_without_text=left.num_without_text,
        proof=proof,
        alike=alike,
        num_naming=sum(each.num_naming for each in looked),
        older_versions=[version for version in table.versions() if version < committed.version],
        named_in_sources=[source.uri for source in committed.sources if holds(source.uri)],
        caches=caches,
        caches_not_emptied=not_emptied,
    )


def _commit(table: Table, removal: Removal) -> tuple[Manifest | None, Thinner]:
    """Return the version without what a removal matches, None if nothing did, and what left the one before."""
    remover = Remover(table)
    last: list[Thinner] = []

    def build(newest: Manifest | None) -> Manifest | None:
        assert newest is not None
        last[:] = [remover.thin(newest, removal)]
        return after_forgetting(newest, last[0], removal)

    committed = commit_written(table, build, remover.written)
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


def _look(table: Table, manifest: Manifest, removal: Removal) -> list[Looked]:
    def work(file: DataFile) -> Iterator[Looked]:
        yield look(table, file, removal)

    sizes = [file.bytes for file in manifest.all_files]
    return list(sized_pass(work, manifest.all_files, sizes, Looked, what="files of the new version read again"))


def _empty_caches() -> tuple[list[EmptiedCache], list[str]]:
    """Empty the cache of this machine, or of all that are up where Ray runs; return what went, and what could not."""
    emptied, reasons = [], []
    for host, result in on_every_node(empty_cache, seconds=CACHE_SECONDS):
        if isinstance(result, EmptiedCache):
            emptied.append(result)
        else:
            reasons.append(f"{host}: {result}")
    return emptied, reasons
