"""Adapter for every layout that a table of field paths describes.

Each field of a record is used by a path, kept in metadata, known to mean nothing for a preference, or repeats what
another field says. Any other field refuses its record by name, since it may change what was judged.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from pairwright.config import FieldPaths
from pairwright.data.extras import is_blank, write_extra
from pairwright.data.ingest.fields.adapter import Reading, RecordError, content_id, json_name, label
from pairwright.data.ingest.fields.conversation_turns import (
    ROLES,
    Prompt,
    earlier,
    interleaved,
    is_transcript,
    read_conversation,
)
from pairwright.data.ingest.fields.field_table import IN_ITEMS, Table, optional
from pairwright.data.ingest.fields.judgements import Judge
from pairwright.data.ingest.fields.other_fields import as_text, fate, handle_unread_fields, repeats, unplaced
from pairwright.data.ingest.fields.paths import (
    JsonPath,
    Steps,
    expect_list,
    find,
    find_optional,
    named,
    opened,
)
from pairwright.data.ingest.fields.replies import prompt_and_replies, with_context
from pairwright.records import Annotation, Completion

_ANY = msgspec.json.Decoder()
_OF_SHAPE = re.compile(r"missing field `|expected `(object|array)`, got ")
"""Reasons after which the message also gives the shape of a record."""
_HASH_DIGITS = 8
_CONTEXT = {"tools": "tools", "chat_template_kwargs": "template_kwargs"}


class LayoutReader:
    """Parser of records by the compiled paths of one ``FieldPaths``.

    Args:
        fields: paths of the parts of a record.
        layout: shape of a record of a known layout; empty where the user gave all paths.
    """

    def __init__(self, fields: FieldPaths, layout: str = "") -> None:
        self.fields = fields
        self._is_own = not layout
        self._layout = layout
        self.reading = Reading()
        self._table = Table(fields)
        self._judge = Judge(self._table)
        self._roles = ROLES | fields.roles

    # ------------------------------------------------------------------------------------------ one record

    def __call__(self, line: bytes) -> tuple[Annotation]:
        """Return the one annotation in ``line``.

        Raises:
            RecordError, msgspec.DecodeError, UnicodeDecodeError, RecursionError: if the line is no such record.
        """
        record = _ANY.decode(line)
        if self._table.lists["group_by"]:
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
            RecordError: if it is none, or holds a field that no path reads and no list names.
        """
        if self._table.sides:
            prompt, completions, judgement = self._of_sides(record)
        else:
            found, where = find(record, self._table.paths["completions"])
            items = expect_list(found, where)
            prompt, completions = self._of_items(record, items, [f"{where}[{index}]" for index in range(len(items))])
            judgement = self._judge.of_items(record, items, where)
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
        judgement = self._judge.of_items(first, rows, "$")
        same = {key: value for key, value in first.items() if all(row.get(key) == value for row in rows)}
        annotation = self._annotation(same, line, prompt, completions, judgement, first)
        kept = dict(annotation.metadata or {})
        for row in rows:
            for steps, _ in self._table.known_paths.others(
                {key: value for key, value in row.items() if key not in same}
            ):
                self._refuse_unplaced(steps)
        for path in self._table.lists["keep"]:
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
        judged: dict[str, Any] = {"grade": self._judge.strength_of(self._label("grade", record))} | judgement
        annotation = Annotation(
            id=self._id_of(record, line),
            prompt=prompt,
            completions=completions,
            **judged,
            annotator=self._label("annotator", record),
            created_at=self._label("created_at", record),
            subset=self._label("subset", record),
            context=self._context_of(record),
        )
        self._handle_unread_fields(record, annotation, metadata)
        self.reading.describe(self._used_by(described))
        return msgspec.structs.replace(annotation, metadata=metadata or None)

    # ------------------------------------------------------------------------------------------ its parts

    def _prompt_of(self, record: Mapping[str, Any]) -> Prompt | None:
        """Return the prompt that fields of the record say, without what sides say; None where none does."""
        path = self._table.paths.get("prompt")
        if path is None:
            return None
        if self.fields.implicit_prompt:
            value, where = find_optional(record, path)
            if value is None:
                return None
        else:
            value, where = find(record, path)
        prompt = read_conversation(value, where, self._roles)
        addition, location = find_optional(record, self._table.paths.get("input"))
        if is_blank(addition):
            return prompt
        if not isinstance(prompt, str) or not isinstance(addition, str):
            raise RecordError("expected two texts, prompt and input, got others", path=location)
        return f"{prompt}\n{addition}" if prompt else addition

    def _in_context(self, record: Mapping[str, Any], prompt: Prompt) -> Prompt:
        system, where = find_optional(record, self._table.paths.get("system"))
        if system is not None and not isinstance(system, str):
            raise RecordError(f"expected `str`, got `{json_name(system)}`", path=where)
        history_value, location = find_optional(record, self._table.paths.get("history"))
        history = [] if is_blank(history_value) else earlier(history_value, location, self._roles)
        return with_context(prompt, system, history, where)

    def _of_items(
        self, record: Mapping[str, Any], items: Sequence[Any], locations: Sequence[str]
    ) -> tuple[Prompt, list[Completion]]:
        prompt = self._prompt_of(record)
        text = self._table.paths.get("text")
        found = [
            (item, location) if text is None else find(item, text, location)
            for item, location in zip(items, locations, strict=True)
        ]
        conversations = [self._read_conversation(value, where) for value, where in found]
        prompt, replies = prompt_and_replies(prompt, conversations, [where for _, where in found])
        completions = []
        for item, location, reply in zip(items, locations, replies, strict=True):
            if not isinstance(item, dict) and any(name in self._table.paths for name in ("completion_id", "model")):
                raise RecordError(f"expected `object`, got `{json_name(item)}`", path=location)
            completions.append(
                Completion(
                    text=reply.content,
                    id=self._label("completion_id", item, location),
                    model=self._label("model", item, location),
                    extra=reply.extra,
                )
            )
        return self._in_context(record, prompt), completions

    def _read_conversation(self, value: Any, where: str) -> Prompt:
        """Return what a side or an item says: text, reply or conversation."""
        if isinstance(value, str | list | dict):
            return read_conversation(value, where, self._roles)
        raise RecordError(f"expected `str`, got `{json_name(value)}`", path=where)

    def _of_sides(self, record: Mapping[str, Any]) -> tuple[Prompt, list[Completion], dict[str, Any]]:
        present = self._present(record)
        found = [find(record, self._table.sides[index]) for index in present]
        for value, where in found if self.fields.transcripts else ():
            if not is_transcript(value):
                raise RecordError(r"expected a transcript that begins with \n\nHuman:, got other text", path=where)
        paths = [where for _, where in found]
        names = (
            ["chosen", "rejected"]
            if self.fields.chosen is not None
            else [named(self._table.sides[index][0]) for index in present]
        )
        prompt: Prompt | None
        if self.fields.interleaved:
            asked, _ = find(record, self._table.paths["prompt"])
            conversations: list[Prompt] = [interleaved(asked, value, where) for value, where in found]
            prompt = None
        elif self.fields.several:
            return self._of_several(record, found)
        else:
            conversations = [self._read_conversation(value, where) for value, where in found]
            prompt = self._prompt_of(record)
            if self._ends_open(record) and all(isinstance(side, str) for side in conversations):
                conversations = [side.strip() for side in conversations if isinstance(side, str)]
        prompt, replies = prompt_and_replies(prompt, conversations, paths, is_implicit=self.fields.implicit_prompt)
        paths_of_models = self._table.lists["models"]
        models = [self._label_at(paths_of_models[index], record) if paths_of_models else None for index in present]
        completions = [
            Completion(text=reply.content, id=name, model=model, extra=reply.extra)
            for reply, name, model in zip(replies, names, models, strict=True)
        ]
        return self._in_context(record, prompt), completions, self._judge.of_sides(record, present)

    def _present(self, record: Mapping[str, Any]) -> list[int]:
        """Return the indices of the sides that a record has."""
        every = list(range(len(self._table.sides)))
        if not self.fields.optional_sides:
            return every
        present = [index for index in every if not is_blank(find_optional(record, self._table.sides[index])[0])]
        if len(present) < 2:
            raise RecordError(f"expected two sides or more with a completion, got {len(present)}")
        return present

    def _ends_open(self, record: Mapping[str, Any]) -> bool:
        """Return whether the prompt is a transcript that ends in ``Assistant:``, before the blank of the replies."""
        text = find_optional(record, self._table.paths.get("prompt"))[0]
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
        models, where = find_optional(record, self._table.paths.get("model"))
        if not is_blank(models):
            models = expect_list(models, where)
            if len(models) != len(completions):
                raise RecordError(f"expected a model for each completion, got {len(models)}", path=where)
            completions = [
                msgspec.structs.replace(completion, model=label(model, f"{where}[{index}]"))
                for index, (completion, model) in enumerate(zip(completions, models, strict=True))
            ]
        return self._in_context(record, prompt), completions, {"ranks": ranks}

    # ------------------------------------------------------------------------------------------ what names it

    def _id_of(self, record: Mapping[str, Any], line: bytes) -> str:
        digest = content_id(line)
        if not self._table.ids:
            return digest
        if self.fields.unique_ids and len(self._table.ids) == 1:
            return label(*find(record, self._table.ids[0]))
        parts = [self._label_at(path, record) for path in self._table.ids]
        if parts[-1] is None:
            if self.fields.unique_ids:
                raise RecordError(f"missing field `{named(self._table.ids[-1][0])}` of the id, got none")
            return digest
        given = [part for part in parts if part is not None]
        return "-".join(given if self.fields.unique_ids else [*given, digest[:_HASH_DIGITS]])

    def _label(self, name: str, value: Any, where: str = "$") -> str | None:
        constant = self.fields.constants.get(name)
        return constant if constant is not None else self._label_at(self._table.paths.get(name), value, where)

    def _label_at(self, path: JsonPath | None, value: Any, where: str = "$") -> str | None:
        found, location = find_optional(value, path, where)
        return None if found is None else label(found, location)

    def _context_of(self, record: Mapping[str, Any]) -> str | None:
        """Return what the template is given beside the turns; of what type it must be, is the rules' to say."""
        found = {key: opened(find_optional(record, self._table.paths.get(name))[0]) for key, name in _CONTEXT.items()}
        return write_extra({key: value for key, value in found.items() if not is_blank(value)})

    # ------------------------------------------------------------------------------------------ everything else

    def _metadata_of(self, record: Mapping[str, Any]) -> dict[str, str]:
        metadata: dict[str, str] = {}
        for name, path in self._table.metadata.items():
            value, _ = find_optional(record, path)
            if value is not None:
                metadata[name] = as_text(value)
        for path in self._table.lists["keep"]:
            value, where = find_optional(record, path)
            if not is_blank(value):
                self._keep(metadata, (where.removeprefix("$."),), value)
        return metadata

    def _keep(self, metadata: dict[str, str], steps: Steps, value: Any) -> None:
        is_list = isinstance(value, list) and all(isinstance(item, str) and "," not in item for item in value)
        metadata[named(steps)] = ", ".join(value) if is_list else as_text(value)
        self.reading.kept.add(named(steps))

    def _handle_unread_fields(
        self, record: Mapping[str, Any], annotation: Annotation, metadata: dict[str, str]
    ) -> None:
        """Keep, ignore or refuse each field that no path reads."""
        handle_unread_fields(
            self._table.known_paths.others(record), annotation, metadata, self.reading, is_own=self._is_own
        )
        for path in self._table.lists["ignore"]:
            self.reading.unused.update(named(steps) for steps in path if not is_blank(optional(record, steps)))
        for path in self._table.lists["repeats"]:
            value, where = find_optional(record, path)
            if not is_blank(value) and not repeats(value, annotation):
                raise unplaced(where.removeprefix("$."))

    def _refuse_unplaced(self, steps: Steps) -> None:
        if fate(steps) is None and not self._is_own:
            raise unplaced(named(steps))
        self.reading.unused.add(named(steps))

    def _used_by(self, record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Yield each part of an annotation, and the field that it was read from."""
        for name, path in self._table.paths.items():
            if name in IN_ITEMS and "completions" in self._table.paths:
                yield name, f"{named(self._table.paths['completions'][0])}[].{named(path[0])}"
            elif (value := find_optional(record, path)[0]) is not None and not is_blank(value):
                yield name, named(next((s for s in path if not is_blank(optional(record, s))), path[0]))
        for name in ("sides", "side_scores", "won"):
            present = [named(s) for path in self._table.lists[name] for s in path if not is_blank(optional(record, s))]
            if present:
                yield name, " + ".join(present)
