"""Any other JSON by field paths: where a foreign record keeps each part of an annotation, from the configuration.

The record is decoded to plain objects and walked, at about half the speed of a typed layout.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, cast

import msgspec

from pairwright.config import FieldPaths, IngestConfig
from pairwright.data import grades
from pairwright.data.formats.record import Format, Parse, RecordError, content_id, json_name, whole
from pairwright.errors import ConfigError
from pairwright.records import Annotation, Completion, Grade, Message

JsonPath: TypeAlias = tuple["str | int | None", ...]
"""Steps of a field path: a key, an index, or None for "each item of the list"."""

_STEP = re.compile(r'(?P<key>[^.\[\]"]+)|\[(?P<index>-?\d+)\]|(?P<each>\[\])|\["(?P<quoted>[^"]+)"\]')
_ANY = msgspec.json.Decoder()


class ForeignRecord:
    """Parser of foreign records: the compiled paths of one ``FieldPaths``."""

    def __init__(self, fields: FieldPaths) -> None:
        self._prompt = compile_path("prompt", fields.prompt)
        self._completions = compile_path("completions", fields.completions)
        self._text = _compile_optional("text", fields.text)
        self._completion_id = _compile_optional("completion_id", fields.completion_id)
        self._model = _compile_optional("model", fields.model)
        self._rank = _compile_optional("rank", fields.rank)
        self._score = _compile_optional("score", fields.score)
        self._ranks = _compile_optional("ranks", fields.ranks)
        self._scores = _compile_optional("scores", fields.scores)
        self._grade = _compile_optional("grade", fields.grade)
        self._id = _compile_optional("id", fields.id)
        self._annotator = _compile_optional("annotator", fields.annotator)
        self._subset = _compile_optional("subset", fields.subset)
        self._created_at = _compile_optional("created_at", fields.created_at)
        self._metadata = {name: compile_path(f"metadata.{name}", path) for name, path in fields.metadata.items()}

    def __call__(self, line: bytes) -> tuple[Annotation]:
        """Return the one annotation in ``line``.

        Raises:
            RecordError, msgspec.DecodeError, UnicodeDecodeError, RecursionError: if the line is no such record.
        """
        record = _ANY.decode(line)
        if not isinstance(record, dict):
            raise RecordError(f"expected `object`, got `{json_name(record)}`")
        items, where = _find(record, self._completions)
        items = _expect_list(items, where)
        annotation = Annotation(
            id=self._record_id(record, line),
            prompt=self._prompt_of(record),
            completions=[self._completion(item, f"{where}[{index}]") for index, item in enumerate(items)],
            ranks=self._judgement(record, items, where, self._rank, self._ranks, whole),
            scores=self._judgement(record, items, where, self._score, self._scores, _score),
            grade=self._grade_of(record),
            annotator=_label_at(record, self._annotator),
            created_at=_label_at(record, self._created_at),
            subset=_label_at(record, self._subset),
            metadata=self._metadata_of(record),
        )
        return (annotation,)

    def _record_id(self, record: dict[str, Any], line: bytes) -> str:
        if self._id is None:
            return content_id(line)
        value, where = _find(record, self._id)
        return _label(value, where)

    def _prompt_of(self, record: dict[str, Any]) -> str | list[Message]:
        value, where = _find(record, self._prompt)
        if not isinstance(value, list):
            return _text(value, where)
        return [_message(turn, f"{where}[{index}]") for index, turn in enumerate(value)]

    def _completion(self, item: object, where: str) -> Completion:
        text, text_where = (item, where) if self._text is None else _find(item, self._text, where)
        return Completion(
            text=_text(text, text_where),
            id=_label_at(item, self._completion_id, where),
            model=_label_at(item, self._model, where),
        )

    def _judgement(
        self,
        record: dict[str, Any],
        items: list[Any],
        where: str,
        each: JsonPath | None,
        beside: JsonPath | None,
        number: Callable[[object, str], Any],
    ) -> list[Any] | None:
        if each is not None:
            return [number(*_find(item, each, f"{where}[{index}]")) for index, item in enumerate(items)]
        if beside is not None:
            values, place = _find(record, beside)
            return [number(value, f"{place}[{index}]") for index, value in enumerate(_expect_list(values, place))]
        return None

    def _grade_of(self, record: dict[str, Any]) -> Grade | None:
        named = _label_at(record, self._grade)
        grade = None if named is None else grades.grade_named(named)
        if named is not None and grade is None:
            raise RecordError(f"{grades.EXPECTED}, got `{named}`", path=f"${render_path(self._grade or ())}")
        return grade

    def _metadata_of(self, record: dict[str, Any]) -> dict[str, str] | None:
        metadata = {}
        for name, path in self._metadata.items():
            value = _find_optional(record, path)
            if value is not None:
                metadata[name] = value if isinstance(value, str) else msgspec.json.encode(value).decode()
        return metadata or None


def compile_path(field: str, path: str) -> JsonPath:
    """Return the steps of a field path such as ``answers[].text``, ``turns[-1].content`` or ``meta["a.b"]``.

    Raises:
        ConfigError: if ``path`` is not made of such steps; ``field`` names the configuration key.
    """
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


def _compile_optional(field: str, path: str | None) -> JsonPath | None:
    return None if path is None else compile_path(field, path)


def _step(match: re.Match[str]) -> str | int | None:
    if match["each"] is not None:
        return None
    return int(match["index"]) if match["index"] is not None else match["key"] or match["quoted"]


def _find(value: object, path: JsonPath, where: str = "$") -> tuple[Any, str]:
    """Return what stands at ``path``, and its place for messages.

    Raises:
        RecordError: if nothing stands there.
    """
    for position, step in enumerate(path):
        if isinstance(step, str):
            if not isinstance(value, dict):
                raise RecordError(f"expected `object`, got `{json_name(value)}`", path=where)
            if step not in value:
                raise RecordError(f"missing field `{step}`, got {_known_keys(value)}", path=where)
            value, where = value[step], f"{where}.{step}"
            continue
        items = _expect_list(value, where)
        if step is None:
            return _find_in_each(items, path[position + 1 :], where), where
        if not -len(items) <= step < len(items):
            raise RecordError(f"expected an item [{step}], got an array of {len(items)}", path=where)
        value, where = items[step], f"{where}[{step}]"
    return value, where


def _find_in_each(items: list[Any], rest: JsonPath, where: str) -> list[Any]:
    found = [_find(item, rest, f"{where}[{index}]")[0] for index, item in enumerate(items)]
    return [inner for value in found for inner in value] if None in rest else found


def _find_optional(value: object, path: JsonPath) -> Any:
    """Return what stands at ``path``, or None where nothing does: an optional field may be absent from a record."""
    try:
        return _find(value, path)[0]
    except RecordError:
        return None


def _known_keys(record: dict[str, Any]) -> str:
    names = [f"`{name}`" for name in list(record)[:12]]
    return f"an object with {', '.join(names)}" if names else "an empty object"


def _expect_list(value: object, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise RecordError(f"expected `array`, got `{json_name(value)}`", path=where)
    return cast("list[Any]", value)


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise RecordError(f"expected `str`, got `{json_name(value)}`", path=where)
    return value


def _label(value: object, where: str) -> str:
    """Return a name or number as a string: exports often count annotators and records."""
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise RecordError(f"expected `str | int`, got `{json_name(value)}`", path=where)


def _label_at(value: object, path: JsonPath | None, where: str = "$") -> str | None:
    found = None if path is None else _find_optional(value, path)
    return None if found is None else _label(found, f"{where}{render_path(path or ())}")


def render_path(path: JsonPath) -> str:
    """Return the steps of a path as msgspec writes them in its messages: ``.answers[].rank``."""
    return "".join(f".{step}" if isinstance(step, str) else f"[{'' if step is None else step}]" for step in path)


def _score(value: object, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RecordError(f"expected `float`, got `{json_name(value)}`", path=where)
    try:
        return float(value)
    except OverflowError:
        raise RecordError("expected `float`, got an integer out of range", path=where) from None


def _message(turn: object, where: str) -> Message:
    parts = [_text(*_find(turn, (name,), where)) for name in ("role", "content")]
    return Message(role=parts[0], content=parts[1])


def _parser(config: IngestConfig) -> Parse:
    if config.fields is None:
        raise ConfigError('format = "fields" needs a table [fields] that says where the parts of a record stand')
    return ForeignRecord(config.fields)


def _fits(_: Mapping[str, Any]) -> bool:
    return False


FIELDS = Format(name="fields", layout="what [fields] in --config says", fits=_fits, parser=_parser)
