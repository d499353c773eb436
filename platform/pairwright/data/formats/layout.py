"""A table of field paths -> the parser of its records: the one reader of every layout that paths can describe.

Each field of a record is used by a path, kept in metadata, known to mean nothing for a preference, or says once more
what stands elsewhere. Any other refuses its record by name, since it may change what was judged.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from pairwright.config import BOTH_BAD, TIE, FieldPaths
from pairwright.data import grades
from pairwright.data.formats.others import as_text, fate, place_others, repeats, unplaced
from pairwright.data.formats.paths import (
    JsonPath,
    Places,
    Steps,
    compile_path,
    expect_list,
    find,
    find_optional,
    is_nothing,
    named,
    opened,
    render,
)
from pairwright.data.formats.record import Reading, RecordError, content_id, json_name, quoted, whole
from pairwright.data.formats.turns import (
    ROLES,
    Prompt,
    earlier,
    interleaved,
    is_transcript,
    prompt_and_replies,
    said,
    with_context,
)
from pairwright.records import Annotation, Completion, Grade

_ANY = msgspec.json.Decoder()
_OF_SHAPE = re.compile(r"missing field `|expected `(object|array)`, got ")
"""Reasons after which a reader wants to know what a record looks like."""
_HASH_DIGITS = 8
_SINGLE = (
    "prompt", "system", "history", "input", "tools", "template_kwargs", "completions", "text", "completion_id", "model",
    "rank", "score", "ranks", "scores", "chosen", "rejected", "winner", "tie", "strength", "margin", "grade",
    "annotator", "subset", "created_at",
)  # fmt: skip
_LISTS = ("sides", "models", "side_scores", "won", "group_by", "keep", "ignore", "repeats")
_IN_ITEMS = ("text", "completion_id", "model", "rank", "score")


def shape_of(fields: FieldPaths) -> str:
    """Return what a record of a layout looks like, in a line, for messages."""
    judged = [fields.winner, fields.strength, fields.ranks, fields.scores, *fields.won]
    if not any(judged):
        judged = [*fields.side_scores] if fields.sides else []
    names = [
        fields.prompt if not fields.implicit_prompt else None,
        fields.chosen,
        fields.rejected,
        *fields.sides,
        *judged,
    ]
    tops = [f'"{path}"' for path in names if path]
    if fields.completions:
        inner = [f'"{path}"' for path in (fields.text, fields.rank, fields.score) if path]
        tops.append(
            f'"{fields.completions}": [{{{", ".join(inner)}}}, ...]' if inner else f'"{fields.completions}": [...]'
        )
    if fields.group_by:
        tops += [f'"{path}"' for path in (fields.text, fields.rank, fields.score) if path]
    return "{" + ", ".join(tops) + ", ...}"


class LayoutReader:
    """Parser of records by the compiled paths of one ``FieldPaths``.

    Args:
        fields: where the parts of a record stand.
        layout: what a record of a known layout looks like; none where the user says all of it.
    """

    def __init__(self, fields: FieldPaths, layout: str = "") -> None:
        self.fields = fields
        self._is_own = not layout
        self._layout = layout
        self.reading = Reading()
        self._paths: dict[str, JsonPath] = {
            name: compile_path(name, path) for name in _SINGLE if (path := getattr(fields, name)) is not None
        }
        self._lists: dict[str, list[JsonPath]] = {
            name: [compile_path(name, path) for path in getattr(fields, name)] for name in _LISTS
        }
        ids = () if fields.id is None else (fields.id,) if isinstance(fields.id, str) else fields.id
        self._ids = [compile_path("id", path) for path in ids]
        self._metadata = {name: compile_path(f"metadata.{name}", path) for name, path in fields.metadata.items()}
        self._roles = ROLES | fields.roles
        if fields.chosen is not None:
            self._sides = [self._paths["chosen"], self._paths["rejected"]]
        else:
            self._sides = self._lists["sides"]
        self._words = {side: index for index, side in enumerate(fields.sides)}
        self._places = Places([*self._known()])

    def _known(self) -> Iterator[Steps]:
        """Yield every place that the layout knows."""
        items = self._paths.get("completions")
        for name, path in self._paths.items():
            if name in _IN_ITEMS:
                if items is not None:
                    each = [steps if steps[-1] is None else (*steps, None) for steps in items]
                    yield from ((*steps, *inner) for steps in each for inner in path)
                else:
                    yield from path
            elif name != "completions" or "text" not in self._paths:
                yield from path
        for paths in (*self._lists.values(), self._ids, self._metadata.values()):
            for path in paths:
                yield from path

    # ------------------------------------------------------------------------------------------ recognition

    def fits(self, record: Mapping[str, Any]) -> bool:
        """Return whether a record has what this layout cannot do without, in the form that it has."""
        essential = [self._paths[name] for name in ("winner", "strength", "ranks", "scores") if name in self._paths]
        essential += self._lists["won"]
        if self.fields.sides and not essential:
            essential += self._lists["side_scores"]
        if "prompt" in self._paths and not self.fields.implicit_prompt:
            essential.append(self._paths["prompt"])
        if any(_missing(record, path) for path in essential):
            return False
        if self._lists["group_by"]:
            inner = [self._paths[name] for name in _IN_ITEMS if name in self._paths]
            return not any(_missing(record, path) for path in inner)
        if self._sides:
            return all(self._is_side(find_optional(record, path)[0]) for path in self._sides)
        items = opened(find_optional(record, self._paths["completions"])[0])
        if not isinstance(items, list) or not items:
            return False
        inner = [self._paths[name] for name in ("text", "rank", "score") if name in self._paths]
        return all(not _missing(items[0], path) for path in inner) if inner else isinstance(items[0], str)

    def _is_side(self, value: Any) -> bool:
        if self.fields.transcripts:
            return is_transcript(value)
        if self.fields.several or self.fields.interleaved:
            value = opened(value)
            return isinstance(value, list) and bool(value) and isinstance(value[0], str)
        return isinstance(value, str | dict) or (isinstance(value, list) and bool(value) and isinstance(value[0], dict))

    def num_unplaced(self, record: Mapping[str, Any]) -> int:
        """Return how many fields of a record the layout has no place for."""
        return sum(fate(steps) is None for steps, _ in self._places.others(record))

    @property
    def num_essential(self) -> int:
        """How many fields the layout asks for: the more, the more specific it is."""
        names = [name for name in ("prompt", "winner", "strength", "rank", "score") if name in self._paths]
        is_named = "prompt" in names and self.fields.implicit_prompt
        told = self.fields.transcripts + self.fields.several  # of the form that sides have
        return len(names) - is_named + len(self._sides) + len(self._lists["won"]) + told

    # ------------------------------------------------------------------------------------------ one record

    def __call__(self, line: bytes) -> tuple[Annotation]:
        """Return the one annotation in ``line``.

        Raises:
            RecordError, msgspec.DecodeError, UnicodeDecodeError, RecursionError: if the line is no such record.
        """
        record = _ANY.decode(line)
        if self._lists["group_by"]:
            rows = record if isinstance(record, list) else [record]
            return (self._of_rows(rows, line),)
        try:
            if not isinstance(record, dict):
                raise RecordError(f"expected `object`, got `{json_name(record)}`")
            return (self.annotation(record, line),)
        except RecordError as error:
            if not self._layout or not _OF_SHAPE.match(error.reason):
                raise
            raise RecordError(f"{error.reason}; a record of this format is {self._layout}", path=error.path) from None

    def annotation(self, record: Mapping[str, Any], line: bytes) -> Annotation:
        """Return the annotation in a decoded record.

        Raises:
            RecordError: if it is none, or holds a field that has no place.
        """
        if self._sides:
            prompt, completions, judgement = self._of_sides(record)
        else:
            found, where = find(record, self._paths["completions"])
            items = expect_list(found, where)
            prompt, completions = self._of_items(record, items, [f"{where}[{index}]" for index in range(len(items))])
            judgement = self._judged_items(record, items, where)
        return self._annotation(record, line, prompt, completions, judgement, record)

    def _of_rows(self, rows: Sequence[Any], line: bytes) -> Annotation:
        for index, row in enumerate(rows):
            if not isinstance(row, dict):
                raise RecordError(f"expected `object`, got `{json_name(row)}`", path=f"$[{index}]")
        if len(rows) < 2:
            raise RecordError(
                f"expected two records or more with the same {', '.join(self.fields.group_by)} in succession, got 1"
            )
        first = rows[0]
        prompt, completions = self._of_items(first, rows, [f"$[{index}]" for index in range(len(rows))])
        judgement = self._judged_items(first, rows, "$")
        same = {key: value for key, value in first.items() if all(row.get(key) == value for row in rows)}
        annotation = self._annotation(same, line, prompt, completions, judgement, first)
        kept = dict(annotation.metadata or {})
        for row in rows:
            for steps, _ in self._places.others({key: value for key, value in row.items() if key not in same}):
                self._refuse_unplaced(steps)
        for path in self._lists["keep"]:
            values = [find_optional(row, path)[0] for row in rows]
            if any(value is not None for value in values):
                self._keep(kept, path[0], values if any(value != values[0] for value in values) else values[0])
        return msgspec.structs.replace(annotation, metadata=kept or None)

    def _annotation(
        self,
        record: Mapping[str, Any],
        line: bytes,
        prompt: Prompt,
        completions: list[Completion],
        judgement: dict[str, Any],
        described: Mapping[str, Any],
    ) -> Annotation:
        metadata = self._metadata_of(record)
        if judgement.pop("both_bad", False):
            metadata["both_bad"] = "true"
        annotation = Annotation(
            id=self._id_of(record, line),
            prompt=prompt,
            completions=completions,
            **({"grade": self._grade_of(record)} | judgement),
            annotator=self._label("annotator", record),
            created_at=self._label("created_at", record),
            subset=self._label("subset", record),
            context=self._context_of(record),
        )
        self._place_others(record, annotation, metadata)
        self.reading.describe(self._used_by(described))
        return msgspec.structs.replace(annotation, metadata=metadata or None)

    # ------------------------------------------------------------------------------------------ its parts

    def _prompt_of(self, record: Mapping[str, Any]) -> Prompt | None:
        """Return the prompt that fields of the record say, without what sides say; None where none does."""
        path = self._paths.get("prompt")
        if path is None:
            return None
        if self.fields.implicit_prompt:
            value, where = find_optional(record, path)
            if value is None:
                return None
        else:
            value, where = find(record, path)
        prompt = said(value, where, self._roles)
        addition, place = find_optional(record, self._paths.get("input"))
        if is_nothing(addition):
            return prompt
        if not isinstance(prompt, str) or not isinstance(addition, str):
            raise RecordError("expected two texts, prompt and input, got others", path=place)
        return f"{prompt}\n{addition}" if prompt else addition

    def _in_context(self, record: Mapping[str, Any], prompt: Prompt) -> Prompt:
        system, where = find_optional(record, self._paths.get("system"))
        if system is not None and not isinstance(system, str):
            raise RecordError(f"expected `str`, got `{json_name(system)}`", path=where)
        told, place = find_optional(record, self._paths.get("history"))
        history = [] if is_nothing(told) else earlier(told, place, self._roles)
        return with_context(prompt, system, history, where)

    def _of_items(
        self, record: Mapping[str, Any], items: Sequence[Any], places: Sequence[str]
    ) -> tuple[Prompt, list[Completion]]:
        prompt = self._prompt_of(record)
        text = self._paths.get("text")
        found = [
            (item, place) if text is None else find(item, text, place)
            for item, place in zip(items, places, strict=True)
        ]
        told = [self._said(value, where) for value, where in found]
        prompt, replies = prompt_and_replies(prompt, told, [where for _, where in found])
        completions = []
        for item, place, reply in zip(items, places, replies, strict=True):
            if not isinstance(item, dict) and any(name in self._paths for name in ("completion_id", "model")):
                raise RecordError(f"expected `object`, got `{json_name(item)}`", path=place)
            completions.append(
                Completion(
                    text=reply.content,
                    id=self._label("completion_id", item, place),
                    model=self._label("model", item, place),
                    extra=reply.extra,
                )
            )
        return self._in_context(record, prompt), completions

    def _said(self, value: Any, where: str) -> Prompt:
        """Return what a side or an item says: text, reply or conversation."""
        if isinstance(value, str | list | dict):
            return said(value, where, self._roles)
        raise RecordError(f"expected `str`, got `{json_name(value)}`", path=where)

    def _judged_items(self, record: Mapping[str, Any], items: Sequence[Any], where: str) -> dict[str, Any]:
        for name, kind in (("rank", "ranks"), ("score", "scores")):
            if name in self._paths:
                path = self._paths[name]
                found = [find(item, path, f"{where}[{index}]") for index, item in enumerate(items)]
                return {kind: [self._number(kind, value, place) for value, place in found]}
        for kind in ("ranks", "scores"):
            if kind in self._paths:
                values, place = find(record, self._paths[kind])
                values = expect_list(values, place)
                return {kind: [self._number(kind, value, f"{place}[{k}]") for k, value in enumerate(values)]}
        raise AssertionError("a table of fields without a judgement was accepted")

    def _number(self, kind: str, value: Any, where: str) -> float:
        if kind == "scores":
            return number(value, where)
        rank = whole(_digit(value), where) + 1 - self.fields.first_rank
        if rank < 1:
            first = self.fields.first_rank
            advice = "; set fields.first_rank = 0 if the best has rank 0" if first == 1 else ""
            raise RecordError(f"expected `int` >= {first} ({first} = best), got {value}{advice}", path=where)
        return rank

    def _of_sides(self, record: Mapping[str, Any]) -> tuple[Prompt, list[Completion], dict[str, Any]]:
        found = [find(record, path) for path in self._sides]
        for value, where in found if self.fields.transcripts else ():
            if not is_transcript(value):
                raise RecordError(r"expected a transcript that begins with \n\nHuman:, got other text", path=where)
        paths = [where for _, where in found]
        names = ["chosen", "rejected"] if self.fields.chosen is not None else [named(path[0]) for path in self._sides]
        prompt: Prompt | None
        if self.fields.interleaved:
            asked, _ = find(record, self._paths["prompt"])
            told: list[Prompt] = [interleaved(asked, value, where) for value, where in found]
            prompt = None
        elif self.fields.several:
            return self._of_several(record, found)
        else:
            told = [self._said(value, where) for value, where in found]
            prompt = self._prompt_of(record)
            if self._ends_open(record) and all(isinstance(side, str) for side in told):
                told = [side.strip() for side in told if isinstance(side, str)]
        prompt, replies = prompt_and_replies(prompt, told, paths, is_implicit=self.fields.implicit_prompt)
        models = [self._label_at(path, record) for path in self._lists["models"]] or [None] * len(replies)
        completions = [
            Completion(text=reply.content, id=name, model=model, extra=reply.extra)
            for reply, name, model in zip(replies, names, models, strict=True)
        ]
        return self._in_context(record, prompt), completions, self._judged_sides(record)

    def _ends_open(self, record: Mapping[str, Any]) -> bool:
        """Return whether the prompt is a transcript that ends in ``Assistant:``, before the blank of the replies."""
        text = find_optional(record, self._paths.get("prompt"))[0]
        return is_transcript(text) and text.endswith("\n\nAssistant:")

    def _of_several(
        self, record: Mapping[str, Any], found: Sequence[tuple[Any, str]]
    ) -> tuple[Prompt, list[Completion], dict[str, Any]]:
        prompt = self._prompt_of(record)
        if prompt is None:
            raise RecordError("expected a prompt beside the completions, got none")
        completions, ranks = [], []
        for rank, (name, (values, where)) in enumerate(zip(("chosen", "rejected"), found, strict=True), start=1):
            for index, value in enumerate(expect_list(values, where)):
                if not isinstance(value, str):
                    raise RecordError(f"expected `str`, got `{json_name(value)}`", path=f"{where}[{index}]")
                completions.append(Completion(text=value, id=f"{name}-{index}"))
                ranks.append(rank)
        models, where = find_optional(record, self._paths.get("model"))
        if not is_nothing(models):
            models = expect_list(models, where)
            if len(models) != len(completions):
                raise RecordError(f"expected a model for each completion, got {len(models)}", path=where)
            completions = [
                msgspec.structs.replace(completion, model=label(model, f"{where}[{index}]"))
                for index, (completion, model) in enumerate(zip(completions, models, strict=True))
            ]
        return self._in_context(record, prompt), completions, {"ranks": ranks}

    # ------------------------------------------------------------------------------------------ judgements

    def _judged_sides(self, record: Mapping[str, Any]) -> dict[str, Any]:
        scores = self._side_scores(record)
        if self.fields.chosen is not None:
            return self._judged_pair(record, scores)
        if self.fields.winner is not None:
            return self._judged_by_word(record)
        if self.fields.won:
            return self._judged_by_marks(record)
        if self.fields.strength is not None:
            return self._judged_by_strength(record)
        if scores is None:
            missing = next(path for path in self._lists["side_scores"] if _missing(record, path))
            raise RecordError(f"expected a score of each side, got none at `{named(missing[0])}`")
        return {"scores": scores}

    def _side_scores(self, record: Mapping[str, Any]) -> list[float] | None:
        found = [find_optional(record, path) for path in self._lists["side_scores"]]
        given = [value is not None for value, _ in found]
        if not found or not any(given):
            return None
        if not all(given):
            if self.fields.chosen is None:
                return None
            where = found[given.index(True)][1]
            raise RecordError("expected scores of both sides or of none, got one", path=where)
        return [number(value, where) for value, where in found]

    def _judged_pair(self, record: Mapping[str, Any], scores: list[float] | None) -> dict[str, Any]:
        margin, where = find_optional(record, self._paths.get("margin"))
        size = None if margin is None else number(margin, where)
        if size is not None and size < 0:
            raise RecordError(f"expected a margin of at least 0, got {size}", path=where)
        if scores is not None:
            if scores[0] < scores[1]:
                place = find(record, self._lists["side_scores"][0])[1]
                raise RecordError(
                    f"expected no lower score than the rejected one's, got {scores[0]} < {scores[1]}", path=place
                )
            if size is not None and not math.isclose(size, scores[0] - scores[1], rel_tol=1e-3, abs_tol=1e-3):
                raise RecordError(
                    f"expected a margin that is the difference of the scores, got {size} and {scores[0] - scores[1]}",
                    path=where,
                )
            return {"scores": scores}
        return {"scores": [size, 0.0]} if size else {"ranks": [1, 2]}

    def _judged_by_word(self, record: Mapping[str, Any]) -> dict[str, Any]:
        value, where = find(record, self._paths["winner"])
        word = value if isinstance(value, str) else msgspec.json.encode(value).decode()
        if isinstance(value, float) and value.is_integer():
            word = str(int(value))
        meaning = self.fields.words.get(word, self.fields.words.get(word.strip().lower()))
        if meaning is None:
            known = quoted(self.fields.words)
            raise RecordError(f"expected one of the words {known}, got `{word[:100]}`", path=where)
        if meaning in (TIE, BOTH_BAD):
            return {"ranks": [1] * len(self._sides), "both_bad": meaning == BOTH_BAD}
        better = self._words[meaning]
        return {"ranks": [1 if index == better else 2 for index in range(len(self._sides))]}

    def _judged_by_marks(self, record: Mapping[str, Any]) -> dict[str, Any]:
        found = [find(record, path) for path in self._lists["won"]]
        marks = [whole(int(value) if isinstance(value, bool) else _digit(value), where) for value, where in found]
        if odd := [where for mark, (_, where) in zip(marks, found, strict=True) if mark not in (0, 1)]:
            raise RecordError("expected 0 or 1, got another number", path=odd[0])
        if sum(marks) > 1:
            raise RecordError("expected one better side at most, got several", path=found[0][1])
        if not sum(marks) and not self._is_tie(record):
            raise RecordError("expected a better side or a tie, got neither", path=found[0][1])
        return {"ranks": [1 if mark or not sum(marks) else 2 for mark in marks]}

    def _is_tie(self, record: Mapping[str, Any]) -> bool:
        path = self._paths.get("tie")
        if path is None:
            return True
        value = find_optional(record, path)[0]
        return value in (True, 1, 1.0, "1", "true", "True")

    def _judged_by_strength(self, record: Mapping[str, Any]) -> dict[str, Any]:
        value, where = find(record, self._paths["strength"])
        strength = number(_digit(value), where)
        positive = self.fields.sides.index(self.fields.positive or "")
        better = positive if strength > 0 else 1 - positive
        size = abs(strength)
        if not size:
            return {"ranks": [1, 1]}
        if not self.fields.strengths:
            return {"scores": [size if index == better else 0.0 for index in range(2)]}
        told = self.fields.strengths.get(str(int(size)) if size.is_integer() else str(size))
        grade = None if told is None else grades.grade_named(told)
        if grade is None:
            raise RecordError(f"expected a strength of {quoted(self.fields.strengths)}, got {size}", path=where)
        return {"ranks": [1 if index == better else 2 for index in range(2)], "grade": grade}

    def _grade_of(self, record: Mapping[str, Any]) -> Grade | None:
        told = self._label("grade", record)
        grade = None if told is None else grades.grade_named(told)
        if told is not None and grade is None:
            raise RecordError(f"{grades.EXPECTED}, got `{told}`", path=f"${render(self._paths['grade'][0])}")
        return grade

    # ------------------------------------------------------------------------------------------ what names it

    def _id_of(self, record: Mapping[str, Any], line: bytes) -> str:
        digest = content_id(line)
        if not self._ids:
            return digest
        if self.fields.unique_ids and len(self._ids) == 1:
            return label(*find(record, self._ids[0]))
        parts = [self._label_at(path, record) for path in self._ids]
        if parts[-1] is None:
            if self.fields.unique_ids:
                raise RecordError(f"missing field `{named(self._ids[-1][0])}` of the id, got none")
            return digest
        given = [part for part in parts if part is not None]
        return "-".join(given if self.fields.unique_ids else [*given, digest[:_HASH_DIGITS]])

    def _label(self, name: str, value: Any, where: str = "$") -> str | None:
        constant = self.fields.constants.get(name)
        return constant if constant is not None else self._label_at(self._paths.get(name), value, where)

    def _label_at(self, path: JsonPath | None, value: Any, where: str = "$") -> str | None:
        found, place = find_optional(value, path, where)
        return None if found is None else label(found, place)

    def _context_of(self, record: Mapping[str, Any]) -> str | None:
        context = {}
        for name, kind in (("tools", list), ("template_kwargs", dict)):
            value, where = find_optional(record, self._paths.get(name))
            value = opened(value)
            if is_nothing(value):
                continue
            if not isinstance(value, kind):
                raise RecordError(f"expected `{json_name(kind())}`, got `{json_name(value)}`", path=where)
            context["chat_template_kwargs" if name == "template_kwargs" else name] = value
        return msgspec.json.encode(context, order="sorted").decode() if context else None

    # ------------------------------------------------------------------------------------------ everything else

    def _metadata_of(self, record: Mapping[str, Any]) -> dict[str, str]:
        metadata: dict[str, str] = {}
        for name, path in self._metadata.items():
            value, _ = find_optional(record, path)
            if value is not None:
                metadata[name] = as_text(value)
        for path in self._lists["keep"]:
            value, where = find_optional(record, path)
            if not is_nothing(value):
                self._keep(metadata, (where.removeprefix("$."),), value)
        return metadata

    def _keep(self, metadata: dict[str, str], steps: Steps, value: Any) -> None:
        is_list = isinstance(value, list) and all(isinstance(item, str) and "," not in item for item in value)
        metadata[named(steps)] = ", ".join(value) if is_list else as_text(value)
        self.reading.kept.add(named(steps))

    def _place_others(self, record: Mapping[str, Any], annotation: Annotation, metadata: dict[str, str]) -> None:
        """Find a place for each field that no path names, or refuse the record."""
        place_others(self._places.others(record), annotation, metadata, self.reading, is_own=self._is_own)
        for path in self._lists["ignore"]:
            self.reading.unused.update(named(steps) for steps in path if not is_nothing(_optional(record, steps)))
        for path in self._lists["repeats"]:
            value, where = find_optional(record, path)
            if not is_nothing(value) and not repeats(value, annotation):
                raise unplaced(where.removeprefix("$."))

    def _refuse_unplaced(self, steps: Steps) -> None:
        if fate(steps) is None and not self._is_own:
            raise unplaced(named(steps))
        self.reading.unused.add(named(steps))

    def _used_by(self, record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Yield each part of an annotation, and the field that it was read from."""
        for name, path in self._paths.items():
            if name in _IN_ITEMS and "completions" in self._paths:
                yield name, f"{named(self._paths['completions'][0])}[].{named(path[0])}"
            elif (value := find_optional(record, path)[0]) is not None and not is_nothing(value):
                yield name, named(next((s for s in path if not is_nothing(_optional(record, s))), path[0]))
        for name in ("sides", "side_scores", "won"):
            present = [named(s) for path in self._lists[name] for s in path if not is_nothing(_optional(record, s))]
            if present:
                yield name, " + ".join(present)


def label(value: object, where: str) -> str:
    """Return a name or number as a string: exports often count annotators and records.

    Raises:
        RecordError: if it is neither.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise RecordError(f"expected `str | int`, got `{json_name(value)}`", path=where)


def number(value: object, where: str) -> float:
    """Return a number, also one in quotes, as each is in a cell of a CSV file.

    Raises:
        RecordError: if it is none.
    """
    value = _digit(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RecordError(f"expected `float`, got `{json_name(value)}`", path=where)
    try:
        return float(value)
    except OverflowError:
        raise RecordError("expected `float`, got an integer out of range", path=where) from None


def _digit(value: object) -> object:
    """Return the number that a text is; anything else as it is."""
    if not isinstance(value, str) or not (match := _NUMBER.fullmatch(value.strip())):
        return value
    return float(value) if match["fraction"] else int(value)


_NUMBER = re.compile(r"[+-]?[0-9]{1,100}(?P<fraction>(?:\.[0-9]{0,100})?(?:[eE][+-]?[0-9]{1,4})?)")


def _missing(record: Any, path: JsonPath) -> bool:
    return all(_optional(record, steps) is None for steps in path)


def _optional(record: Any, steps: Steps) -> Any:
    return find_optional(record, (steps,))[0]
