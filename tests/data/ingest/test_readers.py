"""Addresses of sources that are no files: what they name, what is kept of them, and what is no address."""

import sys
from pathlib import Path

import pytest

from pairwright.addresses import without_secrets
from pairwright.cluster.external_sources import check_installed, resolved, secrets_of
from pairwright.config import ConnectorConfig, load_config
from pairwright.data.ingest.sources.connection_urls import is_external_url, offsets, parse_connection_url, select_all
from pairwright.errors import ConfigError, SourceError

HERE = Path.cwd()
NONE = ConnectorConfig()
QUERY = ConnectorConfig(query="SELECT 1")


@pytest.mark.parametrize(
    ("name", "config", "uri", "address"),
    [
        ("sqlite:////d/a.db?table=t", NONE, "sqlite:////d/a.db?table=t", "/d/a.db"),
        ("sqlite:////d/../a.db", QUERY, "sqlite:////a.db?query=e004ebd5b553", "/a.db"),
        ("sqlite:///d/a%20b.db?table=t", NONE, f"sqlite:///{HERE}/d/a b.db?table=t", f"{HERE}/d/a b.db"),
        (
            "postgresql://ann:s%40crt@host:5432/db?table=s.t&sslmode=require&password=x",
            NONE,
            "postgresql://host:5432/db?table=s.t",
            "postgresql://ann:s%40crt@host:5432/db?sslmode=require&password=x",
        ),
        ("postgres://host/db", QUERY, "postgresql://host/db?query=e004ebd5b553", "postgresql://host/db"),
        ("delta:///d/t?version=3", NONE, "delta+file:///d/t?version=3", "/d/t"),
        ("delta+s3://bucket/t/", NONE, "delta+s3://bucket/t", "s3://bucket/t"),
        ("iceberg://lake/a.b?snapshot=7", NONE, "iceberg://lake/a.b?snapshot=7", "lake/a.b"),
        ("hf://owner/name?split=train&revision=x", NONE, "hf://owner/name?revision=x&split=train", "owner/name"),
        ("hf+file:///d/saved", NONE, "hf+file:///d/saved", "/d/saved"),
        (
            "kafka://h:1,h2:2/topic?start=0:5,1:6",
            NONE,
            "kafka://h:1,h2:2/topic?start=0:5,1:6",
            "h:1,h2:2/topic",
        ),
    ],
)
def test_an_address_is_known_without_user_and_password(
    name: str, config: ConnectorConfig, uri: str, address: str
) -> None:
    place = parse_connection_url(name, config)
    assert is_external_url(name)
    assert (place.uri, place.address) == (uri, address)
    assert "s%40crt" not in repr(place)


@pytest.mark.parametrize("name", ["a.jsonl", "s3://bucket/a.parquet", "file:///a.json", "data/hf:x", "delta.parquet"])
def test_files_and_objects_are_no_such_places(name: str) -> None:
    assert not is_external_url(name)


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        (
            "sqlite:///a.db",
            NONE,
            r"sqlite:///a\.db: expected \?table=NAME .* or query in .connectors. .* got neither",
        ),
        ("sqlite:///a.db?table=t", QUERY, "got both"),
        ("sqlite:///a.db?table=t;drop", NONE, "table=t;drop: expected a name; give SQL as query"),
        ("sqlite://a.db?table=t", NONE, r"expected sqlite:///PATH\?table=NAME"),
        ("delta:///t?verion=3", NONE, "verion is no setting of a delta source; known: version"),
        (
            "iceberg://u:p@table",
            NONE,
            r"^iceberg://\*\*\*@table: expected no user and password in the address; give them in \[connectors\]",
        ),
        ("kafka://u:p@h:1?start=0", NONE, r"^kafka://\*\*\*@h:1\?\*\*\*: expected no user and password in the address"),
        ("kafka://u:p@h:1/t", NONE, r"^kafka://\*\*\*@h:1/t: expected no user and password in the address"),
        ("iceberg://table", NONE, r"^iceberg://table: expected iceberg://CATALOG/NAMESPACE\.TABLE"),
        ("kafka://h:1?start=0", NONE, r"^kafka://h:1\?\*\*\*: expected kafka://HOST:PORT/TOPIC"),
        ("hf://?split=x", NONE, r"expected hf://OWNER/NAME\?split=SPLIT"),
        ("delta+ftp://h/t", NONE, "unknown scheme ftp://"),
    ],
)
def test_an_address_that_lacks_something_says_what(name: str, config: ConnectorConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_connection_url(name, config)


def test_a_table_named_in_the_address_is_quoted() -> None:
    place = parse_connection_url("sqlite:///a.db?table=human.judged", NONE)
    assert select_all(place) == 'SELECT * FROM "human"."judged"'
    assert select_all(parse_connection_url("sqlite:///a.db", QUERY)) == "SELECT 1"


@pytest.mark.parametrize(
    ("text", "expected"), [("", {0: None, 1: None}), ("?start=7", {0: 7, 1: 7}), ("?start=1:5", {0: None, 1: 5})]
)
def test_offsets_are_of_all_partitions_or_of_each(text: str, expected: dict[int, int | None]) -> None:
    assert offsets(parse_connection_url(f"kafka://h:1/t{text}", NONE), "start", [0, 1]) == expected


@pytest.mark.parametrize(
    ("text", "message"), [("x", "expected an offset, or PARTITION:OFFSET"), ("2:5", "there is no partition 2")]
)
def test_offsets_that_mean_nothing_are_told(text: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        offsets(parse_connection_url(f"kafka://h:1/t?start={text}", NONE), "start", [0, 1])


def test_settings_are_secret_wherever_a_configuration_is_shown() -> None:
    config = load_config(ConnectorConfig, None, ['kafka={ "sasl.password" = "hunter22" }'])
    assert config.kafka["sasl.password"].get_secret_value() == "hunter22"
    assert "hunter22" not in repr(config) + config.model_dump_json()


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [
        ("postgresql://h/d?table=t", "psycopg", "postgresql"),
        ("delta:///t", "deltalake", "delta"),
        ("iceberg://c/a.b", "pyiceberg", "iceberg"),
        ("hf://o/n", "datasets", "huggingface"),
        ("kafka://h:1/t", "confluent_kafka", "kafka"),
    ],
)
def test_a_client_that_is_not_installed_is_named_with_the_command_that_does_it(
    name: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"`pip install 'pairwright\[{extra}\]'`"):
        check_installed(parse_connection_url(name, NONE))


def test_settings_may_stand_in_the_environment_and_are_hidden_then(monkeypatch: pytest.MonkeyPatch) -> None:
    config = ConnectorConfig.model_validate({"delta": {"plain": "eu-1", "AWS_SECRET_ACCESS_KEY": "abc", "x": "$LAKE"}})
    with pytest.raises(ConfigError, match=r"x is \$LAKE, which the environment has not got"):
        resolved(config.delta)
    monkeypatch.setenv("LAKE", "from-there")
    assert resolved(config.delta) == {"plain": "eu-1", "AWS_SECRET_ACCESS_KEY": "abc", "x": "from-there"}
    place = parse_connection_url("postgresql://ann:s%40crt@h/d?table=t", NONE)
    assert {"abc", "from-there", "s%40crt"} <= set(secrets_of(place, config))
    assert without_secrets("no s@crt, s%40crt, bs@cr!", secrets_of(place, config)) == "no ***, ***, b***!"
    assert "eu-1" not in secrets_of(place, config)
