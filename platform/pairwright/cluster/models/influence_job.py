"""The influence job: features of training and held-out groups, and refits of the head without each source.

A sample of the training groups is enough for a linear head, and bounds the cost: at most as many as are held out by
default, in forward passes without gradients.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from pairwright.cluster.models.evaluate_job import Compute, MeasuredSplit
from pairwright.cluster.models.model_runner import Row, Worker, model_runner
from pairwright.cluster.sized_executor import EXECUTOR
from pairwright.data.storage.object_store import absolute_url
from pairwright.data.table.table import Manifest, Table
from pairwright.data.tokens.tokenize import ensure_tokens
from pairwright.data.tokens.tokenize_groups import TokenTable, local_token_paths
from pairwright.evaluation.group_rows import described_groups, merged_rows, pair_arrays, reward_rows
from pairwright.evaluation.influence.frozen_features import features_of_groups
from pairwright.evaluation.influence.leave_out import (
    InfluenceOf,
    annotator_pairs,
    author_pairs,
    influence_of,
)
from pairwright.evaluation.influence.linear_head import FeaturePairs
from pairwright.evaluation.load_exported import ExportedModel, load_exported, open_exported
from pairwright.evaluation.reports.report_schema import Influence
from pairwright.evaluation.single_annotations import read_judgements
from pairwright.evaluation.statistics.ceiling import Judgements
from pairwright.evaluation.statistics.pair_arrays import PairArrays
from pairwright.progress_bar import progress_bar

MAX_GROUPS = 3000
"""Of each split; of more, as many are taken at even distances."""
GROUPS_PER_PART = 64
ONE_SOURCE = "fewer than two sources are named in the training groups"

Features: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True)
class _Part:
    """The groups of one part in REWARD_ROWS, and the features of each, by group id."""

    rows: pa.Table
    features: Mapping[str, Features]


@dataclass(frozen=True)
class _Task:
    """The arguments of every worker."""

    model: str
    tokens_url: str
    tokens_manifest: Manifest
    micro_batch_tokens: int

    def load(self, device: torch.device) -> Worker[_Part]:
        """Return a function that computes the features of some rows of the tokens table."""
        loaded = load_exported(open_exported(self.model), device)
        tokens = TokenTable(local_token_paths(self.tokens_url, self.tokens_manifest))

        def features(row: Row) -> _Part:
            groups = [tokens.group(number) for number in row["rows"]]
            found = features_of_groups(
                loaded.model,
                groups,
                pad_token_id=loaded.pad_token_id,
                micro_batch_tokens=self.micro_batch_tokens,
                device=loaded.device,
            )
            no_rewards = [np.zeros(len(group.completion_ids), np.float32) for group in groups]
            ids = [group.group_id for group in groups]
            return _Part(reward_rows(groups, no_rewards), dict(zip(ids, found, strict=True)))

        return features


def measure_influence(exported: ExportedModel, found: MeasuredSplit, *, compute: Compute, cache: str) -> Influence:
    """Return what leaving out each annotator and each author of completions changes on the measured split.

    Args:
        exported: the model.
        found: its rewards on held-out groups of a pairs table, whose training groups are read.
        compute: what features are computed with.
        cache: URL of the token cache.
    """
    table = Table.open(found.data.url, "pairs")
    tokens_url, tokens_manifest = ensure_tokens(
        found.data.url,
        version=found.manifest.version,
        tokenizer_path=str(exported.directory),
        config=exported.rules.tokens_config(),
        into=cache,
        executor=EXECUTOR,
    )
    task = _Task(absolute_url(exported.path), tokens_url, tokens_manifest, compute.micro_batch_tokens)
    tokens = TokenTable(local_token_paths(tokens_url, tokens_manifest))
    with model_runner(
        model_bytes=exported.num_bytes,
        input_bytes=sum(file.bytes for file in found.manifest.files),
        num_workers=compute.num_workers,
        use_gpu=compute.use_gpu,
    ) as runner:
        parts = {}
        for split in ("train", found.data.split):
            rows = _sample(tokens, split)
            work = [{"rows": rows[at : at + GROUPS_PER_PART]} for at in range(0, len(rows), GROUPS_PER_PART)]
            with progress_bar(f"parts of the {split} split", total=len(work), resources=runner.resources) as advance:
                parts[split] = []
                for part in runner.run(work, task.load):
                    parts[split].append(part)
                    advance(1)
    train, held_out = (_joined(table, found.manifest, parts[split]) for split in ("train", found.data.split))
    return _influence(table, found.manifest, train, held_out)


def _sample(tokens: TokenTable, split: str) -> list[int]:
    rows = tokens.rows_of_split(split)
    rows = rows[tokens.num_pairs_G[rows] > 0]
    number = min(len(rows), MAX_GROUPS)
    return rows[np.arange(number) * len(rows) // max(1, number)].tolist()


def _joined(table: Table, manifest: Manifest, parts: list[_Part]) -> tuple[PairArrays, Features]:
    """Return the groups of all parts as arrays, and the features of all completions, shape (N, D)."""
    rows = merged_rows(part.rows for part in parts)
    arrays = pair_arrays(rows, described_groups(table, manifest, rows["group_id"].combine_chunks()))
    features = {name: values for part in parts for name, values in part.features.items()}
    return arrays, np.concatenate([features[name] for name in arrays.group_ids])


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
