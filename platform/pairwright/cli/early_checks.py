"""Checks what can be wrong with a command before torch, transformers and Ray are imported, which takes them seconds.

The operations check the same again, with the same functions: these are for an answer within a second.
"""

from pathlib import Path

from pairwright.config import IngestConfig, TrainConfig
from pairwright.data.ingest.sources.listing import list_sources
from pairwright.data.storage.model_files import check_model_files, check_model_path
from pairwright.data.storage.object_store import local_root
from pairwright.data.storage.outputs import check_free
from pairwright.data.table.table import Table
from pairwright.errors import DataError, ModelError, StoreError
from pairwright.runs.run_dir import RunFolder, check_output
from pairwright.runs.trackers.tracker_backends import check_trackers
from pairwright.suggestions import did_you_mean, did_you_mean_path

ARCHITECTURES = (
    *("llama", "mistral", "phi3", "gemma3_text", "opt", "qwen2", "qwen3", "gpt2", "gpt_neox"),
    *("bert", "roberta", "deberta-v2"),
)
"""Those of ``model/tiny_models.py``, whose import takes seconds; a test compares them."""


def check_training(config: TrainConfig) -> None:
    """Refuse a run whose output, pairs table or starting model cannot be used.

    Raises:
        ConfigError, StoreError, ModelError: as `train` would.
    """
    check_output(config)
    check_trackers(config)
    root = local_root(config.output)
    if root is not None and root.exists() and not root.is_dir():
        raise StoreError(f"{config.output}: a file; name another output, or an empty folder")
    if root is None or root.is_dir():
        RunFolder(config.output).check_free()
    Table.open(config.data.pairs, "pairs").manifest(config.data.version)
    check_model_path(config.model.path)
    directory = Path(config.model.path)
    if directory.is_dir():
        check_model_files(directory)
        if not (directory / "config.json").is_file():
            raise ModelError(f"{directory}: no Hugging Face model here (it has no config.json)")


def check_evaluation(
    model: str, pairs: str, *, version: int | None, output: str | None, split: str, overwrite: bool, track: bool = False
) -> None:
    """Refuse an evaluation whose model, pairs table, report file or trackers cannot be used.

    Raises:
        ModelError, StoreError, DataError, ConfigError: as `evaluate` would.
    """
    from pairwright.evaluation.load_exported import open_exported
    from pairwright.evaluation.reports.report_file import REPORT, report_url

    REPORT.check(report_url(model, output), overwrite=overwrite)
    if track:
        from pairwright.runs.trackers.tracked_page import check_page_trackers

        check_page_trackers(model)
    if local_root(model) is not None:  # a remote one would be downloaded
        open_exported(model)
    totals = Table.open(pairs, "pairs").manifest(version).totals
    held_out = int(totals["pairs_validation"])
    if not (held_out if split == "validation" else int(totals["pairs"]) - held_out):
        raise DataError(
            f"{pairs}: no pairs in split {split} to evaluate on; expand with a larger validation_fraction, or evaluate "
            "another split or version"
        )


def check_scoring(
    model: str, source: str, output: str, *, version: int | None, limits: IngestConfig, overwrite: bool
) -> None:
    """Refuse a scoring whose model, input or output cannot be used.

    Raises:
        ModelError, SourceError, StoreError: as `score` would.
    """
    from pairwright.evaluation.load_exported import open_exported
    from pairwright.evaluation.score_files import ScoreFiles

    if local_root(model) is not None:
        open_exported(model)
    table = Table(source, "pairs")
    if version is not None or table.versions():
        table.manifest(version)
    else:
        list_sources([source], limits.limits)
    ScoreFiles(output, overwrite=overwrite)


def check_export(run: str, output: str) -> None:
    """Refuse the export of a run that is not there, or to a place where something is.

    Raises:
        StoreError: if so.
    """
    from pairwright.runs.checkpoints import kept_checkpoints

    kept_checkpoints(run, verify=False)
    check_free(output)


def check_new_model(architecture: str, texts: Path) -> None:
    """Refuse an architecture that is not known, or a file of texts that is not there.

    Raises:
        ModelError, DataError: if so.
    """
    if architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise ModelError(
            f"architecture {architecture!r} is not one of {known}{did_you_mean(architecture, ARCHITECTURES)}"
        )
    if not texts.is_file():
        raise DataError(f"{texts}: cannot be read as text (no such file){did_you_mean_path(str(texts))}")
