"""The scoring job: a reward for every completion of JSON Lines or a table, in the order of the input.

The input is split into chunks (cluster/models/score_input.py), by tasks of Ray where actors compute. A function of a
model parses, tokenises and scores a chunk, and this process writes. The rewards do not depend on the number of
workers, to the last digit.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import msgspec
import pyarrow as pa
import torch

from pairwright.cluster.models.model_runner import ModelRunner, Row, Worker, model_runner
from pairwright.cluster.models.score_input import ScoringInput, plan_input
from pairwright.config import IngestConfig
from pairwright.data.storage.object_store import absolute_url
from pairwright.data.tokens.conversation_tokens import TokenSpec
from pairwright.data.tokens.tokenize_groups import special_line
from pairwright.errors import ConfigError, SourceError, StoreError
from pairwright.evaluation.load_exported import MIN_MAX_LENGTH, ExportedModel, InputRules, load_exported, open_exported
from pairwright.evaluation.requests import DEFAULT_LIMITS, parse_requests, requests_of_rows
from pairwright.evaluation.score import Scored, score_requests
from pairwright.evaluation.score_files import FailedSource, ScoredSource, ScoreFiles, ScoresManifest
from pairwright.progress_bar import progress_bar
from pairwright.records import Rejection
from pairwright.terminal import counted, one_per_line

NUM_SHOWN = 5
"""Rejections that a summary shows; all of them are under ``quarantine/``."""

Outcome: TypeAlias = tuple[int, Scored | FailedSource]
"""Index of the source, and the result of the chunk."""


@dataclass(frozen=True)
class ScoreSummary:
    """The result of a scoring run."""

    url: str
    manifest: ScoresManifest
    rejections: list[Rejection]
    """The first few."""

    @property
    def failed(self) -> list[FailedSource]:
        """Sources that could not be read to their end; none of their rows are kept."""
        return self.manifest.failed

    @property
    def is_all_refused(self) -> bool:
        """Whether there were records but no rewards."""
        return self.manifest.totals["records"] > 0 and not self.manifest.totals["completions"]

    def text(self) -> str:
        """Return the summary for a person, a few lines."""
        totals = self.manifest.totals
        lines = [
            f"scores   {self.url}/scores: {totals['completions']:,} rewards of {counted(totals['records'], 'record')}, "
            f"{totals['tokens']:,} tokens",
            f"refused  {counted(totals['records_refused'], 'record')}, "
            f"{counted(totals['completions_refused'], 'completion')} of others"
            + (f"; all in {self.url}/quarantine" if self.manifest.quarantined_files else ""),
            *(f"  {count:,} x {reason}" for reason, count in self.manifest.reasons.items()),
        ]
        if totals["completions_truncated"]:
            limit = self.manifest.model.max_length
            lines.append(f"cut      {counted(int(totals['completions_truncated']), 'completion')}, at {limit:,} tokens")
        if totals["records_with_special"]:
            rule = self.manifest.model.special_in_text
            lines.append(
                f"special  {counted(int(totals['records_with_special']), 'record')} {special_line(totals, rule)}"
            )
        lines += [f"  such as {rejected}" for rejected in self.rejections]
        lines += [f"failed   {source.uri}: {source.reason}" for source in self.failed]
        return one_per_line(lines)


@dataclass(frozen=True)
class _Task:
    """The arguments of every model actor."""

    model: str
    rules: InputRules
    micro_batch_tokens: int
    limits: IngestConfig

    def load(self, device: torch.device) -> Worker[Outcome]:
        """Return a function that scores one chunk on a device."""
        loaded = load_exported(open_exported(self.model), device)
        spec = TokenSpec.of(loaded.tokenizer, self.rules.tokens_config())

        def score_chunk(row: Row) -> Outcome:
            kind, name, line, content = row["kind"], row["name"], row["line"], row["content"]
            requests, refused = [], []
            if kind == "StoreError":
                raise StoreError(content.decode())
            if kind == "SourceError":
                return row["source"], FailedSource(name, content.decode().removeprefix(f"{name}: "))
            if kind == "lines":
                requests, refused = parse_requests(content, line, name, self.limits)
            elif kind == "rows":
                requests = requests_of_rows(pa.ipc.open_stream(content).read_all(), line, name)
            else:
                refused = [msgspec.json.decode(content, type=Rejection)]
            scored = score_requests(loaded, spec, requests, refused, micro_batch_tokens=self.micro_batch_tokens)
            return row["source"], scored

        return score_chunk


def score(
    model: str,
    input: str,  # noqa: A002 (its name on the command line)
    output: str,
    *,
    num_workers: int,
    use_gpu: bool,
    micro_batch_tokens: int,
    max_length: int | None = None,
    version: int | None = None,
    overwrite: bool = False,
    limits: IngestConfig = DEFAULT_LIMITS,
) -> ScoreSummary:
    """Write the reward of every completion of an input, and return a summary.

    Invalid records do not stop the job: they are refused with line and reason, counted and kept. A source that cannot
    be read to its end is left out as a whole and named.

    Args:
        model: directory or URL of an exported model.
        input: file, directory, pattern or URL of JSON Lines; or the URL of an annotations or pairs table, whose newest
            version is scored.
        output: directory or URL; gets ``scores/*.parquet`` in SCORES_SCHEMA, ``quarantine/*.jsonl`` and
            ``scores.json``.
        num_workers: number of models in parallel; does not change the rewards.
        use_gpu: give each a GPU.
        micro_batch_tokens: token budget of one forward pass, padding included.
        max_length: longest prompt and completion in tokens; the model's own if None.
        version: version of the table; the newest if None.
        overwrite: replace the scores that the output holds.
        limits: on sources and records, as for `ingest`.

    Raises:
        ModelError: if the model cannot be used, or gives a reward that is not finite.
        SourceError: if the input is missing, or no source could be read to its end.
        StoreError: if the output holds scores already, or holds a table.
        ConfigError: if there are too few CPUs, GPUs or tokens.
    """
    exported = open_exported(model)
    if max_length is not None and max_length < MIN_MAX_LENGTH:
        raise ConfigError(f"max_length is {max_length}, expected at least {MIN_MAX_LENGTH} tokens")
    rules = exported.rules if max_length is None else msgspec.structs.replace(exported.rules, max_length=max_length)
    planned = plan_input(input, version, limits)
    task = _Task(absolute_url(model), rules, micro_batch_tokens, limits)
    with model_runner(
        model_bytes=exported.num_bytes, input_bytes=planned.num_bytes, num_workers=num_workers, use_gpu=use_gpu
    ) as runner:
        files = ScoreFiles(output, overwrite=overwrite)
        try:
            outcomes = runner.run(planned.all_chunks(on_ray=not runner.is_local), task.load)
            failed, shown = _write(_counted(outcomes, runner), files)
            return _finish(files, planned, exported, rules, failed, shown)
        except BaseException:
            files.abandon()
            raise


def _counted(outcomes: Iterable[Outcome], runner: ModelRunner) -> Iterator[Outcome]:
    with progress_bar("completions scored", total=None, resources=runner.resources) as advance:
        for source, outcome in outcomes:
            yield source, outcome
            advance(0 if isinstance(outcome, FailedSource) else outcome.totals["completions"])


def _write(outcomes: Iterable[Outcome], files: ScoreFiles) -> tuple[dict[int, FailedSource], list[Rejection]]:
    """Write the results, source by source; return the failed sources and the first rejections."""
    failed: dict[int, FailedSource] = {}
    shown: list[Rejection] = []
    current, shown_of_current = None, []
    for source, outcome in outcomes:
        if source != current:
            files.finish_source()
            shown += shown_of_current
            current, shown_of_current = source, []
        if isinstance(outcome, FailedSource):
            failed.setdefault(source, outcome)
            files.drop_source()
            shown_of_current = []
        elif source not in failed:
            files.add(outcome)
            shown_of_current += outcome.rejections[: NUM_SHOWN - len(shown_of_current)]
    files.finish_source()
    return failed, [*shown, *shown_of_current][:NUM_SHOWN]


def _finish(
    files: ScoreFiles,
    planned: ScoringInput,
    exported: ExportedModel,
    rules: InputRules,
    failed: dict[int, FailedSource],
    shown: list[Rejection],
) -> ScoreSummary:
    unreadable = {i: FailedSource(planned.sources[i].uri, reason) for i, reason in planned.unreadable.items()}
    failures = [failure for _, failure in sorted((unreadable | failed).items())]
    if failures and len(failures) == len(planned.sources):
        raise SourceError([f"{failure.uri}: {failure.reason}" for failure in failures])
    gone = {failure.uri for failure in failures}
    identity = msgspec.structs.replace(exported.identity(), max_length=rules.max_length)
    manifest = files.commit(
        model=identity,
        inputs=planned.inputs,
        sources=[ScoredSource(s.uri, s.size, s.etag) for s in planned.sources if s.uri not in gone],
        failed=failures,
    )
    return ScoreSummary(url=files.url, manifest=manifest, rejections=shown)
