"""The keys that records of an unknown layout have: path, types, values, and an example that is safe to print."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from pairwright.addresses import without_credentials
from pairwright.data.ingest.fields.adapter import digit, json_name
from pairwright.data.ingest.fields.paths import opened
from pairwright.terminal import escaped

MAX_KEYS = 60
"""Keys that are looked at: a record may have any number of them."""
_MAX_DEPTH = 3
_MAX_VALUES = 200
_EXAMPLE_CHARACTERS = 40
_SECRET_KEY = re.compile(r"passw|secret|token$|api[_-]?key|credential|authorization|cookie|private", re.IGNORECASE)
_SECRET = re.compile(r"\b(AKIA\w{8,}|(sk|hf|pk|ghp|gho|xox[a-z])[-_][\w-]{8,}|eyJ[\w-]{10,}\.[\w-]+|Bearer\s+\S+)")
_MASK = "***"


class FoundKey(msgspec.Struct, frozen=True):
    """A key of some records, as a message shows it."""

    path: str
    types: str
    """JSON's names for the types of its values."""
    example: str
    """One value, shortened, escaped, without what looks like a secret."""

    def line(self) -> str:
        """Return the key as a line of a message."""
        return f"{escaped(self.path)} ({self.types}): {self.example}"


@dataclass
class KeyValues:
    """The values at one path of several records."""

    steps: tuple[str, ...]
    """Keys, and ``[]`` for each item of a list."""
    values: list[Any] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The last key, in small letters with an underscore for everything that is no letter or digit."""
        return normal(self.steps[-1])

    @property
    def path(self) -> str | None:
        """The path as [fields] writes it; None where a key cannot be written."""
        return path_of(self.steps)

    @property
    def texts(self) -> list[str]:
        """The values that are text and no number, list or object."""
        return [v for v in self.values if isinstance(v, str) and not is_number(v) and opened(v) is v]

    @property
    def is_text(self) -> bool:
        """Whether most values are texts."""
        return 2 * len(self.texts) > len(self.values)

    @property
    def is_number(self) -> bool:
        """Whether every value is a number, or text that is one."""
        return bool(self.values) and all(map(is_number, self.values))

    @property
    def words(self) -> list[str]:
        """The different values, as JSON writes those that are no text; none where there are many or long ones."""
        found = {v if isinstance(v, str) else msgspec.json.encode(v).decode() for v in self.values}
        is_choice = len(found) <= 12 and all(len(word) <= 40 for word in found)
        return sorted(found) if is_choice else []

    def shown(self) -> FoundKey:
        """Return the key as a message shows it."""
        types = sorted({json_name(value) for value in self.values}) or ["null"]
        name = "".join(step if step == "[]" else f".{step}" for step in self.steps).removeprefix(".")
        return FoundKey(name[:100], " | ".join(types), _example(self))


def sampled_keys(records: Sequence[Mapping[str, Any]]) -> list[KeyValues]:
    """Return the keys of some records, in the order of their first occurrence, with values that are not null."""
    found: dict[tuple[str, ...], KeyValues] = {}
    for record in records:
        for steps, value in _leaves(record, ()):
            if steps not in found and len(found) >= MAX_KEYS:
                continue
            known = found.setdefault(steps, KeyValues(steps))
            if value is not None and value != "" and len(known.values) < _MAX_VALUES:
                known.values.append(value)
    return list(found.values())


def _leaves(value: Any, steps: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    below = opened(value)
    if isinstance(below, dict) and below and len(steps) < _MAX_DEPTH:
        for key, item in list(below.items())[:MAX_KEYS]:
            yield from _leaves(item, (*steps, str(key)))
        return
    if steps:
        yield steps, below if isinstance(below, list) else value
    if isinstance(below, list) and below and isinstance(below[0], dict) and len(steps) < _MAX_DEPTH:
        for item in below[:8]:
            if isinstance(item, dict):
                for key, inner in list(item.items())[:MAX_KEYS]:
                    yield (*steps, "[]", str(key)), inner


def normal(name: str) -> str:
    """Return a name in small letters, with an underscore for everything that is no letter or digit."""
    parted = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name.strip())
    return re.sub(r"[\W_]+", "_", parted.lower()).strip("_")


def is_number(value: Any) -> bool:
    """Return whether a value is a number, or text that is one."""
    value = digit(value)
    return isinstance(value, int | float) and not isinstance(value, bool)


def path_of(steps: Sequence[str]) -> str | None:
    """Return keys as a path of [fields]; None where a key cannot be written in one."""
    path = ""
    for step in steps:
        if step == "[]":
            path += step
        elif '"' in step or " | " in step or not step:
            return None
        elif re.search(r"[.\[\]|]", step) or step != step.strip():
            path += f'["{step}"]'
        else:
            path += f".{step}" if path else step
    return path


def toml_text(text: str) -> str:
    """Return a text as TOML writes it: in double quotes, with escapes for what is not printable."""
    return '"' + "".join(map(_toml_character, text)) + '"'


def toml_key(name: str) -> str:
    """Return a key as TOML writes it: bare where it can be."""
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else toml_text(name)


def _toml_character(character: str) -> str:
    if character in '"\\':
        return f"\\{character}"
    return character if character.isprintable() else f"\\U{ord(character):08x}"


def _example(key: KeyValues) -> str:
    value = next(iter(key.values), None)
    if value is not None and any(_SECRET_KEY.search(step) for step in key.steps):
        return _MASK
    text = msgspec.json.encode(value).decode() if not isinstance(value, str) else toml_text(value[:1000])
    text = _SECRET.sub(_MASK, without_credentials(text))
    return escaped(text if len(text) <= _EXAMPLE_CHARACTERS else f"{text[:_EXAMPLE_CHARACTERS]}...")
