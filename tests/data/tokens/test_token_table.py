"""Groups come back from a memory-mapped tokens table as they went in, without copies."""

import os
import pickle
import shutil
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pairwright.data.storage.local_cache import MARKER_SECONDS, cache_folder, empty_cache
from pairwright.data.table.arrow_io import ipc_bytes
from pairwright.data.table.table import Manifest, Table
from pairwright.data.tokens import column_files
from pairwright.data.tokens.column_files import MappedColumn
from pairwright.data.tokens.tokenize_groups import TokenGroup, TokenTable, groups_to_table, local_token_paths
from pairwright.errors import StoreError
from pairwright.records import PAIRS_SCHEMA

NAMES_OF_ARRAYS = [field.name for field in fields(TokenGroup) if "subset" not in field.name][1:]


def random_groups(num_groups: int, seed: int) -> list[TokenGroup]:
    random = np.random.default_rng(seed)
    groups = []
    for i in range(num_groups):
        num_completions, num_pairs = random.integers(2, 10), random.integers(1, 12)
        groups.append(
            TokenGroup(
                group_id=f"g{i}",
                subset=None if i % 3 else "koala",
                prompt_ids=random.integers(0, 99, random.integers(0, 20), dtype=np.int32),
                completion_ids=[
                    random.integers(0, 99, random.integers(1, 30), dtype=np.int32) for _ in range(num_completions)
                ],
                num_characters=random.integers(1, 99, num_completions, dtype=np.int32),
                completion_index=np.arange(num_completions, dtype=np.int16),
                chosen_P=random.integers(0, num_completions, num_pairs),
                rejected_P=random.integers(0, num_completions, num_pairs),
                weight_P=random.random(num_pairs, dtype=np.float32),
                margin_P=np.where(random.random(num_pairs) < 0.5, np.nan, 1.5).astype(np.float32),
                more_subsets=() if i % 6 else ("oasst", "vicuna"),
            )
        )
    return groups


def write(table: Table, groups: list[TokenGroup], splits: list[str]) -> Manifest:
    half = len(groups) // 2
    parts = [(groups[:half], splits[:half]), (groups[half:], splits[half:])]
    files = [table.write_data(groups_to_table(*part), compress=False) for part in parts]
    manifest = Manifest(
        kind="tokens",
        operation="tokenize",
        files=files,
        quarantined_files=[],
        totals={},
        sources=[],
        inputs=[],
        config={},
        config_digest="",
    )
    committed = table.commit(lambda newest: manifest)
    assert committed is not None
    return committed


def assert_same_group(found: TokenGroup, expected: TokenGroup) -> None:
    assert (found.group_id, found.subset) == (expected.group_id, expected.subset)
    assert found.more_subsets == expected.more_subsets
    for name in NAMES_OF_ARRAYS:
        values, wanted = getattr(found, name), getattr(expected, name)
        lists = (values, wanted) if name == "completion_ids" else ([values], [wanted])
        for value, want in zip(*lists, strict=True):
            assert value.dtype == want.dtype, name
            np.testing.assert_array_equal(value, want, err_msg=name)


def test_a_file_from_before_a_column_was_added_is_read(tmp_path):
    groups = [replace(group, more_subsets=()) for group in random_groups(9, seed=0)]
    table = groups_to_table(groups, ["train"] * 9)
    old = table.drop_columns(["more_subsets"])
    with pa.ipc.new_file(str(tmp_path / "old.arrow"), old.schema) as writer:
        writer.write_table(old)
    read = TokenTable([tmp_path / "old.arrow"])
    for row, expected in enumerate(groups):
        assert_same_group(read.group(row), expected)
    assert ipc_bytes(old, "tokens", compress=False) == ipc_bytes(table, "tokens", compress=False)


def test_groups_come_back_as_they_went_in(tmp_path):
    groups, splits = random_groups(700, seed=0), ["train", "validation", "train"] * 233 + ["train"]
    manifest = write(Table(str(tmp_path), "tokens"), groups, splits)
    table = TokenTable(local_token_paths(str(tmp_path), manifest))
    for copy in (table, pickle.loads(pickle.dumps(table))):
        assert len(copy) == 700
        for i in np.random.default_rng(1).permutation(700).tolist():
            assert_same_group(copy.group(i), groups[i])
            assert (copy.group_id(i), copy.subset(i)) == (groups[i].group_id, groups[i].subset)
    validation = sorted(
        (i for i, split in enumerate(splits) if split == "validation"), key=lambda i: groups[i].group_id
    )
    assert table.rows_of_split("validation").tolist() == validation
    assert table.rows_of_split("validation").dtype == np.int64
    assert table.rows_of_split("test").tolist() == []
    with pytest.raises(IndexError, match="group 700 of a tokens table of 700 groups"):
        table.group(700)


def test_columns_for_planning_agree_with_the_groups(tmp_path):
    groups = random_groups(600, seed=2)
    manifest = write(Table(str(tmp_path), "tokens"), groups, ["train"] * 600)
    table = TokenTable(local_token_paths(str(tmp_path), manifest))
    longest = [len(group.prompt_ids) + max(map(len, group.completion_ids)) for group in groups]
    assert table.longest_row_tokens_G.tolist() == longest
    assert table.num_completions_G.tolist() == [len(group.completion_ids) for group in groups]
    assert table.num_pairs_G.tolist() == [len(group.chosen_P) for group in groups]
    weights = [group.weight_P.astype(np.float64).sum() for group in groups]
    np.testing.assert_allclose(table.weight_G, weights, rtol=1e-12)
    rows = np.array([5, 599, 0])
    sizes = table.sizes_of(rows)
    assert sizes.num_completions_G.tolist() == [len(groups[i].completion_ids) for i in rows]
    assert sizes.prompt_tokens_G.tolist() == [len(groups[i].prompt_ids) for i in rows]
    assert sizes.completion_tokens_G.tolist() == [sum(map(len, groups[i].completion_ids)) for i in rows]
    assert sizes.longest_row_tokens_G.tolist() == [longest[i] for i in rows]
    assert {getattr(sizes, field.name).dtype for field in fields(sizes)} == {np.dtype(np.int64)}
    assert table.completion_tokens(599).tolist() == list(map(len, groups[599].completion_ids))


@pytest.mark.parametrize("num_groups", [1, 700, 3000])
def test_columns_of_a_large_table_are_mapped_from_a_file_and_are_the_same(tmp_path, monkeypatch, num_groups):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(column_files, "ROWS_PER_BUCKET", 100)
    groups = [replace(one, group_id=os.urandom(16).hex()) for one in random_groups(num_groups, seed=3)]
    splits = ["validation" if i % 7 == 3 else "train" for i in range(num_groups)]
    url = Table(str(tmp_path / "t"), "tokens")
    paths = local_token_paths(url.url, write(url, groups, splits))
    small = TokenTable(paths)
    rows = np.random.default_rng(0).integers(0, num_groups, 2000)
    for large in (TokenTable(paths, mapped_from=1), TokenTable(paths, mapped_from=1)):  # written, and found there
        assert isinstance(large.rows_of_split("train"), MappedColumn)
        for split in ("train", "validation", "test"):
            assert large.rows_of_split(split)[:].tolist() == small.rows_of_split(split).tolist()
            assert len(large.rows_of_split(split)) == len(small.rows_of_split(split))
        assert large.longest_row_tokens == small.longest_row_tokens
        for name in ("num_completions_G", "num_pairs_G", "longest_row_tokens_G", "weight_G"):
            found, expected = getattr(large, name), getattr(small, name)
            assert (found.dtype, found[rows].tolist()) == (expected.dtype, expected[rows].tolist())
            is_odd = rows % 2 == 1
            assert found[rows[is_odd]].tolist() == expected[rows[is_odd]].tolist()
            assert type(found[rows]) is np.ndarray
        for field in fields(small.sizes_of(rows)):
            expected = getattr(small.sizes_of(rows), field.name)
            assert getattr(large.sizes_of(rows), field.name).tolist() == expected.tolist()
    assert len(list((tmp_path / "cache/pairwright/tokens").glob("*.columns"))) == 1
    assert empty_cache().num_files == 1


def test_tokens_are_views_into_the_memory_mapped_file(tmp_path):
    manifest = write(Table(str(tmp_path), "tokens"), random_groups(20, seed=0), ["train"] * 20)
    before = pa.total_allocated_bytes()
    table = TokenTable(local_token_paths(str(tmp_path), manifest))
    first, again = table.group(3), table.group(3)
    assert pa.total_allocated_bytes() - before < 1000
    for one, other in zip(first.completion_ids, again.completion_ids, strict=True):
        assert np.shares_memory(one, other)
        assert not one.flags.writeable
    del table
    assert_same_group(first, random_groups(20, seed=0)[3])


def test_a_file_that_is_gone_or_cut_short_is_named(tmp_path):
    manifest = write(Table(str(tmp_path), "tokens"), random_groups(20, seed=0), ["train"] * 20)
    paths = local_token_paths(str(tmp_path), manifest)
    paths[0].write_bytes(paths[0].read_bytes()[:-100])
    with pytest.raises(
        StoreError, match=rf"{paths[0].name}: this file of a tokens table has \d+ bytes, expected \d+; delete the whole"
    ):
        local_token_paths(str(tmp_path), manifest)
    with pytest.raises(StoreError, match=rf"{paths[0].name}: not an Arrow file"):
        TokenTable(paths)
    paths[0].unlink()
    with pytest.raises(
        StoreError, match=rf"{paths[0].name}: this file of a tokens table is gone; delete the whole table"
    ):
        local_token_paths(str(tmp_path), manifest)
    with pa.OSFile(str(paths[0]), "wb") as sink, pa.ipc.new_file(sink, PAIRS_SCHEMA):
        pass
    with pytest.raises(StoreError, match="not a file of a tokens table: its columns are group_id, prompt_id"):
        TokenTable(paths)


# ------------------------------------------------------------------------------------------ verified by hash


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the place of a cache of its own, in which no file is marked yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "pairwright"


@pytest.fixture
def tokens(tmp_path: Path) -> Manifest:
    return write(Table(str(tmp_path / "tokens"), "tokens"), random_groups(20, seed=0), ["train"] * 20)


def flip_low_bits(path: Path) -> None:
    """Flip the lowest bit of a hundred bytes in the middle, and put the time of modification back."""
    before, content = path.stat(), bytearray(path.read_bytes())
    time.sleep(0.02)  # file systems count time in steps of some milliseconds
    middle = len(content) // 2
    content[middle : middle + 100] = bytes(byte ^ 1 for byte in content[middle : middle + 100])
    with path.open("r+b") as file:
        file.write(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_ino, after.st_size, after.st_mtime_ns) == (before.st_ino, before.st_size, before.st_mtime_ns)


def other_process(url: str, cache: Path) -> subprocess.CompletedProcess[str]:
    script = (
        "import sys; from pairwright.data.table.table import Table; "
        "from pairwright.data.tokens.tokenize_groups import local_token_paths; "
        "local_token_paths(sys.argv[1], Table.open(sys.argv[1]).manifest())"
    )
    environment = os.environ | {"XDG_CACHE_HOME": str(cache.parent)}
    return subprocess.run([sys.executable, "-c", script, url], env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("is_marked", [False, True])
def test_flipped_bits_are_found_whether_the_file_was_verified_before_or_not(
    tmp_path: Path, tokens: Manifest, cache: Path, is_marked: bool
) -> None:
    url = str(tmp_path / "tokens")
    if is_marked:
        local_token_paths(url, tokens)
        assert len([path for path in (cache / "verified").iterdir() if path.suffix != ".lock"]) == 2
    flip_low_bits(tmp_path / "tokens" / tokens.files[1].path)
    with pytest.raises(
        StoreError, match=rf"damaged: the SHA-256 of this file .*; delete the whole table, {url}, to make"
    ):
        local_token_paths(url, tokens)
    assert "StoreError" in other_process(url, cache).stderr


def test_a_file_is_hashed_once_a_machine_until_its_marker_is_old(
    tmp_path: Path, tokens: Manifest, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = str(tmp_path / "tokens")
    assert other_process(url, cache).returncode == 0
    for folder, mode in ((cache, 0o700), (cache / "verified", 0o700)):
        assert folder.stat().st_mode & 0o777 == mode
    markers = [path for path in (cache / "verified").iterdir() if path.suffix != ".lock"]
    with monkeypatch.context() as changed:  # a process that could not hash would fail
        changed.setattr("hashlib.file_digest", None)
        local_token_paths(url, tokens)
        for marker in markers:
            old = marker.stat().st_mtime - MARKER_SECONDS - 1
            os.utime(marker, (old, old))
        with pytest.raises(TypeError):
            local_token_paths(url, tokens)
    local_token_paths(url, tokens)
    assert sorted(path for path in (cache / "verified").iterdir() if path.suffix != ".lock") == sorted(markers)


def test_a_copy_of_a_table_has_markers_of_its_own(tmp_path: Path, tokens: Manifest, cache: Path) -> None:
    local_token_paths(str(tmp_path / "tokens"), tokens)
    shutil.copytree(tmp_path / "tokens", tmp_path / "copy")
    flip_low_bits(tmp_path / "copy" / tokens.files[0].path)
    with pytest.raises(StoreError, match="damaged"):
        local_token_paths(str(tmp_path / "copy"), tokens)


def test_where_there_is_no_place_for_a_cache_files_are_hashed_each_time(
    tmp_path: Path, tokens: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(local_token_paths(str(tmp_path / "tokens"), tokens)) == 2
    flip_low_bits(tmp_path / "tokens" / tokens.files[0].path)
    with pytest.raises(StoreError, match="damaged"):
        local_token_paths(str(tmp_path / "tokens"), tokens)
    with pytest.raises(StoreError, match=r"this folder of the cache cannot be made: .*; set XDG_CACHE_HOME"):
        cache_folder("tokens")


def test_a_cache_that_others_could_read_is_closed_and_one_of_another_user_is_refused(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cache / "tokens").mkdir(parents=True, mode=0o755)
    cache_folder("tokens")
    assert [path.stat().st_mode & 0o777 for path in (cache, cache / "tokens")] == [0o700, 0o700]
    monkeypatch.setattr(os, "getuid", lambda: 4242)
    with pytest.raises(StoreError, match=r"belongs to user \d+, and this process is user 4242: .*set XDG_CACHE_HOME"):
        cache_folder("tokens")
