"""Users, passwords and signatures: wherever they are written, and however badly, nothing that is said holds them."""

import json
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from hostile_text import run
from pairwright.addresses import secret_in, shown_address, without_credentials
from pairwright.cluster.external_sources import secrets_of
from pairwright.cluster.session import _why_not_started
from pairwright.cluster.stage_external import _explained
from pairwright.config import ConnectorConfig, IngestConfig, load_config
from pairwright.data.ingest.sources.connection_urls import parse_connection_url
from pairwright.data.storage.object_store import absolute_url, local_root, open_store
from pairwright.errors import ConfigError, StoreError

LETTERS = "QXZ7ÜĶ"
"""Of which no message, and no name of a temporary folder, has four in a row."""
MARKS = "/?#@: %&=+[]{}\\'\"\t$!,;"
SECRETS = st.tuples(
    st.text(st.sampled_from(LETTERS), min_size=8, max_size=12),
    st.text(st.sampled_from(2 * LETTERS + MARKS), max_size=12),
).map("".join)


def pieces(secret: str) -> set[str]:
    """Return every four characters in a row of a secret, as it is and percent-encoded."""
    return {form[i : i + 4] for form in (secret, quote(secret, safe=""), quote(secret)) for i in range(len(form) - 3)}


def check_hidden(secret: str, said: str) -> None:
    pieces_told = {piece for piece in pieces(secret) if piece in said and not piece.isdigit()}
    found = {piece for piece in pieces_told if any(letter in piece for letter in LETTERS)}
    assert not found, (found, said)


STORAGE = st.sampled_from(
    [
        "s3://AKIA:{}@bucket/data",
        "s3://{}@bucket/data",
        "s3a://u:{}@bucket",
        "gs://u:{}@bucket/x.jsonl",
        "az://u:{}@container/x",
        "abfss://u:{}@account.dfs.core.windows.net/x",
        "s3://bucket/x.jsonl?X-Amz-Signature={}",
        "az://container/x?sv=2020&sig={}",
        "https://u:{}@host/x.jsonl",
        "https://host/x.jsonl?X-Amz-Signature={}",
        "ftp://u:{}@host/x.jsonl",
        "mysql://u:{}@host/x",
        "s3:/u:{}@bucket/x",
        "postgresql:u:{}@bucket/x",
        "file://u:{}@host/x",
    ]
)
PLACES = st.sampled_from(
    [
        "postgresql://ann:{}@host:5432/db?table=t",
        "postgres://{}@host/db?table=t",
        "postgresql://ann:{}@host/db",
        "postgresql://ann:{}@host/db?table=t;drop",
        "postgresql://host/db?table=t&password={}",
        "sqlite://u:{}@host/x?table=t",
        "delta+s3://u:{}@bucket/t",
        "delta+s3://u:{}@bucket/t?version=3",
        "delta+s3://u:{}@bucket/t?verion=3",
        "delta+https://u:{}@bucket/t",
        "hf://u:{}@owner/name?split=x",
        "hf+s3://u:{}@bucket/saved",
        "iceberg://u:{}@lake/a.b",
        "kafka://u:{}@h:1/t?start=0",
        "kafka://u:{}@h:1/t?begin=0",
    ]
)


@settings(deadline=None)
@given(STORAGE, SECRETS)
@example("s3://AKIA:{}@bucket/data", "QXZ7QXZ7/QXZ7")
@example("postgresql:u:{}@bucket/x", "QXZ7QXZ7@ZZZZ")
@example("s3:/u:{}@bucket/x", "77777777://")
def test_no_address_of_storage_is_used_or_shown_with_a_secret(form: str, secret: str) -> None:
    assume("/" not in secret or form != "s3://{}@bucket/data")  # bucket QXZ7, key Z@bucket/data
    address = form.format(secret)
    check_hidden(secret, shown_address(address))
    for use in (local_root, absolute_url, open_store):
        with pytest.raises(StoreError) as error:
            use(address)
        check_hidden(secret, str(error.value))


@settings(deadline=None)
@given(PLACES, SECRETS, st.booleans())
@example("delta+https://u:{}@bucket/t", "77777777?777:", False)
@example("delta+s3://u:{}@bucket/t?verion=3", "QXZ7QXZ7?QXZ7=", False)
@example("hf+s3://u:{}@bucket/saved", "QXZ7/QXZ7?QXZ7=", False)
@example("postgresql://host/db?table=t&password={}", "77777777&7", False)
@example("postgresql://host/db?table=t&password={}", "77777777+'", False)
@example("postgresql://ann:{}@host:5432/db?table=t", "77777777:/'", True)
def test_no_address_of_a_place_is_shown_with_a_secret(form: str, secret: str, is_escaped: bool) -> None:
    address = form.format(quote(secret, safe="") if is_escaped else secret)
    check_hidden(secret, shown_address(address))
    try:
        place = parse_connection_url(address, ConnectorConfig())
    except ConfigError as error:
        check_hidden(secret, str(error))
        return
    assert place.kind == "postgresql", "no other address may hold one"
    check_hidden(secret, place.uri + repr(place))
    quoted = f'{place.address} {secret!r} {quote(secret)} "{secret[2:]}" for user "{secret[:7]}"'
    check_hidden(secret, _explained(ValueError(quoted), place, secrets_of(place, ConnectorConfig())))


@settings(deadline=None)
@given(SECRETS)
def test_no_value_below_reader_is_told_whatever_is_wrong_with_it(
    tmp_path_factory: pytest.TempPathFactory, secret: str
) -> None:
    file = tmp_path_factory.getbasetemp() / "secret.toml"
    text = json.dumps(secret)
    for written in (
        f"[connectors.kafka]\nsasl.password = {text}",
        f"[connectors]\nkafka = {text}",
        f"connectors = {text}",
        f"[connectors.delta]\nx = [{text}]",
        f"[connectors]\nkfka.password = {text}",
        f"[connectors]\nquery = [{text}]",
        f"[connectors.iceberg]\ntoken = {{ a = {text} }}\nn = 1",
        f"max_completions = 'x'\n[connectors.kafka]\nn = 1\n'sasl.password' = {text}",
        f"output = {json.dumps('s3://u:' + secret + '@b/x')}",
    ):
        file.write_text(written, encoding="utf-8")
        with pytest.raises(ConfigError) as error:
            load_config(IngestConfig, str(file))
        check_hidden(secret, str(error.value))
    for override in (
        f"connectors.kafka.sasl.password={secret}",
        f"connectors.kafka.sasl.password={text}",
        f"connectors.kafka={secret}",
        f"connectors={secret}",
        f"connectors.kafka:{secret.replace('=', '')}",
        f"format=postgresql://u:{secret}@h/d",
        f"buckets=['s3://u:{secret.replace(chr(39), '')}@h/d']",
    ):
        with pytest.raises(ConfigError) as error:
            load_config(IngestConfig, None, [override])
        check_hidden(secret, str(error.value))
    config = load_config(IngestConfig, None, [f'connectors.kafka={{ "sasl.password" = {text} }}'])
    check_hidden(secret, config.model_dump_json() + repr(config) + str(config.model_dump(mode="json")))


VERBS = (
    "ingest {} --output t",
    "ingest x.jsonl --output {}",
    "ingest x.jsonl --output t --config {}",
    "ingest x.jsonl --output t --format {}",
    "validate x.jsonl --against {}",
    "validate x.jsonl --staging-url {}",
    "expand {} --output p",
    "expand t --output {}",
    "expand t --output p --set decontaminate=['{}']",
    "inspect {}",
    "inspect {} --json",
    "versions {}",
    "diff {} 1 2",
    "compact {}",
    "vacuum {}",
    "forget {} --annotator a",
    "report {}",
    "report t --output {}",
    "export-pairs {} --output x.jsonl",
    "export-pairs p --output {}.jsonl",
    "evaluate {} --pairs p",
    "evaluate m --pairs {}",
    "evaluate m --pairs p --output {}",
    "score {} x.jsonl --output o",
    "score m {} --output o",
    "score m x.jsonl --output {}",
    "checkpoints {}",
    "export {} --output m",
    "export r --output {}",
    "export r --output m --model {}",
    "train --config {}",
    "train --config train.toml --set output={}",
    "train --config train.toml --set data.pairs={}",
    "train --config train.toml --set model.path={}",
    "train --config train.toml --set tokens.cache={} --dry-run",
    "train --config train.toml --set tokens.chat_template={}",
    "new-model --output {} --texts x.jsonl",
    "new-model --output m --texts {}",
    "synthesize --output {}",
    "schemas --output {}",
    "{}",
)
ADDRESSES = (
    "s3://AKIA:QXZ7QXZ7@bucket/x",
    "s3://AKIA:QXZ7/QXZ7QXZ7@bucket/x",
    "s3://bucket/x?X-Amz-Signature=QXZ7QXZ7",
    "https://ann:QXZ7QXZ7@host/x",
    "mysql://ann:QXZ7QXZ7@host/x",
)


@pytest.mark.parametrize("address", ADDRESSES)
def test_every_verb_refuses_at_once_and_shows_nothing(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.toml").write_text('output = "run"\n[model]\npath = "m"\n[data]\npairs = "p"\n')
    for verb in VERBS:
        shown = run(*verb.format(address).split())
        check_hidden("QXZ7QXZ7", shown.out + shown.err)
        assert shown.status in (1, 2), (verb, shown)
        assert "Traceback" not in shown.err, (verb, shown.err)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["train.toml"]


@settings(deadline=None)
@given(SECRETS)
@example("QXZ7 QXZ7")
def test_what_stores_and_clients_say_of_a_url_is_told_without_its_credentials(secret: str) -> None:
    userinfo = quote(secret, safe="")
    said = without_credentials(
        f"Error performing GET http://ann:{userinfo}@127.0.0.1:9/b/k in 3 s: error sending request for url "
        f"(https://a.blob.core.windows.net/c?sv=2020&sig={userinfo}) via https://{userinfo}@proxy"
    )
    check_hidden(secret, said)
    assert "127.0.0.1:9/b/k in 3 s: error sending request for url (https://a.blob.core.windows.net/c?***)" in said


@pytest.mark.parametrize(
    "address",
    [
        "s3://bucket/a@b:c#d.jsonl",
        "s3://b/x*/[ab]?.jsonl",
        "s3://b/day=1/a b.jsonl",
        "gs://b",
        "az://c/x",
        "abfss://container@account.dfs.core.windows.net/x",
        "file:///data/a@b?c=d.jsonl",
        "file://localhost/x",
        "/a@b?c=d",
        "a:b",
        "x/y@z",
    ],
)
def test_addresses_without_secrets_are_used(address: str) -> None:
    assert secret_in(address) is None
    local_root(address)


@pytest.mark.parametrize("address", ["QXZ7", "ray://ann:QXZ7QXZ7@127.0.0.1:1", "ann:QXZ7QXZ7@127.0.0.1:1"])
def test_the_address_of_a_cluster_is_told_without_its_credentials(address: str) -> None:
    said = _why_not_started(address, ConnectionError(f"cannot connect to {address}\nmore"))
    assert ("QXZ7QXZ7" in said) is False
    assert "RAY_ADDRESS=" in said
