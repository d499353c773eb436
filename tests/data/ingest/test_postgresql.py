"""A PostgreSQL server is read in a transaction that can change nothing, in bounded time, some rows at a time."""

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from databases import postgresql_server
from pairwright.config import IngestConfig
from pairwright.data.ingest.sources.connection_urls import parse_connection_url
from pairwright.data.ingest.sources.database_rows import query_lines
from pairwright.errors import SourceError


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run a server with a table of 3,000 rows and yield its URL."""
    with postgresql_server(tmp_path_factory.mktemp("postgresql")) as url:
        with psycopg.connect(url) as connection:
            connection.execute(
                "CREATE TABLE judged AS SELECT n AS id, ARRAY[1, 2] AS ranks FROM generate_series(1, 3000) n"
            )
            connection.execute("CREATE FUNCTION spoil() RETURNS int AS 'DELETE FROM judged; SELECT 1' LANGUAGE sql")
        yield url


def lines_of(url: str, query: str, **reader: Any) -> list[Any]:
    config = IngestConfig.model_validate({"connectors": {"query": query} | reader})
    place = parse_connection_url(url, config.connectors)
    return [json.loads(line) for lines in query_lines(place, config) for line in lines]


def test_rows_come_in_pieces_and_whole(server: str) -> None:
    config = IngestConfig.model_validate({"connectors": {"query": "SELECT * FROM judged ORDER BY id"}})
    pieces = list(query_lines(parse_connection_url(server, config.connectors), config))
    assert max(map(len, pieces)) <= 512
    records = [json.loads(line) for lines in pieces for line in lines]
    assert records == [{"id": number, "ranks": [1, 2]} for number in range(1, 3001)]


@pytest.mark.parametrize(
    "query",
    [
        "DELETE FROM judged RETURNING *",
        "WITH gone AS (DELETE FROM judged RETURNING *) SELECT * FROM gone",
        "INSERT INTO judged VALUES (0, NULL) RETURNING *",
        "SELECT spoil()",
        "SELECT set_config('transaction_read_only', 'off', false), spoil()",
        "SELECT 1; COMMIT; DELETE FROM judged",
        "SELECT * INTO other FROM judged",
        "COPY judged TO PROGRAM 'cat > /tmp/never'",
        "DROP TABLE judged",
    ],
)
def test_a_query_that_writes_is_refused_and_writes_nothing(server: str, query: str) -> None:
    with pytest.raises(psycopg.Error):
        lines_of(server, query)
    with psycopg.connect(server) as connection:
        assert connection.execute("SELECT count(*) FROM judged").fetchone() == (3000,)
        assert connection.execute("SELECT count(*) FROM pg_tables WHERE tablename = 'other'").fetchone() == (0,)


@pytest.mark.parametrize(
    "query",
    ["SELECT pg_sleep(1000)", "SELECT n, pg_sleep(0.01) FROM generate_series(1, 100000) n"],
)
def test_a_query_that_does_not_end_is_ended(server: str, query: str) -> None:
    began = time.monotonic()
    with pytest.raises((psycopg.errors.QueryCanceled, SourceError), match=r"statement timeout|not ended after 1 s"):
        lines_of(server, query, statement_timeout_seconds=1)
    assert time.monotonic() - began < 60


def test_a_server_that_does_not_answer_is_given_up(tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"postgresql://ann@127.0.0.1:{silent.getsockname()[1]}/postgres"
        with pytest.raises(psycopg.OperationalError, match="timeout"):
            lines_of(url, "SELECT 1", connect_timeout_seconds=2)
