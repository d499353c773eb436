"""The output folder of a run: its identity, its summary once it has finished, and the names of its files and folders.

``run.json`` is written before the first step and holds what decides the result; the same command, started again, finds
it and resumes the run. ``summary.json`` is written last: a run has finished if and only if it is there.
"""

import re
import tempfile
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import msgspec
import obstore
from obstore.exceptions import NotFoundError
from obstore.store import ObjectStore

from pairwright.config import TrainConfig
from pairwright.data.storage.model_listing import RULES_FILE, written_files
from pairwright.data.storage.object_store import local_root, store_errors
from pairwright.data.storage.outputs import check_own, is_free, replace_directory
from pairwright.data.storage.ownership import CHECKPOINT_NAME, RUN, refuse_occupied, stored_files
from pairwright.data.table.table import Input, open_store
from pairwright.errors import ConfigError
from pairwright.records import UNREADABLE_JSON
from pairwright.runs.recovery import Recovery
from pairwright.runs.run_identity import RunIdentity, differences, differences_line
from pairwright.terminal import safe_json

RUN_NAME = "run.json"
SUMMARY_NAME = "summary.json"
_OLD_SUMMARY_NAME = "training.json"
"""Its name in earlier versions, when its fields had other names too."""
MODEL_NAME = "model"
CHECKPOINTS_NAME = "checkpoints"
CORRUPT_NAME = "checkpoints-corrupt"
BEST_NAME = "checkpoints-best"
_PROGRESS = frozenset({MODEL_NAME, SUMMARY_NAME, _OLD_SUMMARY_NAME})
_METRICS_NAME = re.compile(r"metrics-.*\.jsonl")


class RunClaim(msgspec.Struct, frozen=True, kw_only=True):
    """What a start of a run finds in its output."""

    status: Literal["new", "same", "replaced"]
    """new: nothing; same: this run; replaced: a run with another configuration that never took a step."""
    identity: RunIdentity
    """Of the run, with the digest that its first start gave it."""
    replaced: str = ""
    """How the run that gives way differs."""
    is_recorded: bool = False
    """Whether ``run.json`` says all of this already."""


class TrainedOn(msgspec.Struct, frozen=True, kw_only=True):
    """What a run was trained on, back to the annotations."""

    pairs: str
    version: int
    digest: str
    inputs: list[Input]
    tokens: str
    tokens_digest: str
    tokens_totals: dict[str, int | float]


class TrainingSummary(msgspec.Struct, frozen=True, kw_only=True):
    """How a run ended and what it was made from; ``summary.json``."""

    format_version: Literal[1] = 1
    config: dict[str, Any]
    config_digest: str
    run_digest: str
    data: TrainedOn
    model_digest: str
    steps: int
    resumes: int
    restarts: int
    recoveries: list[Recovery] = []
    """The losses of workers behind ``restarts``, in order."""
    corrupt_checkpoints: int
    """How many checkpoints failed verification and were moved to ``checkpoints-corrupt/``."""
    world_sizes: tuple[int, ...] = ()
    """Numbers of workers that the command which finished the run started, in order."""
    skipped_steps: tuple[int, ...] = ()
    """Steps whose loss or gradient was not finite, and which changed nothing (``training.on_non_finite``)."""
    seconds: float
    """Of the command that finished the run, tokenising included; not of those that died before."""
    validation: dict[str, Any]
    """Metrics on the validation split, empty where it holds no pair."""
    versions: dict[str, str]


def check_output(config: TrainConfig) -> None:
    """Refuse an output in the starting model's directory or above it: one would overwrite the other.

    Raises:
        ConfigError: if so.
    """
    root, path = local_root(config.output), Path(config.model.path)
    if root is None or not path.is_dir():
        return
    output, model = root.resolve(), path.resolve()
    if output == model or output in model.parents or model in output.parents:
        raise ConfigError(
            f"output {config.output} and model.path {config.model.path} are one folder, or one lies in the other; give "
            "the run a folder of its own, beside the model"
        )


class RunFolder:
    """Where a run's outputs go: a local directory, or a URL on object storage with a local copy of small files."""

    def __init__(self, url: str) -> None:
        self.is_local = "://" not in url or url.startswith("file://")
        self.url = str(Path(url.removeprefix("file://")).resolve()) if self.is_local else url.rstrip("/")
        self._store = open_store(self.url)
        self._published: dict[Path, tuple[int, int]] = {}

    @cached_property
    def _copies(self) -> tempfile.TemporaryDirectory[str]:
        return tempfile.TemporaryDirectory(prefix="pairwright-run-")  # goes with this object

    @property
    def local_directory(self) -> Path:
        """Where small files are written: the folder itself, or for a remote one a temporary folder of this machine."""
        return Path(self.url) if self.is_local else Path(self._copies.name)

    def path(self, name: str) -> str:
        """Return the path or URL of something in the folder."""
        return f"{self.url}/{name}"

    def read(self, name: str) -> bytes | None:
        """Return the content of a small file, or None where there is none."""
        with store_errors(self.path(name)):
            return read_object(self._store, name)

    def identity(self) -> RunIdentity | None:
        """Return what this folder is a run of, or None if nothing ran here yet."""
        content = self.read(RUN_NAME)
        if content is None:
            return None
        try:
            return msgspec.json.decode(content, type=RunIdentity)
        except UNREADABLE_JSON as error:
            raise ConfigError(
                f"{self.path(RUN_NAME)}: cannot be read ({error}); if no run of yours is here, remove it or choose "
                "another output"
            ) from None

    def check_free(self) -> None:
        """Refuse a folder that holds neither a run nor nothing.

        Raises:
            StoreError: naming what is there.
        """
        if self.identity() is None:
            refuse_occupied(self.url, RUN, advice="choose another output, or an empty folder")

    def examine(self, wanted: RunIdentity) -> RunClaim:
        """Return what a start of a run finds here; nothing is written.

        Raises:
            ConfigError: if another run is here that has taken a step, naming what differs.
            StoreError: if anything else is here.
        """
        self.check_free()
        found = self.identity()
        if found is None:
            return RunClaim(status="new", identity=wanted)
        changes = differences(found, wanted)
        if not changes:
            same = msgspec.structs.replace(wanted, digest=found.digest)
            return RunClaim(status="same", identity=same, is_recorded=same == found)
        if self.has_progress():
            raise ConfigError(
                f"output {self.url} holds another run ({differences_line(changes)}); choose another output, or "
                "remove it to start over"
            )
        return RunClaim(status="replaced", identity=wanted, replaced=differences_line(changes))

    def claim(self, wanted: RunIdentity) -> RunClaim:
        """Make this the folder of a run, or of the run that it already holds; see ``examine``.

        A run of another configuration that never took a step gives way. What was moved is recorded where it is now.

        Raises:
            ConfigError, StoreError: as ``examine``.
        """
        claim = self.examine(wanted)
        if not claim.is_recorded:
            with store_errors(self.path(RUN_NAME)):
                obstore.put(self._store, RUN_NAME, _pretty(claim.identity))
        return claim

    def metrics_files(self) -> list[bytes]:
        """Return the content of every ``metrics-*.jsonl``, the oldest first."""
        names = sorted(stored.path for stored in stored_files(self.url) if _METRICS_NAME.fullmatch(stored.path))
        return [self.read(name) or b"" for name in names]

    def has_progress(self) -> bool:
        """Return whether a run has left something here that a new start would lose: a step, a checkpoint, a model."""
        for stored in stored_files(self.url):
            top = stored.path.partition("/")[0]
            if top in _PROGRESS or any(CHECKPOINT_NAME.fullmatch(part) for part in stored.path.split("/")):
                return True
            if _METRICS_NAME.fullmatch(stored.path) and _holds_step(read_object(self._store, stored.path) or b""):
                return True
        return False

    def summary(self) -> TrainingSummary | None:
        """Return ``summary.json`` of a finished run, or None.

        Raises:
            ConfigError: if it cannot be read, or an older version of Pairwright finished the run.
        """
        with store_errors(self.path(SUMMARY_NAME)):
            content = read_object(self._store, SUMMARY_NAME)
            is_old = content is None and read_object(self._store, _OLD_SUMMARY_NAME) is not None
        if is_old:
            raise ConfigError(
                f"{self.path(_OLD_SUMMARY_NAME)}: an older version of Pairwright finished this run. Its model and "
                f"checkpoints can be used as they are. To write {SUMMARY_NAME}, remove {_OLD_SUMMARY_NAME} and start "
                "the same command again: it resumes from the last checkpoint"
            )
        try:
            return None if content is None else msgspec.json.decode(content, type=TrainingSummary)
        except UNREADABLE_JSON as error:
            raise ConfigError(
                f"{self.path(SUMMARY_NAME)}: cannot be read ({error}); remove it, and the same `train` writes it again"
            ) from None

    def finish(self, summary: TrainingSummary) -> None:
        """Write ``summary.json``, which declares the run finished.

        Raises:
            StoreError: if it cannot be written.
        """
        with store_errors(self.path(SUMMARY_NAME)):
            obstore.put(self._store, SUMMARY_NAME, _pretty(summary))

    def publish(self) -> None:
        """Copy new and changed small files to a remote folder; nothing to do for a local one.

        Raises:
            StoreError: if it cannot be written; the next call copies what this one did not.
        """
        if self.is_local:
            return
        for path in sorted(self.local_directory.rglob("*")):
            state = (path.stat().st_size, path.stat().st_mtime_ns)
            if path.is_file() and self._published.get(path) != state:
                with store_errors(self.url):
                    obstore.put(self._store, path.relative_to(self.local_directory).as_posix(), path)
                self._published[path] = state


def check_model_folder(run_url: str) -> None:
    """Refuse a run whose ``model`` folder holds files that no run wrote: the export at the end would fail.

    Raises:
        StoreError: naming it.
    """
    url = f"{run_url}/{MODEL_NAME}"
    if not is_free(url):
        check_own(url, written_files(_rules_at(url)))


def store_model(source: Path, run_url: str) -> None:
    """Put an exported model directory into a run's folder, in the place of what an earlier start of the run exported.

    Raises:
        StoreError: if a file is there that no start of the run wrote, or it cannot be written.
    """
    url = f"{run_url}/{MODEL_NAME}"
    replace_directory(source, url, own=written_files(_rules_at(url)), last=RULES_FILE)


def _rules_at(url: str) -> bytes | None:
    root = local_root(url)
    if root is not None and not root.is_dir():
        return None
    with store_errors(url):
        return read_object(open_store(url), RULES_FILE)


def read_object(store: ObjectStore, name: str) -> bytes | None:
    """Return an object's content, or None where there is none."""
    try:
        return bytes(obstore.get(store, name).bytes())
    except (NotFoundError, FileNotFoundError):
        return None


def _holds_step(metrics: bytes) -> bool:
    """Return whether lines of ``metrics-*.jsonl`` hold a step; one that was cut short by a crash is left out."""
    for line in metrics.splitlines():
        try:
            if msgspec.json.decode(line).get("kind") in ("step", "skipped"):
                return True
        except (AttributeError, *UNREADABLE_JSON):
            continue
    return False


def _pretty(value: Any) -> bytes:
    return safe_json(msgspec.json.format(msgspec.json.encode(value).decode(), indent=2)).encode()
