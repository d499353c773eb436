"""Classifies the fields that an annotation tool showed to people: completions, system prompt, others.

Tools name completions alike except for a number or a letter at the end: ``response-1`` and ``response-2``.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pairwright.data.ingest.fields.adapter import RecordError

SYSTEM_NAMES = ("system", "system_prompt", "system-prompt")


def last_digits(name: str) -> str:
    """Return the digits that a name ends in; a pattern that looks for them takes quadratic time."""
    start = len(name)
    while start and name[start - 1].isdecimal():
        start -= 1
    return name[start:]


def similarly_named(name: str, fields: Sequence[str]) -> list[str]:
    """Return the fields that are called like one but for the number or the letter at their end, itself included."""
    stem = _stem(name)
    return [field for field in fields if stem and _stem(field) == stem and field != stem]


def _stem(name: str) -> str:
    if digits := last_digits(name):
        return name[: -len(digits)].rstrip("-_ ")
    head, separator, letter = name[:-2], name[-2:-1], name[-1:]
    return head if separator in ("-", "_", " ") and letter.isalpha() else ""


def system_of(fields: Mapping[str, Any], completions: Sequence[str]) -> tuple[str | None, dict[str, Any]]:
    """Return the system prompt among the fields that a record showed, and the other fields.

    Raises:
        RecordError: if it is no text.
    """
    names = [name for name in fields if name.lower() in SYSTEM_NAMES and name not in completions]
    if not names:
        return None, dict(fields)
    system = fields[names[0]]
    if system is not None and not isinstance(system, str):
        raise RecordError("expected text, got something else", path=f"$.{names[0]}")
    return system, {name: value for name, value in fields.items() if name != names[0]}
