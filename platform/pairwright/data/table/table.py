"""Versioned tables: immutable Arrow files under a URL, and manifests that list them.

A version is a manifest, and it exists once its file does: creating ``versions/00000042.json`` with put-if-absent is
the commit, on every backend. So a reader sees all of a version or nothing, and of two writers at once one wins and
the other retries on top of it. The price is a full list of files in each manifest (about 200 bytes a file), and files
of a writer that died stay behind unnamed until `vacuum` removes them.
"""

import hashlib
import random
import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import obstore
import pyarrow as pa
from obstore.exceptions import AlreadyExistsError

from pairwright import __version__
from pairwright.data.storage.durable_writes import create_file, sync_files
from pairwright.data.storage.object_store import ObjectStore, absolute_url, local_root, open_store, store_errors
from pairwright.data.storage.ownership import INDEX, OLD_NAMES, QUARANTINE, TABLE, delete_files, refuse_occupied
from pairwright.data.table.arrow_io import REPAIR, SCHEMAS, check_types, in_schema, ipc_bytes, verify
from pairwright.data.table.manifest import FORMAT_VERSION, DataFile, IndexFile, Input, Manifest, Source
from pairwright.data.table.table_errors import no_table_message, no_version_message, wrong_kind_message
from pairwright.errors import CommitConflict, StoreError
from pairwright.records import UNREADABLE_JSON, Rejection
from pairwright.terminal import counted, safe_json

__all__ = ["SCHEMAS", "DataFile", "Input", "Manifest", "Source", "Table", "ipc_bytes", "open_store", "version_path"]

MAX_COMMIT_ATTEMPTS = 200
MAX_PATHS_ASKED = 16
"""New files that are asked for one by one before a commit; for more, all of a remote table's files are listed."""

REMOVED = b'{"removed by": "pairwright vacuum"}\n'
"""Content of the manifest file of a version that was removed; its length tells it from every manifest."""
_VERSION_PATH = re.compile(r"^versions/(\d{8,})\.json$")
_FILE_PATH = re.compile(rf"(data|{QUARANTINE}|{OLD_NAMES[QUARANTINE]})/[^/\\]+|{INDEX}/[0-9a-f]{{32}}\.ids")


class Table:
    """A table at a URL, there already or to be created by the first commit.

    Holds only ``url`` and ``kind`` as state, so that it travels into Ray tasks; the connection is opened where used.
    """

    def __init__(self, url: str, kind: str) -> None:
        assert kind in SCHEMAS, kind
        self.url = absolute_url(url)
        self.kind = kind

    def __getstate__(self) -> tuple[str, str]:
        return self.url, self.kind

    def __setstate__(self, state: tuple[str, str]) -> None:
        self.url, self.kind = state

    def __repr__(self) -> str:
        return f"Table({self.url!r}, {self.kind!r})"

    @cached_property
    def _store(self) -> ObjectStore:
        return open_store(self.url)

    @classmethod
    def open(cls, url: str, kind: str | None = None) -> "Table":
        """Return the table at a URL.

        Raises:
            StoreError: if there is no table, or one of another kind; says what is there and which verb makes one.
        """
        table = cls(url, kind or "annotations")
        manifest = table.latest()
        if manifest is None:
            raise StoreError(no_table_message(url, kind))
        if kind is not None and manifest.kind != kind:
            raise StoreError(wrong_kind_message(url, manifest.kind, kind))
        return cls(url, manifest.kind)

    @classmethod
    def claim(cls, url: str, kind: str) -> "Table":
        """Return the table at a URL, there already or to be created by the first commit; asked before work starts.

        Raises:
            StoreError: if there is a table of another kind, or anything else that a new table would lie among.
        """
        table = cls(url, kind)
        if table.versions():
            return cls.open(url, kind)
        refuse_occupied(url, TABLE, advice=f"give the table a folder of its own, such as {url.rstrip('/')}/{kind}")
        return table

    def versions(self) -> list[int]:
        """Return the numbers of the versions that can be read, oldest first; empty where there is no table yet."""
        return [number for number, size in self._numbers().items() if size]

    def removed_versions(self) -> list[int]:
        """Return the numbers of the versions that `vacuum` removed, oldest first."""
        return [number for number, size in self._numbers().items() if not size]

    def _numbers(self) -> dict[int, int]:
        """Return the bytes of each version's manifest by number, oldest first; 0 where the version was removed.

        Raises:
            StoreError: if the newest is empty: a vacuum never removes that one, so a power cut or a full disk did it.
        """
        root = local_root(self.url)
        if root is not None and not root.is_dir():
            return {}
        with store_errors(f"{self.url}/versions"):
            found = [entry for chunk in obstore.list(self._store, prefix="versions") for entry in chunk]
        matches = [(_VERSION_PATH.match(entry["path"]), entry["size"]) for entry in found]
        sizes = dict(sorted((int(match[1]), size) for match, size in matches if match))
        if sizes and sizes[max(sizes)] == 0:
            raise StoreError(_empty_manifest(self.url, max(sizes), sizes))
        return {number: 0 if size == len(REMOVED) else size for number, size in sizes.items()}

    def latest(self) -> Manifest | None:
        """Return the newest version, or None where there is no table yet."""
        versions = self.versions()
        return self._read_manifest(versions[-1]) if versions else None

    def manifest(self, version: int | None = None) -> Manifest:
        """Return one version, the newest by default.

        Raises:
            StoreError: if there is no such version; names those that there are.
        """
        versions = self.versions()
        if not versions or (version is not None and version not in versions):
            raise StoreError(no_version_message(self.url, version, versions, self.removed_versions()))
        return self._read_manifest(versions[-1] if version is None else version)

    def commit(
        self, build: Callable[[Manifest | None], Manifest | None], *, max_attempts: int = MAX_COMMIT_ATTEMPTS
    ) -> Manifest | None:
        """Make what ``build`` returns the next version, and return it as committed.

        ``build`` gets the newest version and is called again, on the newer one, when another writer was first; it
        returns None when there is nothing to do, and then nothing is written.

        Raises:
            StoreError: if the table holds another kind, or a file that would be named has been removed meanwhile.
            CommitConflict: if other writers were first ``max_attempts`` times in a row.
        """
        commit_id = uuid.uuid4().hex
        for attempt in range(max_attempts):
            newest = self.latest()
            if newest is not None and newest.kind != self.kind:
                raise StoreError(wrong_kind_message(self.url, newest.kind, self.kind))
            proposed = build(newest)
            if proposed is None:
                return None
            assert proposed.kind == self.kind, proposed.kind
            manifest = _stamped(proposed, newest, commit_id)
            self._check_written(manifest, newest)
            if self._create_version(manifest):
                return manifest
            time.sleep(random.uniform(0, min(0.01 * 2**attempt, 1.0)))  # noqa: S311 (a pause, not a secret)
        raise CommitConflict(
            f"{self.url}: other writers took the next version {max_attempts} times in a row; nothing was "
            "committed; run the command again when fewer writers are at work"
        )

    def write_data(self, table: pa.Table, *, compress: bool = True) -> DataFile:
        """Write a new data file in this kind's schema, 256 rows a batch; no version names it yet.

        Args:
            table: rows in this kind's schema.
            compress: zstd; False where files get memory-mapped for random reads (3 us a row against 1-3 ms).
        """
        payload = ipc_bytes(table, self.kind, compress=compress)
        return self._put_new("data", "arrow", payload, table.num_rows)

    def write_quarantined(self, rejections: Sequence[Rejection]) -> DataFile:
        """Write a new file of refused records, one JSON line each; no version names it yet."""
        payload = msgspec.json.Encoder().encode_lines(rejections)
        return self._put_new(QUARANTINE, "jsonl", payload, len(rejections))

    def delete(self, files: Iterable[DataFile | IndexFile]) -> None:
        """Delete files that no version names; one that is gone already is no error."""
        delete_files(self.url, [file.path for file in files], TABLE)

    def read_file(self, file: DataFile, columns: Sequence[str] | None = None) -> pa.Table:
        """Return a data file's rows; a local uncompressed file is memory-mapped, without a copy.

        Raises:
            StoreError: if the file is missing, or is not the one that was written (size and SHA-256 are checked).
        """
        buffer = self._buffer(file)
        verify(buffer, file, f"{self.url}/{file.path}")
        return self._decoded(buffer, file, columns)

    def read_unverified(self, file: DataFile, columns: Sequence[str]) -> pa.Table:
        """Return columns of a data file as they are found: for what a later ``read_file`` of the same file confirms.

        Raises:
            StoreError: if the file is missing, or so damaged that it cannot be read.
        """
        return self._decoded(self._buffer(file), file, columns)

    def _decoded(self, buffer: pa.Buffer, file: DataFile, columns: Sequence[str] | None) -> pa.Table:
        try:
            names = pa.ipc.open_file(buffer).schema.names
            kept = None if columns is None else [names.index(name) for name in columns if name in names]
            options = pa.ipc.IpcReadOptions(included_fields=kept)
            table = pa.ipc.open_file(buffer, options=options).read_all()
        except (pa.ArrowInvalid, OSError) as error:
            verify(buffer, file, f"{self.url}/{file.path}")
            raise StoreError(f"{self.url}/{file.path}: not an Arrow file: {error}; {REPAIR}") from None
        check_types(table.schema, self.kind, f"{self.url}/{file.path}")
        if table.num_rows != file.rows:
            raise StoreError(
                f"{self.url}/{file.path}: has {counted(table.num_rows, 'row')}, expected {file.rows:,}; {REPAIR}"
            )
        try:
            return in_schema(table, SCHEMAS[self.kind], columns)
        except KeyError as error:
            raise StoreError(f"{self.url}/{file.path}: column {error} is missing; {REPAIR}") from None

    def read(self, manifest: Manifest, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Yield the rows of a version, one table a file."""
        for file in manifest.files:
            yield self.read_file(file, columns)

    def read_quarantined(self, file: DataFile) -> list[Rejection]:
        """Return the refused records of one file.

        Raises:
            StoreError: if the file is missing, or is not the one that was written.
        """
        buffer = self._buffer(file)
        verify(buffer, file, f"{self.url}/{file.path}")
        return [msgspec.json.decode(line, type=Rejection) for line in buffer.to_pybytes().split(b"\n") if line]

    def local_path(self, file: DataFile) -> Path | None:
        """Return where a file lies on this machine's disks, or None for a remote table."""
        root = local_root(self.url)
        return None if root is None else root / file.path

    def _put_new(self, folder: str, ending: str, payload: pa.Buffer | bytes, rows: int) -> DataFile:
        path = f"{folder}/{uuid.uuid4().hex}.{ending}"
        view = memoryview(payload).cast("B")
        with store_errors(f"{self.url}/{path}"):
            obstore.put(self._store, path, view)
        return DataFile(path=path, rows=rows, bytes=view.nbytes, sha256=hashlib.sha256(view).hexdigest())

    def _check_written(self, manifest: Manifest, newest: Manifest | None) -> None:
        """Refuse to name a file that something (a vacuum that took its writer for dead) removed before the commit."""
        added = manifest.paths - (newest.paths if newest else set())
        there = added and set(self._existing(added))
        if gone := sorted(added - there):
            raise StoreError(
                f"{self.url}/{gone[0]}: was removed before it was committed, perhaps by `pairwright vacuum` with "
                "a short --retention; nothing was committed; run the command again"
            )
        if (root := local_root(self.url)) is not None:
            with store_errors(self.url):
                sync_files(root, added)

    def _existing(self, paths: set[str]) -> Iterator[str]:
        root = local_root(self.url)
        if root is not None:
            yield from (path for path in paths if (root / path).is_file())
            return
        if len(paths) <= MAX_PATHS_ASKED:
            yield from (path for path in paths if self._is_object(path))
            return
        for folder in sorted({path.partition("/")[0] for path in paths}):
            with store_errors(f"{self.url}/{folder}"):
                yield from (entry["path"] for chunk in obstore.list(self._store, prefix=folder) for entry in chunk)

    def _is_object(self, path: str) -> bool:
        try:
            with store_errors(f"{self.url}/{path}"):
                obstore.head(self._store, path)
        except FileNotFoundError:
            return False
        return True

    def _create_version(self, manifest: Manifest) -> bool:
        path = version_path(manifest.version)
        payload = safe_json(msgspec.json.format(msgspec.json.encode(manifest), indent=2).decode()).encode()
        root = local_root(self.url)
        try:
            with store_errors(f"{self.url}/{path}"):
                if root is None:
                    obstore.put(self._store, path, payload, mode="create")
                else:
                    create_file(root / path, payload)
        except (AlreadyExistsError, FileExistsError):
            # Ours all the same, if an answer was lost on the way and the client sent the request again.
            return self._holder(manifest.version) == manifest.commit_id
        return True

    def _holder(self, version: int) -> str | None:
        """Return the commit that a version came from; None where S3 says "being written" and it is not there yet."""
        if version not in self.versions():
            return None
        return self._read_manifest(version).commit_id

    def _read_manifest(self, version: int) -> Manifest:
        path = version_path(version)
        where = f"{self.url}/{path}"
        payload = b""
        try:
            with store_errors(where):
                payload = obstore.get(self._store, path).bytes().to_bytes()
            head = msgspec.json.decode(payload, type=dict[str, Any])
            if head.get("format_version") != FORMAT_VERSION:
                raise StoreError(
                    f"{where}: format_version is {head.get('format_version')}, this Pairwright reads {FORMAT_VERSION}; "
                    "read it with the Pairwright that wrote it, or a newer one"
                )
            return _checked(msgspec.convert(head, Manifest), version, where)
        except FileNotFoundError:
            raise StoreError(f"{where}: version {version} was removed while it was being read") from None
        except UNREADABLE_JSON as error:
            raise StoreError(f"{where}: not a manifest: {error}; {_remedy(payload)}") from None

    def _buffer(self, file: DataFile) -> pa.Buffer:
        path = self.local_path(file)
        try:
            if path is not None:
                with pa.memory_map(str(path)) as mapped:
                    return mapped.read_buffer()
            with store_errors(f"{self.url}/{file.path}"):
                return pa.py_buffer(obstore.get(self._store, file.path).bytes())
        except FileNotFoundError:
            raise StoreError(f"{self.url}/{file.path}: the file is missing; {REPAIR}") from None


def _remedy(payload: bytes) -> str:
    if b'"refused_files"' in payload:  # its name before November 2026
        return "an unreleased Pairwright wrote this table: make it again from its sources under another URL"
    return "read an older one with --version"


def _empty_manifest(url: str, version: int, sizes: Mapping[int, int]) -> str:
    path = version_path(version)
    older = [number for number, size in sizes.items() if size not in (0, len(REMOVED))]
    remedy = (
        f"to go back to version {older[-1]}, remove that file, and bring in again what came after it"
        if older
        else "no older version is left: remove the folder and make the table again"
    )
    return f"{url}/{path}: damaged: an empty file, as a power cut or a full disk leaves one; restore it, or {remedy}"


def _checked(manifest: Manifest, version: int, where: str) -> Manifest:
    """Return a manifest that says what one of this version can say, and whose files lie in the table's own folders.

    Raises:
        StoreError: naming what it cannot say.
    """
    strange = sorted(path for path in manifest.paths if not _FILE_PATH.fullmatch(path))
    if strange:
        raise StoreError(f"{where}: names the file {strange[0]!r}, which is no file of a table; {REPAIR}")
    if manifest.kind not in SCHEMAS:
        raise StoreError(f"{where}: kind is {manifest.kind!r}, expected one of {', '.join(SCHEMAS)}; {REPAIR}")
    if manifest.version != version:
        raise StoreError(f"{where}: says that it is version {manifest.version}; {REPAIR}")
    try:
        datetime.fromisoformat(manifest.created_at).astimezone(UTC)
    except (ValueError, OverflowError):
        raise StoreError(f"{where}: created_at is {manifest.created_at!r}, expected a time; {REPAIR}") from None
    return manifest


def version_path(version: int) -> str:
    """Return where a version's manifest lies, relative to the table's URL."""
    return f"versions/{version:08d}.json"


def _stamped(proposed: Manifest, newest: Manifest | None, commit_id: str) -> Manifest:
    return msgspec.structs.replace(
        proposed,
        version=1 if newest is None else newest.version + 1,
        parent=None if newest is None else newest.version,
        created_at=datetime.now(UTC).isoformat(timespec="microseconds"),
        code_version=__version__,
        commit_id=commit_id,
    )
