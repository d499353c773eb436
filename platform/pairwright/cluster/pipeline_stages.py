"""The stages of a pipeline: each says by digests whether its work is done, and does it with its verb's function.

No state of a pipeline is kept anywhere: whether a stage is done is read from what it wrote, so a pipeline that was
killed, at whatever point, is run again.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, TextIO

import msgspec

from pairwright.cluster.models.evaluate_job import evaluate
from pairwright.cluster.models.score_input import plan_input
from pairwright.cluster.models.score_job import score
from pairwright.cluster.sized_executor import EXECUTOR
from pairwright.cluster.train.driver import train
from pairwright.config import TrainConfig, digest_of
from pairwright.config.pipeline import INPUTS, Pipeline
from pairwright.data.ingest.dry_run import new_sources
from pairwright.data.ingest.ingest import ingest
from pairwright.data.pairs.expand import expand, is_expanded
from pairwright.data.storage.object_store import absolute_url, local_root, store_errors
from pairwright.data.table.table import Manifest, Table, open_store
from pairwright.errors import ConfigError, SourceError, StoreError
from pairwright.evaluation.load_exported import ModelIdentity, open_exported
from pairwright.evaluation.reports.report_file import page_url, report_url
from pairwright.evaluation.reports.report_text import format_report
from pairwright.evaluation.requests import DEFAULT_LIMITS
from pairwright.evaluation.score_files import MANIFEST_NAME, ScoresManifest
from pairwright.records import UNREADABLE_JSON
from pairwright.runs.run_dir import MODEL_NAME, RunFolder, read_object
from pairwright.runs.run_identity import RunIdentity, differences, differences_line
from pairwright.runs.run_plan import starting_digest
from pairwright.terminal import counted, escaped, say

NAME_DIGITS = 12
"""Of a digest, where it names a folder."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What is to be done for a stage, and why."""

    action: Literal["run", "resume", "skip"]
    reason: str
    output: str
    """URL, as the pipeline names it, with the digest of the inputs where it asks for that."""
    may_replace: bool = False
    """Whether what is there is of the same inputs, but not complete."""


class IngestRun:
    """Sources into the annotations table."""

    name: ClassVar = "ingest"

    def __init__(self, pipeline: Pipeline) -> None:
        assert pipeline.stages.ingest is not None
        assert pipeline.ingest is not None
        self._stage, self._config = pipeline.stages.ingest, pipeline.ingest

    @property
    def output(self) -> str:
        return self._stage.output

    def decide(self) -> Decision:
        """Return what is to be done; hashes every source."""
        new, there = new_sources(
            self._stage.sources, self.output, self._config, replace=self._stage.replace, executor=EXECUTOR
        )
        if not new:
            return Decision("skip", f"{_are(len(there), 'source')} in {self.output} already", self.output)
        return Decision("run", f"{_are(len(new), 'source')} new or changed, such as {new[0]}", self.output)

    def run(self, decision: Decision, log: TextIO) -> None:
        """Ingest; one commit."""
        stage = self._stage
        summary = ingest(stage.sources, decision.output, self._config, replace=stage.replace, executor=EXECUTOR)
        say(summary.text(), to=log)
        if summary.failed:
            uri, reason = summary.failed[0]
            raise SourceError(
                f"{counted(len(summary.failed), 'source')} could not be ingested, the first of them {uri}: {reason}; "
                "the others are in the table, and the same command goes on"
            )
        if summary.manifest is None and Table(decision.output, "annotations").latest() is None:
            raise SourceError(f"{', '.join(stage.sources)}: nothing to ingest, so the next stage has no annotations")

    def digest(self, decision: Decision) -> str:
        """Return what identifies the stage's output."""
        return Table.open(decision.output, "annotations").manifest().digest


class ExpandRun:
    """Annotations into the pairs table."""

    name: ClassVar = "expand"

    def __init__(self, pipeline: Pipeline) -> None:
        assert pipeline.expand is not None
        self._annotations, self.output, self._config = pipeline.annotations, pipeline.pairs, pipeline.expand

    def decide(self) -> Decision:
        """Return what is to be done."""
        if is_expanded(self._annotations, self.output, self._config, executor=EXECUTOR):
            return Decision("skip", f"{self.output} is made from the newest {self._annotations}", self.output)
        is_there = bool(Table(self.output, "pairs").versions())
        reason = "annotations, configuration or code have changed" if is_there else "no pairs yet"
        return Decision("run", f"{self.output}: {reason}", self.output)

    def run(self, decision: Decision, log: TextIO) -> None:
        """Expand the newest annotations; one commit."""
        manifest = expand(self._annotations, decision.output, self._config, version=None, executor=EXECUTOR)
        pairs = counted(int(manifest.totals["pairs"]), "pair")
        say(escaped(f"version {manifest.version} of {decision.output} holds {pairs}"), to=log)

    def digest(self, decision: Decision) -> str:
        """Return what identifies the stage's output."""
        return Table.open(decision.output, "pairs").manifest().digest


class TrainRun:
    """Pairs into a reward model."""

    name: ClassVar = "train"

    def __init__(self, pipeline: Pipeline) -> None:
        assert pipeline.train is not None
        self._config = pipeline.train

    @property
    def output(self) -> str:
        return self._config.output

    @cached_property
    def pairs(self) -> Manifest:
        """The version to train on; the newest one when it is first asked for."""
        return Table.open(self._config.data.pairs, "pairs").manifest(self._config.data.version)

    @cached_property
    def _identity(self) -> RunIdentity:
        """Of the run, but for its tokens, which are not made yet."""
        template = self._config.tokens.chat_template
        is_file = template is not None and Path(template).is_file()
        return RunIdentity.of(
            config=self._config,
            pairs_url=Table(self._config.data.pairs, "pairs").url,
            pairs_version=self.pairs.version,
            pairs_digest=self.pairs.digest,
            tokens_digest=hashlib.sha256(Path(template).read_bytes()).hexdigest() if template and is_file else "",
            model_digest=starting_digest(self._config.model.path),
        )

    @cached_property
    def config(self) -> TrainConfig:
        """The run's configuration, with its own folder and data version."""
        data = self._config.data.model_copy(update={"version": self.pairs.version})
        output = named_by(self._config.output, self._identity.digest)
        return self._config.model_copy(update={"data": data, "output": output})

    def decide(self) -> Decision:
        """Return what is to be done; reads the starting model's files once.

        Raises:
            ConfigError: if another run is in the output, and the output's name does not tell them apart.
        """
        output, root = self.config.output, local_root(self.config.output)
        nothing = Decision("run", "no run of these pairs, model and configuration yet", output)
        if root is not None and not root.is_dir():
            return nothing
        folder = RunFolder(output)
        if (found := folder.identity()) is None:
            return nothing
        same_tokens = msgspec.structs.replace(self._identity, tokens_digest=found.tokens_digest)
        changes = differences(found, same_tokens)
        if found.pairs_digest != self.pairs.digest:
            changes.append(f"its pairs are version {found.pairs_version}, and these version {self.pairs.version}")
        if changes and folder.has_progress():
            raise ConfigError(
                f"output {output} holds a run of other inputs ({differences_line(changes)}); put {INPUTS} into the "
                f'name of the output, such as train.output = "{output}-{INPUTS}", so that each has its own run'
            )
        if folder.summary() is not None:
            return Decision("skip", f"the run on version {self.pairs.version} is finished", output)
        return Decision("resume", "a run of these inputs is not finished", output) if folder.has_progress() else nothing

    def run(self, decision: Decision, log: TextIO) -> None:
        """Train, or resume the run."""
        train(self.config, log=log)

    def digest(self, decision: Decision) -> str:
        """Return what identifies the stage's output."""
        return open_exported(self.model).identity().digest

    @property
    def model(self) -> str:
        """The exported model's directory or URL."""
        return f"{self.config.output.rstrip('/')}/{MODEL_NAME}"


class EvaluateRun:
    """A report on the model."""

    name: ClassVar = "evaluate"

    def __init__(self, pipeline: Pipeline, train: TrainRun | None) -> None:
        assert pipeline.stages.evaluate is not None
        self._stage, self._train, self._pipeline = pipeline.stages.evaluate, train, pipeline

    @property
    def output(self) -> str:
        return self._stage.output or "report.json beside the model"

    @cached_property
    def _model(self) -> str:
        return model_of(self._train, self._stage.model)

    @cached_property
    def _pairs(self) -> tuple[str, Manifest]:
        """The table, and its version that the model was trained on, where it was."""
        if self._train is not None and self._stage.pairs is None:
            return self._train.config.data.pairs, self._train.pairs
        url = self._stage.pairs or self._pipeline.pairs
        return url, Table.open(url, "pairs").manifest()

    def decide(self) -> Decision:
        """Return what is to be done; reads the model's files once."""
        _, pairs = self._pairs
        inputs = (open_exported(self._model).identity().digest, pairs.digest, self._stage.split)
        named = None if self._stage.output is None else named_by(self._stage.output, digest_of(inputs))
        output = report_url(self._model, named)
        report = _read_json(output, dict[str, Any])
        if report is None:
            return Decision("run", "no report yet", output)
        of = report.get("pairs", {})
        if (report.get("model", {}).get("digest"), of.get("digest"), of.get("split")) != inputs:
            return Decision("run", "the report there is of another model or other pairs", output)
        if _read(page_url(output)) is None:
            return Decision("run", "the report has no page", output, may_replace=True)
        return Decision("skip", "the report is of this model and these pairs", output)

    def run(self, decision: Decision, log: TextIO) -> None:
        """Evaluate, and write the report with its page."""
        url, manifest = self._pairs
        evaluate(
            self._model,
            url,
            version=manifest.version,
            split=self._stage.split,
            output=decision.output,
            num_workers=self._stage.num_workers,
            use_gpu=self._stage.use_gpu,
            micro_batch_tokens=self._stage.micro_batch_tokens,
            overwrite=decision.may_replace,
            show=lambda report: say(format_report(report), to=log),
        )

    def digest(self, decision: Decision) -> str:
        """Return what identifies the stage's output: all that it says but when it was written."""
        report = _read_json(decision.output, dict[str, Any]) or {}
        return digest_of({key: value for key, value in report.items() if key != "created_at"})


class ScoreRun:
    """Rewards of completions."""

    name: ClassVar = "score"

    def __init__(self, pipeline: Pipeline, train: TrainRun | None) -> None:
        assert pipeline.stages.score is not None
        self._stage, self._train = pipeline.stages.score, train

    @property
    def output(self) -> str:
        return self._stage.output

    @cached_property
    def _model(self) -> str:
        return model_of(self._train, self._stage.model)

    def decide(self) -> Decision:
        """Return what is to be done; reads the model's files and the input once."""
        model = open_exported(self._model).identity()
        planned = plan_input(self._stage.input, None, DEFAULT_LIMITS)
        sources = sorted((source.uri, source.size, source.etag) for source in planned.sources)
        inputs = _scored_inputs(model, sources, [given.digest for given in planned.inputs])
        output = absolute_url(named_by(self._stage.output, digest_of(inputs)))
        found = _read_json(f"{output}/{MANIFEST_NAME}", ScoresManifest)
        if found is None:
            return Decision("run", "no rewards yet", output)
        sources = sorted((source.uri, source.size, source.etag) for source in found.sources)
        if _scored_inputs(found.model, sources, [given.digest for given in found.inputs]) != inputs:
            return Decision("run", "the rewards there are of another model or another input", output)
        return Decision("skip", "the rewards are of this model and this input", output)

    def run(self, decision: Decision, log: TextIO) -> None:
        """Score, and write the rewards."""
        summary = score(
            self._model,
            self._stage.input,
            decision.output,
            num_workers=self._stage.num_workers,
            use_gpu=self._stage.use_gpu,
            micro_batch_tokens=self._stage.micro_batch_tokens,
            overwrite=decision.may_replace,
        )
        say(summary.text(), to=log)
        if summary.failed or summary.is_all_refused:
            raise SourceError(f"{self._stage.input}: not all of it could be scored; {decision.output} says what")

    def digest(self, decision: Decision) -> str:
        """Return what identifies the stage's output."""
        found = _read_json(f"{decision.output}/{MANIFEST_NAME}", ScoresManifest)
        return "" if found is None else digest_of([file.sha256 for file in found.files])


StageRun = IngestRun | ExpandRun | TrainRun | EvaluateRun | ScoreRun


def stage_runs(pipeline: Pipeline) -> list[StageRun]:
    """Return the stages of a pipeline, in order."""
    stages, found = pipeline.stages, []
    train = None if stages.train is None else TrainRun(pipeline)
    if stages.ingest is not None:
        found.append(IngestRun(pipeline))
    if stages.expand is not None:
        found.append(ExpandRun(pipeline))
    if train is not None:
        found.append(train)
    if stages.evaluate is not None:
        found.append(EvaluateRun(pipeline, train))
    if stages.score is not None:
        found.append(ScoreRun(pipeline, train))
    return found


def named_by(output: str, digest: str) -> str:
    """Return an output's name with the digest of its inputs in it, where it asks for that."""
    return output.replace(INPUTS, digest[:NAME_DIGITS])


def model_of(train: TrainRun | None, named: str | None) -> str:
    """Return the model of the pipeline's run, or the one that the stage names."""
    if train is not None:
        return train.model
    assert named is not None, "PipelineConfig refuses a stage without its input"
    return named


def _scored_inputs(model: ModelIdentity, sources: list[tuple[Any, ...]], tables: list[str]) -> list[Any]:
    return [model.digest, [list(source) for source in sources], tables]


def _are(number: int, noun: str) -> str:
    return f"{counted(number, noun)} {'is' if number == 1 else 'are'}"


def _read(url: str) -> bytes | None:
    folder, _, name = absolute_url(url).rpartition("/")
    root = local_root(folder)
    if root is not None and not root.is_dir():
        return None
    with store_errors(url):
        return read_object(open_store(folder), name)


def _read_json(url: str, kind: Any) -> Any:
    """Return a file's content, or None where there is none.

    Raises:
        StoreError: if it is not what a stage writes.
    """
    content = _read(url)
    try:
        return None if content is None else msgspec.json.decode(content, type=kind)
    except UNREADABLE_JSON as error:
        raise StoreError(f"{url}: cannot be read ({error}); move it away, or name another output") from None
