"""Random annotations for the tests of reports: several annotators, ties, identical texts, models, scores."""

from typing import Any

import numpy as np

from annotation_tables import annotation_row

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
