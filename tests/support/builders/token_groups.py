"""Rows of a pairs table, and what a tokens table holds, read the long way."""

import itertools

import numpy as np
import pyarrow as pa

from pairwright.data.tokens.tokenize_groups import TokenGroup


def group_row(prompt: str, texts: list[str], pairs: list[tuple[int, int]] | None = None, **changes) -> dict:
    """One row of a pairs table; by default every earlier completion is preferred to every later one."""
    indices = list(itertools.combinations(range(len(texts)), 2)) if pairs is None else pairs
    row = {
        "group_id": "g0",
        "prompt_id": "p0",
        "prompt": [{"role": "user", "content": prompt}],
        "completions": [{"id": str(k), "text": text, "model": None} for k, text in enumerate(texts)],
        "pairs": [{"chosen": a, "rejected": b, "weight": 0.1 * (a + 1), "margin": None} for a, b in indices],
        "num_annotations": 1,
        "annotators": [],
        "split": "train",
        "subset": None,
        "metadata": None,
    }
    return row | changes


def groups_of(table: pa.Table) -> list[TokenGroup]:
    """Read a table back the long way: Python lists, no views."""
    return [
        TokenGroup(
            group_id=row["group_id"],
            subset=row["subset"],
            prompt_ids=np.array(row["prompt_ids"], np.int32),
            completion_ids=[np.array(ids, np.int32) for ids in row["completion_ids"]],
            num_characters=np.array(row["num_characters"], np.int32),
            completion_index=np.array(row["completion_index"], np.int16),
            chosen_P=np.array([pair["chosen"] for pair in row["pairs"]], np.int64),
            rejected_P=np.array([pair["rejected"] for pair in row["pairs"]], np.int64),
            weight_P=np.array([pair["weight"] for pair in row["pairs"]], np.float32),
            margin_P=np.array([np.nan if p["margin"] is None else p["margin"] for p in row["pairs"]], np.float32),
        )
        for row in table.to_pylist()
    ]
