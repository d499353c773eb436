"""Checks a model directory's JSON files and weights before transformers builds what they describe."""

import json
import os
import pickle
import re
import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from safetensors import safe_open

from pairwright.errors import ModelError, PairwrightError, one_line
from pairwright.suggestions import did_you_mean_path

MAX_COUNT = 4096
"""Layers, labels or experts that a configuration may name: transformers makes an object of each before it reads a
weight, 40 s for a million. Published models have at most a few hundred."""
MODEL_EXPECTED = "expected a directory with config.json and model.safetensors, or the name of a model on the hub"
HUB_SECONDS = 3.0
"""How long a hub may take to accept a connection before its models count as out of reach."""
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_COUNTED = re.compile("layer|label|expert")
_ADAPTER_FILE = "adapter_config.json"
_MAX_NAME = 200
# Above the backbone: OpenRLHF's value_head, v_head of TRL and DeepSpeed-Chat, UltraRM's regression_head, ArmoRM's
# regression_layer, Beaver's score_head, and heads of several layers, such as score.0 and score.2 of Qwen2.5-Math-RM.
_HEAD = re.compile(
    r"(?:(?:v|value|rm|reward|regression|score|scalar|critic)_?(?:head|layer)|score|reward|classifier|classification_head)"
    r"(?:\.\w+)*\.weight"
)


def check_model_path(path: str) -> None:
    """Refuse a path where no model can be, at once: transformers would ask a hub that is out of reach for minutes.

    Nothing is said of a directory's files (``check_model_files``), nor of a name whose hub answers.

    Raises:
        ModelError: if the path is neither a directory, nor a hub's name of a model that was fetched or can be.
    """
    directory = Path(path)
    if directory.is_dir():
        return
    if directory.exists():
        raise ModelError(f"{path}: a file; {MODEL_EXPECTED}")
    is_name = _HUB_NAME.fullmatch(path) and not ("/" in path and directory.parent.is_dir())
    if not is_name:
        raise ModelError(f"{path}: no such directory; {MODEL_EXPECTED}{did_you_mean_path(path)}")
    if not _was_fetched(path) and (hub := _unreachable_hub()) is not None:
        raise ModelError(
            f"{path}: no such directory here, and no model of that name can be fetched: {hub}; give the path of a "
            f"model directory, or make a small one with `pairwright new-model`{did_you_mean_path(path)}"
        )


def _was_fetched(name: str) -> bool:
    """Return whether the hub's cache on this machine has the configuration of a model."""
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(name, "config.json"), str)


def _unreachable_hub() -> str | None:
    """Return why the hub is out of reach, None if it accepts a connection; the proxy does, where there is one."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return "HF_HUB_OFFLINE is set"
    hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    proxy = next((os.environ[name] for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY") if os.environ.get(name)), "")
    address = urlsplit(proxy or hub)
    try:
        port = address.port or (443 if address.scheme == "https" else 80)
        socket.create_connection((address.hostname or "", port), timeout=HUB_SECONDS).close()
    except (OSError, ValueError) as error:
        return f"{address.hostname} does not answer ({error})"
    return None


def check_model_files(directory: Path) -> None:
    """Refuse an adapter, a configuration of absurd size, and a list of weights that leads out of the directory.

    Nothing is said of a directory that has none of their files, or of whether the weights are there and whole.

    Raises:
        ModelError: naming the file.
    """
    if (adapter := directory / _ADAPTER_FILE).exists():
        # Where such a file lies, transformers reads the weights of the base that it names, whatever lies beside it.
        base = _json_object(adapter).get("base_model_name_or_path")
        raise ModelError(
            f"{directory}: an adapter ({_ADAPTER_FILE}) of {one_line(str(base or 'an unnamed base'))[:_MAX_NAME]}, "
            "expected a whole model; merge it into its base first (docs/evaluation.md), or remove that file if that "
            "is done"
        )
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


def heads_among(weights: Iterable[str]) -> list[str]:
    """Return the names of weights that reward heads have in other programs than transformers, sorted.

    Args:
        weights: names of those that the model has no place for, or of all.
    """
    return sorted(name for name in weights if _HEAD.fullmatch(name.removeprefix("model.")))


def other_head(names: Sequence[str]) -> str:
    """Return what is said of weights that ``heads_among`` found; nothing where it found none."""
    if not names:
        return ""
    if len(names) > 1:
        shown = ", ".join(names[:3])
        return f"the weights hold {shown}, a head of another shape; Pairwright reads one linear layer of one row"
    return (
        f"the weights hold {names[0]}, a head under another name; rename it as docs/evaluation.md shows, and see that "
        "config.json says the architecture ForSequenceClassification and num_labels 1"
    )


def weight_names(directory: Path) -> list[str]:
    """Return the names of a model directory's weights, from the headers of its safetensors files; none of others."""
    names: list[str] = []
    for file in sorted(directory.glob("*.safetensors")):
        with model_errors(f"{file}: cannot be read"), safe_open(file, "np") as weights:
            names += weights.keys()
    return names


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
