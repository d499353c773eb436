"""Random annotations for the tests of reports: several annotators, ties, identical texts, models, scores."""

from typing import Any

import numpy as np

from annotation_tables import annotation_row, annotations_table, manifest
from pairwright.data.profile.aggregates import History, count_quarantined
from pairwright.data.profile.counts import count
from pairwright.data.profile.profile_metrics import build_metrics
from pairwright.data.profile.profile_schema import TableFacts, TableMetrics, VersionFacts
from pairwright.data.table.table import Source
from pairwright.records import Rejection

HOSTILE = "</title><script>alert('x')</script><img src=https://example.com/x onerror=alert(1)>\"'&amp;"


def random_rows(
    num_groups: int,
    *,
    seed: int = 0,
    sizes: tuple[int, int] = (2, 6),
    annotators: tuple[str | None, ...] = ("ann", "bob", "cy", None),
    most_annotations: int = 4,
) -> list[dict[str, Any]]:
    """Return annotations whose completions come in another order for each annotator of a group."""
    random = np.random.default_rng(seed)
    rows = []
    for group in range(num_groups):
        size = int(random.integers(sizes[0], sizes[1] + 1))
        texts = [f"{group} " + "x" * int(random.integers(1, 40)) for _ in range(size)]
        if size > 2 and random.random() < 0.2:
            texts[1] = texts[0]
        models = random.choice([f"model {i}" for i in range(8)], size, replace=False).tolist()
        for annotation in range(int(random.integers(1, most_annotations + 1))):
            order = random.permutation(size).tolist()
            row = annotation_row(
                f"{group}-{annotation}",
                [texts[k] for k in order],
                random.integers(1, size + 1, size).tolist(),
                prompt=f"prompt {group // 3}",
                annotator=annotators[int(random.integers(len(annotators)))],
                subset=[None, "facts", "style"][group % 3],
            )
            for completion, k in zip(row["completions"], order, strict=True):
                completion["model"] = models[k]
            rows.append(row)
    return rows


def metrics_of(
    rows: list[dict[str, Any]], *, name: str = "file.jsonl", others: tuple[Source, ...] = (), duplicates: int = 0
) -> TableMetrics:
    """Return the metrics of annotations from a source of this name, with nine refused records, and of other sources.

    Args:
        rows: annotations.
        name: of the source.
        others: further sources.
        duplicates: further records that were refused as duplicate ids.
    """
    aggregates = count(annotations_table(rows), {"file.jsonl": 1})
    quarantined = count_quarantined(
        [
            *(
                Rejection(
                    source=name, line=n, path="$.ranks[0]", reason=f"{name} {n % 3}; x", record=f'{{"id": "{name}'
                )
                for n in range(9)
            ),
            *(
                Rejection(source=name, line=n, path="$.id", reason=f"duplicate id, got `{n}`, which stands", record="{")
                for n in range(duplicates)
            ),
        ]
    )
    num_refused = 9 + duplicates
    source = Source(
        uri=name,
        size=1,
        etag=None,
        lines=len(rows) + num_refused,
        accepted=len(rows),
        refused=num_refused,
        format="native",
    )
    versions = [
        VersionFacts(
            version=v, created_at="2026-11-21T01:02:03", operation="ingest", annotations=v, refused=9, sources=1
        )
        for v in (1, 2)
    ]
    table = TableFacts(url=f"/{name}", version=2, digest="d" * 64, created_at="2026", files=1, bytes=9, followed=[name])
    history = History(versions=versions, num_versions=2, first_versions={})
    made = manifest(kind="annotations", sources=[source, *others])
    return build_metrics(table, made, history, quarantined, aggregates)
