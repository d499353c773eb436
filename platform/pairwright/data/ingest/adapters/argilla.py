"""Adapter for Argilla's records with responses, as its SDKs and its server export them.

Layouts after Argilla's sources: ``Record.to_dict`` and ``GenericIO`` of its SDK 2 (``records.to_json()``,
``to_list(flatten=True)``, and the Hub's datasets, which are flattened), the server's records, where a response holds
the answers to all questions, and the datasets of version 1, where a column of answers stands beside its fields. Three
kinds of answers are judgements: a ranking (options, best first, or ``{"value", "rank"}``); a label that names the
better field; ratings of fields, where the number at the end of a question is that of its field. Other answers go into
metadata. Suggestions are a model's guess and no judgement.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import msgspec

from pairwright.config import FieldPaths, IngestConfig
from pairwright.data.ingest.adapters.shown_fields import last_digits, similarly_named, system_of
from pairwright.data.ingest.fields.adapter import (
    Format,
    Judgements,
    Reading,
    RecordError,
    check_count,
    content_id,
    number,
    schema_mismatch,
    whole,
)
from pairwright.data.ingest.fields.conversation_turns import Prompt, find_prompt, prompts_among
from pairwright.data.ingest.fields.other_fields import as_text, handle_unread_fields
from pairwright.data.ingest.fields.paths import opened
from pairwright.data.ingest.fields.replies import with_context
from pairwright.records import Annotation, Completion

LAYOUT = '{"id", "fields": {...}, "responses": {question: [{"value": [{"value", "rank"}, ...], "user_id"}]}}'
SUBMITTED = "submitted"

_RESPONSES, _USERS, _STATUS, _SUGGESTION = ".responses", ".users", ".status", "-suggestion"
_OF_RECORD = ("id", "external_id", "metadata", "status", "inserted_at", "updated_at", "vectors", "suggestions")
"""Columns of a flattened record that are no fields."""


class _Answer(msgspec.Struct, frozen=True, kw_only=True):
    """One person's answer to one question."""

    value: Any = None
    user_id: str | None = None
    status: str | None = None


class _Response(msgspec.Struct, frozen=True, kw_only=True):
    """The server's form: one person's answers to all questions."""

    values: dict[str, _Answer] | None = None
    status: str | None = None
    user_id: str | None = None


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    fields: dict[str, Any]
    responses: dict[str, list[_Answer]] | list[_Response] | None = None
    id: str | int | None = None
    external_id: str | int | None = None


@dataclass(slots=True)
class _Person:
    """What one person answered."""

    ratings: dict[str, float] = field(default_factory=dict)
    """Field -> its rating."""
    questions: list[str] = field(default_factory=list)
    path: str = ""
    others: dict[str, str] = field(default_factory=dict)
    """Question -> answer that judges nothing."""


_ANY = msgspec.json.Decoder()


class ArgillaReader:
    """Parser of Argilla's records."""

    def __init__(self, config: IngestConfig) -> None:
        self.reading = Reading()
        self._limits = config.limits
        self._fields = config.fields

    def __call__(self, line: bytes, /) -> Judgements:
        """Return the judgements in a record.

        Raises:
            RecordError, msgspec.DecodeError, UnicodeDecodeError, RecursionError: if the line is no such record.
        """
        record = _ANY.decode(line)
        if isinstance(record, dict):
            record = {key: _opened(key, value) for key, value in record.items()}
            if "fields" not in record:
                record = _nested(record) if any(key.endswith(_RESPONSES) for key in record) else _of_version_1(record)
        try:
            found = msgspec.convert(record, _Record, strict=False)
        except msgspec.ValidationError as error:
            raise schema_mismatch(error, LAYOUT) from None
        limits = self._limits
        check_count("fields", len(found.fields), limits.max_columns, "limits.max_columns", "$.fields")
        answers = list(islice(_answers(found), limits.max_judgements + 1))
        check_count("responses", len(answers), limits.max_judgements, "limits.max_judgements", "$.responses")
        name = next((str(given) for given in (found.external_id, found.id) if given is not None), content_id(line))
        self.reading.describe([("judgement", "responses")])
        return _judgements(_Shown(found.fields, name, self.reading, self._fields), answers)


def _opened(key: str, value: Any) -> Any:
    """Return the value of a cell that holds JSON text, where answers or fields are expected."""
    is_nested = key in ("fields", "responses") or key.endswith((_RESPONSES, _USERS, _STATUS))
    return opened(value) if is_nested else value


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return a flattened record as its SDK would nest it; what is no answer becomes a field."""
    responses = {}
    for key, values in flat.items():
        if key.endswith(_RESPONSES) and isinstance(values, list):
            users, states = (_beside(flat, key, end, len(values)) for end in (_USERS, _STATUS))
            responses[key.removesuffix(_RESPONSES)] = [
                {"value": value, "user_id": user, "status": state}
                for value, user, state in zip(values, users, states, strict=True)
            ]
    fields = {
        key: value
        for key, value in flat.items()
        if key not in _OF_RECORD and "." not in key and not key.startswith("_")
    }
    return {"fields": fields, "responses": responses, "id": flat.get("id")}


def _of_version_1(flat: Mapping[str, Any]) -> dict[str, Any]:
    questions = [key for key in flat if f"{key}{_SUGGESTION}" in flat]
    responses = {question: [_of_columns(answer) for answer in opened(flat[question]) or []] for question in questions}
    others = {key for question in questions for key in flat if key.startswith(f"{question}{_SUGGESTION}")}
    fields = {key: value for key, value in flat.items() if key not in {*questions, *others, *_OF_RECORD}}
    names = {key: flat.get(key) for key in ("id", "external_id")}
    return {"fields": fields, "responses": responses, **names}


def _of_columns(answer: Any) -> Any:
    """Return an answer whose ranking is given as two lists as a list of options."""
    value = answer.get("value") if isinstance(answer, dict) else None
    if not isinstance(value, dict) or not all(isinstance(value.get(name), list) for name in ("rank", "value")):
        return answer
    ranks, names = value["rank"], value["value"]
    if len(ranks) != len(names):
        raise RecordError(f"expected a rank of each option, got {len(ranks)} for {len(names)}")
    return answer | {"value": [{"value": name, "rank": rank} for name, rank in zip(names, ranks, strict=True)]}


def _beside(flat: Mapping[str, Any], key: str, end: str, length: int) -> list[Any]:
    """Return the values of a column that has one for each answer; nothing where there is no such column."""
    values = flat.get(f"{key}{end}")
    if values is None:
        return [None] * length
    if not isinstance(values, list) or len(values) != length:
        raise RecordError(f"expected a list of {length}, one a response, got another", path=f'$["{key}{end}"]')
    return values


def _answers(record: _Record) -> Iterator[tuple[str, _Answer, str]]:
    """Yield question, answer and its path for every response, whatever its form."""
    if isinstance(record.responses, dict):
        for question, answers in record.responses.items():
            for index, answer in enumerate(answers):
                yield question, answer, f"$.responses.{question}[{index}]"
        return
    for index, response in enumerate(record.responses or []):
        given = {"user_id": response.user_id, "status": response.status}
        if response.status not in (None, SUBMITTED):
            yield "", _Answer(**given), f"$.responses[{index}]"
            continue
        for question, answer in (response.values or {}).items():
            yield question, _Answer(value=answer.value, **given), f"$.responses[{index}].values.{question}"


# ---------------------------------------------------------------------------------------------- judgements


class _Shown:
    """The fields that a record showed, worked out once for all of its judgements."""

    def __init__(
        self, fields: Mapping[str, Any], name: str, reading: Reading, fields_config: FieldPaths | None
    ) -> None:
        self.fields = fields
        self.name = name
        self.prompts: dict[str, Prompt] = prompts_among(fields)
        self.texts = [name for name, value in fields.items() if isinstance(value, str)]
        self._reading = reading
        self._fields = fields_config

    def annotation(
        self, names: Sequence[str], user: str | None, question: str, path: str, others: Mapping[str, str], **judged: Any
    ) -> Annotation | RecordError:
        """Return one person's judgement of some fields."""
        try:
            system, rest = system_of(self.fields, names)
            prompts = {name: prompt for name, prompt in self.prompts.items() if name in rest}
            prompt_name, prompt = find_prompt(prompts, names, "$.fields")
            annotation = Annotation(
                id="-".join([self.name, user or path, question]),
                prompt=with_context(prompt, system, (), "$.fields"),
                completions=[Completion(text=_text(self.fields, name), id=name) for name in names],
                annotator=user,
                **judged,
            )
            metadata = {"question": question, **others}
            left = [((name,), rest[name]) for name in rest if name not in (*names, prompt_name) and rest[name]]
            handle_unread_fields(left, annotation, metadata, self._reading, self._fields)
            return msgspec.structs.replace(annotation, metadata=metadata)
        except RecordError as error:
            return error


def _judgements(shown: _Shown, answers: Sequence[tuple[str, _Answer, str]]) -> Judgements:
    found: list[Annotation | RecordError] = []
    people: dict[str | None, _Person] = {}
    judging: list[tuple[str, _Answer, str]] = []
    for question, answer, path in answers:
        if answer.status not in (None, SUBMITTED):
            found.append(RecordError(f"expected a submitted response, got a {answer.status} one", path=path))
        elif answer.value is None:
            found.append(RecordError("missing field `value` of a response", path=path))
        elif _is_ranking(answer.value, shown.fields) or _is_label(answer.value, shown):
            judging.append((question, answer, path))
        else:
            _note(people.setdefault(_user(answer), _Person()), shown, question, answer, path)
    asked = {question for question, _, _ in judging}
    for person in people.values():
        for question in sorted(asked & person.others.keys()):
            path = f"$.responses.{question}"
            found.append(RecordError("expected an answer that judges fields of the record, got another one", path=path))
    rated = [user for user, person in people.items() if len(person.ratings) > 1]
    for question, answer, path in judging:
        user = _user(answer)
        others = people[user].others if user in people else {}
        found.append(_judgement(shown, question, answer, path, others))
    for user in rated:
        person = people[user]
        names = [name for name in shown.texts if name in person.ratings]
        scores = [person.ratings[name] for name in names]
        question = "+".join(person.questions)
        found.append(shown.annotation(names, user, question, person.path, person.others, scores=scores))
    return found or [RecordError("expected a response that ranks fields of the record, got none", path="$.responses")]


def _user(answer: _Answer) -> str | None:
    return None if answer.user_id in (None, "None") else answer.user_id


def _judgement(
    shown: _Shown, question: str, answer: _Answer, path: str, others: Mapping[str, str]
) -> Annotation | RecordError:
    try:
        if isinstance(answer.value, str):
            names = similarly_named(answer.value, shown.texts)
            ranks = {name: 1 if name == answer.value else 2 for name in names}
        else:
            ranks = _ranks(answer.value, f"{path}.value")
            names = [name for name in shown.fields if name in ranks]
    except RecordError as error:
        return error
    return shown.annotation(names, _user(answer), question, path, others, ranks=[ranks[name] for name in names])


def _note(person: _Person, shown: _Shown, question: str, answer: _Answer, path: str) -> None:
    """Take an answer for the rating of a field, where its question says of which; else for something to keep."""
    end = last_digits(question)
    fields = [name for name in shown.texts if end and last_digits(name) == end]
    if len(fields) == 1 and isinstance(answer.value, int | float) and fields[0] not in person.ratings:
        person.ratings[fields[0]] = number(answer.value, f"{path}.value")
        person.questions.append(question)
        person.path = person.path or path
    else:
        person.others[question or path] = as_text(answer.value)


def _is_ranking(value: object, fields: Mapping[str, Any]) -> bool:
    """Return whether an answer ranks fields."""
    if not isinstance(value, list) or not value:
        return False
    names = [option.get("value") if isinstance(option, dict) else option for option in value]
    return all(isinstance(name, str) and name in fields for name in names)


def _is_label(value: object, shown: _Shown) -> bool:
    """Return whether an answer names a field that others are like: the better one of them."""
    return isinstance(value, str) and value in shown.texts and len(similarly_named(value, shown.texts)) > 1


def _ranks(options: list[Any], path: str) -> dict[str, int]:
    """Return field -> rank; without ranks the order of the options counts, best first."""
    ranks: dict[str, int] = {}
    for position, option in enumerate(options):
        ranked = isinstance(option, dict)
        name = option["value"] if ranked else option
        if name in ranks:
            raise RecordError(f"expected each option once, got `{name}` again", path=f"{path}[{position}]")
        ranks[name] = whole(option.get("rank"), f"{path}[{position}].rank") if ranked else position + 1
    return ranks


def _text(fields: Mapping[str, Any], name: str) -> str:
    if not isinstance(fields[name], str):
        raise RecordError("expected text, got something else", path=f"$.fields.{name}")
    return fields[name]


def _matches(record: Mapping[str, Any]) -> bool:
    if isinstance(opened(record.get("fields")), dict) and "responses" in record:
        return True
    return any(key.endswith((_RESPONSES, _SUGGESTION)) for key in record)


ARGILLA = Format(
    name="argilla",
    layout=LAYOUT,
    matches=_matches,
    parser=ArgillaReader,
    what="Argilla's records (SDK 1 and 2, server, Hub): ranking, label and rating questions, by annotator.",
    examples=(
        '{"id": "r1", "fields": {"prompt": "Name a lake.", "reply_1": "Lake Como.", "reply_2": "A puddle."}, '
        '"responses": {"ranking": [{"value": [{"value": "reply_1", "rank": 1}, {"value": "reply_2", "rank": '
        '2}], "user_id": "u1"}]}}',
    ),
)
