"""The runs of a sweep as plain configurations: every combination of the varied keys' values, with several seeds."""

import json
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import product
from typing import Any

from pairwright.config.annotated_file import toml_value
from pairwright.config.loading import config_digest, digest_of, load_config
from pairwright.config.train import TrainConfig
from pairwright.errors import ConfigError

_NOT_VARIED = {
    "output": "a sweep names its runs' folders itself",
    "training.seed": "give --seeds N",
    "data": "runs on unlike data cannot stand in one table",
    "tracking": "set it once, with --set",
}
_UNSAFE = re.compile(r"[^A-Za-z0-9._=-]+")
_MAX_CHARACTERS = 80
"""Of a setting's name, which is a folder's."""


@dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep."""

    name: str
    """Of its folder in the sweep's."""
    setting: dict[str, Any]
    """Varied key -> value."""
    config: TrainConfig

    @property
    def seed(self) -> int:
        """The run's seed; runs of one setting differ in it alone."""
        return self.config.training.seed


def plan_sweep(
    path: str, settings: Sequence[str], varied: Sequence[str], *, num_seeds: int, output: str
) -> list[PlannedRun]:
    """Return the runs of a sweep, the seeds of a setting one after the other.

    Args:
        path: TOML file of the configuration that they share.
        settings: ``key=value`` on top of it, for all.
        varied: ``key=value,value...``; values are read as TOML, or as text where they are not TOML.
        num_seeds: seeds of each setting, from the configuration's own on.
        output: URL of the sweep's folder.

    Raises:
        ConfigError: if a configuration cannot be used, a key cannot be varied, or two runs would be the same.
    """
    choices = [_choices(one) for one in varied]
    keys = [key for key, _ in choices]
    if again := {key for key in keys if keys.count(key) > 1}:
        raise ConfigError(f"--vary {min(again)}: given twice; give all its values at once, as KEY=VALUE,VALUE")
    runs = []
    for values in product(*(of_key for _, of_key in choices)):
        setting = dict(zip(keys, values, strict=True))
        overrides = [*settings, *(f"{key}={toml_value(value)}" for key, value in setting.items())]
        first = load_config(TrainConfig, path, [*overrides, f"output={json.dumps(output)}"])
        for seed in range(first.training.seed, first.training.seed + num_seeds):
            name = _name(setting, seed)
            training = first.training.model_copy(update={"seed": seed})
            changes = {"output": f"{output.rstrip('/')}/{name}", "training": training}
            runs.append(PlannedRun(name, setting, first.model_copy(update=changes)))
    names = [run.name for run in runs]
    if again := {name for name in names if names.count(name) > 1}:
        raise ConfigError(f"--vary: two settings are both {min(again)}; give each value once")
    return runs


def sweep_digest(runs: Sequence[PlannedRun]) -> str:
    """Return what tells one sweep from another: the digest of its runs' configurations."""
    return digest_of({run.name: config_digest(run.config) for run in runs})


def _choices(varied: str) -> tuple[str, list[Any]]:
    key, equals, text = varied.partition("=")
    key = key.strip()
    if not equals or not key or not text.strip():
        raise ConfigError(
            f"--vary {varied}: expected section.key=value,value, such as optimizer.learning_rate=1e-5,3e-5"
        )
    for fixed, reason in _NOT_VARIED.items():
        if key == fixed or key.startswith(f"{fixed}."):
            raise ConfigError(f"--vary {key}: cannot be varied; {reason}")
    try:
        return key, tomllib.loads(f"values = [{text}]")["values"]
    except tomllib.TOMLDecodeError:
        return key, [_value(one.strip()) for one in text.split(",")]


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _name(setting: dict[str, Any], seed: int) -> str:
    """Return the name of a run's folder, such as ``learning_rate=1e-05-seed=0``."""
    last = [key.rpartition(".")[2] for key in setting]
    shown = [key if last.count(name) > 1 else name for key, name in zip(setting, last, strict=True)]
    values = [value if isinstance(value, str) else toml_value(value) for value in setting.values()]
    plain = "-".join(f"{name}={value}" for name, value in zip(shown, values, strict=True))
    safe = _UNSAFE.sub("_", plain)
    if safe != plain or len(safe) > _MAX_CHARACTERS:  # two that were cut alike stay two
        safe = f"{safe[:_MAX_CHARACTERS]}-{sha256(plain.encode()).hexdigest()[:6]}"
    return "-".join(filter(None, [safe, f"seed={seed}"]))
