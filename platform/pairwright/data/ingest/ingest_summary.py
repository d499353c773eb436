"""Summary of an ingestion, as text and as JSON: every source that was named, and what became of it."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from pairwright.data.ingest.adapters import NATIVE
from pairwright.data.ingest.dedup import DUPLICATE_ID, are_ids_not_unique
from pairwright.data.ingest.fields.suggested_fields import SuggestedFields
from pairwright.data.table.table import Manifest, Source
from pairwright.records import Rejection
from pairwright.terminal import counted, one_per_line

NUM_SHOWN = 20
MAX_SUGGESTIONS = 3
_NAMES_SHOWN = 12
_FOREIGN = (
    "no known layout, read as native; name its layout with --format, or map its records with [fields] in --config"
)
_OTHER_IDS = (
    "so many ids stand twice that they seem to name prompts, or to be counted anew in each subset; ingest into a new "
    "table with another id, or with none: docs/formats.md"
)
"""Lines of a kind that a summary shows; every rejection is under ``quarantine/``, and ``--json`` names every source."""


@dataclass(frozen=True)
class IngestSummary:
    """What became of every source that was named."""

    manifest: Manifest | None
    """The version that was committed; None where there was nothing to add."""
    sources: list[Source]
    """Sources that were added, with the counts of their lines; one with 0 lines was empty."""
    skipped: list[str]
    """Sources that are in the table already."""
    replaced: dict[str, int]
    """Sources that replaced their old content, and how many old annotations were deleted with it."""
    failed: list[tuple[str, str]]
    """Sources that could not be read to their end, of which nothing was kept, and why."""
    ignored: dict[str, str]
    """What was skipped in named directories, and why: no source by its name, a link that leads out, ..."""
    reasons: dict[str, int]
    """How many records were refused for what, the most frequent first."""
    rejections: list[Rejection]
    """The first of them."""
    readings: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    """Source -> which of its fields were used for what, went into metadata, or were not used."""
    notes: dict[str, str] = field(default_factory=dict)
    """Source -> what to know of how it was read, such as sheets that were left out."""
    suggestions: dict[str, SuggestedFields] = field(default_factory=dict)
    """Source of an unknown layout -> its keys, and a table [fields] for them."""

    def as_dict(self) -> dict[str, Any]:
        """Return the summary for programs, JSON-able."""
        return {
            "version": None if self.manifest is None else self.manifest.version,
            "totals": None if self.manifest is None else self.manifest.totals,
            "sources": msgspec.to_builtins(self.sources),
            "skipped": self.skipped,
            "replaced": self.replaced,
            "failed": dict(self.failed),
            "ignored": list(self.ignored),
            "reasons": self.reasons,
            "rejections": msgspec.to_builtins(self.rejections),
            "readings": self.readings,
            "notes": self.notes,
            "suggestions": msgspec.to_builtins(self.suggestions),
        }

    def text(self) -> str:
        """Return the summary as text: what was added, what was not, and why."""
        accepted, refused = (sum(getattr(s, name) for s in self.sources) for name in ("accepted", "refused"))
        of = counted(len(self.sources), "source")
        lines = [f"accepted {accepted:,} and refused {counted(refused, 'record')} of {of}"] if self.sources else []
        lines += _first(f"  {source.uri} is empty" for source in self.sources if source.lines == 0)
        lines += _first(f"  read {uri}: {note}" for uri, note in self.notes.items())
        lines += _first(self._read(source) for source in self.sources if source.format not in ("", NATIVE.name))
        lines += _first(f"  {s.uri}: {_FOREIGN}" for s in self.sources if not s.format and s.refused and not s.accepted)
        lines += [f"  {count:,} refused: {reason}" for reason, count in self.reasons.items()]
        duplicates = sum(count for reason, count in self.reasons.items() if reason.startswith(DUPLICATE_ID))
        if are_ids_not_unique(duplicates, accepted + refused):
            lines.append(f"  {_OTHER_IDS}")
        lines += [f"    {rejected}" for rejected in self.rejections]
        if refused > len(self.rejections):
            lines.append(f"    and {refused - len(self.rejections):,} more; all are kept under quarantine/")
        replaced = ((uri, counted(rows, "old annotation")) for uri, rows in self.replaced.items())
        lines += _first(f"replaced {uri}: removed {rows}" for uri, rows in replaced)
        lines += _first(f"skipped {uri}: it is in the table already" for uri in self.skipped)
        lines += _first(f"ignored {uri}: {reason}" for uri, reason in self.ignored.items())
        lines += self.failure_lines()
        if self.manifest is None:
            return one_per_line([*lines, "nothing to add: the table is as it was"])
        total = int(self.manifest.totals["annotations"])
        return one_per_line(
            [*lines, f"version {self.manifest.version} of the table holds {counted(total, 'annotation')}"]
        )

    def failure_lines(self) -> list[str]:
        """Return why sources could not be read, and what those of an unknown layout may be."""
        lines = _first(f"failed {uri}: {reason}" for uri, reason in self.failed)
        for uri, suggestion in list(self.suggestions.items())[:MAX_SUGGESTIONS]:
            lines += [f"{uri}:", *suggestion.lines()]
        more = len(self.suggestions) - MAX_SUGGESTIONS
        if more > 0:
            lines.append(f"and {counted(more, 'more source')} of unknown layouts; --json has them all")
        return lines

    def _read(self, source: Source) -> str:
        reading = self.readings.get(source.uri, {})
        parts = [", ".join(reading["used"])] if reading.get("used") else []
        parts += [
            f"{'in metadata' if name == 'metadata' else name}: {_named(reading[name])}"
            for name in ("metadata", "not used")
            if reading.get(name)
        ]
        return f"  read {source.uri} as {source.format}{': ' if parts else ''}{'; '.join(parts)}"


def _named(names: list[str]) -> str:
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _first(lines: Iterable[str]) -> list[str]:
    every = list(lines)
    more = len(every) - NUM_SHOWN
    return [*every[:NUM_SHOWN], *([f"  and {more:,} more such lines; --json has them all"] if more > 0 else [])]
