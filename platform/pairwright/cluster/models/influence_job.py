"""The influence job: a small judge of tokens trained again without each annotator and author.

A sample of the training groups is enough for a linear judge, and bounds the cost. No model is loaded: it reads tokens.
"""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from pairwright.cluster.sized_executor import EXECUTOR
from pairwright.data.table.table import Manifest, Table
from pairwright.data.tokens.tokenize import ensure_tokens
from pairwright.data.tokens.tokenize_groups import TokenTable, local_token_paths
from pairwright.evaluation.group_rows import described_groups, merged_rows, pair_arrays, reward_rows
from pairwright.evaluation.influence.leave_out import (
    InfluenceOf,
    annotator_pairs,
    author_pairs,
    influence_of,
)
from pairwright.evaluation.influence.linear_head import FeaturePairs
from pairwright.evaluation.influence.token_features import token_features
from pairwright.evaluation.load_exported import ExportedModel
from pairwright.evaluation.reports.report_schema import DataIdentity, Influence
from pairwright.evaluation.single_annotations import read_judgements
from pairwright.evaluation.statistics.ceiling import Judgements
from pairwright.evaluation.statistics.pair_arrays import PairArrays

MAX_GROUPS = 2000
"""Of each split; of more, as many are taken at even distances."""
ONE_SOURCE = "fewer than two sources are named in the training groups"

Features: TypeAlias = NDArray[np.float32]


def measure_influence(exported: ExportedModel, data: DataIdentity, manifest: Manifest, *, cache: str) -> Influence:
    """Return what leaving out each annotator and each author of completions changes on a split.

    Args:
        exported: the model, whose tokenizer is used.
        data: the held-out groups; the training groups of their pairs table are read.
        manifest: of the pairs table.
        cache: URL of the token cache.
    """
    table = Table.open(data.url, "pairs")
    tokens_url, tokens_manifest = ensure_tokens(
        data.url,
        version=manifest.version,
        tokenizer_path=str(exported.directory),
        config=exported.rules.tokens_config(),
        into=cache,
        executor=EXECUTOR,
    )
    tokens = TokenTable(local_token_paths(tokens_url, tokens_manifest))
    train, held_out = (_sample(tokens, split, table, manifest) for split in ("train", data.split))
    return _influence(table, manifest, train, held_out)


def _sample(tokens: TokenTable, split: str, table: Table, manifest: Manifest) -> tuple[PairArrays, Features]:
    """Return groups of a split as arrays, and the features of all their completions, shape (N, D)."""
    rows = tokens.rows_of_split(split)
    rows = rows[tokens.num_pairs_G[rows] > 0]
    number = min(len(rows), MAX_GROUPS)
    groups = [tokens.group(row) for row in rows[np.arange(number) * len(rows) // max(1, number)].tolist()]
    groups.sort(key=lambda group: group.group_id)
    no_rewards = [np.zeros(len(group.completion_ids), np.float32) for group in groups]
    kept = merged_rows([reward_rows(groups, no_rewards)])
    arrays = pair_arrays(kept, described_groups(table, manifest, kept["group_id"].combine_chunks()))
    return arrays, token_features(groups)


def _influence(
    table: Table, manifest: Manifest, train: tuple[PairArrays, Features], held_out: tuple[PairArrays, Features]
) -> Influence:
    judged = [read_judgements(table, manifest, arrays) for arrays, _ in (train, held_out)]
    annotators, unknown = None, next((one for one in judged if isinstance(one, str)), ONE_SOURCE)
    if isinstance(judged[0], Judgements) and isinstance(judged[1], Judgements):
        annotators = _of_sources(
            annotator_pairs(train[0], judged[0], train[1]),
            judged[0].annotators,
            annotator_pairs(held_out[0], judged[1], held_out[1]),
            judged[1].annotators,
            num_prompts=held_out[0].num_prompts,
        )
    authors = _of_sources(
        author_pairs(*train),
        train[0].authors,
        author_pairs(*held_out),
        held_out[0].authors,
        num_prompts=held_out[0].num_prompts,
    )
    return Influence(
        train_groups=train[0].num_groups,
        held_out_groups=held_out[0].num_groups,
        features=int(train[1].shape[1]),
        annotators=annotators and annotators.most_harmful_first(),
        annotators_unknown="" if annotators is not None else unknown,
        authors=authors and authors.most_memorized_first(),
    )


def _of_sources(
    train: FeaturePairs,
    names: Sequence[str],
    held_out: FeaturePairs,
    held_out_names: Sequence[str],
    *,
    num_prompts: int,
) -> InfluenceOf | None:
    """Return the influence of each source; None where fewer than two are named."""
    if len(names) < 2 or not len(train.weight_P) or not len(held_out.weight_P):
        return None
    number = {name: index for index, name in enumerate(names)}
    renumbered = held_out.renumbered(np.array([number.get(name, -1) for name in held_out_names], np.int64))
    return influence_of(train, renumbered, names, num_prompts=num_prompts)
