"""Deletes the rows of a version that match a predicate, by rewriting the files that hold them.

Used by `ingest --replace` (by source) and `forget` (by annotator or prompt). Every file is read, by the columns that
decide; only one that holds such rows is read whole and written anew. A quarantined record of a replaced source leaves
with it. When an annotator or a prompt is erased, every quarantined record stays, counted and with its line, but loses
its text: that can be half a line, another spelling, broken bytes, and no search of it could prove that it is clean.
"""

import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from urllib.parse import unquote

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pairwright.data.executor import Executor
from pairwright.data.extras import CONTEXT_FIELDS, EXTRA_FIELDS
from pairwright.data.id_index.id_index import write_indexed
from pairwright.data.ingest.parse import reason_key
from pairwright.data.ingest.shards import num_completions
from pairwright.data.table.manifest import IdIndex, IndexFile
from pairwright.data.table.table import DataFile, Manifest, Table
from pairwright.records import Annotation, Completion, Message, Rejection

_WORDS = frozenset(
    [field for record in (Annotation, Completion, Message) for field in record.__struct_fields__]
    + [*EXTRA_FIELDS, *CONTEXT_FIELDS, "object", "array", "str", "bool", "int", "float", "null"]
)
"""What a reason or a path may name without quoting a record: our own fields, and JSON's types."""
_QUOTE = re.compile(r"""`|(?<!\w)['"]""")
_PLAIN_PATH = re.compile(r"\$(\.\w+|\[-?\d*\]|\[\.\.\.\])*")


def folded(text: str) -> str:
    """Return what spellings of a name have in common: whatever their case, white space and Unicode form.

    Invisible characters (category Cf, such as a zero-width space) do not count.
    """
    if text.isascii():
        return " ".join(text.casefold().split())
    visible = unicodedata.normalize("NFKC", text.translate(_invisible()))
    return " ".join(unicodedata.normalize("NFKC", visible.casefold()).split())


@cache
def _invisible() -> dict[int, None]:
    every = range(sys.maxunicode + 1)
    return {code: None for code in every if unicodedata.category(chr(code)) == "Cf"}


def names_within(names: Iterable[str]) -> Callable[[str], bool]:
    """Return what tells whether a text holds one of some names as a word, in any spelling or percent-encoded."""
    words = [_whole_word(folded(name)) for name in names]

    def holds(text: str) -> bool:
        plain = folded(unquote(text) if "%" in text else text)
        return any(word.search(plain) for word in words)

    return holds


def _whole_word(text: str) -> re.Pattern[str]:
    before, after = (r"(?<!\w)" if text[:1].isalnum() else "", r"(?!\w)" if text[-1:].isalnum() else "")
    return re.compile(before + re.escape(text) + after)


class DeletePredicate(msgspec.Struct, frozen=True):
    """Which rows to delete: those that match any one of these."""

    sources: frozenset[str] = frozenset()
    annotators: frozenset[str] = frozenset()
    prompt_ids: frozenset[str] = frozenset()
    is_exact: bool = False
    """Whether annotators are compared to the letter, not by ``folded``."""

    @property
    def erases(self) -> bool:
        """Whether something is to be erased, so that no quarantined record may keep its text."""
        return bool(self.annotators or self.prompt_ids)

    def annotators_among(self, names: Iterable[str | None]) -> set[str]:
        """Return those of the names that are one of the annotators'."""
        spelled = self.annotators if self.is_exact else {folded(name) for name in self.annotators}
        return {name for name in names if name is not None and (name if self.is_exact else folded(name)) in spelled}

    def rows_of(self, keys: pa.Table) -> np.ndarray:
        """Return whether each row is to be removed, bool, shape (rows,); ``keys`` holds the columns that decide."""
        wanted = {"source": self.sources, "prompt_id": self.prompt_ids}
        if self.annotators:
            wanted["annotator"] = frozenset(self.annotators_among(keys.column("annotator").unique().to_pylist()))
        found = np.zeros(keys.num_rows, dtype=bool)
        for name, values in wanted.items():
            if values:
                options = pc.SetLookupOptions(value_set=pa.array(sorted(values), pa.string()))
                found |= pc.call_function("is_in", [keys.column(name)], options).to_numpy()
        return found

    @property
    def columns(self) -> list[str]:
        """The columns that decide."""
        named = {"source": self.sources, "annotator": self.annotators, "prompt_id": self.prompt_ids}
        return [name for name, values in named.items() if values]


class RewrittenFile(msgspec.Struct, frozen=True, kw_only=True):
    """What one file became."""

    path: str
    """The file that was read."""
    file: DataFile | None
    """What holds the rest: the same file where nothing matched, none where nothing was left."""
    index: IdIndex | None = None
    """Index of a new data file."""
    rows: dict[str, int] = {}
    """Source -> how many rows, or refused records, were removed."""
    names: dict[str, int] = {}
    """Annotator, as spelled -> how many rows were removed for the name."""
    completions: int = 0
    num_without_text: int = 0
    """Refused records that lost their text."""

    @property
    def is_changed(self) -> bool:
        """Whether anything of the file was to be removed."""
        return self.file is None or self.file.path != self.path


def rewrite_data_file(table: Table, file: DataFile, predicate: DeletePredicate) -> RewrittenFile:
    """Return a data file without the rows that a predicate matches; writes a new one if there are any.

    Raises:
        StoreError: if the file cannot be read, or a new one cannot be written.
    """
    matched = predicate.rows_of(table.read_file(file, predicate.columns))
    if not matched.any():
        return RewrittenFile(path=file.path, file=file)
    rows = table.read_file(file)
    gone, kept = rows.filter(pa.array(matched)), rows.filter(pa.array(~matched))
    names = Counter(gone.column("annotator").to_pylist())
    left, index = write_indexed(table, kept) if kept.num_rows else (None, None)
    return RewrittenFile(
        path=file.path,
        file=left,
        index=index,
        rows=dict(Counter(gone.column("source").to_pylist())),
        names={name: names[name] for name in sorted(predicate.annotators_among(names))},
        completions=num_completions(gone),
    )


def rewrite_quarantine_file(table: Table, file: DataFile, predicate: DeletePredicate) -> RewrittenFile:
    """Return a file of refused records without those of the predicate's sources, and without any text if it erases.

    Raises:
        StoreError: if the file cannot be read, or a new one cannot be written.
    """
    kept: list[Rejection] = []
    gone: Counter[str] = Counter()
    num_without_text = 0
    for refused in table.read_quarantined(file):
        if refused.source in predicate.sources:
            gone[refused.source] += 1
            continue
        kept.append(without_text(refused) if predicate.erases else refused)
        num_without_text += kept[-1] != refused
    if not gone and not num_without_text:
        return RewrittenFile(path=file.path, file=file)
    rest = table.write_quarantined(kept) if kept else None
    return RewrittenFile(path=file.path, file=rest, rows=dict(gone), num_without_text=num_without_text)


def without_text(refused: Rejection) -> Rejection:
    """Return what stays of a refused record: where it stood, and why it was refused in words of ours alone."""
    reason = reason_key(msgspec.structs.replace(refused, path="$"))
    quoted = reason.split("`")[1::2]
    if not _WORDS.issuperset(quoted) or len(_QUOTE.findall(reason)) != 2 * len(quoted):
        reason = f"{_QUOTE.split(reason)[0].rstrip()} ..."
    is_plain = _PLAIN_PATH.fullmatch(refused.path) and _WORDS.issuperset(re.findall(r"\.(\w+)", refused.path))
    return msgspec.structs.replace(refused, record="", reason=reason, path=refused.path if is_plain else "$")


@dataclass(frozen=True)
class RewrittenVersion:
    """A version's files without what a predicate matches, and how much that was."""

    files: list[DataFile]
    quarantined_files: list[DataFile]
    indexes: list[IdIndex]
    """Those of the version, then those of new files."""
    rows: dict[str, int]
    """Source -> rows that are gone."""
    completions: int
    num_refused: int
    """Refused records that are gone."""
    num_without_text: int
    """Refused records that are still there, without their text."""
    names: dict[str, int]
    """Annotator, as spelled -> rows that are gone for the name."""

    @property
    def num_rows(self) -> int:
        """How many rows are gone."""
        return sum(self.rows.values())


def rewritten_version(manifest: Manifest, rewritten: Iterable[RewrittenFile]) -> RewrittenVersion:
    """Return a version's files in order, each as it became; one that ``rewritten`` does not name stays as it is."""
    by_path = {each.path: each for each in rewritten}
    rows: Counter[str] = Counter()
    for file in manifest.files:
        if file.path in by_path:
            rows.update(by_path[file.path].rows)
    data = [by_path[file.path] for file in manifest.files if file.path in by_path]
    refused = [by_path[file.path] for file in manifest.quarantined_files if file.path in by_path]
    return RewrittenVersion(
        files=_left(manifest.files, by_path),
        quarantined_files=_left(manifest.quarantined_files, by_path),
        indexes=[*manifest.indexes, *(each.index for each in data if each.index is not None)],
        rows=dict(rows),
        completions=sum(each.completions for each in data),
        num_refused=sum(sum(each.rows.values()) for each in refused),
        num_without_text=sum(each.num_without_text for each in refused),
        names=dict(sum((Counter(each.names) for each in data), Counter[str]())),
    )


def _left(files: Sequence[DataFile], by_path: dict[str, RewrittenFile]) -> list[DataFile]:
    left = [by_path[file.path].file if file.path in by_path else file for file in files]
    return [file for file in left if file is not None]


class RowDeleter:
    """Deletes rows of the versions of one table.

    Called again on a newer version (another writer committed first) it reads only the files that are new there.
    """

    def __init__(self, table: Table, executor: Executor) -> None:
        self._table = table
        self._executor = executor
        self._found: dict[tuple[DeletePredicate, str], RewrittenFile] = {}

    def rewrite(
        self, manifest: Manifest, predicate: DeletePredicate, *, rows: bool = True, refused: bool = True
    ) -> RewrittenVersion:
        """Return a version's files without what a predicate matches.

        Args:
            manifest: the version.
            predicate: what is to leave it.
            rows: whether it can match rows of data files; where it cannot, they are not read.
            refused: whether it can match quarantined records.

        Raises:
            StoreError: if a file cannot be read or written.
        """
        data = self._rewrite(manifest.files if rows else [], predicate)
        kept = self._rewrite(manifest.quarantined_files if refused else [], predicate)
        return rewritten_version(manifest, [*data, *kept])

    def written(self) -> list[DataFile | IndexFile]:
        """Return every file that was written here."""
        changed = [each for each in self._found.values() if each.is_changed]
        indexed = [file for each in changed if each.index is not None for file in each.index.files]
        return [*(each.file for each in changed if each.file is not None), *indexed]

    def _rewrite(self, files: Sequence[DataFile], predicate: DeletePredicate) -> list[RewrittenFile]:
        table = self._table
        unseen = [file for file in files if (predicate, file.path) not in self._found]

        def work(file: DataFile) -> Iterator[RewrittenFile]:
            rewrite = rewrite_data_file if file.path.startswith("data/") else rewrite_quarantine_file
            yield rewrite(table, file, predicate)

        sizes = [file.bytes for file in unseen]
        for rewritten in self._executor.map_items(
            work, unseen, sizes, RewrittenFile, what="files searched for rows to delete"
        ):
            self._found[predicate, rewritten.path] = rewritten
        return [self._found[predicate, file.path] for file in files]
