"""Data-quality warnings: annotations that break no rule but are odd, counted by kind."""

from collections.abc import Iterable

import msgspec

from pairwright.data.table.table import DataFile, Table


class QualityWarnings(msgspec.Struct, frozen=True):
    """Number of annotations for each kind of warning."""

    identical_ranked_apart: int = 0
    """Two completions with one text, one ranked above the other: no model can tell them apart."""
    identical_tied: int = 0
    """Two completions with one text, tied wherever they occur."""
    all_tied: int = 0
    """Every completion tied: it gives no pair."""
    no_annotator: int = 0
    """Nobody is named: agreement between annotators cannot be measured, nor can they be erased."""

    @classmethod
    def sum(cls, found: Iterable["QualityWarnings"]) -> "QualityWarnings":
        """Return the sum over some files."""
        every = list(found)
        return cls(**{name: sum(getattr(each, name) for each in every) for name in cls.__struct_fields__})

    def lines(self) -> list[str]:
        """Return a line for each kind that occurs."""
        meanings = {
            "identical_ranked_apart": "annotations rank two completions with the same text apart",
            "identical_tied": "annotations hold the same completion text twice, tied",
            "all_tied": "annotations tie every completion, and give no pair",
            "no_annotator": "annotations name no annotator",
        }
        counts = msgspec.structs.asdict(self)
        return [f"{counts[name]:,} {meaning}" for name, meaning in meanings.items() if counts[name]]


def count_quality_warnings(table: Table, file: DataFile) -> QualityWarnings:
    """Count the warnings of one data file of annotations.

    Raises:
        StoreError: if it cannot be read.
    """
    rows = table.read_file(file, ["completions", "ranks", "annotator"])
    apart = tied = all_tied = 0
    for completions, ranks in zip(
        rows.column("completions").to_pylist(), rows.column("ranks").to_pylist(), strict=True
    ):
        texts = [(completion["text"], completion["extra"]) for completion in completions]
        all_tied += len(set(ranks)) == 1
        if len(set(texts)) < len(texts):
            is_apart = len(set(zip(texts, ranks, strict=True))) > len(set(texts))
            apart += is_apart
            tied += not is_apart
    return QualityWarnings(
        identical_ranked_apart=apart,
        identical_tied=tied,
        all_tied=all_tied,
        no_annotator=rows.column("annotator").null_count,
    )
