"""A run below any name on object storage: all that reads and writes there means the same place."""

import obstore
import pytest
from pyarrow.fs import FileSystem

from pairwright.cluster.train.ray_workarounds import storage_uri
from pairwright.data.storage.lease import Lease
from pairwright.data.storage.object_store import open_store
from pairwright.data.storage.ownership import RUN
from pairwright.errors import StoreError
from pairwright.runs.checkpoints import kept_checkpoints
from pairwright.runs.run_dir import RunFolder
from pairwright.runs.run_identity import RunIdentity

NAMES = ["münchen 北京 القاهرة 🦊", "100% %20 %s %23", "a=b&c;d+e,f", '"it\'s" [x] {y} ~ \\ `z` ^ |', "plain"]


@pytest.mark.parametrize("name", NAMES)
def test_a_run_is_found_again_below_any_name_and_ray_finds_it_there_too(name: str, s3_bucket: str) -> None:
    url = f"{s3_bucket}/{name}/run"
    identity = RunIdentity(digest="d", config={}, pairs_url=url, pairs_version=1, tokens_digest="t", model_digest="m")
    with Lease(url, RUN, what="`pairwright train`", lost=lambda: None):
        assert RunFolder(url).claim(identity).status == "new"
    assert RunFolder(url).claim(identity).status == "same"
    assert RunFolder(url).identity() == identity
    assert not RunFolder(url).has_progress()
    assert kept_checkpoints(url, verify=True).checkpoints == []
    obstore.put(open_store(url), "checkpoints/mark.txt", b"here")
    system, path = FileSystem.from_uri(storage_uri(url))
    with system.open_input_stream(f"{path}/checkpoints/mark.txt") as file:
        assert file.read() == b"here"


@pytest.mark.parametrize("name", ["run#1", "two\nlines", "tab\t"])
def test_a_name_that_a_url_would_lose_is_refused(name: str) -> None:
    """`s3://bucket/c#1/run` was `s3://bucket/c`, and so was `s3://bucket/c#2/run`."""
    with pytest.raises(StoreError, match="choose a name without"):
        RunFolder(f"s3://bucket/{name}/run")


def test_local_paths_are_taken_as_they_are() -> None:
    assert storage_uri("/runs/münchen 100%/run#1") == "/runs/münchen 100%/run#1"
