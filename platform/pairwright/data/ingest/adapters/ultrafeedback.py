"""Adapter for UltraFeedback that refuses the wrong scores of its first release.

That release held 2,628 completions with an overall score of 10, many of which were meant as 1 (issue 8 of
openbmb/UltraFeedback). The fix in ``fix_overall_score_issue.py`` of its repository takes a 10 beside ratings of 2 or
less on average for a 1; a record that still holds such a score is refused here, not changed silently. The layout
itself is ``known/ultrafeedback.toml``.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from pairwright.config import FieldPaths
from pairwright.data.ingest.fields.adapter import Judgements, RecordError, number
from pairwright.data.ingest.fields.field_layout import LayoutReader
from pairwright.data.ingest.fields.paths import expect_list

SUSPECT_SCORE = 10
SUSPECT_RATING = 2.0

_NUMBER = re.compile(r"\d+(\.\d+)?")
_ANY = msgspec.json.Decoder()


class UltraFeedbackReader:
    """Parser of UltraFeedback's records."""

    def __init__(self, fields: FieldPaths, layout: str = "") -> None:
        self._layout = LayoutReader(fields, layout)
        self.reading = self._layout.reading

    def __call__(self, line: bytes, /) -> Judgements:
        """Return the one annotation in a line.

        Raises:
            RecordError, msgspec.DecodeError, UnicodeDecodeError, RecursionError: if it is no such record.
        """
        record = _ANY.decode(line)
        found = self._layout(line)
        completions = expect_list(record.get("completions"), "$.completions")
        for index, completion in enumerate(completions):
            _check_score(completion, f"$.completions[{index}].overall_score")
        return found


def _check_score(completion: Mapping[str, Any], path: str) -> None:
    if number(completion.get("overall_score"), path) != SUSPECT_SCORE:
        return
    rating = _mean_rating(completion.get("annotations"))
    if rating is not None and rating <= SUSPECT_RATING:
        raise RecordError(
            f"expected an overall score that fits its ratings, got 10 beside a mean rating of {rating:.2f}; "
            "take the release of 2023-12-29 or later, where such scores are repaired",
            path=path,
        )


def _mean_rating(aspects: Any) -> float | None:
    """Return the mean of the completion's ratings, 1 to 5, or None where it has none; N/A does not count."""
    ratings: Sequence[Any] = list(aspects.values()) if isinstance(aspects, dict) else []
    given = [str(aspect.get("Rating")) for aspect in ratings if isinstance(aspect, dict)]
    ratings = [float(rating) for rating in given if _NUMBER.fullmatch(rating)]
    return sum(ratings) / len(ratings) if ratings else None
