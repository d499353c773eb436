"""Rows of databases, lakehouse tables, datasets and topics -> shards of JSON Lines in a table's ``landing/`` folder.

From there they are read like any other source, so that line numbers, refused text and repeats have one path. The price
is one more write of the text, gone when the ingestion ends. The tag is a sum of hashes over rows: the same rows in
another order, as databases give them, are the same source.
"""

import hashlib
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import obstore
import pyarrow as pa
from ray.exceptions import RayTaskError

from pairwright.addresses import without_credentials, without_secrets
from pairwright.cluster.external_sources import check_installed, encoder_for, read_place, secrets_of
from pairwright.cluster.session import ray_resources
from pairwright.config import IngestConfig
from pairwright.data.executor import Failures
from pairwright.data.ingest.sources.connection_urls import Place
from pairwright.data.ingest.sources.source import Shard, SourceRef
from pairwright.data.storage.object_store import open_store, store_errors
from pairwright.data.table.commit import staging_folder
from pairwright.data.table.table import Table
from pairwright.errors import PairwrightError
from pairwright.progress_bar import progress_bar

SHARD_BYTES = 32 * 1024 * 1024
ROWS_AT_ONCE = 512
_MODULUS = 1 << 128


@contextmanager
def staged_rows(
    places: Sequence[Place], table: Table, config: IngestConfig
) -> Iterator[tuple[list[SourceRef], Failures]]:
    """Write the rows of places into a folder of the table that lasts as long as the block.

    Yields:
        the sources that they are now, and those that could not be read, with the reason.

    Raises:
        ConfigError: if a client is not installed, or a setting is not in the environment.
        StoreError: if the table cannot be written.
    """
    for place in places:
        check_installed(place)
        secrets_of(place, config.reader)
    sources: list[SourceRef] = []
    failures: Failures = {}
    if not places:
        yield sources, failures
        return
    with staging_folder(table) as folder:
        for place in places:
            try:
                sources.append(_land(place, folder, config))
            except Exception as error:
                failures[place.uri] = _explained(error, place, secrets_of(place, config.reader))
        yield sources, failures


def _land(place: Place, folder: str, config: IngestConfig) -> SourceRef:
    write = _writer(folder, encoder_for(place))
    shards: list[Shard] = []
    tag = 0
    with progress_bar(f"shards landed of {place.uri}", total=None, resources=ray_resources) as advance:
        for rows in read_place(place, config):
            rows.context.execution_options.preserve_order = True
            for shard in rows.map_batches(write, batch_size=None, batch_format="pyarrow").iter_rows():
                tag = (tag + int(shard.pop("tag"), 16)) % _MODULUS
                shards.append(Shard(**shard))
                advance(1)
    return SourceRef(
        uri=place.uri,
        size=sum(shard.size for shard in shards),
        etag=f"rows:{tag:032x}",
        shards=tuple(shards),
        limits=config.limits,
    )


def _writer(folder: str, encode: Callable[[pa.RecordBatch], bytes]) -> Callable[[pa.Table], Iterator[dict[str, Any]]]:
    """Return what writes a block of rows as shards, in a task."""

    def write(block: pa.Table) -> Iterator[dict[str, Any]]:
        lines: list[bytes] = []
        for batch in block.to_batches(max_chunksize=ROWS_AT_ONCE):
            lines.append(encode(batch))
            if sum(map(len, lines)) >= SHARD_BYTES:
                yield _put(folder, b"".join(lines))
                lines.clear()
        if any(lines):
            yield _put(folder, b"".join(lines))

    return write


def _put(folder: str, text: bytes) -> dict[str, Any]:
    name = f"{uuid.uuid4().hex}.jsonl"
    with store_errors(folder):
        stored = obstore.put(open_store(folder), name, text)
    every = text.removesuffix(b"\n").split(b"\n")
    tag = sum(int.from_bytes(hashlib.blake2b(line, digest_size=16).digest(), "big") for line in every) % _MODULUS
    shard = {"uri": f"{folder}/{name}", "size": len(text), "etag": stored["e_tag"], "rows": len(every)}
    return {name: [value] for name, value in shard.items()} | {"tag": [f"{tag:x}"]}


def _explained(error: Exception, place: Place, secrets: Sequence[str]) -> str:
    """Return what a client, here or in a task, says went wrong: one line without secrets."""
    while isinstance(error, RayTaskError) and isinstance(error.cause, Exception):
        error = error.cause
    if isinstance(error, PairwrightError):
        return str(error).removeprefix(f"{place.uri}: ")
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
    return f"cannot be read: {without_secrets(without_credentials(said), secrets)}"
