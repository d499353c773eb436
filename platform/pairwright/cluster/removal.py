"""The pass that takes rows out of a table: the files of a version in -> what each of them became.

Asked again on a newer version (another writer committed first) it reads only what is new there.
"""

from collections.abc import Iterator, Sequence

from pairwright.cluster.sized import sized_pass
from pairwright.data.table.delete_rows import Removal, Thinned, Thinner, thin_data, thin_refused, thinner
from pairwright.data.table.table import DataFile, Manifest, Table


class Remover:
    """Takes rows out of the versions of one table, and keeps what it found for the next version."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._found: dict[tuple[Removal, str], Thinned] = {}

    def thin(self, manifest: Manifest, removal: Removal, *, rows: bool = True, refused: bool = True) -> Thinner:
        """Return a version's files without what a removal matches.

        Args:
            manifest: the version.
            removal: what is to leave it.
            rows: whether it can stand in data files; where it cannot, they are not read.
            refused: whether it can stand in files of refused records.

        Raises:
            StoreError: if a file cannot be read or written.
        """
        data = self._pass(manifest.files if rows else [], removal)
        kept = self._pass(manifest.refused_files if refused else [], removal)
        return thinner(manifest, [*data, *kept])

    def written(self) -> list[DataFile]:
        """Return every file that was written here."""
        return [each.file for each in self._found.values() if each.is_changed and each.file is not None]

    def _pass(self, files: Sequence[DataFile], removal: Removal) -> list[Thinned]:
        table = self._table
        unseen = [file for file in files if (removal, file.path) not in self._found]

        def work(file: DataFile) -> Iterator[Thinned]:
            thin = thin_data if file.path.startswith("data/") else thin_refused
            yield thin(table, file, removal)

        sizes = [file.bytes for file in unseen]
        for thinned in sized_pass(work, unseen, sizes, Thinned, what="files searched for rows to remove"):
            self._found[removal, thinned.path] = thinned
        return [self._found[removal, file.path] for file in files]
