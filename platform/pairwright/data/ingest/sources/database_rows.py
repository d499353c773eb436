"""Reads SQLite and PostgreSQL queries as lines of JSON, read-only and within limits on time and memory.

Ray's own ``read_sql`` fetches all rows at once and commits what the query did. Here a query runs in a read-only
transaction that is rolled back. Rows come through a cursor, in batches of about 2 MB.
"""

import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from pairwright.config import IngestConfig
from pairwright.data.ingest.decoders.arrow_rows import encode_records, values_of
from pairwright.data.ingest.sources.connection_urls import ExternalSource, select_all
from pairwright.data.ingest.sources.source_bytes import FREE_TEXT_BYTES, READ_BYTES
from pairwright.errors import SourceError

ROWS_AT_ONCE = 512
_CURSOR = "pairwright"
_STEPS_BETWEEN_CHECKS = 10_000
_READS = frozenset({sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE})
_ACTING_FUNCTIONS = frozenset({"load_extension", "fts3_tokenizer", "writefile", "edit", "eval"})


def query_lines(source: ExternalSource, config: IngestConfig) -> Iterator[list[bytes]]:
    """Yield the rows of a query as lines of JSON, some at a time.

    Raises:
        SourceError: if they are too many or too long, or take too long.
        Exception: whatever the client raises.
    """
    deadline = time.monotonic() + config.connectors.statement_timeout_seconds
    with (_sqlite if source.kind == "sqlite" else _postgresql)(source, config, deadline) as cursor:
        names = [column[0] for column in cursor.description]
        num_bytes, num_rows = 0, 1
        while rows := cursor.fetchmany(num_rows):
            lines = _encoded(names, rows)
            size = sum(map(len, lines))
            num_bytes += size
            num_rows = max(1, min(ROWS_AT_ONCE, 2 * num_rows, READ_BYTES * len(rows) // max(1, size)))
            _check(source, config, num_bytes, deadline)
            yield lines


def _check(source: ExternalSource, config: IngestConfig, num_bytes: int, deadline: float) -> None:
    if time.monotonic() > deadline:
        raise SourceError(
            f"{source.uri}: its query has not ended after {config.connectors.statement_timeout_seconds:,} s; "
            "ask for less, or set connectors.statement_timeout_seconds"
        )
    if source.kind != "sqlite":
        return
    stored = Path(source.address).stat().st_size
    if num_bytes > max(FREE_TEXT_BYTES, config.limits.max_text_ratio * stored):
        raise SourceError(
            f"{source.uri}: {stored:,} stored bytes give more than {num_bytes:,} bytes of text, expected at most "
            f"{config.limits.max_text_ratio:,} times as many; ask for less, or set limits.max_text_ratio"
        )


def _encoded(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[bytes]:
    """Return each row as a line; rows whose types differ are put into Arrow one by one."""
    try:
        columns = [pa.array(column) for column in zip(*rows, strict=True)]
    except pa.ArrowException:
        if len(rows) == 1:
            raise
        return [line for row in rows for line in _encoded(names, [row])]
    cells = [values_of(column) for column in columns]
    records = [
        {name: value for name, value in zip(names, row, strict=True) if value is not None}
        for row in zip(*cells, strict=True)
    ]
    return encode_records(records).splitlines(keepends=True)


# ----------------------------------------------------------------------------------------------- clients


@contextmanager
def _sqlite(source: ExternalSource, config: IngestConfig, deadline: float) -> Iterator[sqlite3.Cursor]:
    """Yield a cursor with the query's rows, on a connection that can only read this one file."""
    connection = sqlite3.connect(f"{Path(source.address).as_uri()}?mode=ro", uri=True)
    try:
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("PRAGMA cell_size_check = ON")
        connection.execute("PRAGMA temp_store = MEMORY")
        connection.execute(f"PRAGMA hard_heap_limit = {config.connectors.query_memory_bytes}")
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, config.limits.max_record_bytes)
        connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
        connection.setlimit(sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, 1000)
        connection.set_authorizer(_may_read)
        connection.set_progress_handler(lambda: time.monotonic() > deadline, _STEPS_BETWEEN_CHECKS)
        with _explained(source, config, deadline):
            yield connection.execute(select_all(source))
    finally:
        connection.close()


def _may_read(action: int, first: str | None, second: str | None, *_: str | None) -> int:
    if action == sqlite3.SQLITE_FUNCTION and (second or "").lower() in _ACTING_FUNCTIONS:
        return sqlite3.SQLITE_DENY
    return sqlite3.SQLITE_OK if action in _READS else sqlite3.SQLITE_DENY


@contextmanager
def _explained(source: ExternalSource, config: IngestConfig, deadline: float) -> Iterator[None]:
    """Say which limit a query met, where SQLite says only that it stopped."""
    try:
        yield
    except sqlite3.Error as error:
        if "interrupted" in str(error):
            _check(source, config, 0, deadline)
        if any(word in str(error) for word in ("not authorized", "authorization denied", "prohibited")):
            raise SourceError(f"{source.uri}: the query does more than read, expected a SELECT: {error}") from None
        if "too big" in str(error):
            most = config.limits.max_record_bytes
            raise SourceError(
                f"{source.uri}: holds a value or row of more than {most:,} bytes; leave it out with a query, or set "
                "limits.max_record_bytes"
            ) from None
        raise
    except MemoryError:
        most = config.connectors.query_memory_bytes
        raise SourceError(
            f"{source.uri}: its query needs more than {most:,} bytes of memory; ask for less, or set "
            "connectors.query_memory_bytes"
        ) from None


@contextmanager
def _postgresql(source: ExternalSource, config: IngestConfig, deadline: float) -> Iterator[Any]:
    """Yield a server-side cursor with the query's rows, in a transaction that is read-only and rolled back."""
    import psycopg
    from psycopg.types.json import set_json_loads
    from psycopg.types.string import TextLoader

    connect: Callable[..., Any] = psycopg.connect
    connection = connect(source.address, connect_timeout=config.connectors.connect_timeout_seconds)
    try:
        connection.read_only = True
        # JSON as text: Arrow has no type for a column that holds an object here and a list there.
        set_json_loads(lambda text: text if isinstance(text, str) else bytes(text).decode(), connection)
        connection.adapters.register_loader("uuid", TextLoader)
        milliseconds = 1000 * config.connectors.statement_timeout_seconds
        connection.execute(f"SET LOCAL statement_timeout = {milliseconds}")
        # A named cursor takes one statement, and only one that gives rows.
        cursor = connection.cursor(name=_CURSOR)
        cursor.execute(select_all(source))
        yield cursor
    finally:
        connection.rollback()
        connection.close()
