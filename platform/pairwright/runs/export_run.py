"""Exports a checkpoint of a run as the plain Hugging Face directory that the run would have exported at that step.

One process, no cluster and no GPU. What decides the model (architecture, template, precision, adapters) comes from
``run.json`` and the starting model, never from a flag. The weights come from the checkpoint, each file hashed first.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import obstore
import torch
from obstore.store import ObjectStore
from pydantic import ValidationError
from torch import Tensor
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from pairwright.config import TrainConfig
from pairwright.data.storage.model_listing import RULES_FILE
from pairwright.data.storage.object_store import local_root, open_store, store_errors
from pairwright.data.storage.outputs import check_free, put_directory
from pairwright.data.tokens.chat_template import resolve_template
from pairwright.data.tokens.tokenizer import load_tokenizer
from pairwright.errors import CheckpointError, ConfigError, ModelError
from pairwright.evaluation.load_exported import model_digest
from pairwright.model.load_model import DTYPES, starting_model
from pairwright.model.lora import KeptAdapter
from pairwright.model.model_export import choose_pad_token, save_reward_model
from pairwright.model.reward_model import RewardModel
from pairwright.runs.checkpoints import KeptCheckpoint, KeptCheckpoints, kept_checkpoints
from pairwright.runs.folder_transfer import objects_below
from pairwright.runs.run_dir import BEST_NAME, CHECKPOINTS_NAME, RUN_NAME, RunFolder
from pairwright.runs.run_identity import RunIdentity
from pairwright.training.checkpoint import CheckpointManifest
from pairwright.training.checkpoint_shards import consolidated_state_dict


@dataclass(frozen=True)
class ExportedCheckpoint:
    """What was exported."""

    checkpoint: str
    step: int
    into: str


def export_checkpoint(
    run: str, *, checkpoint: str | None, into: str, model: str | None, keep_adapter: bool = False
) -> ExportedCheckpoint:
    """Write the model of a checkpoint, of any ZeRO stage and number of ranks, as the run would have exported it.

    Takes memory for one copy of the model, two under LoRA (measured in docs/training.md), and reads the checkpoint
    twice. A remote one is downloaded, to a temporary folder.

    Args:
        run: output folder of a run, a path or a URL.
        checkpoint: name, step or "best"; None for the one that the next start would resume from.
        into: directory or URL; made, and must not hold anything yet.
        model: where the run's starting model is now; None where it has not moved.
        keep_adapter: keep a LoRA run's adapter beside the merged weights.

    Raises:
        StoreError: if there is no run, or something is in ``into`` already.
        CheckpointError: if there is no such checkpoint, or if it is corrupt.
        ModelError: if the starting model is missing, or is not the one that the run started from.
    """
    disable_progress_bar()
    # It would report weights that the starting model lacks, and all of them are in the checkpoint.
    set_verbosity_error()
    found = kept_checkpoints(run, verify=False)
    kept, manifest, below = _chosen(found, checkpoint)
    folder = RunFolder(run)
    identity = folder.identity()
    assert identity is not None
    if manifest.run_digest != identity.digest:
        raise CheckpointError(f"{folder.url}: checkpoint {kept.name} belongs to another run than run.json says")
    config = _config_of(identity, folder, model)
    if keep_adapter:
        config = _keeping_adapter(config, folder)
    check_free(into)
    with _local_copy(folder, f"{below}/{kept.name}") as directory:
        _export(config, directory, manifest, into)
    return ExportedCheckpoint(checkpoint=kept.name, step=manifest.step, into=into)


def _keeping_adapter(config: TrainConfig, folder: RunFolder) -> TrainConfig:
    if config.lora is None:
        raise ConfigError(f"{folder.url}: --keep-adapter, but the run trained no adapter; leave it out")
    return config.model_copy(update={"lora": config.lora.model_copy(update={"keep_adapter": True})})


def _chosen(found: KeptCheckpoints, wanted: str | None) -> tuple[KeptCheckpoint, CheckpointManifest, str]:
    """Return the checkpoint of a name or a step, committed and valid ones first, and the folder that it is in."""
    best = [] if found.best is None else [found.best]
    listed = sorted([*found.checkpoints, *best], key=lambda kept: (kept.corruption is not None, not kept.committed))
    if wanted is None:
        fitting = [kept for kept in [found.next_start, *listed] if kept is not None]
    elif wanted == "best":
        fitting = best
    else:
        fitting = [kept for kept in listed if wanted in (kept.name, _step(kept))]
    if not fitting:
        there = ", ".join(f"{kept.name} (step {_step(kept)})" for kept in listed) or "none"
        raise CheckpointError(f"{found.run}: no checkpoint {wanted or 'yet'}; there are: {there}")
    kept = fitting[0]
    if kept.corruption is not None or kept.manifest is None:
        raise CheckpointError(
            f"{found.run}: checkpoint {kept.name} is corrupt ({kept.corruption}); `pairwright checkpoints` "
            "lists the valid ones"
        )
    return kept, kept.manifest, BEST_NAME if kept is found.best else CHECKPOINTS_NAME


def _step(kept: KeptCheckpoint) -> str:
    return "unknown" if kept.manifest is None else str(kept.manifest.step)


def _config_of(identity: RunIdentity, folder: RunFolder, model: str | None) -> TrainConfig:
    """Return the run's configuration, as far as it decides the model."""
    values = identity.config | {"output": folder.url, "data": {"pairs": identity.pairs_url}}
    # Runs of versions without these keys were trained so.
    defaults = {"tokens": {"special_in_text": "keep", "template_end": "template"}}
    chosen = {} if model is None else {"model": {"path": model}}
    for name in ("tokens", "model"):
        section = values.get(name, {})
        if isinstance(section, dict):  # else it is refused below
            values[name] = defaults.get(name, {}) | section | chosen.get(name, {})
    try:
        config = TrainConfig.model_validate(values)
    except ValidationError as error:
        found = "; ".join(f"{'.'.join(map(str, one['loc']))!r}: {one['msg']}" for one in error.errors()[:3])
        raise ConfigError(
            f"{folder.path(RUN_NAME)}: the run's configuration cannot be used by this version of Pairwright ({found})"
        ) from None
    path = Path(config.model.path)
    # Whoever wrote run.json chose this path: only a model's directory is read, and hashed.
    if identity.model_digest != f"hub:{path}" and not (path / "config.json").is_file():
        raise ModelError(f"{path}: the run's starting model is not here; say where it is now with --model")
    if path.is_dir() and not identity.model_digest.startswith("hub:") and model_digest(path) != identity.model_digest:
        raise ModelError(f"{path}: not the model that the run started from (its digest is another); name that one")
    return config


@contextmanager
def _local_copy(run: RunFolder, name: str) -> Iterator[Path]:
    root = local_root(run.url)
    if root is not None:
        yield root / name
        return
    with tempfile.TemporaryDirectory(prefix="pairwright-checkpoint-") as directory:
        with store_errors(run.path(name)):
            _download(open_store(run.url), name, Path(directory))
        yield Path(directory)


def _download(store: ObjectStore, name: str, into: Path) -> None:
    for entry in objects_below(store, name):
        path = into / entry["path"].removeprefix(f"{name}/")
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            for part in obstore.get(store, entry["path"]).stream():
                file.write(part)


def _export(config: TrainConfig, directory: Path, manifest: CheckpointManifest, into: str) -> None:
    tokenizer = load_tokenizer(config.model.path)
    template = resolve_template(tokenizer, config.tokens)
    model = starting_model(config, tokenizer, pad_token_id=choose_pad_token(tokenizer))
    dtype = DTYPES[config.deepspeed.precision]
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = torch.empty(0)  # the checkpoint has it; else both would be held at once
    state = _with_frozen(consolidated_state_dict(directory, manifest, dtype=dtype), model, directory)
    with tempfile.TemporaryDirectory(prefix="pairwright-export-") as exported:
        save_reward_model(
            state,
            model,
            tokenizer,
            exported,
            chat_template=template,
            dtype=dtype,
            tokens=config.tokens,
            kept_adapter=KeptAdapter.of(config),
        )
        put_directory(Path(exported), into, last=RULES_FILE)


def _with_frozen(weights: dict[str, Tensor], model: RewardModel, directory: Path) -> dict[str, Tensor]:
    """Return all of a model's weights: the checkpoint's, and the starting model's where they are not trained."""
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    expected = model.state_dict()
    if odd := sorted((trained - weights.keys()) | (weights.keys() - expected.keys())):
        raise CheckpointError(f"{directory}: these are not the weights of the run's model: {odd[0]} is in one alone")
    return expected | weights
