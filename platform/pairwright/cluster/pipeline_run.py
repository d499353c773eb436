"""Runs a pipeline: decides for each stage whether its work is done, does what is not, and says what came from what.

There is no scheduler here and no record of a pipeline: cron, Airflow or a person starts the same command again.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Literal, TextIO

import msgspec

from pairwright.cluster.pipeline_stages import Decision, StageRun, TrainRun, stage_runs
from pairwright.config.pipeline import Pipeline
from pairwright.data.storage.model_files import check_model_path
from pairwright.data.table.table import Table
from pairwright.errors import PairwrightError, StoppedError
from pairwright.evaluation.page.lineage import ancestors
from pairwright.runs.trackers.tracker_backends import check_trackers
from pairwright.terminal import escaped, one_per_line, say

_UPSTREAM = {"expand": "ingest", "train": "expand", "evaluate": "train", "score": "train"}
_KINDS = {"train": "model", "evaluate": "report", "score": "rewards"}
_DIGITS = 12


class StageRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What was done for a stage, or would be."""

    stage: str
    action: Literal["run", "resume", "skip"]
    reason: str
    output: str
    digest: str = ""
    """Of its output; empty in a dry run where it is not there yet."""
    seconds: float = 0.0


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """One thing of the lineage: a source, a table version, a model, a report or rewards."""

    kind: str
    url: str
    detail: str
    digest: str


class PipelineSummary(msgspec.Struct, frozen=True, kw_only=True):
    """How a pipeline ended, or what it would do."""

    pipeline: str
    dry_run: bool
    stages: list[StageRecord]
    lineage: list[Link]
    """From the sources on, each made from those before it."""

    def text(self) -> str:
        """Return the summary for a person."""
        head = f"pipeline {self.pipeline}{': dry run, nothing was done' if self.dry_run else ''}"
        lines = [head, *(f"  {one.stage:<9} {one.action:<7} {one.reason}" for one in self.stages)]
        if self.lineage:
            lines.append("made from each other, in this order")
        lines += [
            f"  {one.kind:<12} {one.digest.removeprefix('sha256:')[:_DIGITS]:<12}  {one.url}, {one.detail}"
            for one in self.lineage
        ]
        return one_per_line(lines)


def preview_pipeline(pipeline: Pipeline) -> PipelineSummary:
    """Return what ``run_pipeline`` would do; nothing is written.

    A stage behind one that would run is not looked at: what it would read is not there yet.

    Raises:
        PairwrightError: as ``run_pipeline``, for what is found wrong.
    """
    stages, records = stage_runs(pipeline), []
    _check(pipeline)
    pending: dict[str, str] = {}
    for stage in stages:
        upstream = _upstream(stage.name, stages)
        if upstream in pending:
            record = StageRecord(
                stage=stage.name, action="run", reason=f"{upstream} would run before", output=stage.output
            )
        else:
            with _in_stage(pipeline, stage):
                record = _record(stage, stage.decide(), 0.0)
        if record.action != "skip":
            pending[stage.name] = record.action
        records.append(record)
    lineage = [] if pending else _lineage(stages, records)
    return PipelineSummary(pipeline=pipeline.path, dry_run=True, stages=records, lineage=lineage)


def run_pipeline(pipeline: Pipeline, *, log: TextIO, overwrite: bool = False) -> PipelineSummary:
    """Do every stage whose work is not done, and return what was done and what came from what.

    Args:
        pipeline: of ``load_pipeline``.
        log: where lines go.
        overwrite: replace a report or rewards of other inputs; a table gets a version, and no run is ever replaced.

    Raises:
        PairwrightError: as the verb of the stage that failed, which the message names; the same command goes on.
        StoppedError: if SIGTERM stopped a training; the same command goes on.
    """
    stages, records = stage_runs(pipeline), []
    _check(pipeline)
    for stage in stages:
        began = time.monotonic()
        with _in_stage(pipeline, stage):
            decision = stage.decide()
            _say(f"{stage.name}: {decision.action}: {decision.reason}", log)
            if decision.action != "skip":
                stage.run(_allowed(decision, overwrite=overwrite), log)
                _say(f"{stage.name}: done in {time.monotonic() - began:.0f} s", log)
            records.append(_record(stage, decision, time.monotonic() - began))
    return PipelineSummary(pipeline=pipeline.path, dry_run=False, stages=records, lineage=_lineage(stages, records))


def _say(line: str, log: TextIO) -> None:
    say(escaped(f"{datetime.now(UTC):%H:%M:%S} {line}"), to=log)


def _check(pipeline: Pipeline) -> None:
    """Refuse, before the first stage takes hours, what the last would refuse."""
    if pipeline.train is not None:
        check_trackers(pipeline.train)
        check_model_path(pipeline.train.model.path)


def _allowed(decision: Decision, *, overwrite: bool) -> Decision:
    return replace(decision, may_replace=True) if overwrite else decision


def _upstream(name: str, stages: list[StageRun]) -> str | None:
    """Return the nearest stage before this one that the pipeline has."""
    there = {stage.name for stage in stages}
    found = _UPSTREAM.get(name)
    while found is not None and found not in there:
        found = _UPSTREAM.get(found)
    return found


@contextmanager
def _in_stage(pipeline: Pipeline, stage: StageRun) -> Iterator[None]:
    """Name pipeline and stage in the message of an error that ends it."""
    try:
        yield
    except StoppedError:
        raise
    except PairwrightError as error:
        first, *others = str(error).splitlines()
        raise type(error)([f"{pipeline.path}: stage {stage.name}: {first}", *others]) from error


def _record(stage: StageRun, decision: Decision, seconds: float) -> StageRecord:
    return StageRecord(
        stage=stage.name,
        action=decision.action,
        reason=decision.reason,
        output=decision.output,
        digest=stage.digest(decision) if seconds or decision.action == "skip" else "",
        seconds=round(seconds, 1),
    )


def _lineage(stages: list[StageRun], records: list[StageRecord]) -> list[Link]:
    """Return sources, tables, model, report and rewards, each made from those before it."""
    by_name = {stage.name: stage for stage in stages}
    train = by_name.get("train")
    tables = [one.output for one in records if one.stage in ("ingest", "expand")]
    links: list[Link] = []
    if isinstance(train, TrainRun):
        tables, manifest = [train.config.data.pairs], train.pairs
    elif tables:
        manifest = Table.open(tables[-1]).manifest()
    else:
        manifest = None
    if manifest is not None:
        found = reversed(ancestors(tables[-1], manifest))
        links += [Link(kind=one.kind, url=one.url, detail=one.detail, digest=one.digest) for one in found]
    links += [
        Link(kind=_KINDS[one.stage], url=one.output, detail=f"by {one.stage}", digest=one.digest)
        for one in records
        if one.stage in _KINDS
    ]
    return links
