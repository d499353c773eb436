"""TRL preference records: explicit and implicit prompt, plain texts and conversations.

Layout after "Dataset formats and types" in TRL's documentation (huggingface.co/docs/trl/dataset_formats), the columns
of scores after the cards of HuggingFaceH4/ultrafeedback_binarized (``score_chosen``) and of distilabel's data sets
(``chosen_rating``), ``margin`` after TRL's RewardTrainer. An implicit prompt of plain texts ends where TRL's
``extract_prompt`` ends it, but never within a word.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from pairwright.data.formats.record import Format, RecordError, is_list_of, typed
from pairwright.data.formats.turns import Prompt, Turn, is_transcript, messages, shared_prompt
from pairwright.records import Annotation, Completion

LAYOUT = '{"prompt" (or not), "chosen", "rejected"}: texts, or lists of {"role", "content"}'


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    chosen: str | list[Turn]
    rejected: str | list[Turn]
    prompt: str | list[Turn] | None = None
    id: str | int | None = None
    margin: float | None = None
    score_chosen: float | None = None
    score_rejected: float | None = None
    chosen_rating: float | None = None
    rejected_rating: float | None = None
    chosen_model: str | None = None
    rejected_model: str | None = None
    subset: str | None = None


def _judgements(record: _Record, content_id: str) -> tuple[Annotation]:
    prompt, chosen, rejected = _parts(record)
    scores = _scores(record)
    annotation = Annotation(
        id=content_id if record.id is None else str(record.id),
        prompt=prompt,
        completions=[
            Completion(text=chosen, id="chosen", model=record.chosen_model),
            Completion(text=rejected, id="rejected", model=record.rejected_model),
        ],
        ranks=[1, 2] if scores is None else None,
        scores=scores,
        subset=record.subset,
    )
    return (annotation,)


def _parts(record: _Record) -> tuple[Prompt, str, str]:
    prompt, chosen, rejected = record.prompt, record.chosen, record.rejected
    if isinstance(chosen, str) and isinstance(rejected, str):
        if prompt is None:
            return _shared_text(chosen, rejected)
        return (prompt if isinstance(prompt, str) else messages(prompt)), chosen, rejected
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise RecordError("expected texts or lists on both sides, got one of each", path="$.rejected")
    if isinstance(prompt, str) and len(chosen) == len(rejected) == 1:
        prompt = [Turn(role="user", content=prompt)]
    opening = prompt if isinstance(prompt, list) else []
    return shared_prompt(messages(_after(opening, chosen)), messages(_after(opening, rejected)))


def _after(opening: list[Turn], side: list[Turn]) -> list[Turn]:
    """Return the whole conversation of one side; some data sets repeat the prompt in it."""
    return side if side[: len(opening)] == opening else opening + side


def _shared_text(chosen: str, rejected: str) -> tuple[str, str, str]:
    """Return what both texts begin with, up to the white space before the word in which they differ, and the rest."""
    shortest = min(len(chosen), len(rejected))
    end = next((index for index in range(shortest) if chosen[index] != rejected[index]), shortest)
    while end and not chosen[end : end + 1].isspace():
        end -= 1
    if not chosen[:end].strip():
        raise RecordError("expected texts that both begin with a prompt, got none", path="$.chosen")
    return chosen[:end], chosen[end:], rejected[end:]


def _scores(record: _Record) -> list[float] | None:
    pairs = [(record.score_chosen, record.score_rejected), (record.chosen_rating, record.rejected_rating)]
    for (chosen, rejected), path in zip(pairs, ("$.score_chosen", "$.chosen_rating"), strict=True):
        if chosen is not None and rejected is not None:
            if chosen < rejected:
                raise RecordError(
                    f"expected no lower score than the rejected one's, got {chosen} < {rejected}", path=path
                )
            return [chosen, rejected]
    if not record.margin:
        return None
    if record.margin < 0:
        raise RecordError(f"expected a margin of at least 0, got {record.margin}", path="$.margin")
    return [record.margin, 0.0]


def _fits(record: Mapping[str, Any]) -> bool:
    if "conversations" in record:
        return False
    sides = [record.get(name) for name in ("chosen", "rejected")]
    if all(is_list_of(side, "role", "content") for side in sides):
        return True
    return all(isinstance(side, str) for side in sides) and not all(map(is_transcript, sides))


TRL = Format(name="trl", layout=LAYOUT, fits=_fits, parser=lambda _: typed(_Record, LAYOUT, _judgements))
