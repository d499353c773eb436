"""The native format: one judgement a line, every field of it known. One typed msgspec pass, 700 MB/s a core."""

from collections.abc import Mapping
from typing import Any

import msgspec

from pairwright.data.formats.record import Format, is_list_of
from pairwright.records import Annotation

_NATIVE = msgspec.json.Decoder(Annotation)


def native(line: bytes) -> tuple[Annotation]:
    """Return the one annotation in a line of the native format; unknown fields are refused.

    Raises:
        msgspec.DecodeError, UnicodeDecodeError, RecursionError: if the line is no such record.
    """
    return (_NATIVE.decode(line),)


def _fits(record: Mapping[str, Any]) -> bool:
    judged = any(name in record for name in ("ranks", "scores", "order"))
    return "prompt" in record and judged and is_list_of(record.get("completions"), "text")


NATIVE = Format(
    name="native",
    layout='{"id", "prompt", "completions": [{"text"}, ...], "ranks" | "scores" | "order"}',
    fits=_fits,
    parser=lambda _: native,
)
