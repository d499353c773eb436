"""The tokens that a machine keeps of remote tables stay within a bound, and nothing that is in use goes."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pairwright.data.storage.cache_limit import LIMIT_VARIABLE, reserve
from pairwright.errors import ConfigError, StoreError

KB = 1000


@contextmanager
def other_process(folder: Path, *names: str) -> Iterator[None]:
    """Reserve files of 1 kB in a process of its own, which holds them until the block ends."""
    program = (
        "import sys; from pathlib import Path; from pairwright.data.storage.cache_limit import reserve\n"
        "reserve(Path(sys.argv[1]), dict.fromkeys(sys.argv[2:], 1000), what='other'); print('held', flush=True)\n"
        "sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(folder), *names]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    for name in names:
        (folder / name).write_bytes(bytes(KB))
    try:
        yield
    finally:
        process.communicate()


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LIMIT_VARIABLE, "0.000003")  # 3 kB


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.arrow"))


@pytest.mark.usefixtures("limit")
def test_the_table_that_was_used_longest_ago_goes_first_and_one_in_use_stays(tmp_path: Path) -> None:
    with other_process(tmp_path, "held.arrow"):
        for name in ("old.arrow", "new.arrow"):
            with other_process(tmp_path, name):
                pass
        reserve(tmp_path, {"wanted.arrow": KB}, what="table")
        assert names(tmp_path) == ["held.arrow", "new.arrow"], "old is gone, and 1 kB is free"
        (tmp_path / "wanted.arrow").write_bytes(bytes(KB))
        with pytest.raises(StoreError, match="commands at work hold"):
            reserve(tmp_path, {"a.arrow": KB, "b.arrow": KB}, what="table")
    assert names(tmp_path) == ["held.arrow", "new.arrow", "wanted.arrow"], "an error evicts nothing"


@pytest.mark.usefixtures("limit")
def test_a_table_larger_than_the_bound_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(
        StoreError, match=r"may have 3e-06 GB, but the tokens of s3://b/t take 4e-06 GB; set PAIRWRIGHT"
    ):
        reserve(tmp_path, {"wanted.arrow": 4 * KB}, what="s3://b/t")


@pytest.mark.usefixtures("limit")
def test_what_a_download_left_that_died_goes_and_one_at_work_stays(tmp_path: Path) -> None:
    with other_process(tmp_path, "at-work.arrow"):
        (tmp_path / "at-work.arrow").rename(tmp_path / "at-work.unfinished")
        (tmp_path / "dead.unfinished").write_bytes(bytes(KB))
        reserve(tmp_path, {"wanted.arrow": KB}, what="table")
        assert [path.name for path in tmp_path.glob("*.unfinished")] == ["at-work.unfinished"]


def test_a_bound_that_is_no_number_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LIMIT_VARIABLE, "plenty")
    with pytest.raises(ConfigError, match="PAIRWRIGHT_CACHE_GB is 'plenty', expected a number of gigabytes"):
        reserve(tmp_path, {"wanted.arrow": KB}, what="table")


def test_without_a_bound_a_table_may_take_what_is_free_on_the_disk(tmp_path: Path) -> None:
    reserve(tmp_path, {"wanted.arrow": KB}, what="table")
    with pytest.raises(StoreError, match="larger disk"):
        reserve(tmp_path, {"wanted.arrow": 1 << 60}, what="table")


@pytest.mark.usefixtures("limit")
def test_what_another_process_still_downloads_counts(tmp_path: Path) -> None:
    with other_process(tmp_path, "a.arrow", "b.arrow"):
        (tmp_path / "a.arrow").unlink()
        (tmp_path / "b.arrow").unlink()
        with pytest.raises(StoreError, match="commands at work hold 2e-06 GB more"):
            reserve(tmp_path, {"c.arrow": KB, "d.arrow": KB}, what="table")
