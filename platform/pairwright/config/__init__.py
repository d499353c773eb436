"""Configuration: what a person writes in TOML, as frozen and validated pydantic models.

Unknown keys are refused, every default lives here and nowhere else, and a check across fields names both fields and
the remedy. ``load_config`` is the only way in, so that every verb reports a mistake in the same words.

In reading order:

- ``section.py``: the base class of every section
- ``ingest.py``: how sources are read
- ``fields.py``: where a record keeps its fields
- ``expand.py``: how rankings become pairs
- ``train.py``: a training run
- ``loading.py``: loads TOML and ``--set``, and explains errors
- ``sweep_plan.py``: the runs of a sweep
- ``pipeline.py``: the stages of a pipeline
- ``annotated_file.py``: writes annotated configuration files from recipes
- ``recipes/``: short TOML files to start from
"""

from pairwright.config.expand import ExpandConfig
from pairwright.config.fields import BOTH_BAD, TIE, FieldPaths, LayoutFile
from pairwright.config.ingest import CellConfig, ConnectorConfig, IngestConfig, SourceLimits
from pairwright.config.loading import config_digest, digest_of, load_config
from pairwright.config.pipeline import (
    EvaluateStage,
    ExpandStage,
    IngestStage,
    Pipeline,
    PipelineConfig,
    ScoreStage,
    TrainStage,
    load_pipeline,
)
from pairwright.config.section import Section
from pairwright.config.train import (
    BatchesConfig,
    DataConfig,
    DeepSpeedConfig,
    LoraConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    TokensConfig,
    TrainConfig,
    TrainingConfig,
    WorkersConfig,
)

__all__ = [
    "BOTH_BAD",
    "TIE",
    "BatchesConfig",
    "CellConfig",
    "ConnectorConfig",
    "DataConfig",
    "DeepSpeedConfig",
    "EvaluateStage",
    "ExpandConfig",
    "ExpandStage",
    "FieldPaths",
    "IngestConfig",
    "IngestStage",
    "LayoutFile",
    "LoraConfig",
    "LossConfig",
    "ModelConfig",
    "OptimizerConfig",
    "Pipeline",
    "PipelineConfig",
    "ScoreStage",
    "Section",
    "SourceLimits",
    "TokensConfig",
    "TrainConfig",
    "TrainStage",
    "TrainingConfig",
    "WorkersConfig",
    "config_digest",
    "digest_of",
    "load_config",
    "load_pipeline",
]
