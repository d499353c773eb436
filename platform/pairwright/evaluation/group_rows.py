"""The rows of an evaluation: one a group with its rewards, merged to the same bytes by any number of workers.

A worker knows a group's tokens and pairs and adds the rewards (``REWARD_ROWS``). The texts, of which only lengths,
features and hashes are needed, are read once, by whoever merges (``described_groups``). ``pair_arrays`` joins the two
to the flat arrays that every metric is computed from.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pairwright.data.table.arrow_io import list_lengths, one_array
from pairwright.data.table.manifest import Manifest
from pairwright.data.table.table import Table
from pairwright.data.tokens.tokenize_groups import TokenGroup
from pairwright.errors import StoreError
from pairwright.evaluation.statistics.pair_arrays import PairArrays
from pairwright.evaluation.text_features import FEATURES, features_of
from pairwright.model.reward_metrics import NO_SUBSET, check_rewards
from pairwright.records import PAIR

REWARD_ROWS = pa.schema(
    [
        pa.field("group_id", pa.string(), nullable=False),
        pa.field("subsets", pa.list_(pa.string()), nullable=False),
        pa.field("completion_index", pa.list_(pa.int16()), nullable=False),
        pa.field("num_characters", pa.list_(pa.int32()), nullable=False),
        pa.field("reward", pa.list_(pa.float32()), nullable=False),
        pa.field("pairs", pa.list_(PAIR), nullable=False),
    ]
)
"""One row a group: its completions that were left under the model's limit, their rewards, and their pairs."""

DESCRIBED = pa.schema(
    [
        pa.field("group_id", pa.string(), nullable=False),
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("prompt_characters", pa.int64(), nullable=False),
        pa.field("annotators", pa.list_(pa.string()), nullable=False),
        pa.field("authors", pa.list_(pa.string()), nullable=False),
        pa.field("text_hash", pa.list_(pa.uint64()), nullable=False),
        pa.field("features", pa.list_(pa.int32()), nullable=False),
    ]
)
"""One row a group, with all completions of the pairs table."""
_COLUMNS = ("group_id", "prompt_id", "prompt", "completions", "annotators")


def reward_rows(groups: Sequence[TokenGroup], rewards: Sequence[NDArray[np.floating[Any]]]) -> pa.Table:
    """Return one row for each group.

    Raises:
        ValueError: if there is not one reward for each completion.
        ModelError: if a reward is not finite, naming the group.
    """
    for group, reward_K in zip(groups, rewards, strict=True):
        check_rewards(group, np.asarray(reward_K))
    columns = {
        "group_id": [group.group_id for group in groups],
        "subsets": [[NO_SUBSET if group.subset is None else group.subset, *group.more_subsets] for group in groups],
        "completion_index": [group.completion_index for group in groups],
        "num_characters": [group.num_characters for group in groups],
        "reward": [np.asarray(reward_K, np.float32) for reward_K in rewards],
        "pairs": _pairs(groups),
    }
    arrays = [
        columns[field.name] if field.name == "pairs" else pa.array(columns[field.name], field.type)
        for field in REWARD_ROWS
    ]
    return pa.Table.from_arrays(arrays, schema=REWARD_ROWS)


def merged_rows(parts: Iterable[pa.Table]) -> pa.Table:
    """Return the rows of all parts, sorted by group: the same bytes, however the groups were distributed."""
    rows = pa.concat_tables([REWARD_ROWS.empty_table(), *parts])
    return rows.sort_by("group_id").combine_chunks()


def described_groups(pairs: Table, manifest: Manifest, group_ids: pa.Array) -> pa.Table:
    """Return what the evaluation needs to know of some groups' texts, one row a group, in the order of ``group_ids``.

    Raises:
        StoreError: if the table is without one of them.
    """
    parts = [described(rows) for rows in _rows_of_groups(pairs, manifest, group_ids, _COLUMNS)]
    found = pa.concat_tables([DESCRIBED.empty_table(), *parts])
    index = positions_in(group_ids, one_array(found["group_id"]))
    if index.null_count:
        raise StoreError(f"{pairs.url}: {index.null_count} groups of its tokens are not in it; delete the tokens table")
    return found.take(index)


def texts_of_groups(pairs: Table, manifest: Manifest, group_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the rows of some groups of a pairs table, few enough for memory, by group id."""
    wanted = pa.array(sorted(set(group_ids)), pa.string())
    parts = _rows_of_groups(pairs, manifest, wanted, (*_COLUMNS, "subset", "context"))
    return {row["group_id"]: row for rows in parts for row in rows.to_pylist()}


def described(pairs: pa.Table) -> pa.Table:
    """Return the description of rows of a pairs table."""
    completions = pairs["completions"].to_pylist()
    texts = [[completion["text"] for completion in group] for group in completions]
    columns = [
        pairs["group_id"].to_pylist(),
        pairs["prompt_id"].to_pylist(),
        [sum(len(turn["content"]) for turn in prompt) for prompt in pairs["prompt"].to_pylist()],
        pairs["annotators"].to_pylist(),
        [[completion["model"] for completion in group] for group in completions],
        [[_text_hash(text) for text in group] for group in texts],
        [[features_of(text) for text in group] for group in texts],
    ]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, DESCRIBED, strict=True)]
    return pa.Table.from_arrays(arrays, schema=DESCRIBED)


def pair_arrays(rewards: pa.Table, descriptions: pa.Table) -> PairArrays:
    """Return the flat arrays of an evaluation.

    Args:
        rewards: rows in REWARD_ROWS, sorted by group.
        descriptions: of the same groups, in DESCRIBED.
    """
    num_K, num_pairs = list_lengths(one_array(rewards["reward"])), list_lengths(one_array(rewards["pairs"]))
    group_N, group_P = np.repeat(np.arange(len(rewards)), num_K), np.repeat(np.arange(len(rewards)), num_pairs)
    starts_G = np.concatenate([[0], np.cumsum(num_K)])[:-1]
    index_N = _flat(rewards["completion_index"]).astype(np.int64)
    chosen, rejected, weight, margin = one_array(rewards["pairs"]).flatten().flatten()
    prompt_ids, prompt_G = np.unique(np.array(descriptions["prompt_id"].to_pylist(), dtype=object), return_inverse=True)
    # Position of each kept completion among all completions of the described groups.
    starts_all_G = np.concatenate([[0], np.cumsum(list_lengths(one_array(descriptions["authors"])))])[:-1]
    all_N = starts_all_G[group_N] + index_N
    authors, author_all = _codes(one_array(descriptions["authors"]).flatten())
    bits_N = _flat(descriptions["features"])[all_N]
    subsets = [tuple(names) for names in rewards["subsets"].to_pylist()]
    return PairArrays(
        group_ids=rewards["group_id"].to_pylist(),
        prompt_ids=prompt_ids.tolist(),
        prompt_G=prompt_G.astype(np.int64),
        repeats_G=np.array([len(names) for names in subsets], np.int64),
        subsets_G=subsets,
        annotators_G=[tuple(names) for names in descriptions["annotators"].to_pylist()],
        prompt_characters_G=descriptions["prompt_characters"].to_numpy(),
        group_N=group_N,
        index_N=index_N,
        reward_N=_flat(rewards["reward"]).astype(np.float64),
        characters_N=_flat(rewards["num_characters"]).astype(np.int64),
        author_N=author_all[all_N],
        authors=authors,
        text_N=np.unique(_flat(descriptions["text_hash"])[all_N], return_inverse=True)[1].astype(np.int64),
        features_NF=(bits_N[:, None] >> np.arange(len(FEATURES))) & 1 == 1,
        features=list(FEATURES),
        group_P=group_P,
        chosen_P=starts_G[group_P] + chosen.to_numpy(),
        rejected_P=starts_G[group_P] + rejected.to_numpy(),
        weight_P=weight.to_numpy().astype(np.float64),
        margin_P=margin.to_numpy(zero_copy_only=False).astype(np.float64),
    )


def is_among(names: pa.ChunkedArray, wanted: pa.Array) -> Any:
    """Return whether each name is among those that are wanted."""
    return pc.call_function("is_in", [names], pc.SetLookupOptions(value_set=wanted))


def positions_in(names: pa.Array, wanted: pa.Array) -> Any:
    """Return the position of each name among those that are wanted, null if it is not there."""
    return pc.call_function("index_in", [names], pc.SetLookupOptions(value_set=wanted))


def _pairs(groups: Sequence[TokenGroup]) -> pa.ListArray:
    offsets = np.cumsum([0, *(len(group.chosen_P) for group in groups)], dtype=np.int32)

    def joined(name: str, dtype: type[np.generic]) -> NDArray[Any]:
        return np.concatenate([np.empty(0, dtype), *(getattr(group, name).astype(dtype) for group in groups)])

    margin_P = joined("margin_P", np.float32)
    values = [
        pa.array(joined("chosen_P", np.int16)),
        pa.array(joined("rejected_P", np.int16)),
        pa.array(joined("weight_P", np.float32)),
        pa.array(margin_P, mask=np.isnan(margin_P)),
    ]
    structs = pa.StructArray.from_arrays(values, fields=list(PAIR))
    return pa.ListArray.from_arrays(pa.array(offsets), structs, type=pa.list_(PAIR))


def _rows_of_groups(
    pairs: Table, manifest: Manifest, group_ids: pa.Array, columns: Sequence[str]
) -> Iterator[pa.Table]:
    for file in manifest.files:
        rows = pairs.read_file(file, columns)
        yield rows.filter(is_among(rows["group_id"], group_ids))


def _text_hash(text: str) -> int:
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _codes(names: pa.Array) -> tuple[list[str], NDArray[np.int64]]:
    """Return the distinct names, sorted, and the index of each; -1 for none."""
    distinct = sorted(set(names.to_pylist()) - {None})
    found = positions_in(names, pa.array(distinct, pa.string()))
    return distinct, found.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)


def _flat(lists: pa.ChunkedArray) -> NDArray[Any]:
    return one_array(lists).flatten().to_numpy(zero_copy_only=False)
