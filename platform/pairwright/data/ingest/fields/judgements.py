"""Reads ranks, scores and preference strengths from the judgement fields that paths name."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from pairwright.config import BOTH_BAD, TIE
from pairwright.data import preference_strength
from pairwright.data.extras import is_blank
from pairwright.data.ingest.fields.adapter import RecordError, digit, json_name, number, quoted, whole
from pairwright.data.ingest.fields.field_table import Table, missing
from pairwright.data.ingest.fields.paths import expect_list, find, find_optional, named, opened, render
from pairwright.records import PreferenceStrength


class Judge:
    """Reader of the judgements of a layout."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._fields = table.fields
        self._words = {side: index for index, side in enumerate(table.fields.sides)}

    def of_items(self, record: Mapping[str, Any], items: Sequence[Any], where: str) -> dict[str, Any]:
        """Return the judgement of a list of completions, as fields of an annotation.

        Raises:
            RecordError: if there is none.
        """
        for name, kind in (("rank", "ranks"), ("score", "scores")):
            if name in self._table.paths:
                path = self._table.paths[name]
                found = [find(item, path, f"{where}[{index}]") for index, item in enumerate(items)]
                return {kind: [self._number(kind, value, location) for value, location in found]}
        for kind in ("ranks", "scores"):
            if kind in self._table.paths:
                values, location = find(record, self._table.paths[kind])
                values = expect_list(values, location)
                return {kind: [self._number(kind, value, f"{location}[{k}]") for k, value in enumerate(values)]}
        raise AssertionError("a table of fields without a judgement was accepted")

    def _number(self, kind: str, value: Any, where: str) -> float:
        if kind == "scores":
            return number(value, where)
        rank = whole(digit(value), where) + 1 - self._fields.first_rank
        if rank < 1:
            first = self._fields.first_rank
            advice = "; set fields.first_rank = 0 if the best has rank 0" if first == 1 else ""
            raise RecordError(f"expected `int` >= {first} ({first} = best), got {value}{advice}", path=where)
        return rank

    def of_sides(self, record: Mapping[str, Any], present: Sequence[int]) -> dict[str, Any]:
        """Return the judgement of sides, as fields of an annotation; and ``both_bad``, where that was said.

        Args:
            record: decoded.
            present: indices of the sides that the record has, in order: all of them but for ``optional_sides``.

        Raises:
            RecordError: if there is none, or it contradicts itself.
        """
        if self._fields.order is not None:
            return {"ranks": self._ranks_of_order(record, present)}
        for kind in ("side_scores", "side_ranks"):
            if self._fields.sides and getattr(self._fields, kind):
                return {kind.removeprefix("side_"): self._of_each(record, kind, present)}
        judged = self._of_all(record)
        if "ranks" in judged and len(present) < len(self._table.sides):
            ranks = judged["ranks"]
            if min(ranks) not in (kept := [ranks[index] for index in present]):
                raise RecordError("expected the better side to be there, got a blank one")
            judged["ranks"] = kept
        return judged

    def _of_all(self, record: Mapping[str, Any]) -> dict[str, Any]:
        scores = self._side_scores(record)
        if self._fields.chosen is not None:
            return self._judged_pair(record, scores)
        if self._fields.winner is not None:
            return self._judged_by_word(record)
        if self._fields.won:
            return self._judged_by_marks(record)
        if self._fields.strength is not None:
            return self._judged_by_strength(record)
        raise AssertionError("a table of sides without a judgement was accepted")

    def _of_each(self, record: Mapping[str, Any], kind: str, present: Sequence[int]) -> list[float]:
        """Return the score or the rank of each side that a record has."""
        what = kind.removeprefix("side_")
        found = []
        for index, path in enumerate(self._table.lists[kind]):
            if index in present:
                if missing(record, path):
                    raise RecordError(f"expected a {what[:-1]} of each side, got none at `{named(path[0])}`")
                value, where = find(record, path)
                found.append(self._number(what, value, where))
            elif not is_blank(find_optional(record, path)[0]):
                where = find(record, path)[1]
                raise RecordError(f"expected no {what[:-1]} of a side that is blank, got one", path=where)
        return found

    def _ranks_of_order(self, record: Mapping[str, Any], present: Sequence[int]) -> list[int]:
        """Return the rank of each side that a record has, from a list or a text that names them best first."""
        value, where = find(record, self._table.paths["order"])
        ranks: dict[int, int] = {}
        for rank, names in enumerate(_levels(value, where), start=1):
            for name in names:
                side = self._fields.words.get(name, name)
                index = self._words.get(side)
                if index is None or index not in present:
                    known = quoted([*self._fields.words, *self._fields.sides])
                    raise RecordError(f"expected sides by a name of {known}, got `{name[:100]}`", path=where)
                if index in ranks:
                    raise RecordError(f"expected each side once, got `{name[:100]}` again", path=where)
                ranks[index] = rank
        if absent := [self._fields.sides[index] for index in present if index not in ranks]:
            raise RecordError(f"expected every side in the order, got none of {quoted(absent)}", path=where)
        return [ranks[index] for index in present]

    def _side_scores(self, record: Mapping[str, Any]) -> list[float] | None:
        found = [find_optional(record, path) for path in self._table.lists["side_scores"]]
        given = [value is not None for value, _ in found]
        if not found or not any(given):
            return None
        if not all(given):
            where = found[given.index(True)][1]
            raise RecordError("expected scores of both sides or of none, got one", path=where)
        return [number(value, where) for value, where in found]

    def _judged_pair(self, record: Mapping[str, Any], scores: list[float] | None) -> dict[str, Any]:
        margin, where = find_optional(record, self._table.paths.get("margin"))
        size = None if margin is None else number(margin, where)
        if size is not None and size < 0:
            raise RecordError(f"expected a margin of at least 0, got {size}", path=where)
        if scores is not None:
            if scores[0] < scores[1]:
                location = find(record, self._table.lists["side_scores"][0])[1]
                raise RecordError(
                    f"expected no lower score than the rejected one's, got {scores[0]} < {scores[1]}", path=location
                )
            if size is not None and not math.isclose(size, scores[0] - scores[1], rel_tol=1e-3, abs_tol=1e-3):
                raise RecordError(
                    f"expected a margin that is the difference of the scores, got {size} and {scores[0] - scores[1]}",
                    path=where,
                )
            return {"scores": scores}
        return {"scores": [size, 0.0]} if size else {"ranks": [1, 2]}

    def _judged_by_word(self, record: Mapping[str, Any]) -> dict[str, Any]:
        value, where = find(record, self._table.paths["winner"])
        word = value if isinstance(value, str) else msgspec.json.encode(value).decode()
        if isinstance(value, float) and value.is_integer():
            word = str(int(value))
        meaning = self._fields.words.get(word, self._fields.words.get(word.strip().lower()))
        if meaning is None:
            known = quoted(self._fields.words)
            raise RecordError(f"expected one of the words {known}, got `{word[:100]}`", path=where)
        if meaning in (TIE, BOTH_BAD):
            return {"ranks": [1] * len(self._table.sides), "both_bad": meaning == BOTH_BAD}
        better = self._words[meaning]
        return {"ranks": [1 if index == better else 2 for index in range(len(self._table.sides))]}

    def _judged_by_marks(self, record: Mapping[str, Any]) -> dict[str, Any]:
        found = [find(record, path) for path in self._table.lists["won"]]
        marks = [whole(int(value) if isinstance(value, bool) else digit(value), where) for value, where in found]
        if odd := [where for mark, (_, where) in zip(marks, found, strict=True) if mark not in (0, 1)]:
            raise RecordError("expected 0 or 1, got another number", path=odd[0])
        if sum(marks) > 1:
            raise RecordError("expected one better side at most, got several", path=found[0][1])
        if not sum(marks) and not self._is_tie(record):
            raise RecordError("expected a better side or a tie, got neither", path=found[0][1])
        return {"ranks": [1 if mark or not sum(marks) else 2 for mark in marks]}

    def _is_tie(self, record: Mapping[str, Any]) -> bool:
        path = self._table.paths.get("tie")
        if path is None:
            return True
        value = find_optional(record, path)[0]
        return value in (True, 1, 1.0, "1", "true", "True")

    def _judged_by_strength(self, record: Mapping[str, Any]) -> dict[str, Any]:
        value, where = find(record, self._table.paths["strength"])
        strength = number(digit(value), where)
        positive = self._fields.sides.index(self._fields.positive or "")
        better = positive if strength > 0 else 1 - positive
        size = abs(strength)
        if not size:
            return {"ranks": [1, 1]}
        if not self._fields.strengths:
            return {"scores": [size if index == better else 0.0 for index in range(2)]}
        name = self._fields.strengths.get(str(int(size)) if size.is_integer() else str(size))
        grade = None if name is None else preference_strength.strength_named(name)
        if grade is None:
            raise RecordError(f"expected a strength of {quoted(self._fields.strengths)}, got {size}", path=where)
        return {"ranks": [1 if index == better else 2 for index in range(2)], "grade": grade}

    def strength_of(self, name: str | None) -> PreferenceStrength | None:
        """Return the grade that a record names.

        Raises:
            RecordError: if it is none.
        """
        grade = None if name is None else preference_strength.strength_named(name)
        if name is not None and grade is None:
            raise RecordError(
                f"{preference_strength.EXPECTED}, got `{name}`", path=f"${render(self._table.paths['grade'][0])}"
            )
        return grade


def _levels(value: Any, where: str) -> list[list[str]]:
    """Return the names in an order, those of one rank together."""
    value = opened(value)
    if isinstance(value, list):
        return [[str(name) for name in (entry if isinstance(entry, list) else [entry])] for entry in value]
    if not isinstance(value, str):
        raise RecordError(f"expected `array` or `str`, got `{json_name(value)}`", path=where)
    separator = ">" if ">" in value else ";" if ";" in value else ","
    return [[name.strip() for name in re.split("[=~]", level)] for level in re.split(f"{separator}+", value)]
