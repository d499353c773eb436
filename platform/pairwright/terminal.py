r"""Prints text that holds names and data, so that a terminal or a log shows it and never acts on it.

Escape sequences, newlines and marks that turn the direction of writing are printed as ``\x1b``, ``\n`` and ``\u202e``.
Only ``one_per_line`` makes lines: of texts, each of which is escaped on its own.
"""

import json
import sys
import unicodedata
from collections.abc import Iterable
from typing import Any, TextIO

_JOINERS = "\u200c\u200d"
"""Zero-width characters that words of Persian and Indic languages, and emoji, are written with."""


def escaped(text: str) -> str:
    """Return a text as one line in which everything that is not printable is escaped, as Python escapes it.

    What is escaped stays so: a text that went through here before comes out as it is.
    """
    if text.isprintable():
        return text
    return "".join(c if _is_safe(c) else c.encode("unicode_escape").decode() for c in text)


def percent(share: float) -> str:
    """Return a share as a percentage with one decimal, never 0 or 100 for what is not."""
    if 0 < share < 0.0005:
        return "under 0.1 %"
    if 0.9995 <= share < 1:
        return "over 99.9 %"
    return f"{100 * share:.1f} %"


def counted(number: float, noun: str) -> str:
    """Return a whole number with its noun, whose plural takes an s: ``1 source``, ``2,504 sources``."""
    return f"{number:,.0f} {noun}{'' if number == 1 else 's'}"


def one_per_line(texts: Iterable[str]) -> str:
    """Return texts as lines, each one line whatever it holds."""
    return "\n".join(map(escaped, texts))


def indented(text: str) -> str:
    """Return a message whose first line alone begins where a line of the output begins."""
    return text.replace("\n", "\n  ")


def say(text: str, *, to: TextIO | None = None) -> None:
    """Print lines and flush: on standard output, or another stream.

    What the caller did not escape is escaped here, but for newlines. A stream that cannot hold a character, such as
    one in ASCII, gets its escape.
    """
    stream = sys.stdout if to is None else to
    print(encodable(one_per_line(text.split("\n")), stream), file=stream, flush=True)


def encodable(text: str, stream: TextIO) -> str:
    """Return a text as a stream can hold it: escapes for characters that its encoding has not got."""
    encoding = stream.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def say_json(value: Any) -> None:
    """Print a JSON-able value as indented JSON; as ASCII where standard output can hold no more."""
    text = safe_json(json.dumps(value, indent=2, ensure_ascii=False))
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = safe_json(json.dumps(value, indent=2))
    print(text, flush=True)


def safe_json(text: str) -> str:
    """Return JSON that means the same, in which what is not printable stands as an escape."""
    if text.replace("\n", "").isprintable():
        return text
    return "".join(c if c == "\n" or _is_safe(c) else _json_escape(c) for c in text)


def _is_safe(character: str) -> bool:
    return character.isprintable() or character in _JOINERS or unicodedata.category(character) == "Zs"


def _json_escape(character: str) -> str:
    return "\\u007f" if character == "\x7f" else json.dumps(character)[1:-1]
