"""Somebody's export -> native ``Annotation``s: one module a format, field paths for the rest.

What a record *says* is settled here, what it *means* (ranks that fit the completions, finite scores, ...) in
``data/rules.py``, so that every format passes the same rules. Formats are told apart by the keys of their records;
no record of one is taken for another's.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from pairwright.config import IngestConfig
from pairwright.data.formats.argilla import ARGILLA
from pairwright.data.formats.fields import FIELDS, ForeignRecord, compile_path
from pairwright.data.formats.hh_rlhf import HH_RLHF
from pairwright.data.formats.label_studio import LABEL_STUDIO
from pairwright.data.formats.native import NATIVE, native
from pairwright.data.formats.nectar import NECTAR
from pairwright.data.formats.record import Format, Parse, RecordError, json_name
from pairwright.data.formats.sharegpt import SHAREGPT
from pairwright.data.formats.summarize import SUMMARIZE
from pairwright.data.formats.trl import TRL
from pairwright.data.formats.ultrafeedback import ULTRAFEEDBACK

__all__ = [
    "FORMATS",
    "NATIVE",
    "NUM_HEAD_RECORDS",
    "ForeignRecord",
    "Format",
    "Parse",
    "RecordError",
    "compile_path",
    "json_name",
    "native",
    "parser_for",
    "recognise",
    "settled_format",
]

NUM_HEAD_RECORDS = 20
"""Records from the head of a source that say what it is."""

_ALL = (NATIVE, FIELDS, TRL, SHAREGPT, HH_RLHF, ULTRAFEEDBACK, NECTAR, SUMMARIZE, LABEL_STUDIO, ARGILLA)
FORMATS: Mapping[str, Format] = {one.name: one for one in _ALL}


def parser_for(name: str, config: IngestConfig) -> Parse:
    """Return the parser of the format of that name.

    Raises:
        ConfigError: if it is field paths, and there are none or one cannot be read.
    """
    return FORMATS[name].parser(config)


def settled_format(config: IngestConfig) -> str | None:
    """Return the format that the configuration names; None where each source is to be recognised."""
    if config.fields is not None:
        return FIELDS.name
    return None if config.format == "auto" else config.format


def recognise(records: Sequence[bytes]) -> str | None:
    """Return the format that most of the given records have, or None if they have none that is known."""
    votes = Counter(_format_of(record) for record in records[:NUM_HEAD_RECORDS] if record.strip())
    return votes.most_common(1)[0][0] if votes else None


def _format_of(record: bytes) -> str | None:
    try:
        decoded: Any = msgspec.json.decode(record)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if not isinstance(decoded, dict):
        return None
    return next((one.name for one in _ALL if one.fits(decoded)), None)
