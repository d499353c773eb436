"""Writes the rows of external sources as JSON Lines files into a table's ``staging/`` folder.

From there they are read like any other source, so that line numbers, quarantined text and duplicates are handled in
one way. The price is one more write of the text, deleted when the ingestion ends.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
from ray.exceptions import RayTaskError

from pairwright.addresses import without_credentials, without_secrets
from pairwright.cluster.external_sources import check_installed, encoder_for, read_external, secrets_of
from pairwright.cluster.session import ray_resources
from pairwright.config import IngestConfig
from pairwright.data.executor import Failures
from pairwright.data.ingest.sources.connection_urls import ExternalSource
from pairwright.data.ingest.sources.source import SourceRef
from pairwright.data.ingest.sources.staged_rows import SHARD_BYTES, put_lines, staged_source
from pairwright.data.table.commit import staging_folder
from pairwright.data.table.table import Table
from pairwright.errors import PairwrightError
from pairwright.progress_bar import progress_bar

ROWS_AT_ONCE = 512


@contextmanager
def staged_rows(
    sources: Sequence[ExternalSource], table: Table, config: IngestConfig
) -> Iterator[tuple[list[SourceRef], Failures]]:
    """Write the rows of external sources into a staging folder of the table, deleted at the end of the block.

    Yields:
        the sources that they are now, and those that could not be read, with the reason.

    Raises:
        ConfigError: if a client is not installed, or a setting is not in the environment.
        StoreError: if the table cannot be written.
    """
    for source in sources:
        check_installed(source)
        secrets_of(source, config.connectors)
    staged: list[SourceRef] = []
    failures: Failures = {}
    if not sources:
        yield staged, failures
        return
    with staging_folder(table) as folder:
        for source in sources:
            try:
                staged.append(_stage(source, folder, config))
            except Exception as error:
                failures[source.uri] = _explained(error, source, secrets_of(source, config.connectors))
        yield staged, failures


def _stage(source: ExternalSource, folder: str, config: IngestConfig) -> SourceRef:
    write = _writer(folder, encoder_for(source))
    files: list[dict[str, Any]] = []
    with progress_bar(f"files staged of {source.uri}", total=None, resources=ray_resources) as advance:
        for rows in read_external(source, config):
            rows.context.execution_options.preserve_order = True
            for file in rows.map_batches(write, batch_size=None, batch_format="pyarrow").iter_rows():
                files.append(file)
                advance(1)
    return staged_source(source, files, config)


def _writer(folder: str, encode: Callable[[pa.RecordBatch], bytes]) -> Callable[[pa.Table], Iterator[dict[str, Any]]]:
    """Return the function that writes a block of rows as files, in a task."""

    def write(block: pa.Table) -> Iterator[dict[str, Any]]:
        lines: list[bytes] = []
        for batch in block.to_batches(max_chunksize=ROWS_AT_ONCE):
            lines.append(encode(batch))
            if sum(map(len, lines)) >= SHARD_BYTES:
                yield _columns(put_lines(folder, b"".join(lines)))
                lines.clear()
        if any(lines):
            yield _columns(put_lines(folder, b"".join(lines)))

    return write


def _columns(file: dict[str, Any]) -> dict[str, Any]:
    return {name: [value] for name, value in file.items()}


def _explained(error: Exception, source: ExternalSource, secrets: Sequence[str]) -> str:
    """Return what a client, here or in a task, says went wrong: one line without secrets."""
    while isinstance(error, RayTaskError) and isinstance(error.cause, Exception):
        error = error.cause
    if isinstance(error, PairwrightError):
        return str(error).removeprefix(f"{source.uri}: ")
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
    return f"cannot be read: {without_secrets(without_credentials(said), secrets)}"
