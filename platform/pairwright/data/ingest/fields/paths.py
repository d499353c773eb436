"""Field paths such as ``answers[].text | turns[-1].content``: compiles them, and finds their values in a record.

A record that came out of a table of text (CSV, a database) may hold lists and objects as JSON text: a path that goes on
into such a text reads it, and no other text is ever parsed.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias, cast

import msgspec

from pairwright.data.extras import is_blank
from pairwright.data.ingest.fields.adapter import RecordError, json_name
from pairwright.errors import ConfigError
from pairwright.records import UNREADABLE_JSON

Steps: TypeAlias = tuple["str | int | None", ...]
"""A key, an index, or None for "each item of the list"."""
JsonPath: TypeAlias = tuple[Steps, ...]
"""Alternative paths, in order: the first that has a value counts."""

_STEP = re.compile(r'(?P<key>[^.\[\]"]+)|\[(?P<index>-?\d+)\]|(?P<each>\[\])|\["(?P<quoted>[^"]+)"\]')
MAX_KEYS_SHOWN = 12


def compile_path(field: str, path: str) -> JsonPath:
    """Return the steps of a field path such as ``answers[].text``, ``turns[-1].content`` or ``meta["a.b"] | source``.

    Raises:
        ConfigError: if ``path`` is not made of such steps; ``field`` names the configuration key.
    """
    return tuple(_steps(field, part.strip()) for part in path.split(" | "))


def _steps(field: str, path: str) -> Steps:
    steps: list[str | int | None] = []
    position = 0
    while position < len(path):
        if path[position] == "." and steps and position + 1 < len(path) and path[position + 1] not in ".[":
            position += 1
        match = _STEP.match(path, position)
        if match is None or (steps and match["key"] is not None and path[position - 1] != "."):
            break
        steps.append(_step(match))
        position = match.end()
    if not steps or position < len(path):
        raise ConfigError(
            f"fields.{field}: cannot read the path {path!r}; expected keys joined by dots, with [] "
            f'for each item of a list, [0] for one item and ["a.b"] for a key with a dot'
        )
    return tuple(steps)


def _step(match: re.Match[str]) -> str | int | None:
    if match["index"] is not None:
        return int(match["index"])
    return None if match["each"] is not None else str(match["key"] or match["quoted"])


def render(steps: Steps) -> str:
    """Return steps as msgspec writes them in its messages: ``.answers[].rank``."""
    return "".join(f".{step}" if isinstance(step, str) else f"[{'' if step is None else step}]" for step in steps)


def named(steps: Steps) -> str:
    """Return steps as a configuration writes them: ``answers[].rank``."""
    return render(steps).removeprefix(".")


def find(value: Any, path: JsonPath, where: str = "$") -> tuple[Any, str]:
    """Return the value at a path, and its location in the record.

    Raises:
        RecordError: if no alternative of the path has a value, or several have different ones.
    """
    if len(path) == 1:
        return _at(value, path[0], where)
    found = [(item, f"{where}{render(steps)}") for steps in path if not is_blank(item := _optional(value, steps))]
    if not found:
        return _at(value, path[0], where)
    for item, location in found[1:]:
        if item != found[0][0]:
            raise RecordError(
                f"expected one of the fields that mean the same, got `{found[0][1]}` and `{location}` with different "
                "values; name one of them in [fields], and the other under fields.ignore",
                path=location,
            )
    return found[0]


def find_optional(value: Any, path: JsonPath | None, where: str = "$") -> tuple[Any, str]:
    """Return the value at a path, None where there is none, and its location in the record.

    Raises:
        RecordError: if several alternatives of the path have different values.
    """
    if path is None:
        return None, where
    if len(path) == 1:
        return _optional(value, path[0]), f"{where}{render(path[0])}"
    if all(is_blank(_optional(value, steps)) for steps in path):
        return None, f"{where}{render(path[0])}"
    return find(value, path, where)


def opened(value: Any) -> Any:
    """Return the list or the object in a text of JSON; any other value as it is."""
    if not isinstance(value, str) or value[:1] not in ("[", "{"):
        return value
    try:
        return msgspec.json.decode(value)
    except (*UNREADABLE_JSON, UnicodeEncodeError):
        return value


def expect_list(value: Any, where: str) -> list[Any]:
    """Return a list, also one given as JSON text.

    Raises:
        RecordError: if it is none.
    """
    value = opened(value)
    if not isinstance(value, list):
        raise RecordError(f"expected `array`, got `{json_name(value)}`", path=where)
    return cast("list[Any]", value)


def _at(value: Any, path: Steps, where: str) -> tuple[Any, str]:
    for position, step in enumerate(path):
        if isinstance(step, str):
            value = opened(value)
            if not isinstance(value, dict):
                raise RecordError(f"expected `object`, got `{json_name(value)}`", path=where)
            if step not in value:
                raise RecordError(f"missing field `{step}`, got {_known_keys(value)}", path=where)
            value, where = value[step], f"{where}.{step}"
            continue
        items = expect_list(value, where)
        if step is None:
            return _in_each(items, path[position + 1 :], where), where
        if not -len(items) <= step < len(items):
            raise RecordError(f"expected an item [{step}], got an array of {len(items)}", path=where)
        value, where = items[step], f"{where}[{step}]"
    return value, where


def _in_each(items: list[Any], rest: Steps, where: str) -> list[Any]:
    found = [_at(item, rest, f"{where}[{index}]")[0] for index, item in enumerate(items)]
    return [inner for value in found for inner in value] if None in rest else found


def _optional(value: Any, steps: Steps) -> Any:
    try:
        return _at(value, steps, "$")[0]
    except RecordError:
        return None


def _known_keys(record: Mapping[str, Any]) -> str:
    names = [f"`{name}`" for name in list(record)[:MAX_KEYS_SHOWN]]
    return f"an object with {', '.join(names)}" if names else "an empty object"


class KnownPaths:
    """The paths that a layout knows, to find the other fields of a record."""

    def __init__(self, paths: Sequence[Steps]) -> None:
        self._tree: dict[Any, Any] = {}
        for steps in paths:
            node = self._tree
            for step in (None if isinstance(step, int) else step for step in steps):
                node = node.setdefault(step, {})
            node[_WHOLE] = True

    def others(self, record: Mapping[str, Any]) -> Iterator[tuple[Steps, Any]]:
        """Yield each field that is not blank and at none of the known paths: its shortest path and its value."""
        yield from _others(record, self._tree, ())


_WHOLE = object()


def _others(value: Any, node: Mapping[Any, Any], path: Steps) -> Iterator[tuple[Steps, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            below = node.get(key)
            if below is None:
                if not is_blank(item):
                    yield (*path, key), item
            elif _WHOLE not in below:
                yield from _others(opened(item), below, (*path, key))
    elif isinstance(value, list) and None in node:
        below = node[None]
        if _WHOLE not in below:
            for item in value:
                yield from _others(opened(item), below, (*path, None))
