"""Rows of external sources as JSON Lines files in a staging folder, from where they are read like any other source.

The etag is a sum of hashes over rows: the same rows in another order, as databases return them, are the same source.
SQLite files are staged in this process; everything else by ``cluster/stage_external.py``, with the same functions.
"""

import hashlib
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import obstore

from pairwright.config import IngestConfig
from pairwright.data.executor import Failures
from pairwright.data.ingest.sources.connection_urls import ExternalSource
from pairwright.data.ingest.sources.database_rows import query_lines
from pairwright.data.ingest.sources.source import SourceRef, StagedFile
from pairwright.data.storage.object_store import open_store, store_errors
from pairwright.data.table.commit import staging_folder
from pairwright.data.table.table import Table
from pairwright.errors import PairwrightError
from pairwright.progress_bar import note_progress, progress_bar

SHARD_BYTES = 32 * 1024 * 1024
_MODULUS = 1 << 128


@contextmanager
def staged_databases(
    sources: Sequence[ExternalSource], table: Table, config: IngestConfig
) -> Iterator[tuple[list[SourceRef], Failures]]:
    """Write the rows of SQLite files into a staging folder of the table, deleted at the end of the block.

    Yields:
        the sources that they are now, and those that could not be read, with the reason.

    Raises:
        StoreError: if the table cannot be written.
    """
    staged: list[SourceRef] = []
    failures: Failures = {}
    if not sources:
        yield staged, failures
        return
    with staging_folder(table) as folder:
        for source in sources:
            try:
                with progress_bar(f"databases read: {source.uri}", total=None):
                    staged.append(_staged(source, folder, config))
            except PairwrightError as error:
                failures[source.uri] = str(error).removeprefix(f"{source.uri}: ")
            except Exception as error:  # whatever SQLite raises
                failures[source.uri] = f"cannot be read: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
        yield staged, failures


def _staged(source: ExternalSource, folder: str, config: IngestConfig) -> SourceRef:
    files: list[dict[str, Any]] = []
    lines: list[bytes] = []
    num_bytes = 0
    for some in query_lines(source, config):
        lines += some
        size = sum(map(len, some))
        num_bytes += size
        note_progress(len(some), size)
        if num_bytes >= SHARD_BYTES:
            files.append(put_lines(folder, b"".join(lines)))
            lines, num_bytes = [], 0
    if lines:
        files.append(put_lines(folder, b"".join(lines)))
    return staged_source(source, files, config)


def put_lines(folder: str, text: bytes) -> dict[str, Any]:
    """Write lines as one staged file; return its fields, and the sum of hashes of its lines as ``tag``.

    Raises:
        StoreError: if the folder cannot be written.
    """
    name = f"{uuid.uuid4().hex}.jsonl"
    with store_errors(folder):
        stored = obstore.put(open_store(folder), name, text)
    every = text.removesuffix(b"\n").split(b"\n")
    tag = sum(int.from_bytes(hashlib.blake2b(line, digest_size=16).digest(), "big") for line in every) % _MODULUS
    return {
        "uri": f"{folder}/{name}",
        "size": len(text),
        "etag": stored["e_tag"],
        "rows": len(every),
        "tag": f"{tag:x}",
    }


def staged_source(source: ExternalSource, files: Sequence[dict[str, Any]], config: IngestConfig) -> SourceRef:
    """Return the source that staged files are, in their order."""
    tag = sum(int(file["tag"], 16) for file in files) % _MODULUS
    staged = [StagedFile(**{name: value for name, value in file.items() if name != "tag"}) for file in files]
    return SourceRef(
        uri=source.uri,
        size=sum(file.size for file in staged),
        etag=f"rows:{tag:032x}",
        staged_files=tuple(staged),
        limits=config.limits,
    )
