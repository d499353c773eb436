"""Real systems to read from: a PostgreSQL server process, and a broker that speaks Kafka's protocol."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import confluent_kafka
import psycopg
import pytest

PASSWORD = "correct-horse"


@contextmanager
def postgresql_server(folder: Path) -> Iterator[str]:
    """Run a server with one database and yield its URL, password included; skips where there is no PostgreSQL."""
    programs = [shutil.which(name, path=_places()) for name in ("initdb", "postgres")]
    if None in programs:
        pytest.skip("PostgreSQL is not installed (no initdb and postgres)")
    initdb, postgres = (str(program) for program in programs)
    data, secret = folder / "data", folder / "password"
    secret.write_text(PASSWORD)
    # The server refuses to run as root.
    as_user: dict[str, Any] = {}
    if os.getuid() == 0:
        as_user = {"user": "nobody", "group": "nogroup", "extra_groups": []}
        for path in (folder, *folder.parents[:4]):
            path.chmod(0o755)
        shutil.chown(folder, "nobody", "nogroup")
        shutil.chown(secret, "nobody", "nogroup")
    subprocess.run(
        [initdb, "-D", data, "-U", "ann", "--pwfile", secret, "-A", "scram-sha-256", "-E", "UTF8", "--no-sync"],
        check=True, capture_output=True, cwd=folder, **as_user,
    )  # fmt: skip
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [postgres, "-D", data, "-p", str(port), "-h", "127.0.0.1", "-k", folder, "-F"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder, **as_user,
    )  # fmt: skip
    url = f"postgresql://ann:{PASSWORD}@127.0.0.1:{port}/postgres"
    try:
        _wait_for(url)
        yield url
    finally:
        server.terminate()
        server.wait()


@contextmanager
def kafka_broker(topic: str, messages: Sequence[bytes | None]) -> Iterator[str]:
    """Run librdkafka's own broker, which speaks the protocol over TCP, with one topic; yield its host:port."""
    producer = confluent_kafka.Producer({"bootstrap.servers": "unused", "test.mock.num.brokers": "1"})
    for message in messages:
        producer.produce(topic, value=message, partition=0)
    assert producer.flush(20) == 0
    broker = next(iter(producer.list_topics(timeout=10).brokers.values()))
    yield f"{broker.host}:{broker.port}"
    producer.flush(1)


def _places() -> str:
    return os.pathsep.join([os.environ["PATH"], *sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin")))])


def _wait_for(url: str) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            psycopg.connect(url).close()
        except psycopg.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return
