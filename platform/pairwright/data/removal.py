"""Rows that are to leave a table: what they have in common, and a file in -> the file without them, out.

One way out for `ingest --replace` (by source) and `forget` (by annotator or prompt). Every file is read, by the columns
that decide; only one that holds such rows is read whole and written anew. A refused record of a replaced source leaves
with it. One whose text holds a forgotten annotator or prompt stays, counted and with its line, and loses the text.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import pyarrow as pa

from pairwright.data.mentions import Mentions, prompt_texts, without_text
from pairwright.data.parts import num_completions
from pairwright.data.store import DataFile, Manifest, Table
from pairwright.records import Rejection


class Removal(msgspec.Struct, frozen=True):
    """What the rows to remove have in common: any one of these."""

    sources: frozenset[str] = frozenset()
    annotators: frozenset[str] = frozenset()
    prompt_ids: frozenset[str] = frozenset()
    prompts: tuple[tuple[str, ...], ...] = ()
    """Normalised turns of the prompts, as far as they are known, to find them in refused records."""

    def rows_of(self, table: Table, file: DataFile) -> np.ndarray:
        """Return whether each row of a data file is to be removed, bool, shape (rows,)."""
        wanted = {"source": self.sources, "annotator": self.annotators, "prompt_id": self.prompt_ids}
        asked = {name: values for name, values in wanted.items() if values}
        found = np.zeros(file.rows, dtype=bool)
        keys = table.read_file(file, list(asked))
        for name, values in asked.items():
            found |= np.fromiter((value in values for value in keys.column(name).to_pylist()), bool, file.rows)
        return found


class Thinned(msgspec.Struct, frozen=True, kw_only=True):
    """What one file became."""

    path: str
    """The file that was read."""
    file: DataFile | None
    """What holds the rest: the same file where nothing matched, none where nothing was left."""
    rows: dict[str, int] = {}
    """Source -> how many rows, or refused records, were removed."""
    completions: int = 0
    num_without_text: int = 0
    """Refused records that lost their text."""
    prompts: list[tuple[str, ...]] = []
    """Prompts of the removed rows, where prompts are what is removed."""

    @property
    def is_changed(self) -> bool:
        """Whether anything of the file was to be removed."""
        return self.file is None or self.file.path != self.path


def thin_data(table: Table, file: DataFile, removal: Removal) -> Thinned:
    """Return a data file without the rows that a removal matches; writes a new one if there are any.

    Raises:
        StoreError: if the file cannot be read, or a new one cannot be written.
    """
    matched = removal.rows_of(table, file)
    if not matched.any():
        return Thinned(path=file.path, file=file)
    rows = table.read_file(file)
    gone, kept = rows.filter(pa.array(matched)), rows.filter(pa.array(~matched))
    prompts = zip(gone.column("prompt_id").to_pylist(), gone.column("prompt").to_pylist(), strict=True)
    return Thinned(
        path=file.path,
        file=table.write_data(kept) if kept.num_rows else None,
        rows=dict(Counter(gone.column("source").to_pylist())),
        completions=num_completions(gone),
        prompts=sorted({prompt_texts(turns) for name, turns in prompts if name in removal.prompt_ids}),
    )


def thin_refused(table: Table, file: DataFile, removal: Removal) -> Thinned:
    """Return a file of refused records without those of a removal's sources, and without the text of other matches.

    Raises:
        StoreError: if the file cannot be read, or a new one cannot be written.
    """
    mentions = Mentions(removal.annotators, removal.prompt_ids, removal.prompts)
    kept: list[Rejection] = []
    gone: Counter[str] = Counter()
    num_without_text = 0
    for refused in table.read_refused(file):
        if refused.source in removal.sources:
            gone[refused.source] += 1
        elif mentions.in_refused(refused):
            kept.append(without_text(refused, mentions))
            num_without_text += 1
        else:
            kept.append(refused)
    if not gone and not num_without_text:
        return Thinned(path=file.path, file=file)
    rest = table.write_refused(kept) if kept else None
    return Thinned(path=file.path, file=rest, rows=dict(gone), num_without_text=num_without_text)


@dataclass(frozen=True)
class Thinner:
    """A version's files without what a removal matches, and how much that was."""

    files: list[DataFile]
    refused_files: list[DataFile]
    rows: dict[str, int]
    """Source -> rows that are gone."""
    completions: int
    num_refused: int
    """Refused records that are gone."""
    num_without_text: int
    """Refused records that are still there, without their text."""
    prompts: tuple[tuple[str, ...], ...]
    """Prompts of the rows that are gone, where prompts were asked for."""

    @property
    def num_rows(self) -> int:
        """How many rows are gone."""
        return sum(self.rows.values())


def thinner(manifest: Manifest, thinned: Iterable[Thinned]) -> Thinner:
    """Return a version's files in order, each as it became; one that ``thinned`` does not name stays as it is."""
    by_path = {each.path: each for each in thinned}
    rows: Counter[str] = Counter()
    for file in manifest.files:
        if file.path in by_path:
            rows.update(by_path[file.path].rows)
    data = [by_path[file.path] for file in manifest.files if file.path in by_path]
    refused = [by_path[file.path] for file in manifest.refused_files if file.path in by_path]
    return Thinner(
        files=_left(manifest.files, by_path),
        refused_files=_left(manifest.refused_files, by_path),
        rows=dict(rows),
        completions=sum(each.completions for each in data),
        num_refused=sum(sum(each.rows.values()) for each in refused),
        num_without_text=sum(each.num_without_text for each in refused),
        prompts=tuple(sorted({prompt for each in data for prompt in each.prompts})),
    )


def _left(files: Sequence[DataFile], by_path: dict[str, Thinned]) -> list[DataFile]:
    left = [by_path[file.path].file if file.path in by_path else file for file in files]
    return [file for file in left if file is not None]
