"""UltraFeedback: a judge model's overall score of each completion.

Layout after the card of openbmb/UltraFeedback and the scripts of its repository (src/data_annotation). Its first
release held 2,628 completions with an overall score of 10, many of which were meant as 1 (issue 8 there). The repair in
``fix_overall_score_issue.py`` takes a 10 beside ratings of 2 or less on average for a 1: a record that still holds such
a score is refused here, not repaired in silence.
"""

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from pairwright.data.formats.record import Format, RecordError, is_list_of, typed
from pairwright.records import Annotation, Completion

LAYOUT = '{"instruction", "completions": [{"response", "model", "overall_score"}, ...]}'
SUSPECT_SCORE = 10
SUSPECT_RATING = 2.0

_NUMBER = re.compile(r"\d+(\.\d+)?")


class _Aspect(msgspec.Struct, frozen=True):
    rating: str | float | None = msgspec.field(name="Rating", default=None)


class _Scored(msgspec.Struct, frozen=True, kw_only=True):
    response: str
    overall_score: float
    model: str | None = None
    annotations: dict[str, _Aspect | list[_Aspect]] | None = None


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    instruction: str
    completions: list[_Scored]
    source: str | None = None
    id: str | int | None = None


def _judgements(record: _Record, content_id: str) -> tuple[Annotation]:
    for index, completion in enumerate(record.completions):
        _check_score(completion, f"$.completions[{index}].overall_score")
    annotation = Annotation(
        id=content_id if record.id is None else str(record.id),
        prompt=record.instruction,
        completions=[Completion(text=scored.response, model=scored.model) for scored in record.completions],
        scores=[scored.overall_score for scored in record.completions],
        subset=record.source,
    )
    return (annotation,)


def _check_score(completion: _Scored, path: str) -> None:
    if completion.overall_score != SUSPECT_SCORE:
        return
    rating = _mean_rating(completion)
    if rating is not None and rating <= SUSPECT_RATING:
        raise RecordError(
            f"expected an overall score that fits its ratings, got 10 beside a mean rating of {rating:.2f}; "
            "take the release of 2023-12-29 or later, where such scores are repaired",
            path=path,
        )


def _mean_rating(completion: _Scored) -> float | None:
    """Return the mean of the completion's ratings, 1 to 5, or None where it has none; N/A does not count."""
    given = [str(aspect.rating) for aspect in (completion.annotations or {}).values() if isinstance(aspect, _Aspect)]
    ratings = [float(rating) for rating in given if _NUMBER.fullmatch(rating)]
    return sum(ratings) / len(ratings) if ratings else None


def _fits(record: Mapping[str, Any]) -> bool:
    return "instruction" in record and is_list_of(record.get("completions"), "response")


ULTRAFEEDBACK = Format(
    name="ultrafeedback", layout=LAYOUT, fits=_fits, parser=lambda _: typed(_Record, LAYOUT, _judgements)
)
