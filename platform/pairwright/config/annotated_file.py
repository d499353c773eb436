"""Writes annotated configuration files: every key with its meaning and its default, filled in by a recipe.

A recipe is a short TOML file under ``recipes/``: what differs from the defaults, with the reason as a comment. Keys
that it does not set stand commented out, so that a written file means the same as the recipe.
"""

import json
import re
import textwrap
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from pairwright.config.expand import ExpandConfig
from pairwright.config.ingest import IngestConfig
from pairwright.config.section import Section
from pairwright.config.train import TrainConfig
from pairwright.errors import ConfigError

RECIPES: Mapping[str, type[Section]] = {
    "small_encoder": TrainConfig,
    "one_gpu": TrainConfig,
    "lora_one_gpu": TrainConfig,
    "eight_gpus": TrainConfig,
    "demo": TrainConfig,
    "demo_listwise": TrainConfig,
    "ingest": IngestConfig,
    "instruction_answers": IngestConfig,
    "expand": ExpandConfig,
}
"""Name -> what it configures: `pairwright train`, `ingest` or `expand`."""
_VERBS = {TrainConfig: "train", IngestConfig: "ingest", ExpandConfig: "expand"}
_MARK = "# For `pairwright "
_WIDTH = 118
_KEY_LINE = re.compile(r"(?:\[(?P<section>\w+)\]|(?P<key>\w+) = .*)")


@dataclass(frozen=True, slots=True)
class Recipe:
    """A recipe, as its file says it."""

    name: str
    kind: type[Section]
    header: list[str]
    """Its first comment, without the marks."""
    values: dict[str, Any]
    reasons: dict[str, list[str]]
    """Dotted key, or section -> the comment above it, without the marks."""

    @property
    def verb(self) -> str:
        """The verb that takes such a file by ``--config``."""
        return _VERBS[self.kind]


def read_recipe(name: str) -> Recipe:
    """Return a recipe by name.

    Raises:
        ConfigError: if there is none of that name.
    """
    if name not in RECIPES:
        raise ConfigError(f"--recipe {name}: no such recipe; there are {', '.join(RECIPES)}")
    text = (files("pairwright.config") / "recipes" / f"{name}.toml").read_text(encoding="utf-8")
    header, reasons = _comments(text)
    return Recipe(name=name, kind=RECIPES[name], header=header, values=tomllib.loads(text), reasons=reasons)


def annotated(recipe: Recipe) -> str:
    """Return a configuration file with every key: those that the recipe sets, and the others commented out."""
    lines = [*(f"# {line}" for line in recipe.header), f"{_MARK}{recipe.verb} --config`.", ""]
    lines += _section(recipe.kind, recipe, recipe.values, "")
    return "\n".join(lines).rstrip() + "\n"


def is_annotated(content: bytes) -> bool:
    """Return whether a file is one that ``annotated`` wrote, edited since or not."""
    return any(line.startswith(_MARK.encode()) for line in content.splitlines())


def _comments(text: str) -> tuple[list[str], dict[str, list[str]]]:
    """Return the comment that opens a recipe, and those above its keys and sections."""
    lines = text.splitlines()
    num_header = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    reasons: dict[str, list[str]] = {}
    comment: list[str] = []
    section = ""
    for line in lines[num_header:]:
        if line.startswith("#"):
            comment.append(line.removeprefix("#").strip())
            continue
        if (found := _KEY_LINE.fullmatch(line)) is not None:
            section = found["section"] or section
            name = found["section"] or ".".join(filter(None, [section, found["key"]]))
            if comment:
                reasons[name] = comment
        comment = []
    return [line.removeprefix("#").strip() for line in lines[:num_header]], reasons


def _section(kind: type[Section], recipe: Recipe, values: dict[str, Any] | None, path: str) -> Iterator[str]:
    """Yield the lines of one section and of those within it; ``values`` is None for one that is not set at all."""
    nested = {name: inner for name, field in kind.model_fields.items() if (inner := _section_of(field)) is not None}
    for name, field in kind.model_fields.items():
        if name in nested:
            continue
        dotted = f"{path}.{name}" if path else name
        yield from _comment_lines([_meaning(field), *recipe.reasons.get(dotted, [])])
        if values is not None and name in values:
            yield f"{name} = {toml_value(values[name])}"
        else:
            yield _default_line(name, field)
    for name, inner in nested.items():
        dotted = f"{path}.{name}" if path else name
        set_here = None if values is None else values.get(name)
        field = kind.model_fields[name]
        is_optional = field.default is None
        yield ""
        said = [(inner.__doc__ or "").strip().split("\n")[0]]
        said += [field.description] if field.description and is_optional else []
        yield from _comment_lines([*said, *recipe.reasons.get(dotted, [])])
        yield f"# [{dotted}]" if set_here is None and is_optional else f"[{dotted}]"
        yield from _section(inner, recipe, set_here, dotted)


def _section_of(field: FieldInfo) -> type[Section] | None:
    candidates = [field.annotation, *get_args(field.annotation)]
    return next((one for one in candidates if isinstance(one, type) and issubclass(one, Section)), None)


def _meaning(field: FieldInfo) -> str:
    meaning = " ".join((field.description or "").replace("``", "`").split())
    choices = [one for kind in _alternatives(field.annotation) for one in get_args(kind) if get_origin(kind) is Literal]
    return f"{meaning} One of: {', '.join(toml_value(one) for one in choices)}." if choices else meaning


def _alternatives(kind: Any) -> list[Any]:
    return [kind, *(get_args(kind) if get_origin(kind) is not Literal else [])]


def _comment_lines(texts: list[str]) -> Iterator[str]:
    for text in texts:
        for line in textwrap.wrap(text, _WIDTH - 2, break_long_words=False, break_on_hyphens=False):
            yield f"# {line}"


def _default_line(name: str, field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return f'{name} = "..."  # must be set'
    if field.default is None:
        return f"# {name} =  # not set by default"
    return f"# {name} = {toml_value(field.default)}"


def toml_value(value: Any) -> str:
    """Return a value as TOML writes it: text, numbers, booleans, lists and tables of these."""
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return json.dumps(value, ensure_ascii=False)
        case float():
            return repr(value)
        case list() | tuple():
            return f"[{', '.join(toml_value(one) for one in value)}]"
        case dict():
            items = ", ".join(
                f"{json.dumps(key, ensure_ascii=False)} = {toml_value(one)}" for key, one in value.items()
            )
            return f"{{ {items} }}" if items else "{}"
        case _:
            return str(value)
