"""Plans a run before any worker starts: the data's version, its tokens, the number of steps, the run's identity.

The driver does it, so that a configuration that cannot work fails at once.
"""

from dataclasses import dataclass
from pathlib import Path

from pairwright.cluster.sized_executor import EXECUTOR
from pairwright.config import TrainConfig, digest_of
from pairwright.data.storage.object_store import local_root
from pairwright.data.table.table import Manifest, Table
from pairwright.data.tokens.tokenize import ensure_tokens
from pairwright.data.tokens.tokenize_groups import TokenTable, local_token_paths
from pairwright.errors import ConfigError
from pairwright.evaluation.load_exported import model_digest
from pairwright.model.lora import check_targets
from pairwright.model.model_config import read_config
from pairwright.runs.run_dir import RunFolder, RunIdentity, identity_config
from pairwright.training.schedule import Schedule, schedule_of


@dataclass(frozen=True)
class RunPlan:
    """What the driver decides before it starts workers."""

    tokens_url: str
    tokens_manifest: Manifest
    schedule: Schedule
    identity: RunIdentity


def data_version(config: TrainConfig, folder: RunFolder) -> int | None:
    """Return the data version of a run: as configured, else as recorded in this folder; None for the newest."""
    if config.data.version is not None:
        return config.data.version
    identity = folder.identity()
    return None if identity is None or identity.pairs_url != config.data.pairs else identity.pairs_version


def token_cache_url(config: TrainConfig) -> str:
    """Return the URL of the token cache: as configured, else beside the run."""
    root = local_root(config.output)
    run = config.output.rstrip("/") if root is None else str(root.resolve())
    return config.tokens.cache or f"{run.rpartition('/')[0]}/tokens"


def check_model(config: TrainConfig) -> None:
    """Refuse what the model's architecture does not support, before anything is written."""
    read_config(config.model.path)
    if config.lora is not None:
        check_targets(config.model.path, config.lora)


def plan_run(config: TrainConfig, pairs: Table, manifest: Manifest) -> RunPlan:
    """Return the plan of a run; makes the token table where there is none yet.

    Raises:
        ConfigError: if the batch cannot be planned.
        StoreError, ModelError: if the pairs table or the model cannot be used.
    """
    check_model(config)
    tokens_url, tokens_manifest = ensure_tokens(
        config.data.pairs,
        version=manifest.version,
        tokenizer_path=config.model.path,
        config=config.tokens,
        into=token_cache_url(config),
        executor=EXECUTOR,
    )
    table = TokenTable(local_token_paths(tokens_url, tokens_manifest))
    rows = table.rows_of_split("train")
    if config.training.best_metric is not None and not len(table.rows_of_split("validation")):
        raise ConfigError(
            f'training.best_metric = "{config.training.best_metric}" needs a validation split, and {pairs.url} version '
            f"{manifest.version} has none; leave it out, or expand with validation_fraction above 0"
        )
    schedule = schedule_of(len(rows), config)
    parts = {
        "config": identity_config(config),
        "pairs_url": pairs.url,
        "pairs_version": manifest.version,
        "tokens_digest": tokens_manifest.digest,
        "model_digest": _starting_weights(config.model.path),
    }
    identity = RunIdentity(digest=digest_of({k: v for k, v in parts.items() if k != "pairs_url"}), **parts)
    return RunPlan(tokens_url=tokens_url, tokens_manifest=tokens_manifest, schedule=schedule, identity=identity)


def with_absolute_paths(config: TrainConfig) -> TrainConfig:
    """Return the configuration for workers, which Ray Train starts in another folder."""
    path, template = Path(config.model.path), config.tokens.chat_template
    model = config.model.model_copy(update={"path": str(path.resolve()) if path.is_dir() else config.model.path})
    is_file = template is not None and template.endswith(".jinja")
    resolved = str(Path(template).resolve()) if template is not None and is_file else template
    tokens = config.tokens.model_copy(update={"chat_template": resolved})
    return config.model_copy(update={"model": model, "tokens": tokens})


def _starting_weights(path: str) -> str:
    """Return the digest of a local model directory; of a hub name, the name itself."""
    return model_digest(Path(path)) if Path(path).is_dir() else f"hub:{path}"
