"""Label Studio's JSON export of ranker and pairwise projects: a task with the annotations that people made of it.

Layouts after Label Studio's documentation: "Label Studio JSON format of annotated tasks" (guide/task_format) and the
tags Ranker and Pairwise (tags/ranker, tags/pairwise). The export names tags, not the fields of the task that they show;
a tag belongs to the field of its name, and else to the only field that ends in the same number (``txt-1``: ``text1``).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from pairwright.config import IngestConfig
from pairwright.data.formats.record import Format, Parse, RecordError, check_count, is_list_of, quoted, typed
from pairwright.data.formats.turns import Prompt, find_prompt, prompts_among
from pairwright.records import Annotation, Completion

LAYOUT = '{"id", "data": {"prompt", ...}, "annotations": [{"id", "completed_by", "result": [{"type", "value"}]}]}'
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


def _parser(config: IngestConfig) -> Parse:
    buckets = None if config.buckets is None else list(config.buckets)
    limits = config.limits

    def judgements(task: _Task, _: str) -> Sequence[Annotation | RecordError]:
        if not task.annotations:
            return [RecordError("expected annotations, got a task that nobody has finished", path="$.annotations")]
        num_made, key = len(task.annotations), "limits.max_judgements"
        check_count("annotations", num_made, limits.max_judgements, key, "$.annotations")
        check_count("fields", len(task.data), limits.max_columns, "limits.max_columns", "$.data")
        fields = _fields(task.data)
        for name in fields.lists:
            check_count(
                "completions", len(task.data[name]), config.max_completions, "max_completions", f"$.data.{name}"
            )
        return [
            _judgement(task, fields, made, f"$.annotations[{index}]", buckets)
            for index, made in enumerate(task.annotations)
        ]

    return typed(_Task, LAYOUT, judgements)


def _fields(data: dict[str, Any]) -> _Fields:
    texts = [name for name, value in data.items() if isinstance(value, str)]
    return _Fields(
        data=data,
        prompts=prompts_among(data),
        texts=texts,
        numbers={name: _last_digits(name) for name in texts},
        lists=[name for name, value in data.items() if is_list_of(value, "id")],
    )


def _last_digits(name: str) -> str:
    """Return the digits that a name ends in; a pattern that looks for them takes quadratic time."""
    start = len(name)
    while start and name[start - 1].isdecimal():
        start -= 1
    return name[start:]


def _judgement(
    task: _Task, fields: _Fields, made: _Annotation, path: str, buckets: list[str] | None
) -> Annotation | RecordError:
    try:
        if made.was_cancelled:
            raise RecordError("skipped by its annotator", path=f"{path}.was_cancelled")
        index, result = _ranking_result(made, path)
        where = f"{path}.result[{index}]"
        if result.type == "pairwise":
            prompt, completions, order = _pairwise(fields, result, where)
        else:
            prompt, completions, order = _ranker(fields, result, where, buckets)
    except RecordError as error:
        return error
    return Annotation(
        id=f"{task.id}-{made.id}",
        prompt=prompt,
        completions=completions,
        order=order,
        annotator=_annotator(made.completed_by),
        created_at=made.created_at,
    )


def _ranking_result(made: _Annotation, path: str) -> tuple[int, _Result]:
    found = [(index, result) for index, result in enumerate(made.result) if result.type in ("ranker", "pairwise")]
    if len(found) != 1:
        raise RecordError(
            f"expected one result of type ranker or pairwise, got {len(found) or 'none'}", path=f"{path}.result"
        )
    return found[0]


def _annotator(by: int | str | _User | None) -> str | None:
    if isinstance(by, _User):
        return by.email or str(by.id)
    return None if by is None else str(by)


# ---------------------------------------------------------------------------------------------- pairwise


def _pairwise(fields: _Fields, result: _Result, path: str) -> tuple[Any, list[Completion], list[Any]]:
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
    completions = [Completion(text=fields.data[name], id=name) for name in (left, right)]
    prompt = find_prompt(fields.prompts, (left, right), "$.data")
    return prompt, completions, [better, right if better == left else left]


def _field_of(tag: str, fields: _Fields) -> str:
    """Return the field of the task's data that a tag shows.

    Raises:
        RecordError: if its name does not tell.
    """
    if tag in fields.numbers:
        return tag
    number = _last_digits(tag)
    alike = [name for name, end in fields.numbers.items() if number and end == number]
    if len(alike) != 1:
        found = quoted(fields.texts) or "none"
        raise RecordError(
            f"expected a field that the tag `{tag}` shows, got {found}; name the tag after its field", path="$.data"
        )
    return alike[0]


# ------------------------------------------------------------------------------------------------ ranker


def _ranker(
    fields: _Fields, result: _Result, path: str, buckets: list[str] | None
) -> tuple[Any, list[Completion], list[Any]]:
    name = _list_field(result.to_name, fields)
    completions = [_item(item, f"$.data.{name}[{index}]") for index, item in enumerate(fields.data[name])]
    ids = [str(completion.id) for completion in completions]
    order = _order(result, ids, f"{path}.value.ranker", buckets)
    return find_prompt(fields.prompts, (name,), "$.data"), completions, order


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


def _fits(record: Mapping[str, Any]) -> bool:
    return isinstance(record.get("data"), dict) and isinstance(record.get("annotations"), list)


LABEL_STUDIO = Format(name="label-studio", layout=LAYOUT, fits=_fits, parser=_parser)
