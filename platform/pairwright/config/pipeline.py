"""A pipeline: the stages from sources to rewards, in one TOML file, each with its output and its configuration."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pairwright.config.expand import ExpandConfig
from pairwright.config.ingest import IngestConfig
from pairwright.config.loading import load_config
from pairwright.config.section import PositiveInt, Section
from pairwright.config.train import TrainConfig
from pairwright.errors import ConfigError

INPUTS = "{inputs}"
"""Stands in the name of an output for the digest of all that decides its content: other inputs, another folder."""


class IngestStage(Section):
    """Sources into an annotations table."""

    sources: Annotated[list[str], Field(min_length=1)]
    """Files, folders, globs, URLs, as for `pairwright ingest`."""
    output: str
    """URL of the annotations table."""
    config: str | None = None
    """TOML file, as for `pairwright ingest --config`."""
    set: list[str] = []
    """Keys on top of it, each as `key=value`."""
    replace: bool = False
    """Replace the records of a source whose content has changed; without it such a source stops the pipeline."""


class ExpandStage(Section):
    """Annotations into a pairs table."""

    annotations: str | None = None
    """URL of the annotations table; only where there is no [ingest]."""
    output: str
    """URL of the pairs table."""
    config: str | None = None
    """TOML file, as for `pairwright expand --config`."""
    set: list[str] = []
    """Keys on top of it, each as `key=value`."""


class TrainStage(Section):
    """Pairs into a reward model."""

    config: str
    """TOML file, as for `pairwright train --config`; after [expand], its `data` is that table's newest version."""
    set: list[str] = []
    """Keys on top of it, each as `key=value`."""
    output: str | None = None
    """Folder of the run; overrides `output` of the configuration; with `{inputs}`, other inputs get another folder."""


class EvaluateStage(Section):
    """A report on a reward model."""

    model: str | None = None
    """Model directory; only where there is no [train]."""
    pairs: str | None = None
    """URL of a pairs table; that of the stages before if not given."""
    split: Literal["train", "validation"] = "validation"
    """Which split."""
    output: str | None = None
    """File for the report, .json, or folder, with or without `{inputs}`; report.json beside the model if not given."""
    num_workers: PositiveInt = 1
    """Processes that compute rewards."""
    use_gpu: bool = False
    """Give each process a GPU."""
    micro_batch_tokens: PositiveInt = 16384
    """Maximum number of tokens in one forward pass."""


class ScoreStage(Section):
    """Rewards of completions."""

    model: str | None = None
    """Model directory; only where there is no [train]."""
    input: str
    """JSON Lines of prompts and completions, or the URL of a table, as for `pairwright score`."""
    output: str
    """Folder or URL for the rewards, with or without `{inputs}`."""
    num_workers: PositiveInt = 1
    """Processes that compute rewards."""
    use_gpu: bool = False
    """Give each process a GPU."""
    micro_batch_tokens: PositiveInt = 16384
    """Maximum number of tokens in one forward pass."""


class PipelineConfig(Section):
    """The stages of a pipeline, in this order; each reads what the one before it wrote, and any may be left out."""

    ingest: IngestStage | None = None
    expand: ExpandStage | None = None
    train: TrainStage | None = None
    evaluate: EvaluateStage | None = None
    score: ScoreStage | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.names:
            raise ValueError(f"no stage; give at least one of {', '.join(f'[{name}]' for name in STAGES)}")
        if self.expand is not None:
            _check_input("expand.annotations", self.expand.annotations, "ingest", is_there=self.ingest is not None)
        for name, stage in (("evaluate", self.evaluate), ("score", self.score)):
            if stage is not None:
                _check_input(f"{name}.model", stage.model, "train", is_there=self.train is not None)
        if self.evaluate is not None and self.evaluate.pairs is None and self.train is None and self.expand is None:
            raise ValueError("evaluate.pairs: missing, and there is no [expand] or [train] to take it from; set it")
        return self

    @property
    def names(self) -> list[str]:
        """Names of the stages that there are, in their order."""
        return [name for name in STAGES if getattr(self, name) is not None]


STAGES = tuple(PipelineConfig.model_fields)


def _check_input(key: str, value: str | None, stage: str, *, is_there: bool) -> None:
    if value is None and not is_there:
        raise ValueError(f"{key}: missing, and there is no [{stage}] to take it from; set it, or add [{stage}]")
    if value is not None and is_there:
        raise ValueError(f"{key}: [{stage}] gives it; leave out one of the two")


@dataclass(frozen=True)
class Pipeline:
    """A pipeline whose stages' own configurations are loaded too."""

    path: str
    stages: PipelineConfig
    ingest: IngestConfig | None
    expand: ExpandConfig | None
    train: TrainConfig | None
    """``output`` may hold ``{inputs}``."""

    @property
    def annotations(self) -> str:
        """URL of the annotations table that [expand] reads."""
        stages = self.stages
        return (
            stages.ingest.output if stages.ingest is not None else _given(stages.expand and stages.expand.annotations)
        )

    @property
    def pairs(self) -> str:
        """URL of the pairs table that [train] and [evaluate] read."""
        if self.stages.expand is not None:
            return self.stages.expand.output
        return _given(self.train and self.train.data.pairs)


def _given(value: str | None) -> str:
    assert value is not None, "PipelineConfig refuses a stage without its input"
    return value


def load_pipeline(path: str, settings: Sequence[str] = ()) -> Pipeline:
    """Return the pipeline in a TOML file, with every configuration that it names.

    Raises:
        ConfigError: if a file is missing or cannot be used, a stage or key is unknown, or a stage lacks its input.
    """
    stages = load_config(PipelineConfig, path, settings, advice="docs/pipelines.md shows how to write a pipeline")
    ingest, expand, train = stages.ingest, stages.expand, stages.train
    try:
        return Pipeline(
            path=path,
            stages=stages,
            ingest=None if ingest is None else load_config(IngestConfig, ingest.config, ingest.set),
            expand=None if expand is None else load_config(ExpandConfig, expand.config, expand.set),
            train=None if train is None else load_config(TrainConfig, train.config, _train_settings(stages, train)),
        )
    except ConfigError as error:
        raise ConfigError([f"{path}: {line}" for line in str(error).splitlines()]) from None


def _train_settings(stages: PipelineConfig, train: TrainStage) -> list[str]:
    settings = list(train.set)
    if stages.expand is not None:
        settings.append(f"data={{ pairs = {json.dumps(stages.expand.output, ensure_ascii=False)} }}")
    if train.output is not None:
        settings.append(f"output={json.dumps(train.output, ensure_ascii=False)}")
    return settings
