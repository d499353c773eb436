"""Lines of bytes -> checked annotations, or ``Rejection``s that say where, what and what to do; -> Arrow.

Every rule about one record stands here, whatever format it came in; what needs more than one record (ids that repeat)
is settled by the ingestion as a whole. A refused record never stops its neighbours. Messages put what varies after
", got", so that ``reason_key`` can count alike reasons together.
"""

import hashlib
import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from pairwright.config import IngestConfig
from pairwright.data.formats import Parse, RecordError
from pairwright.records import ANNOTATIONS_SCHEMA, COMPLETION, MESSAGE, Annotation, Completion, Message, Rejection

MAX_RECORD_CHARACTERS = 10_000
"""How much of a refused record's text is kept."""

_MSGSPEC_PATH = re.compile(r"^(?P<reason>.*) - at `(?P<path>.*)`$", re.DOTALL)
_VARYING = re.compile(r"(,? got .*|;.*| \(byte .*)$", re.DOTALL)
_BAD_BYTES = (UnicodeDecodeError, RecursionError, msgspec.DecodeError)


@dataclass(frozen=True, slots=True)
class CheckedAnnotation:
    """An annotation that keeps every rule: one row of ANNOTATIONS_SCHEMA."""

    id: str
    group_id: str
    prompt_id: str
    prompt: list[Message]
    completions: list[Completion]
    """K completions, each with an id."""
    ranks: list[int]
    """Dense, 1 = best, equal = tie, one a completion."""
    scores: list[float] | None
    annotator: str | None
    created_at: datetime | None
    subset: str | None
    metadata: dict[str, str] | None
    source: str
    line: int


# ------------------------------------------------------------------------------------------------ lines


def parse_lines(
    chunk: bytes, first_line: int, source: str, parse: Parse, config: IngestConfig
) -> tuple[list[CheckedAnnotation], list[Rejection]]:
    """Return the annotations and the rejections among the lines of ``chunk``, in order.

    Blank lines are neither, so ``lines - len(annotations) - len(rejections)`` is how many were blank.

    Args:
        chunk: whole lines, split at ``\\n`` alone: U+2028 and U+0085 are ordinary characters of a JSON string.
        first_line: number of the chunk's first line in its source, from 1.
        source: the source's URI, for messages and for lineage.
        parse: the format, from ``formats.parser_for``.
        config: limits.
    """
    annotations: list[CheckedAnnotation] = []
    rejections: list[Rejection] = []
    for number, line in enumerate(chunk.split(b"\n"), start=first_line):
        if not line or line.isspace():
            continue
        try:
            annotations.append(check(parse(line), config, source, number))
        except RecordError as error:
            rejections.append(rejection(error, line, source, number))
        except _BAD_BYTES as error:
            rejections.append(rejection(explain(error, line), line, source, number))
    return annotations, rejections


def rejection(error: RecordError, line: bytes, source: str, number: int) -> Rejection:
    """Return what is kept of a refused line; bytes that are not UTF-8 stand as U+FFFD."""
    record = line[: 4 * MAX_RECORD_CHARACTERS].decode("utf-8", errors="replace")[:MAX_RECORD_CHARACTERS]
    return Rejection(source=source, line=number, path=error.path, reason=error.reason, record=record)


def reason_key(rejected: Rejection) -> str:
    """Return what alike rejections share: the reason without what was found, at the path without indices."""
    path = re.sub(r"\[-?\d+\]", "[]", rejected.path)
    return _VARYING.sub("", rejected.reason) + ("" if path == "$" else f" at {path}")


def explain(error: Exception, line: bytes) -> RecordError:
    """Return what a decoder's error means for whoever wrote the line."""
    if isinstance(error, UnicodeDecodeError):
        return _explain_bytes(line)
    if isinstance(error, RecursionError):
        return RecordError("nested too deeply for a record")
    if isinstance(error, msgspec.ValidationError):
        return _explain_type(str(error))
    return _explain_json(str(error), line)


def _explain_bytes(line: bytes) -> RecordError:
    try:
        line.decode()
    except UnicodeDecodeError as error:
        found = f"byte 0x{line[error.start]:02x} at byte {error.start} of the line"
        return RecordError(f"expected UTF-8, got {found}; write the source in UTF-8")
    raise AssertionError("a decoder found bytes that are not UTF-8 in a line that is")


def _explain_type(message: str) -> RecordError:
    match = _MSGSPEC_PATH.match(message)
    reason, path = (match["reason"], match["path"]) if match else (message, "$")
    if missing := re.fullmatch(r"Object missing required field `(.*)`", reason, re.DOTALL):
        advice = "; map a foreign record with field paths ([fields] in --config)" if path == "$" else ""
        return RecordError(f"missing field `{missing[1]}`{advice}", path=path)
    if unknown := re.fullmatch(r"Object contains unknown field `(.*)`", reason, re.DOTALL):
        advice = "put it under `metadata`, or map a foreign record with field paths ([fields] in --config)"
        return RecordError(f"unknown field, got `{unknown[1]}`; {advice}", path=path)
    return RecordError(reason[0].lower() + reason[1:], path=path)


def _explain_json(message: str, line: bytes) -> RecordError:
    if message == "Input data was truncated":
        return RecordError("not JSON: the record is cut off; a record stands on one whole line")
    reason = message.replace("JSON is malformed", "not JSON")
    if re.search(rb"[\[,:]\s*-?(NaN|Infinity)\b", line):
        reason += "; NaN and Infinity are not JSON: give a finite number or leave the record out"
    elif b"\r" in line.rstrip(b"\r"):
        reason += r"; it holds a bare carriage return: end lines with \n, and write \r within a string as an escape"
    return RecordError(reason)


# ------------------------------------------------------------------------------------------------ rules


def check(annotation: Annotation, config: IngestConfig, source: str, line: int) -> CheckedAnnotation:
    """Return the annotation with its ids and dense ranks.

    Raises:
        RecordError: if it breaks a rule; the first one broken is named.
    """
    if not annotation.id.strip():
        raise RecordError("expected a name, got an empty id; every record needs an id of its own", path="$.id")
    prompt = _check_prompt(annotation.prompt, config)
    completions = _check_completions(annotation.completions, config)
    ranks, scores = _check_judgement(annotation, completions)
    prompt_hash = prompt_id(prompt)
    return CheckedAnnotation(
        id=annotation.id,
        group_id=group_id(prompt_hash, [completion.text for completion in completions]),
        prompt_id=prompt_hash,
        prompt=prompt,
        completions=completions,
        ranks=ranks,
        scores=scores,
        annotator=annotation.annotator,
        created_at=_check_time(annotation.created_at),
        subset=annotation.subset,
        metadata=annotation.metadata,
        source=source,
        line=line,
    )


def _check_prompt(prompt: str | list[Message], config: IngestConfig) -> list[Message]:
    messages = [Message(role="user", content=prompt)] if isinstance(prompt, str) else prompt
    for index, message in enumerate(messages):
        if not message.role.strip():
            raise RecordError("expected a role such as user, got an empty one", path=f"$.prompt[{index}].role")
    if not any(message.content.strip() for message in messages):
        raise RecordError("expected text, got an empty prompt", path="$.prompt")
    num_characters = sum(len(message.content) for message in messages)
    if num_characters > config.max_characters:
        raise RecordError(_too_long("prompt", num_characters, config), path="$.prompt")
    return messages


def _check_completions(completions: list[Completion], config: IngestConfig) -> list[Completion]:
    if not 2 <= len(completions) <= config.max_completions:
        raise RecordError(
            f"expected 2 to {config.max_completions} completions, got {len(completions)}"
            + ("; set max_completions to take more" if len(completions) > 1 else "; one alone cannot be ranked"),
            path="$.completions",
        )
    places: dict[str, int] = {}
    named = []
    for index, completion in enumerate(completions):
        if not completion.text or completion.text.isspace():
            raise RecordError("expected text, got an empty completion", path=f"$.completions[{index}].text")
        if len(completion.text) > config.max_characters:
            reason = _too_long("completion", len(completion.text), config)
            raise RecordError(reason, path=f"$.completions[{index}].text")
        name = str(index) if completion.id is None else completion.id
        if places.setdefault(name, index) != index:
            reason = f"expected ids of their own, got `{name}` as for completion {places[name]}"
            raise RecordError(
                f"{reason}; a completion without an id goes by its index", path=f"$.completions[{index}].id"
            )
        named.append(Completion(text=completion.text, id=name, model=completion.model))
    return named


def _too_long(what: str, num_characters: int, config: IngestConfig) -> str:
    limit = f"expected a {what} of at most {config.max_characters:,} characters"
    return f"{limit}, got {num_characters:,}; set max_characters to take longer ones"


def _check_judgement(annotation: Annotation, completions: list[Completion]) -> tuple[list[int], list[float] | None]:
    given = {"ranks": annotation.ranks, "scores": annotation.scores, "order": annotation.order}
    names = [name for name, value in given.items() if value is not None]
    if len(names) != 1:
        raise RecordError(
            f"expected exactly one of ranks, scores and order, got {' and '.join(names) or 'none of them'}"
        )
    if annotation.ranks is not None:
        return _check_ranks(annotation.ranks, len(completions)), None
    if annotation.scores is not None:
        scores = _check_scores(annotation.scores, len(completions))
        return _dense([-score for score in scores]), scores
    return _check_order(annotation.order or [], completions), None


def _check_ranks(ranks: list[int], num_completions: int) -> list[int]:
    _check_length("rank", "ranks", len(ranks), num_completions)
    for index, rank in enumerate(ranks):
        if rank < 1:
            raise RecordError(f"expected `int` >= 1 (1 = best), got {rank}", path=f"$.ranks[{index}]")
    return _dense(ranks)


def _check_scores(scores: list[float], num_completions: int) -> list[float]:
    _check_length("score", "scores", len(scores), num_completions)
    for index, score in enumerate(scores):
        if not math.isfinite(score):
            raise RecordError(f"expected a finite number, got {score}", path=f"$.scores[{index}]")
    return scores


def _check_length(what: str, field: str, length: int, num_completions: int) -> None:
    if length != num_completions:
        raise RecordError(
            f"expected one {what} a completion, got {length} for {num_completions} completions", path=f"$.{field}"
        )


def _check_order(order: list[str | list[str]], completions: list[Completion]) -> list[int]:
    known = {completion.id for completion in completions}
    ranks: dict[str, int] = {}
    for index, entry in enumerate(order):
        tied = [entry] if isinstance(entry, str) else entry
        for name in tied:
            if name not in known:
                raise RecordError(f"expected the id of a completion, got `{name}`", path=f"$.order[{index}]")
            if name in ranks:
                raise RecordError(f"expected each completion once, got `{name}` again", path=f"$.order[{index}]")
            ranks[name] = index
    unranked = [str(completion.id) for completion in completions if completion.id not in ranks]
    if unranked:
        names = ", ".join(f"`{name}`" for name in unranked)
        raise RecordError(f"expected every completion's id, got none of {names}", path="$.order")
    return _dense([ranks[str(completion.id)] for completion in completions])


def _dense(values: Sequence[float]) -> list[int]:
    """Return ranks without gaps: the smallest value gets 1, equal values the same rank."""
    place = {value: rank for rank, value in enumerate(sorted(set(values)), start=1)}
    return [place[value] for value in values]


def _check_time(created_at: str | None) -> datetime | None:
    if created_at is None:
        return None
    try:
        moment = datetime.fromisoformat(created_at)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        example = "ISO 8601 such as 2026-11-20T14:05:00Z (UTC where no offset is given)"
        raise RecordError(f"expected {example}, got `{created_at[:40]}`", path="$.created_at") from None


# ------------------------------------------------------------------------------------------------ identity


def prompt_id(messages: Sequence[Message]) -> str:
    """Return the hash of a prompt, 32 hex digits: the same for spellings that differ in white space or in NFC."""
    digest = hashlib.blake2b(digest_size=16)
    for message in messages:
        _add(digest, message.role)
        _add(digest, _normalised(message.content))
    return digest.hexdigest()


def group_id(prompt_hash: str, texts: Sequence[str]) -> str:
    """Return the hash of a prompt and its completion texts in any order, 32 hex digits: exact texts, repeats counted."""
    digest = hashlib.blake2b(digest_size=16)
    _add(digest, prompt_hash)
    for text in sorted(texts):
        _add(digest, text)
    return digest.hexdigest()


def _normalised(text: str) -> str:
    return " ".join((text if text.isascii() else unicodedata.normalize("NFC", text)).split())


def _add(digest: Any, text: str) -> None:
    """Hash a string after its length, so that no two lists of strings run into the same bytes."""
    data = text.encode()
    digest.update(len(data).to_bytes(8, "little"))
    digest.update(data)


# ------------------------------------------------------------------------------------------------ Arrow


def annotations_to_arrow(annotations: Sequence[CheckedAnnotation]) -> pa.Table:
    """Return the annotations as a table in ANNOTATIONS_SCHEMA, in order.

    Nested columns are built from flat ones: dicts for pyarrow to infer from cost three times as much.
    """
    columns: dict[str, pa.Array] = {
        "prompt": _prompts_to_arrow([annotation.prompt for annotation in annotations]),
        "completions": _completions_to_arrow([annotation.completions for annotation in annotations]),
    }
    arrays = []
    for field in ANNOTATIONS_SCHEMA:
        if field.name in columns:
            arrays.append(columns[field.name])
            continue
        values = [getattr(annotation, field.name) for annotation in annotations]
        if field.name == "metadata":
            values = [None if value is None else list(value.items()) for value in values]
        arrays.append(pa.array(values, field.type))
    return pa.Table.from_arrays(arrays, schema=ANNOTATIONS_SCHEMA)


def _prompts_to_arrow(prompts: Sequence[Sequence[Message]]) -> pa.Array:
    flat = [message for prompt in prompts for message in prompt]
    columns = [[message.role for message in flat], [message.content for message in flat]]
    return _nested([len(prompt) for prompt in prompts], columns, MESSAGE)


def _completions_to_arrow(completions: Sequence[Sequence[Completion]]) -> pa.Array:
    flat = [completion for group in completions for completion in group]
    columns = [[c.id for c in flat], [c.text for c in flat], [c.model for c in flat]]
    return _nested([len(group) for group in completions], columns, COMPLETION)


def _nested(lengths: Sequence[int], columns: Sequence[Sequence[str | None]], item: pa.StructType) -> pa.Array:
    offsets = np.zeros(len(lengths) + 1, dtype=np.int32)
    np.cumsum(lengths, out=offsets[1:])
    values = pa.StructArray.from_arrays([pa.array(column, pa.string()) for column in columns], fields=list(item))
    return pa.ListArray.from_arrays(pa.array(offsets), values, type=pa.list_(item))
