"""Every data contract of the package, by name -> the files under ``schemas/``: the one place that knows all of them."""

from pathlib import Path
from typing import Any

from pairwright.cli.schema_files import json_contract, table_contracts, write_documents
from pairwright.data.profile.profile_schema import Figures
from pairwright.evaluation.evaluation_report import Report
from pairwright.evaluation.load_exported import InputRules
from pairwright.evaluation.score_files import ScoresManifest
from pairwright.model.model_export import SelfCheck
from pairwright.runs.run_dir import RunIdentity, TrainingSummary
from pairwright.training.checkpoint import CheckpointManifest, ShardFile


def all_contracts() -> dict[str, dict[str, Any]]:
    """Return the contracts of the tables, of a run's folder, of an exported model and of what is made with it."""
    return table_contracts() | {
        "run": json_contract(RunIdentity, "run", "run.json in a run's folder: what decides its result."),
        "training": json_contract(
            TrainingSummary, "training", "summary.json in a run's folder: written when it ended well."
        ),
        "checkpoint": json_contract(CheckpointManifest, "checkpoint", "checkpoint.json in a checkpoint: whose it is."),
        "checkpoint_file": json_contract(
            ShardFile, "checkpoint_file", "An entry of files-<rank, 5 digits>.json in a checkpoint."
        ),
        "self_check": json_contract(SelfCheck, "self_check", "self_check.json in a model directory."),
        "model_input": json_contract(InputRules, "model_input", "pairwright.json in a model directory."),
        "report": json_contract(Report, "report", "What `pairwright evaluate` writes."),
        "table_report": json_contract(Figures, "table_report", "What `pairwright report --json` prints."),
        "scores_manifest": json_contract(ScoresManifest, "scores_manifest", "What `pairwright score` writes last."),
    }


def write_schemas(directory: Path) -> list[Path]:
    """Write every contract as ``<name>.v<version>.json``, and return the paths in order of name."""
    return write_documents(directory, all_contracts())
