"""Databases, lakehouse tables, datasets and topics become annotations, once, and keep their secrets."""

import json
import sqlite3
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import deltalake
import psycopg
import pyarrow as pa
import pytest
from pyiceberg.catalog.sql import SqlCatalog

from databases import PASSWORD, kafka_broker, postgresql_server
from pairwright.cluster.sized_executor import EXECUTOR
from pairwright.config import IngestConfig
from pairwright.data.ingest import ingest as ingestion
from pairwright.data.ingest.ingest import IngestSummary
from pairwright.data.table.table import Table
from pairwright.errors import SourceError

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

ingest = partial(ingestion.ingest, executor=EXECUTOR)


def record(name: str) -> dict[str, Any]:
    chat = [{"role": "user", "content": f"[question] {name}"}]
    prompt = chat if name.endswith("1") else f"question {name}"
    return {"id": name, "prompt": prompt, "completions": [{"text": "x"}, {"text": "y\n"}], "ranks": [2, 1]}


def records(name: str) -> list[dict[str, Any]]:
    return [record(f"{name}{number}") for number in range(3)]


def columns(name: str) -> pa.Table:
    """Return records as a table; its prompts are all turns, since a column has one type."""
    chat = [record | {"prompt": [{"role": "user", "content": "q"}]} for record in records(name)]
    return pa.Table.from_pylist(chat)


def write_sqlite(path: Path, rows: list[dict[str, Any]]) -> None:
    with sqlite3.connect(path) as database:
        database.execute("DROP TABLE IF EXISTS judged")
        database.execute("CREATE TABLE judged (id TEXT, prompt TEXT, completions TEXT, ranks TEXT, annotator TEXT)")
        for row in rows:
            cells = [row["id"], *(json.dumps(row[key]) for key in ("completions", "ranks"))]
            prompt = row["prompt"] if isinstance(row["prompt"], str) else json.dumps(row["prompt"])
            database.execute(
                "INSERT INTO judged (id, completions, ranks, prompt) VALUES (?, ?, ?, ?)", [*cells, prompt]
            )
    database.close()


def write_postgresql(url: str, rows: list[dict[str, Any]]) -> None:
    with psycopg.connect(url) as database:
        database.execute("CREATE TABLE judged (id text, prompt jsonb, completions jsonb, ranks int[], at timestamptz)")
        for row in rows:
            values = [row["id"], json.dumps(row["prompt"]), json.dumps(row["completions"]), row["ranks"]]
            database.execute("INSERT INTO judged VALUES (%s, %s, %s, %s, now())", values)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, str]]]:
    """Yield a folder, and the address of one source of each kind with three records in it."""
    folder = tmp_path_factory.mktemp("places")
    write_sqlite(folder / "judged.db", records("sqlite"))
    datasets.DatasetDict({"test": datasets.Dataset(columns("hf"))}).save_to_disk(str(folder / "saved"))
    deltalake.write_deltalake(str(folder / "delta"), columns("gone"))
    deltalake.write_deltalake(str(folder / "delta"), columns("delta"), mode="overwrite")
    catalog = SqlCatalog("lake", uri=f"sqlite:///{folder}/catalog.db", warehouse=f"file://{folder}/lake")
    catalog.create_namespace("human")
    catalog.create_table("human.judged", schema=columns("iceberg").schema).append(columns("iceberg"))
    messages = [json.dumps(record, indent=1).encode() for record in records("kafka")]
    with kafka_broker("judged", [b"too early", *messages, None, b"too late"]) as broker:
        yield (
            folder,
            {
                "sqlite": f"sqlite:///{folder}/judged.db?table=judged",
                "hf": f"hf+file://{folder}/saved?split=test",
                "delta": f"delta+file://{folder}/delta",
                "iceberg": "iceberg://lake/human.judged",
                "kafka": f"kafka://{broker}/judged?end=0:5&start=0:1",
            },
        )


def config_of(folder: Path) -> IngestConfig:
    catalog = {"uri": f"sqlite:///{folder}/catalog.db", "type": "sql"}
    return IngestConfig.model_validate({"connectors": {"iceberg": catalog, "kafka": {"client.id": "test"}}})


def rows_of(url: Path) -> list[dict[str, Any]]:
    table = Table.open(str(url), "annotations")
    return [row for rows in table.read(table.manifest()) for row in rows.to_pylist()]


def counts(summary: IngestSummary) -> dict[str, tuple[int, int, int]]:
    return {source.uri: (source.accepted, source.refused, source.lines) for source in summary.sources}


def test_every_reader_lands_its_rows_once_and_in_order(places: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    folder, urls = places
    names, config = list(urls.values()), config_of(folder)
    file = tmp_path / "more.jsonl"
    file.write_text(json.dumps(record("file")))
    summary = ingest([*names, str(file)], str(tmp_path / "t"), config)
    assert summary.failed == []
    assert counts(summary) == {
        **{url: (3, 0, 3) for kind, url in urls.items() if kind != "kafka"},
        urls["kafka"]: (3, 0, 4),
        str(file): (1, 0, 1),
    }
    found = [(row["id"], row["source"], row["line"]) for row in rows_of(tmp_path / "t")]
    assert sorted(found) == sorted(
        [("file", str(file), 1), *((f"{kind}{n}", url, n + 1) for kind, url in urls.items() for n in range(3))]
    )
    assert not (tmp_path / "t/staging").exists()
    again = ingest(names, str(tmp_path / "t"), config)
    assert (again.manifest, sorted(again.skipped), again.failed) == (None, sorted(names), [])


def test_what_changed_under_its_name_fails_and_the_order_of_rows_is_no_change(tmp_path: Path) -> None:
    database = tmp_path / "judged.db"
    url = f"sqlite:///{database}?table=judged"
    write_sqlite(database, records("a"))
    ingest([url], str(tmp_path / "t"), IngestConfig())
    write_sqlite(database, records("a")[::-1])
    assert ingest([url], str(tmp_path / "t"), IngestConfig()).skipped == [url]
    write_sqlite(database, records("a")[:2])
    failed = dict(ingest([url], str(tmp_path / "t"), IngestConfig()).failed)
    assert "has changed since it was ingested" in failed[url]


def test_a_postgresql_server_is_read_and_its_password_is_nowhere(tmp_path: Path) -> None:
    with postgresql_server(tmp_path / "server" if (tmp_path / "server").mkdir() is None else tmp_path) as url:
        write_postgresql(url, records("pg"))
        query = "SELECT id, prompt, completions, ranks FROM judged ORDER BY id DESC"
        config = IngestConfig.model_validate({"connectors": {"query": query, "kafka": {"sasl.password": PASSWORD}}})
        summary = ingest([url, url.replace(PASSWORD, "wrong")], str(tmp_path / "t"), config)
        missing = ingest([f"{url}?table=missing"], str(tmp_path / "t"), IngestConfig())
    name = summary.sources[0].uri
    assert name.startswith("postgresql://127.0.0.1:")
    assert "?query=" in name
    assert [(row["id"], row["line"], len(row["prompt"])) for row in rows_of(tmp_path / "t")] == [
        ("pg2", 1, 1),
        ("pg1", 2, 1),
        ("pg0", 3, 1),
    ]
    assert 'relation "missing" does not exist' in missing.failed[0][1]
    written = b"".join(path.read_bytes() for path in (tmp_path / "t").rglob("*") if path.is_file())
    assert PASSWORD.encode() not in written
    assert PASSWORD not in json.dumps(summary.as_dict()) + summary.text() + missing.text()


def test_places_that_cannot_be_read_say_why_and_stop_no_other(
    places: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    folder, urls = places
    bad = {
        f"sqlite:///{folder}/judged.db?table=other": "no such table: other",
        f"hf+file://{folder}/saved": "has the splits test; name one with ?split=NAME",
        f"hf+file://{folder}/nothing?split=test": "nothing",
        f"delta+file://{folder}/saved": "delta",
        "iceberg://lake/human.other": "human.other",
        urls["kafka"].replace("end=0:5", "end=50"): "partition 0 holds the offsets 0 to 6, which 1 to 50 are not part",
        urls["kafka"].replace("end=0:5", "end=7:5"): "there is no partition 7",
    }
    with pytest.raises(SourceError, match=r"none\.db: no such file"):  # before anything is read
        ingest([f"sqlite:///{folder}/none.db?table=judged"], str(tmp_path / "t"), IngestConfig())
    summary = ingest([*bad, urls["sqlite"]], str(tmp_path / "t"), config_of(folder))
    assert [source.accepted for source in summary.sources] == [3]
    failed = dict(summary.failed)
    assert set(failed) == set(bad)
    for url, reason in bad.items():
        assert reason in failed[url], (url, failed[url])
        assert "\n" not in failed[url]
