"""The adapter contract: what a format is, and how an adapter reports errors to the code that reads lines.

An adapter gets one record, as the bytes of its JSON text, and returns its judgements as native ``Annotation``s, or the
reason why one is none. It decodes into typed structs in one msgspec pass, so that a record of another layout is
refused with msgspec's own path and the layout that was expected.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol, TypeAlias

import msgspec

from pairwright.config import FieldPaths, IngestConfig
from pairwright.records import Annotation

MAX_NAMES = 8
MAX_NAME_CHARACTERS = 100
"""What a message shows of names that it quotes from a record."""

Judgements: TypeAlias = "Sequence[Annotation | RecordError]"
"""What one record holds, at least one: annotations, and errors of those that are none."""

_MSGSPEC_PATH = re.compile(r"^(?P<reason>.*) - at `(?P<path>.*)`$", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(.*)`", re.DOTALL)
_NUMBER = re.compile(r"[+-]?[0-9]{1,100}(?P<fraction>(?:\.[0-9]{0,100})?(?:[eE][+-]?[0-9]{1,4})?)")
_JSON_NAMES = {dict: "object", list: "array", str: "str", bool: "bool", int: "int", float: "float", type(None): "null"}


class RecordError(Exception):
    """A record, or one judgement of it, that cannot become an annotation; quarantined as a ``Rejection``.

    The reason reads "expected ..., got ...; what to do": what varies from record to record comes after ", got", so
    that reasons can be counted. ``path`` is where in the record, as in ``$.ranks[2]``.
    """

    def __init__(self, reason: str, *, path: str = "$") -> None:
        super().__init__(reason)
        self.reason = reason
        self.path = path


class Reading:
    """How a source was read: which field each part came from, what went into metadata, and what was not used."""

    def __init__(self) -> None:
        self.used: dict[str, str] = {}
        self.kept: set[str] = set()
        self.unused: set[str] = set()
        self._left = _DESCRIBED

    def describe(self, used: Iterable[tuple[str, str]]) -> None:
        """Record which field each part of an annotation came from; for the first records of a source only."""
        if self._left:
            self._left -= 1
            for part, field in used:
                self.used.setdefault(part, field)

    def as_dict(self) -> dict[str, list[str]]:
        """Return the same as lists of names."""
        used = [f"{part} = {field}" for part, field in self.used.items() if part not in ("completions", "text")]
        found = {"used": used, "metadata": sorted(self.kept), "not used": sorted(self.unused)}
        return {name: names[:_NAMES_KEPT] for name, names in found.items() if names}


_DESCRIBED = 50
_NAMES_KEPT = 100


class Parse(Protocol):
    """Parser of one record into its judgements.

    Raises ``RecordError``, or msgspec's own errors, on a record that is bad as a whole.
    """

    reading: Reading

    def __call__(self, line: bytes, /) -> Judgements:
        """Return the judgements in a line."""
        ...


@dataclass(frozen=True, slots=True)
class Format:
    """One layout of records."""

    name: str
    """What ``--format`` calls it."""
    layout: str
    """Shape of a record, for messages."""
    matches: Callable[[Mapping[str, Any]], bool]
    """Whether a decoded record has what this layout cannot do without."""
    parser: Callable[[IngestConfig], Parse]
    """The parser under a configuration."""
    num_unplaced: Callable[[Mapping[str, Any]], int] = lambda record: 0
    """How many fields of a record this layout does not know."""
    num_essential: int = 3
    """How many fields it requires: of two layouts that match equally, the one that requires more wins."""
    what: str = ""
    """Whose layout it is."""
    examples: Sequence[str] = ()
    """Records of it, as JSON."""
    fields: FieldPaths | None = None
    """Paths of the parts of a record, if paths describe all of it."""


def schema_mismatch(error: msgspec.ValidationError, layout: str) -> RecordError:
    """Return msgspec's error with what was expected of the record as a whole."""
    reason, path = split_message(str(error))
    if missing := _MISSING.fullmatch(reason):
        reason = f"missing field `{missing[1]}`"
    return RecordError(f"{reason[0].lower()}{reason[1:]}; a record of this format is {layout}", path=path)


def split_message(message: str) -> tuple[str, str]:
    """Return the reason in msgspec's message and the path that it names, ``$`` if none."""
    match = _MSGSPEC_PATH.match(message)
    return (match["reason"], match["path"]) if match else (message, "$")


def content_id(line: bytes) -> str:
    """Return the name of a record that has none: a hash of its text, 32 hex digits."""
    return hashlib.blake2b(line.strip(), digest_size=16).hexdigest()


def check_count(what: str, found: int, most: int, key: str, path: str) -> None:
    """Refuse a record that holds too many of something, before any work is done for each.

    Raises:
        RecordError: if so; ``key`` names the limit.
    """
    if found > most:
        raise RecordError(f"expected at most {most:,} {what}, got {found:,}; set {key} to take more", path=path)


def quoted(names: Iterable[str]) -> str:
    """Return the first names of many, each in backquotes, the end of a long one cut off."""
    return ", ".join(f"`{name[:MAX_NAME_CHARACTERS]}`" for name in islice(names, MAX_NAMES))


def json_name(value: object) -> str:
    """Return JSON's name for the type of a decoded value, as msgspec's messages spell it."""
    return _JSON_NAMES.get(type(value), type(value).__name__)


def is_list_of(value: object, *keys: str) -> bool:
    """Return whether a decoded value is a list, not empty, whose first item is an object with all of the keys."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict) and set(keys) <= value[0].keys()


def whole(value: object, path: str) -> int:
    """Return a whole number, also one that came through a column of floats (1.0).

    Raises:
        RecordError: if it is none.
    """
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise RecordError(f"expected `int`, got `{json_name(value)}`", path=path)


def label(value: object, where: str) -> str:
    """Return a name or number as a string: exports often count annotators and records.

    Raises:
        RecordError: if it is neither.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise RecordError(f"expected `str | int`, got `{json_name(value)}`", path=where)


def number(value: object, where: str) -> float:
    """Return a number, also one in quotes, as each is in a cell of a CSV file.

    Raises:
        RecordError: if it is none.
    """
    value = digit(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RecordError(f"expected `float`, got `{json_name(value)}`", path=where)
    try:
        return float(value)
    except OverflowError:
        raise RecordError("expected `float`, got an integer out of range", path=where) from None


def digit(value: object) -> object:
    """Return the number that a text is; anything else as it is."""
    if not isinstance(value, str) or not (match := _NUMBER.fullmatch(value.strip())):
        return value
    return float(value) if match["fraction"] else int(value)
