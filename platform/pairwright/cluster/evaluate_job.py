"""The evaluation job: evaluates an exported model on a split of a pairs table, here or on a pool of workers.

The data alone decides the parts of the split, and a part's sums are exact integers, so 1, 2 or 50 workers write the
same report to the last digit. Tokenisation uses the model's own tokenizer, template and limits, and is cached.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from pairwright.cluster.model_runner import ModelRunner, Row, Worker, model_runner
from pairwright.cluster.sized_executor import EXECUTOR
from pairwright.data.storage.object_store import absolute_url
from pairwright.data.table.table import Manifest, Table
from pairwright.data.tokens.tokenize import ensure_tokens
from pairwright.data.tokens.tokenize_groups import TokenTable, local_token_paths
from pairwright.errors import ConfigError, DataError
from pairwright.evaluation.evaluate import Evaluation, EvaluationPlan, evaluate_groups, merged
from pairwright.evaluation.evaluation_report import DataIdentity, build_report, report_json
from pairwright.evaluation.load_exported import ExportedModel, load_exported, open_exported
from pairwright.evaluation.report_file import check_report_file, put_report_file, report_url
from pairwright.progress_bar import progress_bar
from pairwright.terminal import counted

SPLITS = ("train", "validation")


@dataclass(frozen=True)
class _Task:
    """The arguments of every worker, from which each makes the same plan."""

    model: str
    tokens_url: str
    tokens_manifest: Manifest
    split: str
    micro_batch_tokens: int

    def plan(self) -> tuple[TokenTable, EvaluationPlan]:
        tokens = TokenTable(local_token_paths(self.tokens_url, self.tokens_manifest))
        return tokens, EvaluationPlan.of(tokens, self.split, micro_batch_tokens=self.micro_batch_tokens)

    def load(self, device: torch.device) -> Worker[Evaluation]:
        """Return a function that evaluates one part of the plan on a device."""
        loaded = load_exported(open_exported(self.model), device)
        tokens, plan = self.plan()

        def evaluate_part(row: Row) -> Evaluation:
            return merged(
                [
                    evaluate_groups(
                        loaded.model,
                        [tokens.group(i) for i in rows],
                        pad_token_id=loaded.pad_token_id,
                        micro_batch_tokens=self.micro_batch_tokens,
                        device=loaded.device,
                    )
                    for rows in plan.parts[row["id"]]
                ]
            )

        return evaluate_part


def evaluate(
    model: str,
    pairs: str,
    *,
    version: int | None,
    split: str,
    output: str | None,
    num_workers: int,
    use_gpu: bool,
    micro_batch_tokens: int,
    overwrite: bool = False,
    cache: str | None = None,
    show: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Write the report of a model on a split, and return it, in the shape of ``schemas/report.v1.json``.

    Args:
        model: directory or URL of an exported model.
        pairs: URL of a pairs table.
        version: of it; the newest if None.
        split: train or validation.
        output: URL of the report if it ends in .json, else of a directory for ``report.json``; None: beside the model.
        num_workers: number of models in parallel; does not change the report.
        use_gpu: give each a GPU.
        micro_batch_tokens: token budget of one forward pass, padding included.
        overwrite: whether an older report there is replaced; nothing else ever is.
        cache: URL of the token cache, which all nodes reach; ``tokens/`` beside the output, else beside the run.
        show: called with the report before it is written, because writing may fail.

    Raises:
        ModelError: if the model cannot be used.
        StoreError: if there is no such version of a pairs table; if the report could not go there.
        DataError, ConfigError: if no pair of the split is left; if there is no such split, or too few CPUs or GPUs.
    """
    _check_split(split)
    check_report_file(report_url(model, output), overwrite=overwrite)
    exported = open_exported(model)
    exported.verify(hashes=True)
    manifest = Table.open(pairs, "pairs").manifest(version)
    with model_runner(
        model_bytes=exported.num_bytes,
        input_bytes=sum(file.bytes for file in manifest.files),
        num_workers=num_workers,
        use_gpu=use_gpu,
    ) as runner:
        tokens_url, tokens_manifest = _tokens(pairs, manifest, exported, cache or _default_cache(model, output))
        task = _Task(absolute_url(model), tokens_url, tokens_manifest, split, micro_batch_tokens)
        evaluation = _evaluate(task, runner)
    if evaluation is None:
        raise DataError(_nothing_left(pairs, manifest, split, tokens_manifest, exported))
    identity = _data_identity(pairs, manifest, split, tokens_manifest)
    report = build_report(evaluation, model=exported.identity(), pairs=identity)
    if show is not None:
        show(report)
    put_report_file(report_url(model, output), report_json(report), overwrite=overwrite)
    return report


def _tokens(pairs: str, manifest: Manifest, exported: ExportedModel, into: str) -> tuple[str, Manifest]:
    return ensure_tokens(
        pairs,
        version=manifest.version,
        tokenizer_path=str(exported.directory),
        config=exported.rules.tokens_config(),
        into=into,
        executor=EXECUTOR,
    )


def _evaluate(task: _Task, runner: ModelRunner) -> Evaluation | None:
    """Return the sums of all parts, None if the split has none."""
    num_parts = len(task.plan()[1].parts)
    if num_parts == 0:
        return None
    rows = [{"id": part} for part in range(num_parts)]
    evaluations = []
    with progress_bar("parts of the split evaluated", total=num_parts, resources=runner.resources) as advance:
        for evaluation in runner.run(rows, task.load):
            evaluations.append(evaluation)
            advance(1)
    return merged(evaluations)


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise ConfigError(f"split {split} is none of {' and '.join(SPLITS)}")


def _default_cache(model: str, output: str | None) -> str:
    return f"{_parent(output) if output is not None else _parent(_parent(model))}/tokens"


def _parent(url: str) -> str:
    return absolute_url(url).rpartition("/")[0]


def _data_identity(pairs: str, manifest: Manifest, split: str, tokens: Manifest) -> DataIdentity:
    held_out = int(manifest.totals["pairs_validation"])
    return DataIdentity(
        url=pairs,
        version=manifest.version,
        digest=manifest.digest,
        split=split,
        pairs=held_out if split == "validation" else int(manifest.totals["pairs"]) - held_out,
        tokens=tokens.totals,
    )


def _nothing_left(pairs: str, manifest: Manifest, split: str, tokens: Manifest, exported: ExportedModel) -> str:
    totals = tokens.totals
    return (
        f"{pairs} version {manifest.version}: no pairs in split {split} to evaluate on; of all splits' "
        f"{counted(int(totals['groups']), 'group')} and {counted(int(totals['pairs']), 'pair')}, "
        f"{counted(int(totals['groups_dropped']), 'group')} and {counted(int(totals['pairs_dropped']), 'pair')} were "
        f"dropped under the model's max_length of {exported.rules.max_length}; expand with a larger "
        "validation_fraction, or evaluate another split or version"
    )
