"""Stores the mean and standard deviation of a model's rewards on reference completions, in the model's directory.

Rewards of two models, or of two runs, have scales of their own; InstructGPT's are shifted so that references have a
mean of 0 (Ouyang et al. 2022, section 3.5). Nothing applies the numbers by itself: ``serve --normalized`` does, and
OpenRLHF where it is told to.
"""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from pairwright.data.storage.model_listing import RULES_FILE, list_files
from pairwright.data.storage.object_store import local_root
from pairwright.data.table.table import Table
from pairwright.data.tokens.conversation_tokens import TokenSpec
from pairwright.errors import ConfigError, DataError, StoreError
from pairwright.evaluation.load_exported import ExportedModel, Normalization, load_exported, open_exported
from pairwright.evaluation.requests import ScoreRequest, requests_of_rows
from pairwright.evaluation.score import score_requests

_ROWS_AT_ONCE = 64
_MODEL_KEYS = ("mean", "std")
"""Of ``config.json``, where an export for OpenRLHF has them."""


def normalize(
    model: str, reference: str, *, version: int | None, micro_batch_tokens: int, device: torch.device, overwrite: bool
) -> Normalization:
    """Score a table's completions in this process, and store the mean and standard deviation of their rewards.

    ``config.json`` and the list of files in ``pairwright.json`` are brought up to date, so that the model still counts
    as what was exported; its digest changes.

    Args:
        model: directory of an exported model on this machine.
        reference: URL of an annotations or pairs table.
        version: of the table; the newest if None.
        micro_batch_tokens: token budget of one forward pass, padding included.
        device: on which the model computes.
        overwrite: replace numbers that are there already.

    Raises:
        ConfigError: if the model is remote.
        StoreError: if it has such numbers already, or there is no table.
        DataError: if the table has fewer than two completions that can be scored, or all rewards are equal.
        ModelError: if the model cannot be used or is damaged.
    """
    if local_root(model) is None:
        raise ConfigError(
            f"{model}: expected a directory on this machine, whose files can be changed; download it first"
        )
    exported = open_exported(model)
    if exported.rules.normalization is not None and not overwrite:
        raise StoreError(
            f"{model}: has the reference {exported.rules.normalization.reference} already; use --overwrite"
        )
    exported.verify(hashes=True)
    table = Table.open(reference)
    manifest = table.manifest(version)
    found = _rewards(exported, table, manifest.version, micro_batch_tokens=micro_batch_tokens, device=device)
    rewards = np.concatenate([np.empty(0), *found])
    if len(rewards) < 2 or rewards.std() == 0:
        raise DataError(
            f"{reference}: gives {len(rewards)} rewards, {len(np.unique(rewards))} different, expected at least two; "
            "choose a table with completions that the model can score"
        )
    stored = Normalization(
        mean=float(rewards.mean()),
        std=float(rewards.std()),
        reference=reference,
        version=manifest.version,
        num_rewards=len(rewards),
    )
    _store(exported, stored)
    return stored


def _rewards(
    exported: ExportedModel, table: Table, version: int, *, micro_batch_tokens: int, device: torch.device
) -> Iterator[np.ndarray]:
    loaded = load_exported(exported, device)
    spec = TokenSpec.of(loaded.tokenizer, exported.rules.tokens_config())
    for requests in _requests(table, version):
        scored = score_requests(loaded, spec, requests, [], micro_batch_tokens=micro_batch_tokens)
        yield scored.scores["reward"].to_numpy().astype(np.float64)


def _requests(table: Table, version: int) -> Iterator[list[ScoreRequest]]:
    line = 1
    for rows in table.read(table.manifest(version)):
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            part = rows.slice(start, _ROWS_AT_ONCE)
            yield requests_of_rows(part, line, table.url)
            line += len(part)


def _store(exported: ExportedModel, normalization: Normalization) -> None:
    """Write the numbers into ``config.json``, where it has keys for them, and into ``pairwright.json``, last."""
    directory = exported.directory
    config_file, rules_file = directory / "config.json", directory / RULES_FILE
    config: dict[str, Any] = msgspec.json.decode(config_file.read_bytes())
    if all(key in config for key in _MODEL_KEYS):
        _replace(config_file, config | {"mean": normalization.mean, "std": normalization.std})
    rules: dict[str, Any] = msgspec.json.decode(rules_file.read_bytes())
    rules["normalization"] = msgspec.to_builtins(normalization)
    if exported.rules.files:
        rules["files"] = msgspec.to_builtins(list_files(directory))
    _replace(rules_file, rules)


def _replace(file: Path, content: dict[str, Any]) -> None:
    """Replace a file, whole or not at all."""
    with tempfile.NamedTemporaryFile(dir=file.parent.parent, delete=False) as written:
        written.write(msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n")
        written.flush()
        os.fsync(written.fileno())
    Path(written.name).chmod(file.stat().st_mode & 0o777)
    Path(written.name).replace(file)
