"""What a machine keeps of remote tables and models stays within one bound, and nothing that is in use goes."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pairwright.data.storage.cache_limit import LIMIT_VARIABLE, reserve_model, reserve_tokens
from pairwright.data.storage.local_cache import cache_folder
from pairwright.errors import ConfigError, StoreError

KB = 1000


@contextmanager
def other_process(folder: Path, *names: str) -> Iterator[None]:
    """Reserve files of 1 kB in a process of its own, which holds them until the block ends."""
    program = (
        "import sys; from pairwright.data.storage.cache_limit import reserve_tokens\n"
        "reserve_tokens(dict.fromkeys(sys.argv[1:], 1000), what='other'); print('held', flush=True)\n"
        "sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, *names]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    for name in names:
        (folder / name).write_bytes(bytes(KB))
    try:
        yield
    finally:
        process.communicate()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of tokens in a cache of this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return cache_folder("tokens")


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LIMIT_VARIABLE, "0.000003")  # 3 kB


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.arrow"))


@pytest.mark.usefixtures("limit")
def test_the_table_that_was_used_longest_ago_goes_first_and_one_in_use_stays(folder: Path) -> None:
    with other_process(folder, "held.arrow"):
        for name in ("old.arrow", "new.arrow"):
            with other_process(folder, name):
                pass
        reserve_tokens({"wanted.arrow": KB}, what="table")
        assert names(folder) == ["held.arrow", "new.arrow"], "old is gone, and 1 kB is free"
        (folder / "wanted.arrow").write_bytes(bytes(KB))
        with pytest.raises(StoreError, match="commands at work hold"):
            reserve_tokens({"a.arrow": KB, "b.arrow": KB}, what="table")
    assert names(folder) == ["held.arrow", "new.arrow", "wanted.arrow"], "an error evicts nothing"


@pytest.mark.usefixtures("limit")
def test_a_table_larger_than_the_bound_is_refused_with_the_remedy(folder: Path) -> None:
    with pytest.raises(
        StoreError, match=r"may have 3e-06 GB, too little for the tokens of s3://b/t \(4e-06 GB\); set PAIRWRIGHT"
    ):
        reserve_tokens({"wanted.arrow": 4 * KB}, what="s3://b/t")


@pytest.mark.usefixtures("limit")
def test_what_a_download_left_that_died_goes_and_one_at_work_stays(folder: Path) -> None:
    with other_process(folder, "at-work.arrow"):
        (folder / "at-work.arrow").rename(folder / "at-work.unfinished")
        (folder / "dead.unfinished").write_bytes(bytes(KB))
        reserve_tokens({"wanted.arrow": KB}, what="table")
        assert [path.name for path in folder.glob("*.unfinished")] == ["at-work.unfinished"]


def test_a_bound_that_is_no_number_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LIMIT_VARIABLE, "plenty")
    with pytest.raises(ConfigError, match="PAIRWRIGHT_CACHE_GB is 'plenty', expected a number of gigabytes"):
        reserve_tokens({"wanted.arrow": KB}, what="table")


def test_without_a_bound_a_table_may_take_what_is_free_on_the_disk(folder: Path) -> None:
    reserve_tokens({"wanted.arrow": KB}, what="table")
    with pytest.raises(StoreError, match="larger disk"):
        reserve_tokens({"wanted.arrow": 1 << 60}, what="table")


@pytest.mark.usefixtures("limit")
def test_what_another_process_still_downloads_counts(folder: Path) -> None:
    with other_process(folder, "a.arrow", "b.arrow"):
        (folder / "a.arrow").unlink()
        (folder / "b.arrow").unlink()
        with pytest.raises(StoreError, match="commands at work hold 2e-06 GB more"):
            reserve_tokens({"c.arrow": KB, "d.arrow": KB}, what="table")


def write_model(key: str) -> Path:
    """Write the copy of a model of 1 kB as a process that has ended left it."""
    folder = cache_folder("models")
    (folder / key).mkdir()
    (folder / key / "model.safetensors").write_bytes(bytes(KB))
    (folder / f"{key}.bytes").write_text(str(KB))
    (folder / f"{key}.json").write_text("[]")
    return folder / key


@pytest.mark.usefixtures("limit")
def test_tokens_and_models_share_the_bound_and_what_was_used_longest_ago_goes(folder: Path) -> None:
    old = write_model("a" * 32)
    with other_process(folder, "newer.arrow"):
        pass
    newest = write_model("b" * 32)
    wanted = reserve_model("c" * 32, KB, what="s3://b/m")
    assert not old.exists()
    assert not old.with_suffix(".json").exists()
    assert names(folder) == ["newer.arrow"]
    wanted.mkdir()
    reserve_tokens({"wanted.arrow": 2 * KB}, what="table")
    assert not names(folder)
    assert not newest.exists(), "1 kB of the 3 is the model that is in use"
    assert wanted.exists()
    with pytest.raises(StoreError, match=r"too little for s3://b/m \(1e-06 GB, and commands at work"):
        reserve_model("d" * 32, KB, what="s3://b/m")


def test_what_a_download_of_a_model_left_that_died_goes(folder: Path) -> None:
    models = cache_folder("models")
    dead = models / ("a" * 32 + ".x7k2")
    dead.mkdir()
    (models / ("a" * 32 + ".bytes")).write_text(str(KB))
    kept = write_model("b" * 32)
    reserve_model("c" * 32, KB, what="s3://b/m")
    assert not dead.exists()
    assert kept.exists()
