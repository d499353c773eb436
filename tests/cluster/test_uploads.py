"""A checkpoint's way to storage: refused, cut short and at last stored; and the folder that it waits in."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import ray.train
from ray.train.v2._internal.execution.storage import StorageContext

from pairwright.cluster.train.checkpoint_upload import CheckpointUploader, LocalCheckpointDir
from pairwright.cluster.train.ray_workarounds import UploadAborted
from pairwright.data.storage.backoff import backoff_delays


def test_pauses_double_to_a_minute_and_add_up_to_the_patience() -> None:
    assert list(backoff_delays(0)) == []
    assert list(backoff_delays(10)) == [1, 2, 4, 3]
    assert list(itertools.islice(backoff_delays(1e9), 8)) == [1, 2, 4, 8, 16, 32, 60, 60]


@pytest.fixture
def local(tmp_path: Path) -> Path:
    folder = tmp_path / "local"
    (folder / "state").mkdir(parents=True)
    (folder / "state" / "rank-0.pt").write_bytes(b"x" * 100_000)
    return folder


def uploads(tmp_path: Path, told: list[str], *, retry_seconds: float, repair: Path | None = None) -> CheckpointUploader:
    """Return uploads into ``tmp_path/run/checkpoints``; when one is refused the second time, ``repair`` is removed."""

    def on_retry(reason: str, pause: float) -> None:
        told.append(reason)
        if repair is not None and len(told) == 2:
            repair.unlink()

    storage = StorageContext(str(tmp_path / "run"), "checkpoints")
    return CheckpointUploader(storage, retry_seconds=retry_seconds, on_retry=on_retry)


def full_disk(tmp_path: Path) -> Path:
    """Let the first file of the checkpoint ``name`` meet a full disk: the system's own, which refuses every byte."""
    file = tmp_path / "run" / "checkpoints" / "name" / "state" / "rank-0.pt"
    file.parent.mkdir(parents=True)
    file.symlink_to("/dev/full")
    return file


def test_a_full_disk_is_tried_again_until_it_has_room_and_then_all_of_it_is_there(tmp_path: Path, local: Path) -> None:
    told: list[str] = []
    upload = uploads(tmp_path, told, retry_seconds=60, repair=full_disk(tmp_path))
    upload.begin()
    assert not upload.wait(0)
    stored = upload.upload(ray.train.Checkpoint.from_directory(local), "name")
    assert upload.wait(0)
    assert [Path(stored.path, "state", "rank-0.pt").read_bytes(), local.exists()] == [b"x" * 100_000, False]
    assert len(told) == 2
    assert "No space left on device" in told[0]
    assert upload.failure is None


def test_when_the_patience_is_over_nothing_is_reported_and_the_reason_is_there(tmp_path: Path, local: Path) -> None:
    full_disk(tmp_path)
    upload = uploads(tmp_path, [], retry_seconds=0)
    upload.begin()
    with pytest.raises(UploadAborted):
        upload.upload(ray.train.Checkpoint.from_directory(local), "name")
    assert not issubclass(UploadAborted, Exception), "Ray replaces the workers for any Exception"
    assert upload.wait(0)
    assert "No space left on device" in (upload.failure or "")
    assert local.exists(), "what could not be stored is not lost"


def test_what_arrived_short_is_no_upload(tmp_path: Path, local: Path) -> None:
    """A file that swallows what is written, as a disk that tells of its failure too late."""
    full_disk(tmp_path).unlink()
    (tmp_path / "run" / "checkpoints" / "name" / "state" / "rank-0.pt").symlink_to("/dev/null")
    upload = uploads(tmp_path, [], retry_seconds=0)
    with pytest.raises(UploadAborted):
        upload.upload(ray.train.Checkpoint.from_directory(local), "name")
    assert "0 bytes arrived of 100,000" in (upload.failure or "")


HOLD = """
import sys, time
from pathlib import Path
from pairwright.cluster.train.checkpoint_upload import LocalCheckpointDir
local_dir = LocalCheckpointDir()
(local_dir.new_folder("step") / "shard").write_bytes(b"x")
print("ready", flush=True)
time.sleep(600)
"""


def test_what_a_killed_process_staged_goes_and_what_a_living_one_stages_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    holders = [
        subprocess.Popen(
            [sys.executable, "-c", HOLD], env=os.environ | {"TMPDIR": str(tmp_path)}, stdout=subprocess.PIPE
        )
        for _ in range(2)
    ]
    try:
        for holder in holders:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"ready\n"
        assert len(list(tmp_path.rglob("shard"))) == 2
        holders[0].kill()
        holders[0].wait()
        local_dir = LocalCheckpointDir()
        own = local_dir.new_folder("mine")
        assert len(list(tmp_path.rglob("shard"))) == 1
        local_dir.remove()
        assert not own.exists()
        assert len(list(tmp_path.rglob("shard"))) == 1
    finally:
        for holder in holders:
            holder.kill()
            holder.wait()
            assert holder.stdout is not None
            holder.stdout.close()
