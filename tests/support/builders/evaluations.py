"""Reports of token groups with given rewards, without a pairs table: each group is a prompt of its own."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pairwright.data.tokens.tokenize_groups import TokenGroup
from pairwright.evaluation.evaluation_report import Measured, build_report
from pairwright.evaluation.group_rows import DESCRIBED, merged_rows, pair_arrays, reward_rows
from pairwright.evaluation.load_exported import ModelIdentity
from pairwright.evaluation.reports.report_schema import DataIdentity
from pairwright.evaluation.statistics.pair_arrays import PairArrays

IDENTITY = ModelIdentity(path="runs/a/model", digest="d" * 64, dtype="float32", max_length=64, overlong="drop")
DATA = DataIdentity(
    url="s3://data/pairs",
    version=3,
    digest="e" * 64,
    split="validation",
    pairs=4,
    tokens={"completions_dropped": 2, "pairs_dropped": 1},
)


def arrays_of_tokens(groups: Sequence[TokenGroup], rewards: Sequence[Any]) -> PairArrays:
    """Return the arrays of groups whose texts nobody knows."""
    rows = merged_rows([reward_rows(groups, [np.asarray(reward_K, np.float64) for reward_K in rewards])])
    sizes = {group.group_id: int(group.completion_index.max()) + 1 for group in groups}
    described = [
        {
            "group_id": name,
            "prompt_id": f"{number:032x}",
            "prompt_characters": 10,
            "annotators": [],
            "authors": [None] * sizes[name],
            "text_hash": [number * 100 + k for k in range(sizes[name])],
            "features": [0] * sizes[name],
        }
        for number, name in enumerate(rows["group_id"].to_pylist())
    ]
    return pair_arrays(rows, pa.Table.from_pylist(described, schema=DESCRIBED))


def report_of(
    groups: Sequence[TokenGroup], rewards: Sequence[Any], *, model: ModelIdentity = IDENTITY, pairs: DataIdentity = DATA
) -> dict[str, Any]:
    """Return the report of groups with given rewards."""
    return build_report(Measured(arrays_of_tokens(groups, rewards)), model, pairs)[0]
