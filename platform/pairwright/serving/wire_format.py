"""What all wire formats have in common: strict decoding of a request, and the texts and the reply that it stands for.

A field that a format does not list is an error that names it: ignored, it could change a score.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

import msgspec

from pairwright.config import IngestConfig
from pairwright.errors import DataError
from pairwright.evaluation.requests import ScoreRequest, parse_requests
from pairwright.records import UNREADABLE_JSON

StructT = TypeVar("StructT", bound=msgspec.Struct)
Item: TypeAlias = ScoreRequest | str | list[int]
"""A prompt with its completions, a rendered text, or a tokenised one."""
_LIMITS = IngestConfig(max_completions=4096)
Tokens: TypeAlias = Sequence[str | int | list[int]]


class NotJsonError(DataError):
    """A body that is no JSON."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The rewards of a call's texts, in order; a prompt with K completions gives K of them."""

    model: str
    rewards: Sequence[float]
    num_tokens: Sequence[int]
    """Of each text, its prompt included."""
    members: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Each model's rewards, where several are served as one."""


@dataclass(frozen=True, slots=True)
class Call:
    """A request of any format."""

    items: Sequence[Item]
    reply: Callable[[Answer], Any]
    """Returns the body of the reply, as JSON-able values."""
    max_length: int | None = None
    """The request's own limit in tokens, below the model's."""

    @property
    def num_texts(self) -> int:
        """How many rewards it asks for."""
        return sum(len(item.replies) if isinstance(item, ScoreRequest) else 1 for item in self.items)


def decode(body: bytes, kind: type[StructT]) -> StructT:
    """Return a body as the struct of a format, which forbids unknown fields.

    Raises:
        NotJsonError: if it is no JSON.
        DataError: if a field is unknown, missing or of another type.
    """
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        known = ", ".join(name for name in kind.__struct_fields__)
        unknown = f"; known fields: {known}" if "unknown field" in str(error) else ""
        raise DataError(f"{error}{unknown}") from None
    except UNREADABLE_JSON as error:
        why = "is nested too deeply" if isinstance(error, RecursionError) else f"is no JSON: {error}"
        raise NotJsonError(f"the body {why}") from None


def conversation(record: Mapping[str, Any]) -> ScoreRequest:
    """Return a prompt with its completions, at least one, from ``prompt`` and ``completions`` or ``messages``.

    Raises:
        DataError: with the path and what was expected there.
    """
    filled = {name: value for name, value in record.items() if value is not None}
    requests, refused = parse_requests(msgspec.json.encode(filled), 1, "request", _LIMITS)
    if refused:
        raise DataError(f"{refused[0].path}: {refused[0].reason}")
    return requests[0]


def texts_or_tokens(given: str | Tokens, path: str) -> list[Item]:
    """Return a text, texts, one list of token ids, or several, as items.

    Raises:
        DataError: if texts and token ids are mixed.
    """
    if isinstance(given, str):
        return [given]
    kinds = {type(one) for one in given}
    if kinds == {int}:
        return [[one for one in given if isinstance(one, int)]]
    if len(kinds) > 1:
        raise DataError(f"{path}: expected texts or token ids, got both; send them apart")
    return [one for one in given if not isinstance(one, int)]


def refuse_set(path: str, *, is_set: bool, why: str) -> None:
    """Refuse a field whose value asks for another score.

    Raises:
        DataError: if it is set.
    """
    if is_set:
        raise DataError(f"$.{path}: {why}")
