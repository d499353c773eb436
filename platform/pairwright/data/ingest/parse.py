"""Parses lines of bytes into validated annotations, or ``Rejection``s that say where, what and what to do.

A line may hold several judgements (a task that several people ranked): each is accepted or refused by itself. A refused
one never stops its neighbours. Reasons put what varies after ", got", so that ``reason_key`` can count those of one
kind together.
"""

import re
from collections.abc import Callable, Sequence

import msgspec
import numpy as np
import pyarrow as pa

from pairwright.config import IngestConfig, SourceLimits
from pairwright.data import preference_strength
from pairwright.data.identity import group_id, prompt_id
from pairwright.data.ingest.adapters import RecordError
from pairwright.data.ingest.decoders.chunks import too_long
from pairwright.data.ingest.fields.adapter import Judgements, check_count, split_message
from pairwright.data.ingest.rules import ValidAnnotation, validate_annotation
from pairwright.errors import one_line
from pairwright.records import ANNOTATIONS_SCHEMA, COMPLETION, MESSAGE, Annotation, Completion, Message, Rejection

__all__ = [
    "ValidAnnotation",
    "annotations_to_arrow",
    "decoder_error",
    "group_id",
    "parse_lines",
    "prompt_id",
    "reason_key",
    "rejection",
]

MAX_RECORD_CHARACTERS = 10_000
"""How much of a refused record's text is kept."""
MAX_RECORD_COPIES = 10
"""With how many of one record's judgements that are refused its text is kept; with the others it is empty."""

_VARYING = re.compile(r"(,? got .*|;.*| \(byte .*)$", re.DOTALL)
_LONE_SURROGATE = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])")
_OTHER_LAYOUTS = "name the layout of a foreign record (--format, or [fields] in --config)"
_BAD_BYTES = (UnicodeDecodeError, RecursionError, msgspec.DecodeError)


# ------------------------------------------------------------------------------------------------ lines


def parse_lines(
    chunk: bytes, first_line: int, source: str, parse: Callable[[bytes], Judgements], config: IngestConfig
) -> tuple[list[ValidAnnotation], list[Rejection]]:
    """Return the annotations and the rejections among the lines of ``chunk``, in order.

    Every line that is not blank gives at least one or the other, and several where it holds several judgements.

    Args:
        chunk: whole lines, split at the newline byte alone: U+2028 and U+0085 are ordinary characters of a JSON string.
        first_line: number of the chunk's first line in its source, from 1.
        source: the source's URI, for messages and for lineage.
        parse: the format, from ``formats.parser_for``.
        config: limits.
    """
    annotations: list[ValidAnnotation] = []
    rejections: list[Rejection] = []
    for number, line in enumerate(chunk.split(b"\n"), start=first_line):
        if not line or line.isspace():
            continue
        num_refused = num_taken = 0
        for judgement in _judgements(line, parse, config.limits):
            try:
                if isinstance(judgement, RecordError):
                    raise judgement
                num_taken += _num_characters(judgement)
                if num_taken > (most := config.limits.max_record_bytes):
                    raise RecordError(too_much_text(num_taken, most))
                annotations.append(validate_annotation(judgement, config, source, number))
            except RecordError as error:
                num_refused += 1
                text = line if num_refused <= MAX_RECORD_COPIES else b""
                rejections.append(rejection(error, text, source, number))
    return annotations, rejections


def _judgements(line: bytes, parse: Callable[[bytes], Judgements], limits: SourceLimits) -> Judgements:
    """Return what a line holds; one error where it is bad as a whole."""
    if len(line) > limits.max_record_bytes:
        return (RecordError(too_long(len(line), limits.max_record_bytes)),)
    try:
        judgements = parse(line)
        check_count("judgements", len(judgements), limits.max_judgements, "limits.max_judgements", "$")
        return judgements
    except RecordError as error:
        return (error,)
    except _BAD_BYTES as error:
        return (decoder_error(error, line),)


def too_much_text(num_characters: int, most: int) -> str:
    """Return the reason to refuse a record that makes more text than it holds: its prompt, time and again."""
    return (
        f"expected a record whose rows hold at most {most:,} characters together, got {num_characters:,}; set "
        "limits.max_record_bytes to take more"
    )


def _num_characters(judgement: Annotation) -> int:
    prompt = judgement.prompt
    total = len(judgement.context or "")
    if isinstance(prompt, str):
        total += len(prompt)
    else:
        total += sum([len(turn.content) if turn.extra is None else len(turn.content + turn.extra) for turn in prompt])
    return total + sum([len(c.text) if c.extra is None else len(c.text + c.extra) for c in judgement.completions])


def rejection(error: RecordError, line: bytes, source: str, number: int) -> Rejection:
    """Return the quarantined record of a refused line; bytes that are not UTF-8 stand as U+FFFD."""
    record = line[: 4 * MAX_RECORD_CHARACTERS].decode("utf-8", errors="replace")[:MAX_RECORD_CHARACTERS]
    path, reason = one_line(error.path), one_line(error.reason)
    return Rejection(source=source, line=number, path=path, reason=reason, record=record)


def reason_key(rejected: Rejection) -> str:
    """Return the key to count a rejection by: the reason without what was found, and the path without indices."""
    path = re.sub(r"\[-?\d+\]", "[]", rejected.path)
    return _VARYING.sub("", rejected.reason) + ("" if path == "$" else f" at {path}")


def decoder_error(error: Exception, line: bytes) -> RecordError:
    """Return what a decoder's error means for whoever wrote the line."""
    if isinstance(error, UnicodeDecodeError):
        return _bytes_error(line)
    if isinstance(error, RecursionError):
        return RecordError("nested too deeply for a record")
    if isinstance(error, msgspec.ValidationError):
        return _type_error(str(error))
    return _json_error(str(error), line)


def _bytes_error(line: bytes) -> RecordError:
    try:
        line.decode()
    except UnicodeDecodeError as error:
        found = f"byte 0x{line[error.start]:02x} at byte {error.start} of the line"
        return RecordError(
            f"expected UTF-8, got {found}; write the source in UTF-8, or set cells.encoding of a CSV "
            "file (cp1252, latin-1, ...)"
        )
    raise AssertionError("a decoder found bytes that are not UTF-8 in a line that is")


def _type_error(message: str) -> RecordError:
    reason, path = split_message(message)
    if missing := re.fullmatch(r"Object missing required field `(.*)`", reason, re.DOTALL):
        advice = f"; {_OTHER_LAYOUTS}" if path == "$" else ""
        return RecordError(f"missing field `{missing[1]}`{advice}", path=path)
    if unknown := re.fullmatch(r"Object contains unknown field `(.*)`", reason, re.DOTALL):
        return RecordError(
            f"unknown field, got `{unknown[1]}`; put it under `metadata`, or {_OTHER_LAYOUTS}", path=path
        )
    if odd := re.fullmatch(r"Invalid enum value '?(.*?)'?", reason, re.DOTALL):
        return RecordError(f"{preference_strength.EXPECTED}, got `{odd[1]}`", path=path)
    return RecordError(reason[0].lower() + reason[1:], path=path)


def _json_error(message: str, line: bytes) -> RecordError:
    is_cut = message == "Input data was truncated" and line.rstrip().endswith(b"}")
    if (is_cut or "surrogate" in message) and _LONE_SURROGATE.search(line):
        return RecordError(
            r"not JSON: \ud800 to \udfff stand in pairs, for one character; repair the text or leave it out"
        )
    if message == "Input data was truncated":
        return RecordError("not JSON: the record is cut off; a record stands on one whole line")
    reason = message.replace("JSON is malformed", "not JSON")
    if re.search(rb"[\[,:]\s*-?(NaN|Infinity)\b", line):
        reason += "; NaN and Infinity are not JSON: give a finite number or leave the record out"
    elif b"\r" in line.rstrip(b"\r"):
        reason += r"; it holds a bare carriage return: end lines with \n, and write \r within a string as an escape"
    return RecordError(reason)


# ------------------------------------------------------------------------------------------------ Arrow


def annotations_to_arrow(annotations: Sequence[ValidAnnotation]) -> pa.Table:
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
    columns = [[turn.role for turn in flat], [turn.content for turn in flat], _extras(flat)]
    return _nested([len(prompt) for prompt in prompts], columns, MESSAGE)


def _completions_to_arrow(completions: Sequence[Sequence[Completion]]) -> pa.Array:
    flat = [completion for group in completions for completion in group]
    columns = [[c.id for c in flat], [c.text for c in flat], [c.model for c in flat], _extras(flat)]
    return _nested([len(group) for group in completions], columns, COMPLETION)


def _extras(items: Sequence[Message | Completion]) -> Sequence[str | None] | pa.Array:
    extras = [item.extra for item in items]
    return extras if any(extras) else pa.nulls(len(extras), pa.string())


def _nested(
    lengths: Sequence[int], columns: Sequence[Sequence[str | None] | pa.Array], item: pa.StructType
) -> pa.Array:
    offsets = np.zeros(len(lengths) + 1, dtype=np.int32)
    np.cumsum(lengths, out=offsets[1:])
    arrays = [column if isinstance(column, pa.Array) else pa.array(column, pa.string()) for column in columns]
    values = pa.StructArray.from_arrays(arrays, fields=list(item))
    return pa.ListArray.from_arrays(pa.array(offsets), values, type=pa.list_(item))
