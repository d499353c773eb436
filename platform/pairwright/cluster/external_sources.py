"""Reads external sources (databases, lakehouse tables, Hugging Face datasets, topics) as Ray Data datasets.

Ray Data's own connectors do the reading. What they would do silently is decided before: offsets are resolved and
checked (Ray moves a start that retention has removed to the earliest message), and a Hugging Face dataset is read in
slices (Ray would hold all of it in memory).
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pyarrow as pa
import ray.data
from pydantic import SecretStr
from ray.data import Dataset

from pairwright.config import ConnectorConfig, IngestConfig
from pairwright.data.ingest.decoders.arrow_rows import encode_rows
from pairwright.data.ingest.sources.connection_urls import ExternalSource, offsets
from pairwright.data.ingest.sources.database_rows import query_lines
from pairwright.data.storage.object_store import uses_plain_http
from pairwright.errors import ConfigError, SourceError

_PACKAGES = {
    "postgresql": ("psycopg", "postgresql"),
    "delta": ("deltalake", "delta"),
    "iceberg": ("pyiceberg", "iceberg"),
    "huggingface": ("datasets", "huggingface"),
    "kafka": ("confluent_kafka", "kafka"),
}
_SECRET = re.compile(r"password|secret|token|key|credential|sas|auth", re.IGNORECASE)
_LINE = "line"
"""The one column of what a database's rows become."""
HUGGINGFACE_ROWS = 50_000
"""Rows of a saved dataset that go through Ray's object store at a time."""
KAFKA_TIMEOUT_SECONDS = 15.0


def check_installed(source: ExternalSource) -> None:
    """Refuse a source whose client is not installed.

    Raises:
        ConfigError: if so; names the pip command.
    """
    if source.kind not in _PACKAGES:
        return
    package, extra = _PACKAGES[source.kind]
    try:
        import_module(package)
    except ImportError as error:
        raise ConfigError(
            f"{source.uri}: a {source.kind} source needs a package that is not there ({error}); "
            f"`pip install 'pairwright[{extra}]'`"
        ) from None


def read_external(source: ExternalSource, config: IngestConfig) -> Iterator[Dataset]:
    """Yield the rows of a source as datasets, to be read one after the other.

    Raises:
        Exception: whatever its client raises; the caller says it in one line, without secrets.
    """
    match source.kind:
        case "sqlite" | "postgresql":
            yield _database(source, config)
        case "delta":
            version = source.settings.get("version")
            yield ray.data.read_delta(
                source.address,
                version=None if version is None else int(version),
                storage_options=_delta_options(source) | resolved(config.connectors.delta),
            )
        case "iceberg":
            yield _iceberg(source, resolved(config.connectors.iceberg))
        case "huggingface":
            yield from _huggingface(source)
        case "kafka":
            yield _kafka(source, resolved(config.connectors.kafka))


def _database(source: ExternalSource, config: IngestConfig) -> Dataset:
    """Return the rows of a query as lines of JSON, to be read by one task."""

    def read(_: pa.Table) -> Iterator[pa.Table]:
        for lines in query_lines(source, config):
            yield pa.table({_LINE: pa.array(lines, pa.binary())})

    return ray.data.from_items([0], override_num_blocks=1).map_batches(read, batch_size=None, batch_format="pyarrow")


def encoder_for(source: ExternalSource) -> Callable[[pa.RecordBatch], bytes]:
    """Return the encoder of a source's rows as lines of JSON: cells of a database may hold JSON, messages are it."""
    return {"sqlite": _join_lines, "postgresql": _join_lines, "kafka": _encode_messages}.get(source.kind, encode_rows)


def _join_lines(rows: pa.RecordBatch) -> bytes:
    return b"".join(rows.column(_LINE).to_pylist())


def resolved(properties: Mapping[str, SecretStr]) -> dict[str, str]:
    """Return a client's settings, with the values of environment variables filled in.

    Raises:
        ConfigError: if a variable is not set.
    """
    found = {}
    for name, secret in properties.items():
        value = secret.get_secret_value()
        if value.startswith("$"):
            if value[1:] not in os.environ:
                raise ConfigError(f"[connectors]: {name} is {value}, which the environment has not got; set it")
            value = os.environ[value[1:]]
        found[name] = value
    return found


def secrets_of(source: ExternalSource, config: ConnectorConfig) -> list[str]:
    """Return what no message about a source may hold: ``addresses.without_secrets`` takes it out, encoded or not.

    Raises:
        ConfigError: if a setting is to come from a variable that is not set.
    """
    found = []
    if source.kind == "postgresql":
        parts = urlsplit(source.address)
        found += [parts.username or "", parts.password or ""]
        found += [value for name, value in parse_qsl(parts.query) if _SECRET.search(name)]
        if secret := _SECRET.search(parts.query):  # a password that holds &a=b goes on to the end
            found.append(parts.query[secret.end() :].partition("=")[2])
    for properties in (config.iceberg, config.delta, config.kafka):
        for name, value in resolved(properties).items():
            if _SECRET.search(name) or "@" in value or properties[name].get_secret_value() != value:
                found.append(value)
    return found


# -------------------------------------------------------------------------------------- tables and datasets


def _delta_options(source: ExternalSource) -> dict[str, str]:
    return {"AWS_ALLOW_HTTP": "true"} if uses_plain_http(source.address) else {}


def _iceberg(source: ExternalSource, properties: dict[str, str]) -> Dataset:
    catalog, _, table = source.address.partition("/")
    snapshot = source.settings.get("snapshot")
    return ray.data.read_iceberg(
        table_identifier=table,
        snapshot_id=None if snapshot is None else int(snapshot),
        catalog_kwargs={"name": catalog, **properties},
    )


def _huggingface(source: ExternalSource) -> Iterator[Dataset]:
    import datasets

    split = source.settings.get("split")
    if not source.address.startswith("/"):
        if split is None:
            raise SourceError(f"{source.uri}: which split? expected {source.uri}?split=NAME")
        yield ray.data.from_huggingface(
            datasets.load_dataset(
                source.address,
                source.settings.get("config"),
                split=split,
                revision=source.settings.get("revision"),
                trust_remote_code=False,
            )
        )
        return
    loaded = datasets.load_from_disk(source.address)
    if isinstance(loaded, datasets.DatasetDict):
        if split not in loaded:
            raise SourceError(f"{source.uri}: has the splits {', '.join(map(str, loaded))}; name one with ?split=NAME")
        loaded = loaded[split]
    elif split is not None:
        raise SourceError(f"{source.uri}: has no splits; leave ?split={split} out")
    # Under this name Ray would look for the same dataset on the hub, and in the current folder.
    loaded.info.dataset_name = None
    for start in range(0, len(loaded), HUGGINGFACE_ROWS):
        yield ray.data.from_huggingface(loaded.select(range(start, min(start + HUGGINGFACE_ROWS, len(loaded)))))


# --------------------------------------------------------------------------------------------------- Kafka


def _kafka(source: ExternalSource, properties: dict[str, str]) -> Dataset:
    servers, _, topic = source.address.partition("/")
    start, end = _bounds(source, {**properties, "bootstrap.servers": servers, "group.id": "pairwright"}, topic)
    return ray.data.read_kafka(
        topic,
        bootstrap_servers=servers.split(","),
        start_offset={topic: start},
        end_offset={topic: end},
        consumer_config=properties,
    )


def _bounds(source: ExternalSource, settings: dict[str, str], topic: str) -> tuple[dict[int, Any], dict[int, Any]]:
    """Return the first offset of each partition, and the one after the last, once they are known to be there."""
    from confluent_kafka import Consumer, TopicPartition

    consumer = Consumer(settings)
    try:
        described = consumer.list_topics(topic, timeout=KAFKA_TIMEOUT_SECONDS).topics[topic]
        if described.error is not None or not described.partitions:
            raise SourceError(f"{source.uri}: there is no such topic")
        numbers = sorted(described.partitions)
        marks = {
            number: consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=KAFKA_TIMEOUT_SECONDS)
            for number in numbers
        }
    finally:
        consumer.close()
    wanted = {name: offsets(source, name, numbers) for name in ("start", "end")}
    start = {number: marks[number][0] if (at := wanted["start"][number]) is None else at for number in numbers}
    end = {number: marks[number][1] if (at := wanted["end"][number]) is None else at for number in numbers}
    for number, (low, high) in marks.items():
        if not low <= start[number] <= end[number] <= high:
            raise SourceError(
                f"{source.uri}: partition {number} holds the offsets {low} to {high}, which {start[number]} to "
                f"{end[number]} are not part of; give start and end that are there"
            )
    return start, end


def _encode_messages(rows: pa.RecordBatch) -> bytes:
    """Return the messages as lines; one without a value is a blank line."""
    values = rows.column("value").to_pylist()
    return b"".join((value or b"").replace(b"\n", b"\t") + b"\n" for value in values)
