"""A run's checkpoints on a real S3 server: the best copied, corrupt ones moved away, uncommitted ones removed."""

import os
from pathlib import Path

import obstore
import pytest
from pyarrow.fs import S3FileSystem

from pairwright.data.storage.object_store import open_store
from pairwright.events import UncommittedRemoved
from pairwright.runs import folder_transfer as folders
from pairwright.runs.best_checkpoint import keep_best
from pairwright.runs.checkpoints import SNAPSHOT_NAME, kept_checkpoints
from pairwright.runs.repair import remove_uncommitted, repair_snapshot
from pairwright.runs.run_dir import RunFolder
from pairwright.training.checkpoint import TAG
from run_folders import add, claim, commit, name


@pytest.fixture
def run(s3_bucket: str, tmp_path: Path) -> RunFolder:
    """Steps 10, 20 and 30, the best of them 20, and 40 that was never committed."""
    claim(tmp_path)
    for step, accuracy in ((10, 0.5), (20, 0.7), (30, 0.6), (40, 0.9)):
        add(tmp_path, step, {"accuracy": accuracy})
    commit(tmp_path, 10, 20, 30)
    url = f"{s3_bucket}/{tmp_path.name}/run"
    store = open_store(url)
    s3 = S3FileSystem(endpoint_override=os.environ["AWS_ENDPOINT_URL"], scheme="http", region="us-east-1")
    for file in tmp_path.rglob("*"):
        if file.is_dir():  # Ray marks folders so
            s3.create_dir(f"{url.removeprefix('s3://')}/{file.relative_to(tmp_path).as_posix()}")
        else:
            obstore.put(store, file.relative_to(tmp_path).as_posix(), file)
    return RunFolder(url)


def spoil(run: RunFolder, *paths: str) -> None:
    for path in paths:
        obstore.put(open_store(run.url), f"{path}/{TAG}/rank-0.pt", b"short")


def folders_below(run: RunFolder, below: str) -> list[str]:
    entries = [entry for chunk in obstore.list(open_store(run.url), prefix=f"{below}/") for entry in chunk]
    return sorted({entry["path"].split("/")[1] for entry in entries if entry["size"]} - {SNAPSHOT_NAME})


@pytest.mark.parametrize("most_bytes", [folders.MAX_BYTES_COPIED_BY_STORE, 100], ids=["copied", "streamed"])
def test_the_best_is_copied_and_restored_where_no_other_is_valid(
    run: RunFolder, most_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "MAX_BYTES_COPIED_BY_STORE", most_bytes)
    best = keep_best(run, "accuracy")
    assert best is not None
    assert best.name == name(20)
    found = kept_checkpoints(run.url, verify=True).best
    assert found is not None
    assert (found.name, found.corruption) == (name(20), None)
    spoil(run, *(f"checkpoints/{name(step)}" for step in (10, 20, 30)))
    report = repair_snapshot(run)
    assert report.snapshot_rewritten == "no other checkpoint is valid: restored the best one, of step 20"
    assert folders_below(run, "checkpoints-corrupt") == [name(10), name(20), name(30)]
    assert folders_below(run, "checkpoints") == [name(20), name(40)]
    next_start = kept_checkpoints(run.url, verify=True).next_start
    assert next_start is not None
    assert next_start.name == name(20)


def test_a_corrupt_one_is_moved_away_and_what_was_never_committed_removed(run: RunFolder) -> None:
    spoil(run, f"checkpoints/{name(30)}")
    assert list(repair_snapshot(run).corrupt) == [name(30)]
    assert folders_below(run, "checkpoints-corrupt") == [name(30)]
    removed = remove_uncommitted(run, older_than_seconds=0)
    assert removed.num_checkpoints == 1
    assert removed.bytes > 2000
    assert folders_below(run, "checkpoints") == [name(10), name(20)]
    assert remove_uncommitted(run, older_than_seconds=0) == UncommittedRemoved(num_checkpoints=0, bytes=0)
