"""Lines of JSON, or rows of a table -> what is to be scored: a prompt and its completions.

A native annotation is a request as it stands, with or without its judgement; so is ``{"prompt", "completion"}``. What a
line says beyond id, prompt and completions is nobody's business here and is ignored.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import pyarrow as pa

from pairwright.config import IngestConfig
from pairwright.data.annotations import explain, rejection, too_much_text
from pairwright.data.formats import RecordError
from pairwright.data.formats.record import check_count
from pairwright.data.layouts.chunks import too_long
from pairwright.data.rules import label_too_long, text_too_long
from pairwright.data.templates import Conversation
from pairwright.records import Completion, Message, Rejection

DEFAULT_LIMITS = IngestConfig()
_SHAPE = 'expected {"id", "prompt", "completions": [{"text"}, ...]} or {"id", "prompt", "completion"}'


class ScoreLine(msgspec.Struct, frozen=True, kw_only=True):
    """One line of input: what ``pairwright score`` reads of it; exactly one of completions and completion."""

    prompt: str | list[Message] | None = None
    completions: list[Completion | str] | None = None
    completion: str | None = None
    id: str | None = None


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """A prompt and the completions to score, from one input record."""

    id: str
    prompt: Conversation
    completion_ids: list[str]
    texts: list[str]
    paths: list[str]
    """Where each completion stands in the record."""
    source: str
    line: int


_DECODER = msgspec.json.Decoder(ScoreLine)


def parse_requests(
    text: bytes, first_line: int, source: str, config: IngestConfig = DEFAULT_LIMITS
) -> tuple[list[ScoreRequest], list[Rejection]]:
    """Return the requests and the rejections among whole lines, in order; blank lines are neither.

    A record without an id goes by ``source:line``.

    Args:
        text: lines, split at newlines alone.
        first_line: number of the first one in its source, from 1.
        source: the source's URI.
        config: limits, those of an ingestion.
    """
    requests: list[ScoreRequest] = []
    rejections: list[Rejection] = []
    for number, line in enumerate(text.split(b"\n"), start=first_line):
        if not line or line.isspace():
            continue
        try:
            if len(line) > (most := config.limits.max_record_bytes):
                raise RecordError(too_long(len(line), most))
            requests.append(_request(_DECODER.decode(line), source, number, config))
        except RecordError as error:
            rejections.append(rejection(error, line, source, number))
        except (UnicodeDecodeError, RecursionError, msgspec.DecodeError) as error:
            rejections.append(rejection(explain(error, line), line, source, number))
    return requests, rejections


def requests_of_rows(rows: pa.Table, first_line: int, source: str) -> list[ScoreRequest]:
    """Return one request a row of an annotations or pairs table, by the annotation's or the group's id.

    Args:
        rows: with ``id`` or ``group_id``, ``prompt`` and ``completions``.
        first_line: number of the first row in its file, from 1.
        source: the file.
    """
    key = "id" if "id" in rows.column_names else "group_id"
    columns = (rows.column(name).to_pylist() for name in (key, "prompt", "completions"))
    return [
        ScoreRequest(
            id=name,
            prompt=prompt,
            completion_ids=[completion["id"] for completion in completions],
            texts=[completion["text"] for completion in completions],
            paths=_paths(len(completions)),
            source=source,
            line=number,
        )
        for number, (name, prompt, completions) in enumerate(zip(*columns, strict=True), start=first_line)
    ]


def _request(line: ScoreLine, source: str, number: int, config: IngestConfig) -> ScoreRequest:
    completions = _completions(line)
    check_count("completions", len(completions), config.max_completions, "max_completions", "$.completions")
    paths = _paths(len(completions)) if line.completion is None else ["$.completion"]
    prompt = _prompt(line, config)
    num_characters = sum(len(turn["content"]) for turn in prompt)
    _check_length("prompt", num_characters, "$.prompt", config)
    names: dict[str, int] = {}
    for index, completion in enumerate(completions):
        name = str(index) if completion.id is None else completion.id
        _check_name(name, f"$.completions[{index}].id", config)
        if names.setdefault(name, index) != index:
            raise RecordError(
                f"expected ids of their own, got `{name}` as for completion {names[name]}; a completion without an id "
                "goes by its index",
                path=f"$.completions[{index}].id",
            )
        _check_length("completion", len(completion.text), paths[index], config)
    _check_name(line.id or "", "$.id", config)
    rows_characters = num_characters * len(completions) + sum(len(completion.text) for completion in completions)
    if rows_characters > config.limits.max_record_bytes:
        raise RecordError(too_much_text(rows_characters, config.limits.max_record_bytes))
    return ScoreRequest(
        id=f"{source}:{number}" if line.id is None else line.id,
        prompt=prompt,
        completion_ids=list(names),
        texts=[completion.text for completion in completions],
        paths=paths,
        source=source,
        line=number,
    )


def _check_length(what: str, num_characters: int, path: str, config: IngestConfig) -> None:
    if num_characters > config.max_characters:
        raise RecordError(text_too_long(what, num_characters, config), path=path)


def _check_name(name: str, path: str, config: IngestConfig) -> None:
    if len(name) > config.max_label_characters:
        raise RecordError(label_too_long("id", len(name), config.max_label_characters), path=path)


def _paths(num_completions: int) -> list[str]:
    return [f"$.completions[{index}]" for index in range(num_completions)]


def _completions(line: ScoreLine) -> Sequence[Completion]:
    if (line.completions is None) == (line.completion is None):
        found = "neither" if line.completions is None else "both"
        raise RecordError(f"expected one of the fields completions and completion, got {found}; {_SHAPE}")
    if line.completion is not None:
        return [Completion(text=line.completion)]
    if not line.completions:
        raise RecordError("expected at least one completion, got none", path="$.completions")
    return [Completion(text=c) if isinstance(c, str) else c for c in line.completions]


def _prompt(line: ScoreLine, config: IngestConfig) -> Conversation:
    if line.prompt is None:
        raise RecordError(f"missing field `prompt`; {_SHAPE}")
    messages = [Message(role="user", content=line.prompt)] if isinstance(line.prompt, str) else line.prompt
    check_count("turns", len(messages), config.max_turns, "max_turns", "$.prompt")
    if not any(message.content.strip() for message in messages):
        raise RecordError("expected text, got an empty prompt", path="$.prompt")
    return [{"role": message.role, "content": message.content} for message in messages]
