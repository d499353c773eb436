"""Lines of JSON, or rows of a table -> what is to be scored: a prompt and its completions.

A native annotation is a request as it stands, with or without its judgement; so is ``{"prompt", "completion"}``. What a
line says beyond id, prompt and completions is nobody's business here and is ignored.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import pyarrow as pa

from pairwright.data.annotations import explain, rejection
from pairwright.data.formats import RecordError
from pairwright.data.templates import Conversation
from pairwright.records import Completion, Message, Rejection

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


def parse_requests(text: bytes, first_line: int, source: str) -> tuple[list[ScoreRequest], list[Rejection]]:
    """Return the requests and the rejections among whole lines, in order; blank lines are neither.

    A record without an id goes by ``source:line``.

    Args:
        text: lines, split at newlines alone.
        first_line: number of the first one in its source, from 1.
        source: the source's URI.
    """
    requests: list[ScoreRequest] = []
    rejections: list[Rejection] = []
    for number, line in enumerate(text.split(b"\n"), start=first_line):
        if not line or line.isspace():
            continue
        try:
            requests.append(_request(_DECODER.decode(line), source, number))
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


def _request(line: ScoreLine, source: str, number: int) -> ScoreRequest:
    completions = _completions(line)
    names = [str(index) if c.id is None else c.id for index, c in enumerate(completions)]
    for index, name in enumerate(names):
        if names.index(name) != index:
            raise RecordError(
                f"expected ids of their own, got `{name}` as for completion {names.index(name)}; a completion without "
                "an id goes by its index",
                path=f"$.completions[{index}].id",
            )
    return ScoreRequest(
        id=f"{source}:{number}" if line.id is None else line.id,
        prompt=_prompt(line),
        completion_ids=names,
        texts=[completion.text for completion in completions],
        paths=_paths(len(completions)) if line.completion is None else ["$.completion"],
        source=source,
        line=number,
    )


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


def _prompt(line: ScoreLine) -> Conversation:
    if line.prompt is None:
        raise RecordError(f"missing field `prompt`; {_SHAPE}")
    messages = [Message(role="user", content=line.prompt)] if isinstance(line.prompt, str) else line.prompt
    if not any(message.content.strip() for message in messages):
        raise RecordError("expected text, got an empty prompt", path="$.prompt")
    return [{"role": message.role, "content": message.content} for message in messages]
