"""Plans a run before any worker starts: the data's version, its tokens, the number of steps, the run's identity.

The driver does it, so that a configuration that cannot work fails at once. Without Ray; ``train --dry-run`` plans too.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pairwright.config import TrainConfig
from pairwright.data.executor import LOCAL, Executor
from pairwright.data.storage.object_store import local_root
from pairwright.data.table.table import Manifest, Table
from pairwright.data.tokens.tokenize import ensure_tokens
from pairwright.data.tokens.tokenize_groups import TokenTable, local_token_paths
from pairwright.errors import ConfigError, ModelError
from pairwright.evaluation.load_exported import model_digest
from pairwright.model.batching.memory_model import ModelOutline, outline_of
from pairwright.model.model_config import meta_model
from pairwright.runs.run_dir import RunFolder
from pairwright.runs.run_identity import RunIdentity
from pairwright.training.schedule import Schedule, schedule_of


@dataclass(frozen=True)
class RunPlan:
    """What is decided before workers start."""

    pairs: Manifest
    tokens_url: str
    tokens_manifest: Manifest
    outline: ModelOutline
    schedule: Schedule
    identity: RunIdentity

    @cached_property
    def tokens(self) -> TokenTable:
        """The groups, tokenised, on this machine."""
        return TokenTable(local_token_paths(self.tokens_url, self.tokens_manifest))


def data_version(config: TrainConfig, pairs: Table, folder: RunFolder | None) -> int | None:
    """Return the data version of a run: as configured, else as recorded in this folder; None for the newest.

    Args:
        config: of the run.
        pairs: its table, which may have been moved since the run began.
        folder: of the run; None where there is none yet.
    """
    identity = None if folder is None else folder.identity()
    if config.data.version is not None or identity is None:
        return config.data.version
    if identity.pairs_url == pairs.url:
        return identity.pairs_version
    if identity.pairs_version not in pairs.versions():
        return None
    is_same = identity.pairs_digest in ("", pairs.manifest(identity.pairs_version).digest)
    return identity.pairs_version if is_same else None


def token_cache_url(config: TrainConfig) -> str:
    """Return the URL of the token cache: as configured, else beside the run."""
    root = local_root(config.output)
    run = config.output.rstrip("/") if root is None else str(root.resolve())
    return config.tokens.cache or f"{run.rpartition('/')[0]}/tokens"


def plan_run(config: TrainConfig, pairs: Table, manifest: Manifest, *, executor: Executor = LOCAL) -> RunPlan:
    """Return the plan of a run; makes the token table where there is none yet.

    Raises:
        ConfigError: if the batch cannot be planned.
        StoreError, ModelError: if the pairs table or the model cannot be used.
    """
    outline = outline_of(meta_model(config.model.path), config.lora)
    tokens_url, tokens_manifest = ensure_tokens(
        config.data.pairs,
        version=manifest.version,
        tokenizer_path=config.model.path,
        config=config.tokens,
        into=token_cache_url(config),
        executor=executor,
    )
    table = TokenTable(local_token_paths(tokens_url, tokens_manifest))
    rows = table.rows_of_split("train")
    if config.training.best_metric is not None and not len(table.rows_of_split("validation")):
        raise ConfigError(
            f'training.best_metric = "{config.training.best_metric}" needs a validation split, and {pairs.url} version '
            f"{manifest.version} has none; leave it out, or expand with validation_fraction above 0"
        )
    _check_positions(config.model.path, outline, table)
    return RunPlan(
        pairs=manifest,
        tokens_url=tokens_url,
        tokens_manifest=tokens_manifest,
        outline=outline,
        schedule=schedule_of(len(rows), config),
        identity=RunIdentity.of(
            config=config,
            pairs_url=pairs.url,
            pairs_version=manifest.version,
            pairs_digest=manifest.digest,
            tokens_digest=tokens_manifest.digest,
            model_digest=starting_digest(config.model.path),
        ),
    )


def _check_positions(path: str, outline: ModelOutline, tokens: TokenTable) -> None:
    longest, limit = tokens.longest_row_tokens, outline.max_positions
    if limit is not None and longest > limit:
        raise ModelError(
            f"{path}: knows {limit} positions, but the longest completion takes {longest} tokens with its prompt; set "
            f"tokens.max_length to {limit} or less"
        )


def with_absolute_paths(config: TrainConfig) -> TrainConfig:
    """Return the configuration for workers, which Ray Train starts in another folder."""
    path, template = Path(config.model.path), config.tokens.chat_template
    model = config.model.model_copy(update={"path": str(path.resolve()) if path.is_dir() else config.model.path})
    is_file = template is not None and template.endswith(".jinja")
    resolved = str(Path(template).resolve()) if template is not None and is_file else template
    tokens = config.tokens.model_copy(update={"chat_template": resolved})
    return config.model_copy(update={"model": model, "tokens": tokens})


def starting_digest(path: str) -> str:
    """Return the digest of a local model directory; of a hub name, the name itself."""
    return model_digest(Path(path)) if Path(path).is_dir() else f"hub:{path}"
