"""Parses connection URLs of external sources (databases, lakehouse tables, datasets, topics).

Pure: text in, ``ExternalSource`` out. The name (``uri``) identifies a source in manifests and messages, so it holds
neither user nor password, nor any part of an address that is not one of the settings known here.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from pairwright.addresses import names_user, shown_address
from pairwright.config import ConnectorConfig
from pairwright.data.storage.object_store import absolute_url
from pairwright.errors import ConfigError, SourceError, StoreError

Kind = Literal["sqlite", "postgresql", "delta", "iceberg", "huggingface", "kafka"]

_KINDS: dict[str, Kind] = {
    "sqlite": "sqlite",
    "postgresql": "postgresql",
    "postgres": "postgresql",
    "delta": "delta",
    "iceberg": "iceberg",
    "hf": "huggingface",
    "kafka": "kafka",
}
_SETTINGS: dict[Kind, tuple[str, ...]] = {
    "sqlite": ("table",),
    "postgresql": ("table",),
    "delta": ("version",),
    "iceberg": ("snapshot",),
    "huggingface": ("config", "revision", "split"),
    "kafka": ("end", "start"),
}
_TABLE_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


@dataclass(frozen=True)
class ExternalSource:
    """A source that is no file: a database, a lakehouse table, a dataset or a topic."""

    kind: Kind
    uri: str
    """Its name in a table: the address without credentials, and which query where there is one."""
    address: str = field(repr=False)
    """What its client connects to, credentials included: for no message."""
    settings: dict[str, str]
    """What the address said behind its ``?``, of what is known here."""
    query: str | None = None


def is_external_url(name: str) -> bool:
    """Return whether a name is the connection URL of an external source."""
    scheme, separator, _ = name.partition("://")
    return bool(separator) and scheme.partition("+")[0] in _KINDS


def parse_connection_url(name: str, config: ConnectorConfig) -> ExternalSource:
    """Return the external source that a connection URL names.

    Raises:
        ConfigError: if the address lacks something, or says something that its kind does not know.
    """
    scheme, _, rest = name.partition("://")
    kind = _KINDS[scheme.partition("+")[0]]
    if kind in ("sqlite", "postgresql"):
        return _database(kind, name, config)
    is_located = kind == "delta" or (kind == "huggingface" and (scheme != "hf" or rest.startswith("/")))
    plain, _, tail = rest.partition("?")
    if names_user(name) or ("@" in rest and not is_located) or "@" in tail:  # a password may hold a ?
        raise ConfigError(f"{shown_address(name)}: expected no user and password in the address; {_ELSEWHERE[kind]}")
    settings = _settings(kind, name, tail)
    if is_located:
        inner = scheme.partition("+")[2] or "file"
        source = _absolute(f"{inner}://{plain}")
        shown = f"file://{source}" if "://" not in source else source
        return ExternalSource(kind, _named(f"{scheme.partition('+')[0]}+{shown}", settings), source, settings)
    if not plain.strip("/") or (kind != "huggingface" and plain.count("/") != 1):
        raise ConfigError(f"{shown_address(name)}: expected {_EXPECTED[kind]}")
    return ExternalSource(kind, _named(f"{scheme}://{plain}", settings), plain, settings)


_EXPECTED = {
    "huggingface": "hf://OWNER/NAME?split=SPLIT or hf+file:///DIRECTORY?split=SPLIT",
    "iceberg": "iceberg://CATALOG/NAMESPACE.TABLE",
    "kafka": "kafka://HOST:PORT/TOPIC?start=OFFSET&end=OFFSET",
}
_ELSEWHERE: dict[Kind, str] = {
    "delta": "give them in [connectors], or in environment variables; an @ behind ? is written %40",
    "iceberg": "give them in [connectors]",
    "huggingface": "`hf auth login` keeps a token; an @ elsewhere is written %40",
    "kafka": "give them in [connectors]",
}
_UNREADABLE = (
    "no address that can be read; in user and password write blanks and @ : / ? # & [ ] % as %20 %40 %3A %2F "
    "%3F %23 %26 %5B %5D %25, and @ elsewhere as %40; or leave the password to PGPASSWORD or ~/.pgpass"
)
_POSTGRESQL = re.compile(r"(?:(?:[^\s@/?#%\[\]]|%[0-9A-Fa-f]{2})*@)?[^\s@/?#]*(?:[/?][^\s@#]*)?")


def check_is_there(source: ExternalSource) -> None:
    """Refuse a SQLite source whose file is missing, before anything is read.

    Raises:
        SourceError: if so.
    """
    if source.kind != "sqlite" or Path(source.address).is_file():
        return
    from_root = Path("/", Path(source.address).relative_to(Path.cwd())) if _is_below_here(source.address) else None
    hint = ""
    if from_root is not None and from_root.is_file():
        hint = f"; {from_root} is there: an absolute path has four slashes, sqlite:///{from_root}"
    raise SourceError(f"{source.address}: no such file{hint}")


def _is_below_here(path: str) -> bool:
    return Path(path).is_relative_to(Path.cwd())


def select_all(source: ExternalSource) -> str:
    """Return the SQL whose rows are the records."""
    if source.query is not None:
        return source.query
    names = source.settings["table"].split(".")
    return f"SELECT * FROM {'.'.join(f'{chr(34)}{name}{chr(34)}' for name in names)}"  # noqa: S608 (names are checked)


def offsets(source: ExternalSource, name: str, partitions: Sequence[int]) -> dict[int, int | None]:
    """Return the offset of each partition that an address asks for; None where it asks for none.

    Args:
        source: a topic.
        name: ``start`` or ``end``: one offset for all partitions, or ``0:1500,1:20``.
        partitions: those that the topic has.

    Raises:
        SourceError: if it cannot be read, or names a partition that is not there.
    """
    text = source.settings.get(name)
    if text is None:
        return dict.fromkeys(partitions)
    if text.isdecimal():
        return dict.fromkeys(partitions, int(text))
    pairs = [pair.split(":") for pair in text.split(",")]
    if not all(len(pair) == 2 and pair[0].isdecimal() and pair[1].isdecimal() for pair in pairs):
        raise SourceError(f"{source.uri}: {name}={text}: expected an offset, or PARTITION:OFFSET joined by commas")
    found = {int(partition): int(offset) for partition, offset in pairs}
    if unknown := set(found) - set(partitions):
        raise SourceError(f"{source.uri}: {name}={text}: there is no partition {min(unknown)}; there are {partitions}")
    return {partition: found.get(partition) for partition in partitions}


def _database(kind: Kind, name: str, config: ConnectorConfig) -> ExternalSource:
    if kind == "postgresql" and not _POSTGRESQL.fullmatch(name.partition("://")[2]):
        raise ConfigError(f"{shown_address(name)}: {_UNREADABLE}")
    try:
        parts = urlsplit(name)
        items = parse_qsl(
            parts.query.replace("+", "%2B"),  # as libpq reads it
            keep_blank_values=True,
            strict_parsing=bool(parts.query),
        )
    except ValueError:
        raise ConfigError(f"{shown_address(name)}: {_UNREADABLE}") from None
    known = dict(items)
    if len(known) < len(items) or not all(known.values()):  # a password may hold an &
        raise ConfigError(f"{shown_address(name)}: {_UNREADABLE}")
    if kind == "sqlite" and (parts.netloc or parts.path in ("", "/")):
        raise ConfigError(
            f"{shown_address(name)}: expected sqlite:///PATH?table=NAME, or sqlite:////PATH?table=NAME for an absolute "
            "path"
        )
    settings = {key: value for key, value in known.items() if key in _SETTINGS[kind]}
    others = {key: value for key, value in known.items() if key not in settings}
    shown = f"{kind}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    if ("table" in settings) == (config.query is not None):
        found = "both" if "table" in settings else "neither"
        raise ConfigError(
            f"{shown}: expected ?table=NAME in the address, or query in [connectors] of --config; got {found}"
        )
    if "table" in settings and not _TABLE_NAME.fullmatch(settings["table"]):
        raise ConfigError(f"{shown}: table={settings['table']}: expected a name; give SQL as query in [connectors]")
    if kind == "sqlite":
        address = _absolute(unquote(parts.path.removeprefix("/")))
        shown = f"sqlite:///{address}"
    else:
        query = f"?{urlencode(others, quote_via=quote)}" if others else ""
        address = f"{kind}://{parts.netloc}{parts.path}{query}"
    named = settings if config.query is None else {"query": hashlib.sha256(config.query.encode()).hexdigest()[:12]}
    return ExternalSource(kind, _named(shown, named), address, settings, config.query)


def _settings(kind: Kind, name: str, tail: str) -> dict[str, str]:
    settings = dict(parse_qsl(tail, keep_blank_values=True))
    known = _SETTINGS[kind]
    if unknown := sorted(set(settings) - set(known)):
        raise ConfigError(
            f"{shown_address(name)}: {unknown[0]} is no setting of a {kind} source; known: {', '.join(known)}"
        )
    return settings


def _named(shown: str, settings: dict[str, str]) -> str:
    return f"{shown}?{urlencode(sorted(settings.items()), safe=':,')}" if settings else shown


def _absolute(url: str) -> str:
    try:
        return absolute_url(url)
    except StoreError as error:
        raise ConfigError(str(error)) from None
