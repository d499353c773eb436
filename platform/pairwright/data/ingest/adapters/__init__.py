"""Adapters: read records of foreign formats into native ``Annotation``s, by field paths or by a module of their own.

An adapter reads what a record *says*; what it *means* (ranks that match the completions, finite scores, ...) is
validated in ``data/ingest/rules.py``, so that every format passes the same rules. This file is the registry and the
detection of formats. In reading order:

- ``known/``: layouts that a table of field paths describes, one TOML file each
- ``native.py``: the format of Pairwright itself
- ``trl.py``: TRL's preference records, in one typed pass
- ``ultrafeedback.py``: scores, without the known defect of its first release
- ``openai_summaries.py``: comparisons of summaries (Stiennon et al. 2020)
- ``message_trees.py``: trees of messages with ranked replies (OpenAssistant)
- ``shown_fields.py``: which fields an annotation tool showed: completions and system prompt
- ``label_studio.py``: rankers, pairwise choices and ratings of Label Studio
- ``argilla.py``: rankings, labels and ratings of Argilla
- ``format_pages.py``: lists of formats: `formats`, docs/formats.md
"""

import tomllib
from collections.abc import Mapping, Sequence
from functools import cache, partial
from importlib.resources import files
from typing import Any

import msgspec

from pairwright.config import FieldPaths, IngestConfig, LayoutFile
from pairwright.data.extras import is_blank
from pairwright.data.ingest.adapters.argilla import ARGILLA
from pairwright.data.ingest.adapters.label_studio import LABEL_STUDIO
from pairwright.data.ingest.adapters.message_trees import TreeReader
from pairwright.data.ingest.adapters.native import NATIVE, NativeReader, native
from pairwright.data.ingest.adapters.openai_summaries import SUMMARIZE
from pairwright.data.ingest.adapters.trl import TrlReader
from pairwright.data.ingest.adapters.ultrafeedback import UltraFeedbackReader
from pairwright.data.ingest.fields.adapter import Format, Parse, RecordError, json_name
from pairwright.data.ingest.fields.field_layout import LayoutReader
from pairwright.data.ingest.fields.field_table import Table, shape_of
from pairwright.data.ingest.fields.paths import compile_path
from pairwright.errors import ConfigError, SourceError
from pairwright.records import UNREADABLE_JSON
from pairwright.suggestions import did_you_mean

__all__ = [
    "FIELDS",
    "NATIVE",
    "NUM_HEAD_RECORDS",
    "Format",
    "LayoutReader",
    "NativeReader",
    "Parse",
    "RecordError",
    "compile_path",
    "configured_format",
    "formats",
    "groups_rows",
    "json_name",
    "native",
    "parser_for",
    "recognise",
]

NUM_HEAD_RECORDS = 20
"""Records from the head of a source that say what it is."""
FIELDS = "fields"
"""What a format is called that [fields] says as a whole."""
_CODE = (NATIVE, SUMMARIZE, LABEL_STUDIO, ARGILLA)
_READERS = {"trl": TrlReader, "ultrafeedback": UltraFeedbackReader}
_ADDED = ("keep", "ignore", "repeats", "group_by")
_MERGED = ("roles", "metadata", "words", "strengths", "constants")


@cache
def formats() -> Mapping[str, Format]:
    """Return every known format by its name."""
    known = {file.name.removesuffix(".toml"): file for file in files(__name__).joinpath("known").iterdir()}
    described = {name: _described(name, file.read_text("utf-8")) for name, file in sorted(known.items())}
    return {one.name: one for one in _CODE} | described


def _described(name: str, text: str) -> Format:
    layout = LayoutFile.model_validate(tomllib.loads(text))
    table = Table(layout.fields)
    return Format(
        name=name,
        layout=shape_of(layout.fields),
        matches=partial(_matches, table, layout.requires),
        parser=partial(_reader, name, layout.fields),
        num_unplaced=table.num_unplaced,
        num_essential=table.num_essential + len(layout.requires),
        what=layout.what,
        examples=layout.examples,
        fields=layout.fields,
    )


def _matches(table: Table, requires: Sequence[str], record: Mapping[str, Any]) -> bool:
    return all(not is_blank(record.get(name)) for name in requires) and table.matches(record)


def _reader(name: str, fields: FieldPaths, config: IngestConfig) -> Parse:
    if config.fields is None and name in _READERS:
        return _READERS[name](fields, shape_of(fields))
    fields = fields if config.fields is None else changed(fields, config.fields)
    return _reader_of(fields, shape_of(fields), config)


def _reader_of(fields: FieldPaths, layout: str, config: IngestConfig) -> Parse:
    return TreeReader(fields, layout, config.limits) if fields.tree else LayoutReader(fields, layout)


def changed(fields: FieldPaths, changes: FieldPaths) -> FieldPaths:
    """Return a layout with the changes of a configuration: lists of fields grow, everything else is replaced.

    Raises:
        ConfigError: if both do not go together.
    """
    values = fields.given()
    for name, value in changes.given().items():
        old = values.get(name)
        if name in _ADDED and isinstance(old, tuple) and isinstance(value, tuple):
            values[name] = (*old, *value)
        elif name in _MERGED and isinstance(old, dict) and isinstance(value, dict):
            values[name] = old | value
        else:
            values[name] = value
    try:
        return FieldPaths.model_validate(values)
    except ValueError as error:
        raise ConfigError(f"[fields] does not go with this layout: {error}") from None


def parser_for(name: str, config: IngestConfig) -> Parse:
    """Return the parser of the format of that name.

    Raises:
        ConfigError: if there is no such format, or if a field path cannot be read or does not go with it.
    """
    if name == FIELDS:
        if config.fields is None:
            raise ConfigError('format = "fields" needs a table [fields] that says where the parts of a record stand')
        return _reader_of(config.fields, "", config)
    found = formats().get(name)
    if found is None:
        raise ConfigError(
            f"format: {name}: no such layout; expected one of {', '.join(formats())}, a file FILE.toml, or auto"
            f"{did_you_mean(name, formats())}"
        )
    changes = set() if config.fields is None else config.fields.model_fields_set
    if found.fields is None and (odd := sorted(changes - {"keep", "ignore"})):
        raise ConfigError(f"fields.{odd[0]}: of [fields], only keep and ignore change the layout {name}")
    return found.parser(config)


def configured_format(config: IngestConfig) -> str | None:
    """Return the format that the configuration names; None where each source is to be recognised."""
    if config.fields is not None and config.fields.is_whole:
        return FIELDS
    return None if config.format == "auto" else config.format


def groups_rows(name: str, config: IngestConfig) -> Sequence[str]:
    """Return the paths whose values make successive records of a format one; none where each is one by itself."""
    if name == FIELDS and config.fields is not None:
        return config.fields.group_by
    found = formats().get(name)
    return () if found is None or found.fields is None else found.fields.group_by


def recognise(records: Sequence[bytes]) -> str | None:
    """Return the format that the given records have, or None if they have none that is known.

    Each record votes for the formats that it fits; among those with most votes the one counts that leaves the fewest
    unread fields, and then the one that asks for more fields. A record that is no JSON does not vote.

    Raises:
        SourceError: if several are alike in all of that; both are named.
    """
    decoded = [one for record in records[:NUM_HEAD_RECORDS] if isinstance(one := _decoded(record), dict)]
    ranked = []
    for name, one in formats().items():
        fitting = [record for record in decoded if one.matches(record)]
        if fitting:
            ranked.append((-len(fitting), sum(map(one.num_unplaced, fitting)), -one.num_essential, name))
    ranked.sort()
    if not ranked:
        return None
    best = [name for *rank, name in ranked if rank == list(ranked[0][:3])]
    if len(best) > 1:
        raise SourceError(f"its records fit {' and '.join(best)} alike; say which is meant with --format")
    return best[0]


def _decoded(record: bytes) -> Any:
    try:
        return msgspec.json.decode(record) if record.strip() else None
    except UNREADABLE_JSON:
        return None
