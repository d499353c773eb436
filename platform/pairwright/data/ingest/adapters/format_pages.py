"""Lists of what each format reads: `pairwright formats`, and the table of docs/formats.md."""

from typing import Any

from pairwright.config import FieldPaths
from pairwright.data.ingest.adapters import Format, formats
from pairwright.errors import ConfigError
from pairwright.suggestions import did_you_mean

_BY_CODE = {
    "native": ("`prompt`", "`completions[].text`", "`ranks`, `scores` or `order`", "`metadata`"),
    "openai-summarize": ("`info`", "`summaries[].text`", "`choice`", "`info.id`, `batch`, `split`, `extra.confidence`"),
    "label-studio": (
        "`data.prompt`",
        "fields or items of `data`",
        "`annotations[].result`: ranker, pairwise, choices, rating",
        "other results",
    ),
    "argilla": ("`fields.prompt`", "other `fields`", "`responses`: ranking, label, rating", "other answers"),
}


def format_list() -> list[dict[str, Any]]:
    """Return every format: name, what it is, examples; JSON-able."""
    return [
        {"name": one.name, "what": one.what, "examples": list(one.examples)}
        for one in sorted(formats().values(), key=lambda one: one.name)
    ]


def format_list_text() -> str:
    """Return the list as text, with one example record each."""
    lines = []
    for one in format_list():
        lines += [f"{one['name']}: {one['what']}", f"  {one['examples'][0]}"]
    more = "pairwright formats NAME shows what becomes of each field, and the TOML to start a layout of your own from"
    return "\n".join([*lines, more])


def format_text(name: str) -> str:
    """Return what becomes of each field of a format, and the table of paths that says so.

    Raises:
        ConfigError: if there is no such format.
    """
    one = formats().get(name)
    if one is None:
        known = sorted(formats())
        raise ConfigError(f"{name}: no such layout; expected one of {', '.join(known)}{did_you_mean(name, known)}")
    lines = [f"{one.name}: {one.what}"]
    names = ("prompt", "completions", "judgement", "in metadata")
    lines += [f"  {part}: {said.replace('`', '')}" for part, said in zip(names, _row(one), strict=True) if said]
    lines += [f"  {example}" for example in one.examples]
    if one.fields is None:
        return "\n".join([*lines, "read by code of its own; of [fields], keep and ignore change it"])
    return "\n".join(
        [*lines, "", "[fields]", *(f"{key} = {_toml(value)}" for key, value in one.fields.given().items())]
    )


def formats_table() -> str:
    """Return the Markdown table of all formats: what becomes of the fields of each."""
    lines = ["| layout | whose | prompt | completions | judgement | in metadata |", "|---|---|---|---|---|---|"]
    for name in sorted(formats()):
        one = formats()[name]
        cells = [f"`{name}`", one.what, *(part.replace(" | ", "` or `") for part in _row(one))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _row(one: Format) -> tuple[str, str, str, str]:
    return _BY_CODE[one.name] if one.fields is None else _row_of(one.fields)


def _row_of(fields: FieldPaths) -> tuple[str, str, str, str]:
    context = [
        f"{part} `{path}`" for part in ("system", "history", "input", "tools") if (path := getattr(fields, part))
    ]
    if fields.implicit_prompt:
        first = f"`{fields.prompt}`, or what both sides begin with"
    else:
        first = f"`{fields.prompt}`" if fields.prompt else "what both sides begin with"
    items = "" if fields.completions is None else f"{fields.completions}[]"
    inner = "." if items and fields.text else ""
    if fields.chosen:
        completions = f"`{fields.chosen}`, `{fields.rejected}`"
    elif fields.sides:
        completions = ", ".join(f"`{side}`" for side in fields.sides)
    elif fields.tree:
        first = f"the messages from `{fields.prompt}` down"
        completions = f"`{fields.tree}[].{fields.text}` of each"
    else:
        completions = f"`{items}{inner}{fields.text or ''}`" + (" of each record" if fields.group_by else "")
    return "; ".join([first, *context]), completions, _judgement_of(fields, items), _kept_of(fields)


def _judgement_of(fields: FieldPaths, items: str) -> str:
    parts = []
    if fields.chosen:
        parts.append(f"`{fields.chosen}` is better")
    for path, what in ((fields.winner, ""), (fields.strength, ""), (fields.margin, "")):
        if path:
            parts.append(f"`{path}`{what}")
    for path in (fields.rank, fields.score):
        if path:
            first = ", from 0" if path == fields.rank and fields.first_rank == 0 else ""
            parts.append(f"`{items}{'.' if items else ''}{path}`{first}")
    parts += [f"`{path}`" for path in (*fields.won, fields.tie) if path]
    parts += [f"`{path}`" for path in (*fields.side_scores, *fields.side_ranks, fields.order) if path]
    return "; ".join(parts)


def _kept_of(fields: FieldPaths) -> str:
    return ", ".join(f"`{path}`" for path in (*fields.metadata.values(), *fields.keep))


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_quoted(key)} = {_toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return str(value) if isinstance(value, int) else _quoted(str(value))


def _quoted(text: str) -> str:
    return f"'{text}'" if '"' in text else f'"{text}"'
