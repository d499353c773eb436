"""What a verb submits to a cluster: its command line, and what its job is labelled with; what cannot work is refused.

Everything here happens before anything is uploaded. No Ray.
"""

import json
import re
import shlex
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pairwright import __version__
from pairwright.config import TrainConfig, load_config, load_pipeline
from pairwright.data.table.table import Table
from pairwright.errors import ConfigError, PairwrightError

FLAGS_OF_SUBMITTING = {"--address": 1, "--submission-id": 1, "--no-wait": 0}
"""Flag -> how many values it takes; a job's own command line is without them."""
LOOK_SECONDS = 5.0
"""How long the newest version of a table may take to be read, for a label."""
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_TABLE_ARGUMENTS = ("pairs", "annotations", "url")


@dataclass(frozen=True)
class JobRequest:
    """A job to be submitted."""

    entrypoint: str
    folder: Path
    """Travels with the job, and is where it starts."""
    metadata: dict[str, str]
    """Shown beside the job in the dashboard and by the jobs API: ``stage``, ``run`` or ``output``, ``data``, its
    version, and the version of Pairwright."""


def job_request(verb: str, arguments: Sequence[str], params: Mapping[str, Any], *, folder: Path) -> JobRequest:
    """Return the job that does what a command line does, once it is known to be able to.

    Args:
        verb: of the command line.
        arguments: behind the verb, as they were given.
        params: what they were parsed into.
        folder: where the command was started; its files travel with the job.

    Raises:
        ConfigError: if a configuration cannot be used, an output would be lost, or a file of the folder hides a module
            of Python's own.
    """
    refuse_hiding_modules(folder)
    outputs, metadata = _described(verb, params)
    for where, output in outputs.items():
        if "://" not in output and not Path(output).is_absolute():
            raise ConfigError(
                f"{where}: {output} is relative, and lies on the cluster in a copy of this folder that goes when the "
                "job has ended; name a URL, or an absolute path that all nodes share"
            )
    words = ["python", "-m", "pairwright", verb, *without_flags_of_submitting(arguments)]
    common = {"stage": verb, "pairwright": __version__}
    return JobRequest(entrypoint=shlex.join(words), folder=folder, metadata=common | metadata)


def check_address(address: str, submission_id: str | None) -> None:
    """Refuse an address that is no dashboard's, and an id that Ray cannot make a file's name of.

    Raises:
        ConfigError: if so.
    """
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(
            f"--address {address}: expected the address of a head's dashboard, such as http://HEAD:8265 (ray:// and "
            "port 6379 are for drivers)"
        )
    if submission_id is not None and not _ID.fullmatch(submission_id):
        raise ConfigError(
            f"--submission-id {submission_id}: expected letters, digits, dots, dashes and underscores, at most 128"
        )


def without_flags_of_submitting(arguments: Sequence[str]) -> list[str]:
    """Return a command line without the flags that say where and how it is submitted."""
    kept, rest = [], list(arguments)
    while rest:
        word = rest.pop(0)
        name, has_value, _ = word.partition("=")
        if word == "--":
            return [*kept, word, *rest]
        if name not in FLAGS_OF_SUBMITTING:
            kept.append(word)
        elif not has_value:
            del rest[: FLAGS_OF_SUBMITTING[name]]
    return kept


def refuse_hiding_modules(folder: Path) -> None:
    """Refuse a folder that hides modules of Python's own: the job would hang while it is set up, with no error.

    A job starts with its folder at the head of Python's path (https://github.com/ray-project/ray/issues/58772).

    Raises:
        ConfigError: naming them.
    """
    names = {*sys.stdlib_module_names, "ray"}
    found = [path for path in folder.glob("*.py") if path.stem in names]
    found += [path for path in folder.glob("*/__init__.py") if path.parent.name in names]
    if found:
        shown = ", ".join(sorted(path.relative_to(folder).as_posix() for path in found))
        raise ConfigError(
            f"{folder}: {shown} would hide a module of Python's own, and a job that is submitted from here would hang; "
            "rename it, or start the command in a folder that has only your configurations"
        )


def _described(verb: str, params: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the outputs of a command, by the flag or key that names them, and what describes its job."""
    output, version = params.get("output"), params.get("version")
    outputs = {"--output": str(output)} if output is not None else {}
    if verb == "run":
        return _of_pipeline(params)
    if verb in ("train", "sweep"):
        given = list(params["settings"]) + ([f"output={json.dumps(output)}"] if output is not None else [])
        config = load_config(TrainConfig, params["config"], given)
        outputs = outputs or {"output": config.output}
        return outputs, {"run": config.output} | _of_data(config.data.pairs, config.data.version)
    tables = next((params[name] for name in _TABLE_ARGUMENTS if params.get(name)), None)
    table = tables[0] if isinstance(tables, list) else tables
    described = {} if table is None else _of_data(table, version)
    return outputs, described | ({} if output is None else {"output": str(output)})


def _of_pipeline(params: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    pipeline = load_pipeline(params["pipeline"], params["settings"])
    stages = pipeline.stages
    named = {name: getattr(getattr(stages, name), "output", None) for name in stages.names}
    outputs = {f"{name}.output": str(output) for name, output in named.items() if output is not None}
    if pipeline.train is not None:
        outputs["train.output"] = pipeline.train.output
    described = {"pipeline": str(params["pipeline"]), "stages": ", ".join(stages.names)}
    if "train.output" in outputs:
        described["run"] = outputs["train.output"]
    return outputs, described


def _of_data(table: str, version: int | None) -> dict[str, str]:
    """Return a table and its version; without the version where this machine cannot read the table, or not at once."""
    found = [] if version is None else [version]

    def look() -> None:
        with suppress(PairwrightError, IndexError, OSError):
            found.append(Table(table, "pairs").versions()[-1])

    if not found:
        looking = threading.Thread(target=look, daemon=True)  # a store without credentials is asked for minutes
        looking.start()
        looking.join(LOOK_SECONDS)
    return {"data": table} | ({"data_version": str(found[0])} if found else {})
