"""An annotations table and what is to be forgotten -> a version without it, and the proof: all its files read again.

Old versions keep their files until `vacuum` removes them, and a pairs table keeps its pairs until it is made again: the
summary says so, with the commands.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import msgspec

from pairwright.cluster.removal import Remover
from pairwright.cluster.sized import sized_pass, sized_session
from pairwright.data.commits import commit_written
from pairwright.data.forgetting import Looked, Proof, after_forgetting, look, proof_of, removal_of
from pairwright.data.removal import Removal, Thinner
from pairwright.data.store import DataFile, Manifest, Table
from pairwright.errors import DataError, StoreError
from pairwright.terminal import one_per_line


@dataclass(frozen=True)
class ForgetSummary:
    """What was forgotten, and what still holds it."""

    url: str
    what: str
    version: int
    num_annotations: int
    sources: dict[str, int]
    """Source -> how many of its annotations were forgotten."""
    num_refused_without_text: int
    proof: Proof
    older_versions: list[int]
    """Versions that can still be read as they were."""
    named_in_sources: list[str]
    """Sources whose own name holds an annotator's; the manifest keeps it."""

    def as_dict(self) -> dict[str, Any]:
        """Return the same for programs, JSON-able."""
        return asdict(self)

    def text(self) -> str:
        """Return the same for people."""
        proof = self.proof
        named = [f"the name of source {uri} holds the annotator's, and stays" for uri in self.named_in_sources]
        return one_per_line(
            [
                f"version {self.version} of {self.url} is without {self.what}: {self.num_annotations:,} annotations of "
                f"{len(self.sources):,} sources left it, {self.num_refused_without_text:,} refused records their text",
                f"proof: version {self.version} was read again, {proof.num_rows:,} rows in {proof.num_files:,} files "
                f"and {proof.num_refused:,} refused records in {proof.num_refused_files:,} files; none holds them",
                *named,
                f"{len(self.older_versions):,} older versions are as they were; while nothing else uses the table:",
                f"  pairwright vacuum {self.url} --keep-versions 1 --older-than 0",
                "pairs made from older versions hold them too: run `pairwright expand` again, and vacuum those as well",
                "the sources are as they were: under another name, or with --replace, they bring it in again",
            ]
        )


def forget(url: str, *, annotators: Sequence[str], prompts: Sequence[str]) -> ForgetSummary:
    """Commit a version of an annotations table without some annotators and prompts, and prove that it is without them.

    Raises:
        ConfigError: if nothing is named, or a prompt is neither an id nor a file.
        DataError: if nothing of the newest version matches; then there is no new version.
        StoreError: if there is no annotations table, or a file cannot be read or written.
    """
    removal = removal_of(annotators, prompts)
    table = _annotations_at(url)
    what = " and ".join([*(f"annotator {name}" for name in annotators), *(f"prompt {name}" for name in prompts)])
    with sized_session(sum(file.bytes for file in table.manifest().all_files)):
        committed, left = _commit(table, removal)
        if committed is None:
            raise DataError(
                f"{url}: nothing of the newest version holds {what}; older versions were not searched: "
                f"`pairwright vacuum {url} --keep-versions 1` removes them"
            )
        known = msgspec.structs.replace(removal, prompts=tuple(sorted({*removal.prompts, *left.prompts})))
        proof = _prove(table, committed, known)
    return ForgetSummary(
        url=url,
        what=what,
        version=committed.version,
        num_annotations=left.num_rows,
        sources=left.rows,
        num_refused_without_text=left.num_without_text,
        proof=proof,
        older_versions=[version for version in table.versions() if version < committed.version],
        named_in_sources=[s.uri for s in committed.sources if any(name in s.uri for name in annotators)],
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


def _prove(table: Table, manifest: Manifest, removal: Removal) -> Proof:
    def work(file: DataFile) -> Iterator[Looked]:
        yield look(table, file, removal)

    sizes = [file.bytes for file in manifest.all_files]
    looked = list(sized_pass(work, manifest.all_files, sizes, Looked, what="files of the new version read again"))
    return proof_of(manifest, looked, table.url)
