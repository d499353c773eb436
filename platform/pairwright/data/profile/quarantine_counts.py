"""Refused records -> how many for which reason from which source, and a few of each to look at. Sums that add."""

from collections import Counter
from collections.abc import Iterable

import msgspec

from pairwright.data.ingest.parse import reason_key
from pairwright.records import Rejection

NUM_EXAMPLES = 3
EXAMPLE_CHARACTERS = 240
MAX_REASONS = 500
"""Reasons that are kept apart; the rarer ones beyond are one: what varies in a reason may be what was refused."""
OTHER_REASONS = "other reasons"


class Example(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """One refused record."""

    source: str
    line: int
    path: str
    reason: str
    record: str


class RefusedSums(msgspec.Struct, frozen=True):
    """Counts of refused records, and the first examples (by source and line) of each reason."""

    counts: list[tuple[str, str, int]]
    """(source, reason, records)."""
    examples: dict[str, list[Example]]

    @classmethod
    def merged(cls, parts: Iterable["RefusedSums"]) -> "RefusedSums":
        """Return the sum of all parts."""
        counts: Counter[tuple[str, str]] = Counter()
        examples: dict[str, list[Example]] = {}
        for part in parts:
            for source, reason, number in part.counts:
                counts[source, reason] += number
            for reason, found in part.examples.items():
                examples[reason] = sorted([*examples.get(reason, []), *found])[:NUM_EXAMPLES]
            if len(examples) > 2 * MAX_REASONS:
                counts, examples = _bounded(counts, examples)
        counts, examples = _bounded(counts, examples)
        return cls(sorted((source, reason, number) for (source, reason), number in counts.items()), examples)


def count_refused(rejections: Iterable[Rejection]) -> RefusedSums:
    """Return the counts of some refused records."""
    counts: Counter[tuple[str, str]] = Counter()
    examples: dict[str, list[Example]] = {}
    for rejected in rejections:
        reason = reason_key(rejected)
        counts[rejected.source, reason] += 1
        held = examples.setdefault(reason, [])
        if len(held) < NUM_EXAMPLES:
            held.append(_example(rejected))
    counts, examples = _bounded(counts, examples)
    return RefusedSums([(source, reason, number) for (source, reason), number in counts.items()], examples)


def _example(rejected: Rejection) -> Example:
    return Example(
        source=rejected.source,
        line=rejected.line,
        path=rejected.path,
        reason=rejected.reason[:EXAMPLE_CHARACTERS],
        record=rejected.record[:EXAMPLE_CHARACTERS],
    )


def _bounded(
    counts: Counter[tuple[str, str]], examples: dict[str, list[Example]]
) -> tuple[Counter[tuple[str, str]], dict[str, list[Example]]]:
    if len(examples) <= MAX_REASONS:
        return counts, examples
    by_reason: Counter[str] = Counter()
    for (_, reason), number in counts.items():
        by_reason[reason] += number
    kept = {reason for reason, _ in by_reason.most_common(MAX_REASONS)}
    bounded: Counter[tuple[str, str]] = Counter()
    for (source, reason), number in counts.items():
        bounded[source, reason if reason in kept else OTHER_REASONS] += number
    return bounded, {reason: found for reason, found in examples.items() if reason in kept}
