"""The records that a page is rendered from: tables with pictures in their rows, sections, sentences, examples. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from markupsafe import Markup

from pairwright.pages.word_differences import Piece

SHOWN_ROWS, LISTED_ROWS = 12, 100
WIDE_COLUMNS = frozenset(
    {"Above the best", "Annotations", "By annotators", "Disagree", "Groups", "In the mean", "Longer wins"}
    | {"Other annotators", "Pairs", "Prompts"}
)
"""Columns that a phone does not show, so that it shows the pictures."""

Cell = str | Markup
Level = Literal["alarm", "note", "good"]


@dataclass(frozen=True, slots=True)
class DataTable:
    """A table: the first column names the row. A ``Markup`` cell is a picture."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    is_folded: bool = False
    is_text: bool = False
    """Whether its cells are words and not numbers."""
    id: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """A section of the page."""

    id: str
    title: str
    look: str
    """What to look for."""
    pictures: Sequence[Markup] = ()
    tables: Sequence[DataTable] = ()
    notes: Sequence[str] = ()
    has_examples: bool = False
    """Whether the examples of the page stand here."""


class Sentence(NamedTuple):
    """One sentence of the verdict."""

    level: Level
    section: str
    """The section of the page with the figures behind it."""
    text: str


class Verdict(NamedTuple):
    """What the page says first."""

    headline: str
    level: Level
    summary: str
    sentences: list[Sentence]


@dataclass(frozen=True, slots=True)
class Side:
    """One text of an example.

    Attributes:
        title: whose text it is, such as ``Annotators prefer``.
        note: what is said of it, such as its reward.
        author: who wrote it, where known.
        pieces: the text, in pieces that the other text has or lacks.
        num_hidden: characters that are not shown.
    """

    title: str
    note: str
    author: str | None
    pieces: Sequence[Piece]
    num_hidden: int


@dataclass(frozen=True, slots=True)
class Example:
    """Two texts side by side.

    Attributes:
        summary: the line that opens it.
        prompt: the end of the conversation.
        is_cut: whether its beginning is not shown.
        sides: the texts.
        slices: names to filter by.
        source: where it stands in the data.
    """

    summary: str
    prompt: str
    is_cut: bool
    sides: tuple[Side, Side]
    slices: Sequence[str]
    source: str
