"""The evaluation job: evaluates an exported model on a split of a pairs table, here or on a pool of workers.

The data alone decides the parts of the split, and their rows are sorted before anything is computed from them, so 1, 2
or 50 workers write the same report to the last digit. Tokenisation uses the model's own tokenizer, template and limits,
and is cached.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache as cache_result
from functools import partial
from typing import Any, NamedTuple

import torch

from pairwright.cluster.models.influence_job import measure_influence
from pairwright.cluster.models.model_runner import ModelRunner, Row, Worker, model_runner
from pairwright.cluster.sized_executor import EXECUTOR
from pairwright.data.storage.object_store import absolute_url
from pairwright.data.table.table import Manifest, Table
from pairwright.data.tokens.conversation_tokens import TokenSpec
from pairwright.data.tokens.tokenize import ensure_tokens
from pairwright.data.tokens.tokenize_groups import TokenTable, local_token_paths
from pairwright.data.tokens.tokenizer import load_tokenizer
from pairwright.errors import ConfigError, DataError
from pairwright.evaluation.degenerate_texts import NUM_PROMPTS, TriedPrompt, degenerate_rewards, tried_prompts
from pairwright.evaluation.evaluate import EvaluatedPart, EvaluationPlan, evaluate_groups, merged
from pairwright.evaluation.evaluation_report import Measured, ReadTexts, build_report, report_json
from pairwright.evaluation.group_rows import REWARD_ROWS, described_groups, pair_arrays, texts_of_groups
from pairwright.evaluation.load_exported import ExportedModel, ModelIdentity, load_exported, open_exported
from pairwright.evaluation.page.model_page import page_content, render_page
from pairwright.evaluation.reports.finding_files import check_findings, write_findings
from pairwright.evaluation.reports.report_file import REPORT, page_url, report_url
from pairwright.evaluation.reports.report_schema import DataIdentity, Influence
from pairwright.evaluation.reports.stored_temperature import check_temperature, store_temperature
from pairwright.evaluation.single_annotations import read_judgements
from pairwright.model.layout_check import choose_layout
from pairwright.progress_bar import progress_bar
from pairwright.runs.trackers.tracked_page import check_page_trackers, track_page
from pairwright.terminal import counted, say

SPLITS = ("train", "validation")


class Compute(NamedTuple):
    """What rewards are computed with; does not change them."""

    num_workers: int
    use_gpu: bool
    micro_batch_tokens: int


@dataclass(frozen=True)
class _Task:
    """The arguments of every worker, from which each makes the same plan."""

    model: str
    tokens_url: str
    tokens_manifest: Manifest
    split: str
    micro_batch_tokens: int
    tried: tuple[TriedPrompt, ...] = ()
    """Prompts that degenerate texts are tried under, by whoever has the first part."""

    def plan(self) -> tuple[TokenTable, EvaluationPlan]:
        tokens = TokenTable(local_token_paths(self.tokens_url, self.tokens_manifest))
        return tokens, EvaluationPlan.of(tokens, self.split, micro_batch_tokens=self.micro_batch_tokens)

    def load(self, device: torch.device) -> Worker[EvaluatedPart]:
        """Return a function that evaluates one part of the plan on a device."""
        exported = open_exported(self.model)
        loaded = load_exported(exported, device)
        tokens, plan = self.plan()

        # The same for equal weights on one kind of device, so for every worker.
        layout = choose_layout(
            loaded.model,
            "auto",
            pad_token_id=loaded.pad_token_id,
            max_length=exported.rules.max_length,
            device=device,
        ).layout
        loaded.model.to(device)

        def evaluate_part(row: Row) -> EvaluatedPart:
            parts = [
                evaluate_groups(
                    loaded.model,
                    [tokens.group(i) for rows in plan.parts[row["id"]] for i in rows],
                    layout=layout,
                    pad_token_id=loaded.pad_token_id,
                    micro_batch_tokens=self.micro_batch_tokens,
                    device=loaded.device,
                )
            ]
            if row["id"] == 0 and self.tried:
                spec = TokenSpec.of(loaded.tokenizer, exported.rules.tokens_config())
                rewards = degenerate_rewards(
                    loaded, spec, self.tried, layout=layout, micro_batch_tokens=self.micro_batch_tokens
                )
                parts.append(EvaluatedPart(REWARD_ROWS.empty_table(), rewards))
            return merged(parts)

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
    findings: str | None = None,
    with_temperature: bool = False,
    with_influence: bool = False,
    track: bool = False,
    show: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Write the report of a model on a split, with its page, and return it in the shape of ``schemas/report.v1.json``.

    Args:
        model: directory or URL of an exported model.
        pairs: URL of a pairs table.
        version: of it; the newest if None.
        split: train or validation.
        output: URL of the report (.json), or of a folder for ``report.json``; beside the model if None.
        num_workers: number of models in parallel; does not change the report.
        use_gpu: give each a GPU.
        micro_batch_tokens: token budget of one forward pass.
        overwrite: whether what an earlier evaluation wrote there is replaced; nothing else ever is.
        cache: URL of the token cache, for every node; beside the output or the run if None.
        findings: URL of a folder for annotations that deserve a second look; none if None.
        with_temperature: store the fitted temperature beside the model's directory.
        with_influence: train a small judge without each annotator and author.
        track: keep the page with the model's run in the trackers of that run.
        show: called with the report before it is written, because writing may fail.

    Raises:
        ModelError: if the model cannot be used.
        StoreError: if there is no such table or version, or an output could not go there.
        DataError: if no pair is left.
        ConfigError: if there is no such split, or too few CPUs, GPUs or tokens.
    """
    check_split(split)
    _check_outputs(model, output, findings, with_temperature=with_temperature, track=track, overwrite=overwrite)
    exported = open_exported(model)
    compute, cache = Compute(num_workers, use_gpu, micro_batch_tokens), cache or default_cache(model, output)
    found = measure(exported, pairs, version=version, split=split, compute=compute, cache=cache)
    return report_measured(
        exported.identity(),
        found,
        influence=measure_influence(exported, found.data, found.manifest, cache=cache) if with_influence else None,
        output=output,
        overwrite=overwrite,
        findings=findings,
        with_temperature=with_temperature,
        track=track,
        show=show,
    )


def report_measured(
    model: ModelIdentity,
    found: "MeasuredSplit",
    *,
    influence: Influence | None = None,
    output: str | None,
    overwrite: bool,
    findings: str | None = None,
    with_temperature: bool = False,
    track: bool = False,
    show: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Write the report of a model whose rewards are known, and return it; arguments as of ``evaluate``."""
    read_texts = partial(texts_of_groups, Table.open(found.data.url, "pairs"), found.manifest)
    report, second = build_report(found.measured, model, found.data, read_texts, influence)
    if show is not None:
        show(report)
    page = cache_result(partial(_page, report, found, read_texts))
    url = report_url(model.path, output)
    REPORT.put(url, report_json(report), page, overwrite=overwrite)
    write_findings(findings, found.measured, second, read_texts, overwrite=overwrite)
    if with_temperature:
        store_temperature(model.path, report, second.calibration, overwrite=overwrite)
    if track:
        for line in track_page(model.path, page_url(url).rpartition("/")[2], page().encode()):
            say(line, to=sys.stderr)
    return report


def _page(report: dict[str, Any], found: "MeasuredSplit", read_texts: ReadTexts) -> str:
    return render_page(report, page_content(report, found.manifest, found.measured.arrays, read_texts))


def _check_outputs(
    model: str, output: str | None, findings: str | None, *, with_temperature: bool, track: bool, overwrite: bool
) -> None:
    """Refuse outputs that are not ours to write, before anything is computed."""
    REPORT.check(report_url(model, output), overwrite=overwrite)
    check_findings(findings, overwrite=overwrite)
    if with_temperature:
        check_temperature(model, overwrite=overwrite)
    if track:
        check_page_trackers(model)


@dataclass(frozen=True)
class MeasuredSplit:
    """A model's rewards on a split, and the version of the table that it is of."""

    measured: Measured
    manifest: Manifest
    data: DataIdentity


def measure(
    exported: ExportedModel,
    pairs: str,
    *,
    version: int | None,
    split: str,
    compute: Compute,
    cache: str,
) -> MeasuredSplit:
    """Return a model's rewards on a split, and what is known of its groups; arguments as of ``evaluate``."""
    exported.verify(hashes=True)
    table = Table.open(pairs, "pairs")
    manifest = table.manifest(version)
    with model_runner(
        model_bytes=exported.num_bytes,
        input_bytes=sum(file.bytes for file in manifest.files),
        num_workers=compute.num_workers,
        use_gpu=compute.use_gpu,
    ) as runner:
        tokens_url, tokens_manifest = ensure_tokens(
            pairs,
            version=manifest.version,
            tokenizer_path=str(exported.directory),
            config=exported.rules.tokens_config(),
            into=cache,
            executor=EXECUTOR,
        )
        task = _Task(absolute_url(exported.path), tokens_url, tokens_manifest, split, compute.micro_batch_tokens)
        part = _evaluate(replace(task, tried=_tried(task, table, manifest, exported)), runner)
    if part is None:
        raise DataError(_nothing_left(pairs, manifest, split, tokens_manifest, exported))
    arrays = pair_arrays(part.rows, described_groups(table, manifest, part.rows["group_id"].combine_chunks()))
    measured = Measured(arrays, read_judgements(table, manifest, arrays), part.degenerate)
    return MeasuredSplit(measured, manifest, _data_identity(pairs, manifest, split, tokens_manifest))


def _tried(task: _Task, table: Table, manifest: Manifest, exported: ExportedModel) -> tuple[TriedPrompt, ...]:
    """Return prompts all over the split, with the degenerate texts to try under them."""
    tokens, plan = task.plan()
    rows = sorted(row for part in plan.parts for batch in part for row in batch)
    spread: Sequence[int] = rows[:: max(1, len(rows) // NUM_PROMPTS)]
    texts = texts_of_groups(table, manifest, [tokens.group_id(row) for row in spread])
    special_tokens = load_tokenizer(str(exported.directory)).all_special_tokens
    return tried_prompts([texts[name] for name in sorted(texts)], special_tokens)


def _evaluate(task: _Task, runner: ModelRunner) -> EvaluatedPart | None:
    """Return the rows of all parts, None if the split has none."""
    num_parts = len(task.plan()[1].parts)
    if num_parts == 0:
        return None
    rows = [{"id": part} for part in range(num_parts)]
    parts = []
    with progress_bar("parts of the split evaluated", total=num_parts, resources=runner.resources) as advance:
        for part in runner.run(rows, task.load):
            parts.append(part)
            advance(1)
    return merged(parts)


def check_split(split: str) -> None:
    """Refuse a split that there is none of.

    Raises:
        ConfigError: naming those that there are.
    """
    if split not in SPLITS:
        raise ConfigError(f"split {split} is none of {' and '.join(SPLITS)}")


def default_cache(model: str, output: str | None) -> str:
    """Return the URL of the token cache: beside the output, or if there is none beside the model's run."""
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
