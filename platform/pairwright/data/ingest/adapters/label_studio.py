"""Adapter for Label Studio's JSON export: a task with its annotations.

Layouts after Label Studio's documentation: "Label Studio JSON format of annotated tasks" (guide/task_format) and the
tags Ranker, Pairwise, Choices and Rating. The export names tags, not the fields of the task that they show; a tag
belongs to the field of its name, and otherwise to the only field that ends in the same number (``txt-1``: ``text1``).
Judgements are a ranker, a pairwise choice, a choice that names a field, or a rating of each of two or more fields.
Other results go into metadata.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from pairwright.config import IngestConfig
from pairwright.data.extras import is_blank
from pairwright.data.ingest.adapters.shown_fields import last_digits, similarly_named, system_of
from pairwright.data.ingest.fields.adapter import (
    Format,
    Judgements,
    Reading,
    RecordError,
    check_count,
    is_list_of,
    number,
    quoted,
    schema_mismatch,
)
from pairwright.data.ingest.fields.conversation_turns import Prompt, find_prompt, prompts_among
from pairwright.data.ingest.fields.other_fields import as_text, handle_unread_fields, unplaced
from pairwright.data.ingest.fields.paths import opened
from pairwright.data.ingest.fields.replies import with_context
from pairwright.records import Annotation, Completion

LAYOUT = '{"id", "data": {"prompt", ...}, "annotations": [{"id", "completed_by", "result": [{"type", "value"}]}]}'
_JUDGING = ("ranker", "pairwise", "choices", "rating")
_OF_ITEM = ("id", "body", "html", "title", "model")
UNSORTED = "_"
"""Label Studio's name of the list that items stay in until somebody moves them to a bucket."""


class _Result(msgspec.Struct, frozen=True, kw_only=True):
    type: str
    value: dict[str, Any] = {}
    from_name: str = ""
    to_name: str = ""


class _User(msgspec.Struct, frozen=True, kw_only=True):
    id: int | str
    email: str | None = None


class _Annotation(msgspec.Struct, frozen=True, kw_only=True):
    id: int | str
    result: list[_Result]
    completed_by: int | str | _User | None = None
    was_cancelled: bool = False
    created_at: str | None = None


class _Task(msgspec.Struct, frozen=True, kw_only=True):
    id: int | str
    data: dict[str, Any]
    annotations: list[_Annotation]


@dataclass(frozen=True, slots=True)
class _Fields:
    """What a task shows, worked out once for all of its annotations."""

    data: dict[str, Any]
    prompts: dict[str, Prompt]
    texts: list[str]
    """Names of the fields that hold text."""
    numbers: dict[str, str]
    """The digits that each of them ends in."""
    lists: list[str]
    """Names of the fields that hold items."""


@dataclass(frozen=True, slots=True)
class _Judged:
    """What one result, or the ratings of one person, say."""

    names: Sequence[str]
    """Fields that hold the completions."""
    completions: list[Completion]
    order: list[Any] | None = None
    scores: list[float] | None = None


class LabelStudioReader:
    """Parser of tasks."""

    def __init__(self, config: IngestConfig) -> None:
        self.reading = Reading()
        self._config = config
        self._buckets = None if config.buckets is None else list(config.buckets)

    def __call__(self, line: bytes, /) -> Judgements:
        """Return the judgements in a task.

        Raises:
            RecordError, msgspec.DecodeError, UnicodeDecodeError, RecursionError: if the line is no such record.
        """
        record = msgspec.json.decode(line)
        if isinstance(record, dict):
            record = {key: opened(value) if key in ("data", "annotations") else value for key, value in record.items()}
        try:
            task = msgspec.convert(record, _Task, strict=False)
        except msgspec.ValidationError as error:
            raise schema_mismatch(error, LAYOUT) from None
        if not task.annotations:
            return [RecordError("expected annotations, got a task that nobody has finished", path="$.annotations")]
        limits = self._config.limits
        num_made, key = len(task.annotations), "limits.max_judgements"
        check_count("annotations", num_made, limits.max_judgements, key, "$.annotations")
        check_count("fields", len(task.data), limits.max_columns, "limits.max_columns", "$.data")
        fields = _fields(task.data)
        for name in fields.lists:
            most = self._config.max_completions
            check_count("completions", len(task.data[name]), most, "max_completions", f"$.data.{name}")
        self.reading.describe([("judgement", "annotations[].result")])
        return [
            self._judgement(task, fields, made, f"$.annotations[{index}]")
            for index, made in enumerate(task.annotations)
        ]

    def _judgement(self, task: _Task, fields: _Fields, made: _Annotation, path: str) -> Annotation | RecordError:
        try:
            if made.was_cancelled:
                raise RecordError("skipped by its annotator", path=f"{path}.was_cancelled")
            judged, used = _judged(fields, made, path, self._buckets)
            system, rest = system_of(fields.data, judged.names)
            prompts = {name: prompt for name, prompt in fields.prompts.items() if name in rest}
            prompt_name, prompt = find_prompt(prompts, judged.names, "$.data")
            annotation = Annotation(
                id=f"{task.id}-{made.id}",
                prompt=with_context(prompt, system, (), "$.data"),
                completions=judged.completions,
                order=judged.order,
                scores=judged.scores,
                annotator=_annotator(made.completed_by),
                created_at=made.created_at,
            )
            metadata = _kept(result for index, result in enumerate(made.result) if index not in used)
            left = [((name,), rest[name]) for name in rest if name not in (*judged.names, prompt_name) and rest[name]]
            handle_unread_fields(left, annotation, metadata, self.reading, self._config.fields)
            return msgspec.structs.replace(annotation, metadata=metadata or None)
        except RecordError as error:
            return error


def _judged(fields: _Fields, made: _Annotation, path: str, buckets: list[str] | None) -> tuple[_Judged, set[int]]:
    """Return what an annotation judges, and the indices of the results that say so."""
    found = {index: result for index, result in enumerate(made.result) if result.type in _JUDGING}
    first = [index for index, result in found.items() if result.type in ("ranker", "pairwise")]
    ratings = [index for index, result in found.items() if result.type == "rating"]
    labels = [index for index, result in found.items() if result.type == "choices" and _choice(fields, result)]
    if not first and not labels and len(ratings) > 1:
        return _rated(fields, {index: found[index] for index in ratings}, path), set(ratings)
    chosen = first or labels
    if len(chosen) != 1:
        raise RecordError(
            f"expected one result of type ranker or pairwise, one choice of a field, or ratings of all of them, got "
            f"{len(chosen) or 'none'}",
            path=f"{path}.result",
        )
    index = chosen[0]
    result, where = found[index], f"{path}.result[{index}]"
    if result.type == "pairwise":
        return _pairwise(fields, result, where), {index}
    if result.type == "choices":
        return _labelled(fields, result), {index}
    return _ranker(fields, result, where, buckets), {index}


def _kept(results: Iterable[_Result]) -> dict[str, str]:
    """Return what other results say, by the names of their tags."""
    kept: dict[str, str] = {}
    for result in results:
        values = [value for name, value in result.value.items() if name in (result.type, "text", "choices", "rating")]
        said = values[0] if len(values) == 1 else result.value
        if isinstance(said, list) and len(said) == 1:
            said = said[0]
        kept[result.from_name or result.type] = as_text(said)
    return kept


# ---------------------------------------------------------------------------------------------- choices, ratings


def _choice(fields: _Fields, result: _Result) -> str | None:
    """Return the field that a choice names; None where it says something else."""
    choices = result.value.get("choices")
    name = choices[0] if isinstance(choices, list) and len(choices) == 1 else None
    if not isinstance(name, str) or name not in fields.numbers:
        return None
    return name if len(similarly_named(name, fields.texts)) > 1 else None


def _labelled(fields: _Fields, result: _Result) -> _Judged:
    better = str(_choice(fields, result))
    names = similarly_named(better, fields.texts)
    worse = [name for name in names if name != better]
    return _Judged(names, _completions(fields, names), order=[better, worse])


def _rated(fields: _Fields, ratings: Mapping[int, _Result], path: str) -> _Judged:
    scores: dict[str, float] = {}
    for index, result in ratings.items():
        where = f"{path}.result[{index}]"
        name = _field_of(result.to_name, fields)
        if name in scores:
            raise RecordError(f"expected one rating of each field, got `{name}` again", path=f"{where}.to_name")
        scores[name] = number(result.value.get("rating"), f"{where}.value.rating")
    names = [name for name in fields.texts if name in scores]
    if missing := [name for name in similarly_named(names[0], fields.texts) if name not in scores]:
        raise RecordError(f"expected a rating of each completion, got none of {quoted(missing)}", path=f"{path}.result")
    return _Judged(names, _completions(fields, names), scores=[scores[name] for name in names])


def _completions(fields: _Fields, names: Sequence[str]) -> list[Completion]:
    return [Completion(text=fields.data[name], id=name) for name in names]


def _fields(data: dict[str, Any]) -> _Fields:
    texts = [name for name, value in data.items() if isinstance(value, str)]
    return _Fields(
        data=data,
        prompts=prompts_among(data),
        texts=texts,
        numbers={name: last_digits(name) for name in texts},
        lists=[name for name, value in data.items() if is_list_of(value, "id")],
    )


def _annotator(by: int | str | _User | None) -> str | None:
    if isinstance(by, _User):
        return by.email or str(by.id)
    return None if by is None else str(by)


# ---------------------------------------------------------------------------------------------- pairwise


def _pairwise(fields: _Fields, result: _Result, path: str) -> _Judged:
    tags = [tag.strip() for tag in result.to_name.split(",")]
    if len(tags) != 2:
        raise RecordError(f"expected the names of two tags, got `{result.to_name}`", path=f"{path}.to_name")
    left, right = (_field_of(tag, fields) for tag in tags)
    if left == right:
        raise RecordError(f"expected two fields of the task, got `{left}` twice", path=f"{path}.to_name")
    selected = result.value.get("selected")
    better = {"left": left, "right": right, tags[0]: left, tags[1]: right}.get(str(selected))
    if better is None:
        raise RecordError(f"expected left or right, got `{selected}`", path=f"{path}.value.selected")
    names = (left, right)
    return _Judged(names, _completions(fields, names), order=[better, right if better == left else left])


def _field_of(tag: str, fields: _Fields) -> str:
    """Return the field of the task's data that a tag shows.

    Raises:
        RecordError: if its name does not tell.
    """
    if tag in fields.numbers:
        return tag
    number = last_digits(tag)
    similarly_named = [name for name, end in fields.numbers.items() if number and end == number]
    if len(similarly_named) != 1:
        found = quoted(fields.texts) or "none"
        raise RecordError(
            f"expected a field that the tag `{tag}` shows, got {found}; name the tag after its field", path="$.data"
        )
    return similarly_named[0]


# ------------------------------------------------------------------------------------------------ ranker


def _ranker(fields: _Fields, result: _Result, path: str, buckets: list[str] | None) -> _Judged:
    name = _list_field(result.to_name, fields)
    completions = [_item(item, f"$.data.{name}[{index}]") for index, item in enumerate(fields.data[name])]
    ids = [str(completion.id) for completion in completions]
    return _Judged((name,), completions, order=_order(result, ids, f"{path}.value.ranker", buckets))


def _list_field(tag: str, fields: _Fields) -> str:
    """Return the field that holds the items of a list tag: the one of its name, or the only list of items."""
    if tag in fields.lists:
        return tag
    if len(fields.lists) != 1:
        found = quoted(fields.lists) or "none"
        raise RecordError(f"expected one list of items with an `id` for the tag `{tag}`, got {found}", path="$.data")
    return fields.lists[0]


def _item(item: object, path: str) -> Completion:
    """Return an item of a List tag: its text is the body, or the title where it has no body."""
    fields = item if isinstance(item, dict) else {}
    name = fields.get("id")
    text = next((fields[key] for key in ("body", "html", "title") if isinstance(fields.get(key), str)), None)
    if not isinstance(name, str | int) or text is None:
        raise RecordError('expected {"id", "body"}, got an item without them', path=path)
    if odd := [key for key in fields if key not in _OF_ITEM and not is_blank(fields[key])]:
        raise unplaced(f"{path.removeprefix('$.')}.{odd[0]}")
    model = fields.get("model")
    return Completion(text=text, id=str(name), model=model if isinstance(model, str) else None)


def _order(result: _Result, ids: list[str], path: str, buckets: list[str] | None) -> list[Any]:
    """Return the order, best first; items of one bucket are tied, since a bucket is a grade."""
    ranked = result.value.get("ranker")
    if isinstance(ranked, dict) and set(ranked) == {result.from_name}:
        ranked = ranked[result.from_name]
    if isinstance(ranked, list):
        return [str(name) for name in ranked]
    if not isinstance(ranked, dict) or not all(isinstance(items, list) for items in ranked.values()):
        raise RecordError("expected a list of ids, or one for each bucket", path=path)
    sorted_ids = {name: [str(item) for item in items] for name, items in ranked.items() if name != UNSORTED}
    unknown = [name for name in sorted_ids if buckets is None or name not in buckets]
    if buckets is None or unknown:
        found = quoted(sorted_ids)
        raise RecordError(
            f"expected buckets whose order is known, got {found}; name all of them, best first, as `buckets` in "
            f'--config ("{UNSORTED}" for what was left in the list)',
            path=path,
        )
    placed = {item for items in sorted_ids.values() for item in items}
    sorted_ids[UNSORTED] = [item for item in ids if item not in placed]
    return [sorted_ids[name] for name in buckets if name in sorted_ids]


def _matches(record: Mapping[str, Any]) -> bool:
    return isinstance(opened(record.get("data")), dict) and isinstance(opened(record.get("annotations")), list)


LABEL_STUDIO = Format(
    name="label-studio",
    layout=LAYOUT,
    matches=_matches,
    parser=LabelStudioReader,
    what="Label Studio's JSON export: ranker, pairwise, choices and ratings, by annotator.",
    examples=(
        '{"id": 301, "data": {"prompt": "Which way is up?", "answer1": "That way.", "answer2": "Down."}, '
        '"annotations": [{"id": 31, "completed_by": 2, "result": [{"type": "pairwise", "from_name": '
        '"comparison", "to_name": "answer1,answer2", "value": {"selected": "left"}}]}]}',
    ),
)
