"""A run's checkpoints on a real S3 server: the best kept apart, damaged ones set aside, leftovers removed."""

import os
from pathlib import Path

import obstore
import pytest
from pyarrow.fs import S3FileSystem

from pairwright.data.storage.object_store import open_store
from pairwright.runs import folder_transfer as folders
from pairwright.runs.best_checkpoint import keep_best
from pairwright.runs.checkpoints import SNAPSHOT_NAME, kept_checkpoints
from pairwright.runs.repair import Swept, mend, sweep
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


@pytest.mark.parametrize("most_bytes", [folders.MOST_BYTES_COPIED_BY_THE_STORE, 100], ids=["copied", "streamed"])
def test_the_best_is_copied_whole_and_brought_back_where_no_other_is_whole(
    run: RunFolder, most_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "MOST_BYTES_COPIED_BY_THE_STORE", most_bytes)
    best = keep_best(run, "accuracy")
    assert best is not None
    assert best.name == name(20)
    found = kept_checkpoints(run.url, verify=True).best
    assert found is not None
    assert (found.name, found.damage) == (name(20), None)
    spoil(run, *(f"checkpoints/{name(step)}" for step in (10, 20, 30)))
    mended = mend(run)
    assert mended.list_written_anew == "no other is whole: back to the best one, step 20"
    assert folders_below(run, "checkpoints-damaged") == [name(10), name(20), name(30)]
    assert folders_below(run, "checkpoints") == [name(20), name(40)]
    next_start = kept_checkpoints(run.url, verify=True).next_start
    assert next_start is not None
    assert next_start.name == name(20)


def test_a_damaged_one_is_set_aside_and_what_was_never_committed_removed(run: RunFolder) -> None:
    spoil(run, f"checkpoints/{name(30)}")
    assert list(mend(run).set_aside) == [name(30)]
    assert folders_below(run, "checkpoints-damaged") == [name(30)]
    swept = sweep(run, older_than_seconds=0)
    assert swept.num_folders == 1
    assert swept.bytes > 2000
    assert folders_below(run, "checkpoints") == [name(10), name(20)]
    assert sweep(run, older_than_seconds=0) == Swept(num_folders=0, bytes=0)
