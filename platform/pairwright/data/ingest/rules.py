"""Validates annotations: the rules that a record must keep, whatever its format, and the ids that it gets.

Ranks come out dense, scores and orders also as ranks, prompts as messages, every completion with an id; the hashes that
identify a prompt and a group are made here. What needs more than one record (duplicate ids) is checked by the
ingestion.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec

from pairwright.config import IngestConfig
from pairwright.data.extras import CONTENT_FIELDS, is_blank, num_characters
from pairwright.data.identity import group_id, prompt_id
from pairwright.data.ingest.adapters import RecordError
from pairwright.data.ingest.fields.adapter import check_count, split_message
from pairwright.records import Annotation, Completion, Message, PreferenceStrength
from pairwright.terminal import counted

_WITH_ARTICLE = {
    "id": "an id",
    "annotator": "an annotator",
    "subset": "a subset",
    "name": "names",
    "role": "a role",
    "model": "a model",
    "prompt": "a prompt",
    "completion": "a completion",
    "metadata": "metadata",
}

_RESERVED = frozenset(
    {"messages", "conversations", "tools", "chat_template", "add_generation_prompt", "continue_final_message"}
    | {"return_assistant_tokens_mask", "tokenize"}
)
"""What no ``chat_template_kwargs`` may set: the conversation itself, and how it is rendered."""


@dataclass(frozen=True, slots=True)
class ValidAnnotation:
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
    grade: PreferenceStrength | None
    annotator: str | None
    created_at: datetime | None
    subset: str | None
    metadata: dict[str, str] | None
    source: str
    line: int
    context: str | None = None
    """JSON object of what the chat template is given beside the turns."""


def validate_annotation(annotation: Annotation, config: IngestConfig, source: str, line: int) -> ValidAnnotation:
    """Return the annotation with its ids and dense ranks.

    Raises:
        RecordError: if it breaks a rule; the first one broken is named.
    """
    if not annotation.id.strip():
        raise RecordError("expected a name, got an empty id; every record needs an id of its own", path="$.id")
    _check_labels(annotation, config)
    prompt = _check_prompt(annotation.prompt, annotation.context, config)
    completions = _check_completions(annotation.completions, config)
    ranks, scores = _check_judgement(annotation, completions)
    check_context(annotation.context)
    prompt_hash = prompt_id(prompt, annotation.context)
    return ValidAnnotation(
        id=annotation.id,
        group_id=group_id(prompt_hash, [one.text for one in completions], [one.extra for one in completions]),
        prompt_id=prompt_hash,
        prompt=prompt,
        completions=completions,
        ranks=ranks,
        scores=scores,
        grade=_check_grade(annotation.grade, ranks),
        annotator=annotation.annotator,
        created_at=_check_time(annotation.created_at),
        subset=annotation.subset,
        metadata=annotation.metadata,
        source=source,
        line=line,
        context=annotation.context,
    )


def _check_labels(annotation: Annotation, config: IngestConfig) -> None:
    """Refuse names that are texts, and metadata that are a document: every message and report quotes them."""
    most = config.max_label_characters
    for what, label in (("id", annotation.id), ("annotator", annotation.annotator), ("subset", annotation.subset)):
        if label is not None and len(label) > most:
            raise RecordError(label_too_long(what, len(label), most), path=f"$.{what}")
    metadata = annotation.metadata
    if not metadata:
        return
    check_count("entries", len(metadata), config.max_metadata, "max_metadata", "$.metadata")
    if (longest := max(map(len, metadata))) > most:
        raise RecordError(label_too_long("name", longest, most), path="$.metadata")
    num_characters = sum(map(len, metadata)) + sum(map(len, metadata.values()))
    if num_characters > config.max_characters:
        raise RecordError(text_too_long("metadata", num_characters, config), path="$.metadata")


def label_too_long(what: str, num_characters: int, most: int) -> str:
    """Return the reason to refuse a name that is too long."""
    return (
        f"expected {_WITH_ARTICLE[what]} of at most {most:,} characters, got {num_characters:,}; "
        "set max_label_characters to take longer ones"
    )


def _check_prompt(prompt: str | list[Message], context: str | None, config: IngestConfig) -> list[Message]:
    messages = [Message(role="user", content=prompt)] if isinstance(prompt, str) else prompt
    check_count("turns", len(messages), config.max_turns, "max_turns", "$.prompt")
    most = config.max_label_characters
    for index, message in enumerate(messages):
        if len(message.role) > most:
            raise RecordError(label_too_long("role", len(message.role), most), path=f"$.prompt[{index}].role")
        if not message.role.strip():
            raise RecordError("expected a role such as user, got an empty one", path=f"$.prompt[{index}].role")
        if message.extra is not None:
            check_extra(message.extra, f"$.prompt[{index}]")
    if not any(message.content.strip() for message in messages):
        raise RecordError("expected text, got an empty prompt", path="$.prompt")
    length = sum(num_characters(message.content, message.extra) for message in messages) + len(context or "")
    if length > config.max_characters:
        raise RecordError(text_too_long("prompt", length, config), path="$.prompt")
    return messages


def _check_completions(completions: list[Completion], config: IngestConfig) -> list[Completion]:
    if not 2 <= len(completions) <= config.max_completions:
        raise RecordError(
            f"expected 2 to {config.max_completions} completions, got {len(completions)}"
            + ("; set max_completions to take more" if len(completions) > 1 else "; one alone cannot be ranked"),
            path="$.completions",
        )
    index_of: dict[str, int] = {}
    named = []
    most = config.max_label_characters
    for index, completion in enumerate(completions):
        extra = completion.extra
        said = () if extra is None else check_extra(extra, f"$.completions[{index}]")
        if (not completion.text or completion.text.isspace()) and CONTENT_FIELDS.isdisjoint(said):
            raise RecordError("expected text, got an empty completion", path=f"$.completions[{index}].text")
        if (length := len(completion.text) + (0 if extra is None else len(extra))) > config.max_characters:
            reason = text_too_long("completion", length, config)
            raise RecordError(reason, path=f"$.completions[{index}].text")
        name = str(index) if completion.id is None else completion.id
        if len(name) > most:
            raise RecordError(label_too_long("id", len(name), most), path=f"$.completions[{index}].id")
        if completion.model is not None and len(completion.model) > most:
            reason = label_too_long("model", len(completion.model), most)
            raise RecordError(reason, path=f"$.completions[{index}].model")
        if index_of.setdefault(name, index) != index:
            reason = f"expected ids of their own, got `{name}` as for completion {index_of[name]}"
            raise RecordError(
                f"{reason}; a completion without an id goes by its index", path=f"$.completions[{index}].id"
            )
        named.append(Completion(completion.text, name, completion.model, extra))
    return named


def text_too_long(what: str, num_characters: int, config: IngestConfig) -> str:
    """Return the reason to refuse a text that is too long."""
    limit = f"expected {_WITH_ARTICLE[what]} of at most {config.max_characters:,} characters"
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


def _check_grade(grade: PreferenceStrength | None, ranks: list[int]) -> PreferenceStrength | None:
    if grade is not None and len(ranks) != 2:
        raise RecordError(f"expected a grade with two completions alone, got {len(ranks)}", path="$.grade")
    if grade is not None and ranks[0] == ranks[1]:
        raise RecordError("expected a grade with a better completion, got a tie; leave one of them out", path="$.grade")
    return grade


def _check_length(what: str, field: str, length: int, num_completions: int) -> None:
    if length != num_completions:
        raise RecordError(
            f"expected one {what} a completion, got {length} for {counted(num_completions, 'completion')}",
            path=f"$.{field}",
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
    rank_of = {value: rank for rank, value in enumerate(sorted(set(values)), start=1)}
    return [rank_of[value] for value in values]


def _check_time(created_at: str | None) -> datetime | None:
    if created_at is None:
        return None
    try:
        moment = datetime.fromisoformat(created_at)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        example = "ISO 8601 such as 2026-11-20T14:05:00Z (UTC where no offset is given)"
        raise RecordError(f"expected {example}, got `{created_at[:40]}`", path="$.created_at") from None


# ------------------------------------------------------------------------------------------------ beside the texts


class _Extra(msgspec.Struct, forbid_unknown_fields=True):
    """What a turn may have beside role and content."""

    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    name: str | None = None
    reasoning_content: str | None = None
    thinking: str | None = None


class _Context(msgspec.Struct, forbid_unknown_fields=True):
    """What a template may be given beside the turns."""

    tools: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None


_EXTRA, _CONTEXT = msgspec.json.Decoder(_Extra), msgspec.json.Decoder(_Context)


def check_extra(extra: str, path: str) -> set[str]:
    """Return the names of the fields that say something in what a turn has beside its text.

    Args:
        extra: JSON object.
        path: of the turn in its record.

    Raises:
        RecordError: if a field is of another type than templates expect.
    """
    return {name for name, value in _checked(_EXTRA, extra, path).items() if not is_blank(value)}


def check_context(context: str | None) -> None:
    """Check what a record gives the template beside its turns.

    Raises:
        RecordError: if a field is of another type than templates expect, or sets what is not the record's to set.
    """
    if context is None:
        return
    for name in _checked(_CONTEXT, context, "$").get("chat_template_kwargs") or {}:
        if name in _RESERVED:
            raise RecordError(
                f"expected variables of the chat template, got `{name}`, which is set for every record alike",
                path=f"$.chat_template_kwargs.{name}",
            )


def _checked(decoder: "msgspec.json.Decoder[Any]", content: str, path: str) -> dict[str, Any]:
    try:
        return msgspec.structs.asdict(decoder.decode(content))
    except msgspec.ValidationError as error:
        reason, where = split_message(str(error))
        raise RecordError(reason[0].lower() + reason[1:], path=path + where.removeprefix("$")) from None
