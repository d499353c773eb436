"""TOML and ``--set key=value`` -> a configuration; mistakes -> one message that names key, value and remedy."""

import hashlib
import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from pairwright.config.section import Section
from pairwright.errors import ConfigError

ConfigT = TypeVar("ConfigT", bound=Section)


def load_config(kind: type[ConfigT], path: str | None, overrides: Sequence[str] = ()) -> ConfigT:
    """Return the configuration in a TOML file, with ``section.key=value`` overrides on top.

    An override's value is read as TOML, and as a plain string where it is not TOML (``model.path=runs/x``).

    Raises:
        ConfigError: if the file is missing or is not TOML, if a key is unknown, or if a value is not allowed.
    """
    values = _read_toml(path) if path is not None else {}
    for override in overrides:
        _apply_override(values, override)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_explain(error, kind, path or "command line")) from None


def config_digest(config: Section) -> str:
    """Return the SHA-256 of a resolved configuration, 64 hex digits; equal configurations, equal digests."""
    return digest_of(config.model_dump(mode="json"))


def digest_of(value: Any) -> str:
    """Return the SHA-256 of a JSON-able value, 64 hex digits, whatever the order of its keys."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _read_toml(path: str) -> dict[str, Any]:
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration file; recipes to start from are in jobs/recipes/") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a TOML file: {error}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {override}: expected section.key=value, such as --set optimizer.learning_rate=1e-5")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *sections, name = key.strip().split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ConfigError(f"--set {override}: {section} is a value, not a section")
    values[name] = value


def _explain(error: ValidationError, kind: type[Section], origin: str) -> str:
    lines = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"])
        known = ", ".join(_keys_at(kind, problem["loc"][:-1]))
        match problem["type"]:
            case "extra_forbidden":
                lines.append(f"{where}: unknown key; known here: {known}")
            case "missing":
                lines.append(f"{where}: missing; set it in the file or with --set {where}=...")
            case "value_error":
                reason = problem["msg"].removeprefix("Value error, ")
                lines.append(f"{where}: {reason}" if where else reason)
            case _:
                lines.append(f"{where}: found {problem['input']!r}: {problem['msg']}")
    return "\n".join(f"{origin}: {line}" for line in lines)


def _keys_at(kind: type[BaseModel], path: Sequence[int | str]) -> list[str]:
    for part in path:
        field = kind.model_fields.get(str(part))
        candidates = [] if field is None else [field.annotation, *getattr(field.annotation, "__args__", ())]
        nested = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        if not nested:
            return []
        kind = nested[0]
    return list(kind.model_fields)
