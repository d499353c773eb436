"""A database is read and nothing else, in bounded time and memory; SQLite, whose files may come from anybody."""

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from pairwright.config import IngestConfig
from pairwright.data.ingest.sources.connection_urls import parse_connection_url
from pairwright.data.ingest.sources.database_rows import query_lines
from pairwright.errors import SourceError

ENDLESS = "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t)"


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "judged.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE judged (id TEXT, ranks TEXT, odd)")
        connection.executemany("INSERT INTO judged VALUES (?, ?, ?)", [(str(n), "[1, 2]", n) for n in range(2000)])
        connection.execute("INSERT INTO judged VALUES ('last', NULL, 'text among numbers')")
        connection.execute("CREATE TABLE long (id TEXT)")
        connection.execute("INSERT INTO long VALUES (?)", ("x" * 100_000,))
        connection.execute(f"CREATE VIEW counting AS {ENDLESS} SELECT count(*) AS id FROM t")
        connection.execute(f"CREATE VIEW endless AS {ENDLESS} SELECT n AS id FROM t")
        connection.execute(
            f"CREATE VIEW distinct_ones AS {ENDLESS} SELECT DISTINCT n || hex(zeroblob(50)) AS id FROM t"
        )
    connection.close()
    return path


def lines_of(path: Path, table: str = "", query: str = "", limits: dict[str, Any] | None = None, **reader: Any) -> Any:
    asked = {"query": query} if query else {}
    config = IngestConfig.model_validate({"connectors": asked | reader, "limits": limits or {}})
    place = parse_connection_url(f"sqlite:///{path}" + (f"?table={table}" if table else ""), config.connectors)
    return [json.loads(line) for lines in query_lines(place, config) for line in lines]


def test_every_row_comes_as_a_record_also_where_types_differ(database: Path) -> None:
    found = lines_of(database, "judged")
    assert found[:2] == [{"id": "0", "ranks": "[1, 2]", "odd": 0}, {"id": "1", "ranks": "[1, 2]", "odd": 1}]
    assert [one["id"] for one in found] == [*map(str, range(2000)), "last"]
    assert found[-1] == {"id": "last", "odd": "text among numbers"}


@pytest.mark.parametrize(
    "query",
    [
        "DELETE FROM judged RETURNING *",
        "WITH x AS (SELECT 1) DELETE FROM judged",
        "INSERT INTO judged VALUES ('a', 'b', 'c')",
        "UPDATE judged SET id = 'a' RETURNING *",
        "DROP TABLE judged",
        "CREATE TEMP TABLE t (a)",
        "VACUUM INTO '{folder}/copy.db'",
        "ATTACH '{folder}/other.db' AS other",
        "PRAGMA user_version = 7",
        "PRAGMA writable_schema = ON",
        "BEGIN IMMEDIATE",
        "SELECT load_extension('{folder}/evil')",
        "SELECT * FROM pragma_database_list",
        "SELECT 1; DELETE FROM judged",
    ],
)
def test_a_query_that_does_more_than_read_is_refused_and_changes_nothing(database: Path, query: str) -> None:
    content, names = database.read_bytes(), sorted(database.parent.iterdir())
    with pytest.raises((SourceError, sqlite3.ProgrammingError), match=r"more than read|one statement"):
        lines_of(database, query=query.format(folder=database.parent))
    assert database.read_bytes() == content
    assert sorted(database.parent.iterdir()) == names


@pytest.mark.timeout(60)
def test_a_query_without_an_end_is_ended(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for table in ("counting", "distinct_ones"):
        with pytest.raises(SourceError, match=r"not ended after 1 s; .* connectors\.statement_timeout_seconds"):
            lines_of(database, table, statement_timeout_seconds=1)
    monkeypatch.setattr("pairwright.data.ingest.sources.database_rows.FREE_TEXT_BYTES", 100_000)
    with pytest.raises(SourceError, match=r"expected at most 1 times as many; .* limits\.max_text_ratio"):
        lines_of(database, "endless", limits={"max_text_ratio": 1})


def test_what_takes_too_much_memory_is_refused_by_name(database: Path) -> None:
    with pytest.raises(SourceError, match=r"more than 2,000,000 bytes of memory; .* connectors\.query_memory_bytes"):
        lines_of(database, "distinct_ones", query_memory_bytes=2_000_000)
    with pytest.raises(SourceError, match=r"more than 50,000 bytes; .* limits\.max_record_bytes"):
        lines_of(database, "long", limits={"max_record_bytes": 50_000})
    assert len(lines_of(database, "long")) == 1


def test_a_damaged_file_is_no_traceback_but_an_error_of_the_client(tmp_path: Path) -> None:
    (tmp_path / "a.db").write_bytes(b"SQLite format 3\x00" + b"\xff" * 5000)
    with pytest.raises(sqlite3.DatabaseError):
        lines_of(tmp_path / "a.db", "judged")
