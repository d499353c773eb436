"""A compiled table of field paths: what it requires, and which fields of a record it knows."""

from collections.abc import Iterator, Mapping
from typing import Any

from pairwright.config import FieldPaths
from pairwright.data.ingest.fields.conversation_turns import is_transcript
from pairwright.data.ingest.fields.other_fields import fate
from pairwright.data.ingest.fields.paths import JsonPath, KnownPaths, Steps, compile_path, find_optional, opened

_SINGLE = (
    "prompt", "system", "history", "input", "tools", "template_kwargs", "completions", "text", "completion_id", "model",
    "rank", "score", "ranks", "scores", "chosen", "rejected", "order", "winner", "tie", "strength", "margin", "grade",
    "annotator", "subset", "created_at", "tree", "role",
)  # fmt: skip
_LISTS = ("sides", "models", "side_scores", "side_ranks", "won", "group_by", "keep", "ignore", "repeats")
IN_ITEMS = ("text", "completion_id", "model", "rank", "score")
"""Paths that start at an item of the list of completions."""


def shape_of(fields: FieldPaths) -> str:
    """Return the shape of a record of a layout, in a line, for messages."""
    judged = [fields.winner, fields.strength, fields.ranks, fields.scores, *fields.won]
    if not any(judged):
        judged = [*fields.side_scores, *fields.side_ranks, fields.order] if fields.sides else []
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
    if fields.tree:
        tops = [f'"{fields.prompt}": {{"{fields.text}", "{fields.role}", "{fields.tree}": [...]}}']
    if fields.group_by:
        tops += [f'"{path}"' for path in (fields.text, fields.rank, fields.score) if path]
    return "{" + ", ".join(tops) + ", ...}"


class Table:
    """The compiled paths of one ``FieldPaths``.

    Attributes:
        paths: key -> path, of those that are set.
        lists: key -> paths, for keys that name several.
        ids: paths of what makes the record's id.
        metadata: name in metadata -> path.
        sides: paths of completions in fields of their own.
        known_paths: every path that the table knows.
    """

    def __init__(self, fields: FieldPaths) -> None:
        self.fields = fields
        self.paths: dict[str, JsonPath] = {
            name: compile_path(name, path) for name in _SINGLE if (path := getattr(fields, name)) is not None
        }
        self.lists: dict[str, list[JsonPath]] = {
            name: [compile_path(name, path) for path in getattr(fields, name)] for name in _LISTS
        }
        ids = () if fields.id is None else (fields.id,) if isinstance(fields.id, str) else fields.id
        self.ids = [compile_path("id", path) for path in ids]
        self.metadata = {name: compile_path(f"metadata.{name}", path) for name, path in fields.metadata.items()}
        if fields.chosen is not None:
            self.sides = [self.paths["chosen"], self.paths["rejected"]]
        else:
            self.sides = self.lists["sides"]
        self.known_paths = KnownPaths([*self._known()])

    def _known(self) -> Iterator[Steps]:
        """Yield every path that the layout knows."""
        items = self.paths.get("completions")
        for name, path in self.paths.items():
            if name in IN_ITEMS:
                if items is not None:
                    each = [steps if steps[-1] is None else (*steps, None) for steps in items]
                    yield from ((*steps, *inner) for steps in each for inner in path)
                else:
                    yield from path
            elif name != "completions" or "text" not in self.paths:
                yield from path
        for paths in (*self.lists.values(), self.ids, self.metadata.values()):
            for path in paths:
                yield from path

    def matches(self, record: Mapping[str, Any]) -> bool:
        """Return whether a record has what this layout cannot do without, in the form that it has."""
        essential = [self.paths[name] for name in ("winner", "strength", "ranks", "scores") if name in self.paths]
        essential += self.lists["won"]
        if self.fields.sides and not essential:
            essential += [*self.lists["side_scores"], *self.lists["side_ranks"]]
            essential += [self.paths["order"]] if "order" in self.paths else []
        if "prompt" in self.paths and not self.fields.implicit_prompt:
            essential.append(self.paths["prompt"])
        if any(missing(record, path) for path in essential):
            return False
        if "tree" in self.paths:
            root = opened(find_optional(record, self.paths["prompt"])[0])
            return isinstance(root, dict) and not missing(root, self.paths["tree"])
        if self.lists["group_by"]:
            inner = [self.paths[name] for name in IN_ITEMS if name in self.paths]
            return not any(missing(record, path) for path in inner)
        if self.sides:
            return all(self._is_side(find_optional(record, path)[0]) for path in self.sides)
        items = opened(find_optional(record, self.paths["completions"])[0])
        if not isinstance(items, list) or not items:
            return False
        inner = [self.paths[name] for name in ("text", "rank", "score") if name in self.paths]
        return all(not missing(items[0], path) for path in inner) if inner else isinstance(items[0], str)

    def _is_side(self, value: Any) -> bool:
        if self.fields.transcripts:
            return is_transcript(value)
        if self.fields.several or self.fields.interleaved:
            value = opened(value)
            return isinstance(value, list) and bool(value) and isinstance(value[0], str)
        return isinstance(value, str | dict) or (isinstance(value, list) and bool(value) and isinstance(value[0], dict))

    def num_unplaced(self, record: Mapping[str, Any]) -> int:
        """Return how many fields of a record no path reads; of a tree, of the record around it."""
        if "tree" in self.paths:
            tops = {steps[0] for path in (self.paths["prompt"], *self.ids, *self.lists["ignore"]) for steps in path}
            return sum(key not in tops and fate((key,)) is None for key in record)
        return sum(fate(steps) is None for steps, _ in self.known_paths.others(record))

    @property
    def num_essential(self) -> int:
        """How many fields the layout asks for: the more, the more specific it is."""
        names = [name for name in ("prompt", "winner", "strength", "rank", "score", "tree") if name in self.paths]
        is_named = "prompt" in names and self.fields.implicit_prompt
        num_declared = self.fields.transcripts + self.fields.several  # of the form that sides have
        return len(names) - is_named + len(self.sides) + len(self.lists["won"]) + num_declared


def missing(record: Any, path: JsonPath) -> bool:
    """Return whether no alternative of a path has a value."""
    return all(optional(record, steps) is None for steps in path)


def optional(record: Any, steps: Steps) -> Any:
    """Return the value at one path, None where there is none."""
    return find_optional(record, (steps,))[0]
