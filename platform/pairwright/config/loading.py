"""Loads a configuration from a TOML file and ``--set key=value``; an error names key, value and remedy."""

import hashlib
import json
import re
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from pairwright.addresses import MASK, credentials_advice, secret_in, shown_address, without_credentials
from pairwright.config.section import Section
from pairwright.errors import ConfigError
from pairwright.suggestions import close_to, did_you_mean_path

ConfigT = TypeVar("ConfigT", bound=Section)
MAX_SHOWN = 200
"""Characters of a value that a message quotes."""
_SECRETS = "connectors"
"""The section whose values no message quotes."""
_KEY = re.compile(r"[A-Za-z_][\w.]*")
RENAMED_KEYS = {
    "range_bytes": "split_bytes",
    "reader": "connectors",
    "stretch_bytes": "partition_bytes",
    "overlap_words": "ngram_size",
    "shingle_characters": "shingle_size",
    "margin.score_gap": "score_difference",
    "margin.grade": "strength",
    "engine": "deepspeed",
    "tokens.overlong": "tokens.overlong_policy",
    "loss.centre": "loss.center_coefficient",
    "optimizer.warmup_fraction": "optimizer.warmup_ratio",
    "optimizer.final_fraction": "optimizer.min_lr_ratio",
    "optimizer.max_gradient_norm": "optimizer.max_grad_norm",
    "training.keep_best": "training.best_metric",
    "training.storage_patience_seconds": "training.storage_retry_seconds",
    "workers.hang_seconds": "workers.hang_timeout_seconds",
    "workers.resize_seconds": "workers.resize_interval_seconds",
}
"""Old dotted key -> new key, and ``key.value`` -> new value; the message for an old name gives the new one."""


def load_config(
    kind: type[ConfigT], path: str | None, overrides: Sequence[str] = (), *, advice: str | None = None
) -> ConfigT:
    """Return the configuration in a TOML file, with ``section.key=value`` overrides on top.

    An override's value is read as TOML, and as a plain string where it is not TOML (``model.path=runs/x``).

    Args:
        kind: of configuration.
        path: of the file; None for the overrides alone.
        overrides: to the file's values.
        advice: what to do where there is no such file; to write one from a recipe if None.

    Raises:
        ConfigError: if the file is missing or is not TOML, if a key is unknown, if a value is not allowed, or if an
            address outside of [connectors] holds credentials.
    """
    values = _read_toml(path, advice) if path is not None else {}
    for override in overrides:
        _apply_override(values, override)
    origin = path or "command line"
    for key, value in values.items():
        if key != _SECRETS:
            _refuse_credentials(value, f"{origin}: {key}")
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_explain(error, kind, origin)) from None


def config_digest(config: Section) -> str:
    """Return the SHA-256 of a resolved configuration, 64 hex digits; equal configurations, equal digests."""
    return digest_of(config.model_dump(mode="json"))


def digest_of(value: Any) -> str:
    """Return the SHA-256 of a JSON-able value, 64 hex digits, whatever the order of its keys."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _refuse_credentials(value: Any, where: str) -> None:
    if isinstance(value, str) and (found := secret_in(value)):
        raise ConfigError(f"{where}: {credentials_advice(value, found)}")
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        _refuse_credentials(item, f"{where}.{key}")


def _read_toml(path: str, advice: str | None) -> dict[str, Any]:
    if found := secret_in(path):
        raise ConfigError(credentials_advice(path, found))
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        recipe = f"write one with `pairwright init {path} --recipe NAME`, where `--recipe list` prints the names"
        raise ConfigError(f"{path}: no such configuration file; {advice or recipe}{did_you_mean_path(path)}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a TOML file: {error}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        shown = _KEY.match(override)
        raise ConfigError(
            f"--set {shown[0] if shown else MASK}: expected section.key=value, such as --set "
            "optimizer.learning_rate=1e-5"
        )
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *sections, name = key.strip().split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ConfigError(f"--set {key.strip()}: {section} is a value, not a section")
    values[name] = value


def _explain(error: ValidationError, kind: type[Section], origin: str) -> list[str]:
    lines = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"])
        known = ", ".join(_keys_at(kind, problem["loc"][:-1]))
        match problem["type"]:
            case "extra_forbidden" if where in RENAMED_KEYS:
                lines.append(f"{where}: has been renamed to {RENAMED_KEYS[where]}; use the new key")
            case "literal_error" if renamed := RENAMED_KEYS.get(f"{where}.{problem['input']}"):
                lines.append(f"{where}: {problem['input']!r} has been renamed to {renamed!r}; use the new value")
            case "extra_forbidden":
                lines.append(f"{where}: unknown key; {_meant(where, kind)}known here: {known}")
            case "missing":
                lines.append(f"{where}: missing; set it in the file or with --set {where}=...")
            case "value_error":
                reason = problem["msg"].removeprefix("Value error, ")
                lines.append(f"{where}: {reason}" if where else reason)
            case _ if problem["loc"][:1] == (_SECRETS,):
                lines.append(
                    f"{where}: {problem['msg']} (what was found is not shown, since it may be secret); quote a name "
                    f'that holds dots: {_SECRETS}.kafka = {{ "sasl.password" = "$NAME" }}'
                )
            case _:
                lines.append(f"{where}: found {_found(problem['input'])}: {problem['msg']}")
    return [f"{origin}: {line}" for line in lines]


def _meant(where: str, kind: type[BaseModel]) -> str:
    """Return ``did you mean KEY? `` for the key, of any section, that is closest to an unknown one, or nothing."""
    every = [*_dotted_keys(kind)]
    name = where.rpartition(".")[2]
    beside = [key for key in every if key.rpartition(".")[0] == where.rpartition(".")[0]]
    elsewhere = [key for key in every if key.rpartition(".")[2] == name]
    close = close_to(where, beside) or elsewhere
    if not close:
        names = {key.rpartition(".")[2]: key for key in every}
        close = [names[one] for one in close_to(name, names)]
    return f"did you mean {close[0]}? " if close else ""


def _dotted_keys(kind: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name in kind.model_fields:
        yield f"{prefix}{name}"
        for nested in _sections_of(kind, name):
            yield from _dotted_keys(nested, f"{prefix}{name}.")


def _found(value: Any) -> str:
    """Return a value as Python writes it, cut, without the credentials of an address."""
    shown = repr(shown_address(value) if isinstance(value, str) else value)
    return without_credentials(shown if len(shown) <= MAX_SHOWN else f"{shown[:MAX_SHOWN]}...")


def _keys_at(kind: type[BaseModel], path: Sequence[int | str]) -> list[str]:
    for part in path:
        nested = _sections_of(kind, str(part))
        if not nested:
            return []
        kind = nested[0]
    return list(kind.model_fields)


def _sections_of(kind: type[BaseModel], name: str) -> list[type[BaseModel]]:
    """Return the section that a key holds, if it holds one."""
    field = kind.model_fields.get(name)
    candidates = [] if field is None else [field.annotation, *getattr(field.annotation, "__args__", ())]
    return [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
