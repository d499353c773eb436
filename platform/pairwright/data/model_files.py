"""A model directory's JSON, checked before transformers builds what it says, however large, from wherever it says."""

import json
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pairwright.errors import ModelError, PairwrightError

MAX_COUNT = 4096
"""Layers, labels or experts that a configuration may name: transformers makes an object of each before it reads a
weight, 40 s for a million. Published models have at most a few hundred."""
MODEL_EXPECTED = "expected a directory with config.json and model.safetensors, or the name of a model on the hub"
_COUNTED = re.compile("layer|label|expert")


def check_model_files(directory: Path) -> None:
    """Refuse a configuration of absurd size, and a list of weights that leads out of the directory.

    Nothing is said of a directory that has neither file, or of whether the weights are there and whole.

    Raises:
        ModelError: naming the file.
    """
    for file in sorted(directory.glob("*.index.json")):
        index = _json_object(file)
        names = index.get("weight_map", {})
        for name in {str(name) for name in (names.values() if isinstance(names, dict) else [names])}:
            if Path(name).name != name:
                raise ModelError(f"{file}: names the file {name!r}, expected one beside it; fetch the model again")
    file = directory / "config.json"
    if not file.exists():
        return
    for name, value in _settings(_json_object(file)):
        if _COUNTED.search(name) and isinstance(value, int | float) and value > MAX_COUNT:
            raise ModelError(f"{file}: {name} is {value:.6g}, expected at most {MAX_COUNT:,}; the file is damaged")


@contextmanager
def model_errors(what: str) -> Iterator[None]:
    """Turn whatever transformers, tokenizers, torch and safetensors raise over a model's files into a ModelError.

    They raise dozens of kinds, some of them bare Exception, and none promises which.

    Args:
        what: beginning of the message: where, and what cannot be done.
    """
    try:
        yield
    except PairwrightError:
        raise
    except Exception as error:
        raise ModelError(f"{what}: {reason_of(error)}") from error


def reason_of(error: BaseException) -> str:
    """Return what such an exception says in one line: its first, after its kind unless that tells nothing.

    What it advises about code that comes with a model is left out: that is not for Pairwright to run.
    """
    if "trust_remote_code" in str(error):
        return "it needs code of its own, which Pairwright never runs; use a model that transformers itself knows"
    if "ignore_mismatched_sizes" in str(error):
        return "its weights have other shapes than config.json says"
    if isinstance(error, pickle.UnpicklingError):
        return f"{refused_in_pickle(error)}, and nothing was run; have it saved as model.safetensors by its maker"
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")
    return first if type(error) in (OSError, ValueError) else f"{type(error).__name__}: {first}"


def refused_in_pickle(error: pickle.UnpicklingError) -> str:
    """Return what torch found in a pickle beside tensors and plain values; its own message is a page of advice."""
    named = re.search(r"GLOBAL (\S+)", str(error))
    return f"names {named[1]}" if named else "holds what is no data"


def _json_object(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file}: cannot be read as JSON ({reason_of(error)}); fetch the model again") from None
    if not isinstance(found, dict):
        raise ModelError(f"{file}: holds a {type(found).__name__}, expected a JSON object; fetch the model again")
    return found


def _settings(values: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield every setting of a configuration and of those within it, by name."""
    waiting = [values]
    while waiting:
        for name, value in waiting.pop().items():
            yield name, value
            if isinstance(value, dict):
                waiting.append(value)
