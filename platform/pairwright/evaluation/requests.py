"""Parses scoring requests, each a prompt and its completions, from lines of JSON or rows of a table.

A native annotation is a request, with or without its ranking; so are ``{"prompt", "completion"}``, TRL's
``{"prompt", "chosen", "rejected"}``, and ``{"messages"}`` that end with a reply. Fields other than id, prompt,
completions and the chat template's inputs are ignored.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import pyarrow as pa

from pairwright.config import IngestConfig
from pairwright.data.extras import Turn, num_characters, reply_of, turns_of
from pairwright.data.ingest.adapters import RecordError, json_name, parser_for
from pairwright.data.ingest.decoders.chunks import too_long
from pairwright.data.ingest.fields.adapter import check_count
from pairwright.data.ingest.fields.conversation_turns import extra_of, joined_parts, read_conversation
from pairwright.data.ingest.fields.paths import opened
from pairwright.data.ingest.parse import decoder_error, rejection, too_much_text
from pairwright.data.ingest.prompts import context_of
from pairwright.data.ingest.rules import check_extra, label_too_long, text_too_long
from pairwright.data.tokens.chat_template import Conversation
from pairwright.records import Completion, Message, Rejection

DEFAULT_LIMITS = IngestConfig()
_SHAPE = (
    'expected {"id", "prompt", "completions": [{"text"}, ...]}, {"id", "prompt", "completion"}, {"prompt", "chosen", '
    '"rejected"} or {"messages"}'
)


class ScoreLine(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of an input line that ``pairwright score`` reads: completions, completion, both sides, or messages."""

    prompt: str | list[Message] | None = None
    completions: list[Completion | str] | None = None
    completion: str | None = None
    id: str | None = None
    tools: Any = None
    chat_template_kwargs: Any = None
    chosen: Any = None
    rejected: Any = None
    messages: Any = None


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """A prompt and the completions to score, from one input record."""

    id: str
    prompt: Conversation
    completion_ids: list[str]
    replies: list[Turn]
    """The completions, as turns after the prompt."""
    paths: list[str]
    """JSON path of each completion in the record."""
    source: str
    line: int

    @property
    def texts(self) -> list[str]:
        """The completions' texts."""
        return [reply["content"] for reply in self.replies]


@dataclass(frozen=True, slots=True)
class _ParsedRecord:
    """The content of a line in any layout."""

    id: str | None
    prompt: str | list[Message]
    completions: Sequence[Completion]
    paths: list[str]
    context: str | None = None


_DECODER, _ANY = msgspec.json.Decoder(ScoreLine), msgspec.json.Decoder()


def parse_requests(
    text: bytes, first_line: int, source: str, config: IngestConfig = DEFAULT_LIMITS
) -> tuple[list[ScoreRequest], list[Rejection]]:
    """Return the requests and the rejections among complete lines, in order; blank lines are neither.

    The id of a record without one is ``source:line``.

    Args:
        text: lines, separated by newlines only.
        first_line: number of the first line in its source, from 1.
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
            requests.append(_request(_read(line, config), source, number, config))
        except RecordError as error:
            rejections.append(rejection(error, line, source, number))
        except (UnicodeDecodeError, RecursionError, msgspec.DecodeError) as error:
            rejections.append(rejection(decoder_error(error, line), line, source, number))
    return requests, rejections


def requests_of_rows(rows: pa.Table, first_line: int, source: str) -> list[ScoreRequest]:
    """Return one request for each row of an annotations or pairs table, with the annotation's or the group's id.

    Args:
        rows: with ``id`` or ``group_id``, ``prompt`` and ``completions``.
        first_line: number of the first row in its file, from 1.
        source: the file.
    """
    key = "id" if "id" in rows.column_names else "group_id"
    columns = (rows.column(name).to_pylist() for name in (key, "prompt", "context", "completions"))
    return [
        ScoreRequest(
            id=name,
            prompt=turns_of(prompt, context),
            completion_ids=[completion["id"] for completion in completions],
            replies=[reply_of(completion["text"], completion["extra"]) for completion in completions],
            paths=_paths(len(completions)),
            source=source,
            line=number,
        )
        for number, (name, prompt, context, completions) in enumerate(zip(*columns, strict=True), start=first_line)
    ]


def _read(line: bytes, config: IngestConfig) -> _ParsedRecord:
    """Return the content of a line, in one typed pass if it has a common layout and plain texts."""
    try:
        found = _DECODER.decode(line)
    except msgspec.ValidationError as error:
        record = _ANY.decode(line)
        if not isinstance(record, dict):
            raise error from None
        return _read_untyped(record, config)
    is_common = found.completions is not None or found.completion is not None
    if isinstance(found.prompt, str) and found.prompt[:1] == "[":  # a conversation in the cell of a table
        is_common = False
    if not is_common or found.tools is not None or found.chat_template_kwargs is not None or _has_extra(found):
        return _read_untyped(_ANY.decode(line), config)
    return _parsed(found, None)


def _has_extra(line: ScoreLine) -> bool:
    """Return whether a line uses ``extra``, our own field beside texts, which input may not."""
    turns = line.prompt if isinstance(line.prompt, list) else []
    replies = [one for one in line.completions or [] if isinstance(one, Completion)]
    return any(one.extra is not None for one in (*turns, *replies))


def _read_untyped(record: Mapping[str, Any], config: IngestConfig) -> _ParsedRecord:
    """Return the content of a record in any layout and spelling."""
    record = {key: value for key, value in record.items() if value is not None}
    context = context_of(record)
    if "completions" not in record and "completion" not in record:
        name = _name(record.get("id"))
        if {"chosen", "rejected"} <= record.keys():
            return _of_sides(record, name, context, config)
        if "messages" in record:
            return _of_messages(record["messages"], name, context)
    fields = {"id": _name(record.get("id"))} | {key: record[key] for key in ("completion",) if key in record}
    if "prompt" in record:
        fields["prompt"] = read_conversation(record["prompt"], "$.prompt")
    completions = opened(record.get("completions"))
    if isinstance(completions, list):
        fields["completions"] = [_completion(item, f"$.completions[{index}]") for index, item in enumerate(completions)]
    elif "completions" in record:
        fields["completions"] = completions
    if isinstance(alone := record.get("completion"), list) and len(alone) == 1:  # as TRL writes a reply
        alone = alone[0]
    if isinstance(alone, dict) and "completions" not in record:
        del fields["completion"]
        fields["completions"] = [_completion(alone, "$.completion")]
    return _parsed(msgspec.convert(fields, ScoreLine), context)


def _name(name: Any) -> str | None:
    """Return a record's id; a number as its digits.

    Raises:
        RecordError: if it is neither text nor such a number.
    """
    if isinstance(name, int) and not isinstance(name, bool):
        return str(name)
    if name is not None and not isinstance(name, str):
        raise RecordError(f"expected `str`, got `{json_name(name)}`", path="$.id")
    return name


def _completion(item: Any, where: str) -> Any:
    if not isinstance(item, dict):
        return item
    own = {name: item[name] for name in ("id", "model") if item.get(name) is not None}
    others = {key: value for key, value in item.items() if key not in ("id", "model", "text", "role", "content")}
    extra = extra_of(others, where)
    text = item.get("text", item.get("content"))
    if isinstance(text, list):
        text = joined_parts(text, f"{where}.text")
    if text is None and extra is None:
        raise RecordError("missing field `text`", path=where)
    return own | {"text": "" if text is None else text} | ({} if extra is None else {"extra": extra})


def _of_sides(record: Mapping[str, Any], name: str | None, context: str | None, config: IngestConfig) -> _ParsedRecord:
    """Return the content of a TRL record, parsed as in an ingestion; its scores, which are numbers, are ignored."""
    known = {key: value for key, value in record.items() if key != "id" and not isinstance(value, int | float)}
    (annotation,) = parser_for("trl", config)(msgspec.json.encode(known))
    if isinstance(annotation, RecordError):
        raise annotation
    context = annotation.context or context
    return _ParsedRecord(name, annotation.prompt, annotation.completions, ["$.chosen", "$.rejected"], context)


def _of_messages(messages: Any, name: str | None, context: str | None) -> _ParsedRecord:
    """Return the content of a conversation whose last turn is the reply."""
    turns = read_conversation(messages, "$.messages")
    if isinstance(turns, str) or len(turns) < 2 or turns[-1].role != "assistant":
        last = "a text" if isinstance(turns, str) else f"{len(turns)} turns"
        last += "" if isinstance(turns, str) or not turns else f", the last of role `{turns[-1].role}`"
        raise RecordError(f"expected turns that end with the assistant's reply, got {last}", path="$.messages")
    *prompt, reply = turns
    return _ParsedRecord(name, prompt, [Completion(text=reply.content, extra=reply.extra)], ["$.messages[-1]"], context)


def _parsed(line: ScoreLine, context: str | None) -> _ParsedRecord:
    completions = _completions(line)
    if line.prompt is None:
        raise RecordError(f"missing field `prompt`; {_SHAPE}")
    paths = _paths(len(completions)) if line.completion is None else ["$.completion"]
    return _ParsedRecord(line.id, line.prompt, completions, paths, context)


def _request(record: _ParsedRecord, source: str, number: int, config: IngestConfig) -> ScoreRequest:
    completions, paths = record.completions, record.paths
    check_count("completions", len(completions), config.max_completions, "max_completions", "$.completions")
    prompt = _prompt(record.prompt, record.context, config)
    prompt_characters = sum(len(text) for turn in prompt for name, text in turn.items() if name != "role")
    _check_length("prompt", prompt_characters, "$.prompt", config)
    names: dict[str, int] = {}
    lengths = [num_characters(completion.text, completion.extra) for completion in completions]
    for index, completion in enumerate(completions):
        name = str(index) if completion.id is None else completion.id
        _check_name(name, f"$.completions[{index}].id", config)
        if names.setdefault(name, index) != index:
            raise RecordError(
                f"expected ids of their own, got `{name}` as for completion {names[name]}; a completion without an id "
                "goes by its index",
                path=f"$.completions[{index}].id",
            )
        if completion.extra is not None:
            check_extra(completion.extra, paths[index])
        _check_length("completion", lengths[index], paths[index], config)
    _check_name(record.id or "", "$.id", config)
    rows_characters = prompt_characters * len(completions) + sum(lengths)
    if rows_characters > config.limits.max_record_bytes:
        raise RecordError(too_much_text(rows_characters, config.limits.max_record_bytes))
    return ScoreRequest(
        id=f"{source}:{number}" if record.id is None else record.id,
        prompt=prompt,
        completion_ids=list(names),
        replies=[reply_of(completion.text, completion.extra) for completion in completions],
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


def _prompt(prompt: str | list[Message], context: str | None, config: IngestConfig) -> Conversation:
    messages = [Message(role="user", content=prompt)] if isinstance(prompt, str) else prompt
    check_count("turns", len(messages), config.max_turns, "max_turns", "$.prompt")
    if not any(message.content.strip() for message in messages):
        raise RecordError("expected text, got an empty prompt", path="$.prompt")
    for index, message in enumerate(messages):
        if message.extra is not None:
            check_extra(message.extra, f"$.prompt[{index}]")
    return turns_of([msgspec.structs.asdict(message) for message in messages], context)
