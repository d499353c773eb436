"""State on every rank -> each rank's part of a checkpoint in a folder on its disk, all of them or an error on all.

A disk that is full on one rank is every rank's business: what they write together is a collective, and a checkpoint
with a part missing is none. So they agree after each try, and try again together.
"""

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pairwright.data.storage.backoff import backoff_delays
from pairwright.errors import CheckpointError
from pairwright.training.checkpoint import TAG, CheckpointManifest, write_manifests
from pairwright.training.collectives import first_error
from pairwright.training.engine import Engine

if TYPE_CHECKING:
    from pairwright.training.loop import Host


def staged(engine: Engine, manifest: CheckpointManifest, host: "Host", *, patience_seconds: float) -> Path:
    """Return a folder with this rank's part; where a rank's disk is full, all try again together, with growing pauses.

    Raises:
        CheckpointError: on every rank alike, if a rank still cannot write when the patience is over.
    """
    for pause in [*backoff_delays(patience_seconds), None]:
        directory: Path | None = None
        error: CheckpointError | None = None
        try:
            directory = host.staging_folder(f"step-{manifest.step}-rank-{host.rank}")
        except OSError as found:
            error = _no_room(found, manifest, host)
        if (first := first_error(error)) is None:
            assert directory is not None
            error = _written(engine, manifest, host, directory)
            if (first := first_error(error)) is None:
                return directory
        if directory is not None:
            shutil.rmtree(directory, ignore_errors=True)
        if pause is None:
            raise first
        if error is not None:
            host.progress({"kind": "refused", "step": manifest.step, "reason": str(error), "seconds": pause})
        time.sleep(pause)
    raise AssertionError  # the last pause is None


def _written(engine: Engine, manifest: CheckpointManifest, host: "Host", directory: Path) -> CheckpointError | None:
    try:
        engine.save(directory, TAG)
        write_manifests(directory, manifest, rank=host.rank)
    except OSError as found:
        return _no_room(found, manifest, host)
    return None


def _no_room(found: OSError, manifest: CheckpointManifest, host: "Host") -> CheckpointError:
    return CheckpointError(
        f"rank {host.rank} cannot write the checkpoint of step {manifest.step} on its own disk: {found}; free space "
        "there, or point TMPDIR at a larger disk"
    )
