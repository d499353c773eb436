"""Argilla's ranking questions: a record with the responses that people gave, as the SDK and the server write it.

Layouts after Argilla's sources: ``Record.to_dict`` and ``GenericIO`` of its SDK 2 (``records.to_json()``,
``to_list(flatten=True)``, and the Hub's data sets, which are flattened), and the server's records, where a response
holds the answers to all questions. A ranking is a list of options, best first, or of ``{"value", "rank"}``; an option
is named after the field that it shows. Suggestions are a model's guess and no judgement.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import msgspec

from pairwright.config import IngestConfig
from pairwright.data.formats.record import Format, Parse, RecordError, check_count, content_id, misfit, typed, whole
from pairwright.data.formats.turns import Prompt, find_prompt, prompts_among
from pairwright.records import Annotation, Completion

LAYOUT = '{"id", "fields": {...}, "responses": {question: [{"value": [{"value", "rank"}, ...], "user_id"}]}}'
SUBMITTED = "submitted"

_RESPONSES, _USERS, _STATUS = ".responses", ".users", ".status"


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


_ANY = msgspec.json.Decoder()


def _parser(config: IngestConfig) -> Parse:
    limits = config.limits

    def judgements(record: _Record, name: str) -> Sequence[Annotation | RecordError]:
        check_count("fields", len(record.fields), limits.max_columns, "limits.max_columns", "$.fields")
        answers = list(islice(_answers(record), limits.max_judgements + 1))
        check_count("responses", len(answers), limits.max_judgements, "limits.max_judgements", "$.responses")
        return _judgements(record, answers, name)

    nested = typed(_Record, LAYOUT, judgements)

    def parse(line: bytes) -> Sequence[Annotation | RecordError]:
        if _RESPONSES.encode() not in line:
            return nested(line)
        record = _ANY.decode(line)
        if not isinstance(record, dict) or "fields" in record:
            return nested(line)
        return judgements(_nested(record), content_id(line))

    return parse


def _nested(flat: Mapping[str, Any]) -> _Record:
    """Return a flattened record as its SDK would nest it; what is no answer stands among the fields."""
    responses = {}
    for key, values in flat.items():
        if key.endswith(_RESPONSES) and isinstance(values, list):
            users, states = (_beside(flat, key, end, len(values)) for end in (_USERS, _STATUS))
            responses[key.removesuffix(_RESPONSES)] = [
                {"value": value, "user_id": user, "status": state}
                for value, user, state in zip(values, users, states, strict=True)
            ]
    fields = {key: value for key, value in flat.items() if key != "id" and "." not in key and not key.startswith("_")}
    try:
        return msgspec.convert({"fields": fields, "responses": responses, "id": flat.get("id")}, _Record)
    except msgspec.ValidationError as error:
        raise misfit(error, LAYOUT) from None


def _beside(flat: Mapping[str, Any], key: str, end: str, length: int) -> list[Any]:
    """Return what stands beside the answers in a column of its own, one an answer; nothing where it is not there."""
    values = flat.get(f"{key}{end}")
    if values is None:
        return [None] * length
    if not isinstance(values, list) or len(values) != length:
        raise RecordError(f"expected a list of {length}, one a response, got another", path=f'$["{key}{end}"]')
    return values


def _judgements(
    record: _Record, answers: Sequence[tuple[str, _Answer, str]], name: str
) -> Sequence[Annotation | RecordError]:
    name = next((str(given) for given in (record.external_id, record.id) if given is not None), name)
    found: list[Annotation | RecordError] = []
    prompts = prompts_among(record.fields)
    for question, answer, path in answers:
        if answer.status not in (None, SUBMITTED):
            found.append(RecordError(f"expected a submitted response, got a {answer.status} one", path=path))
        elif _is_ranking(answer.value, record.fields):
            found.append(_judgement(record.fields, prompts, question, answer, name, path))
    return found or [RecordError("expected a response that ranks fields of the record, got none", path="$.responses")]


def _answers(record: _Record) -> Iterator[tuple[str, _Answer, str]]:
    """Yield question, answer and its place for every response, whatever its form."""
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


def _is_ranking(value: object, fields: Mapping[str, Any]) -> bool:
    """Return whether an answer ranks fields; the answers to other kinds of questions are not ours."""
    if not isinstance(value, list) or not value:
        return False
    names = [option.get("value") if isinstance(option, dict) else option for option in value]
    return all(isinstance(name, str) and name in fields for name in names)


def _judgement(
    fields: Mapping[str, Any], prompts: Mapping[str, Prompt], question: str, answer: _Answer, name: str, path: str
) -> Annotation | RecordError:
    try:
        ranks = _ranks(answer.value, f"{path}.value")
        names = [field for field in fields if field in ranks]
        user = None if answer.user_id in (None, "None") else answer.user_id
        return Annotation(
            id="-".join([name, user or path, question]),
            prompt=find_prompt(prompts, names, "$.fields"),
            completions=[Completion(text=_text(fields, field), id=field) for field in names],
            ranks=[ranks[field] for field in names],
            annotator=user,
            metadata={"question": question},
        )
    except RecordError as error:
        return error


def _ranks(options: list[Any], path: str) -> dict[str, int]:
    """Return field -> rank; without ranks the order of the options counts, best first."""
    ranks: dict[str, int] = {}
    for place, option in enumerate(options):
        ranked = isinstance(option, dict)
        name = option["value"] if ranked else option
        if name in ranks:
            raise RecordError(f"expected each option once, got `{name}` again", path=f"{path}[{place}]")
        ranks[name] = whole(option.get("rank"), f"{path}[{place}].rank") if ranked else place + 1
    return ranks


def _text(fields: Mapping[str, Any], name: str) -> str:
    if not isinstance(fields[name], str):
        raise RecordError("expected text, got something else", path=f"$.fields.{name}")
    return fields[name]


def _fits(record: Mapping[str, Any]) -> bool:
    if isinstance(record.get("fields"), dict) and "responses" in record:
        return True
    return any(key.endswith(_RESPONSES) for key in record)


ARGILLA = Format(name="argilla", layout=LAYOUT, fits=_fits, parser=_parser)
