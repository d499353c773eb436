"""The index of ids: whatever is done to a table and its index files, no id stands twice and none is lost."""

import json
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from annotation_tables import annotation_row, annotations_table, commit_annotations
from pairwright.config import IngestConfig
from pairwright.data.executor import LOCAL
from pairwright.data.id_index.id_index import IdSearch, index_name, search, write_indexed
from pairwright.data.id_index.index_files import (
    ENTRIES_PER_BLOCK,
    IndexFileReader,
    file_numbers,
    hash_ranges,
    truncated,
    write_index_file,
)
from pairwright.data.id_index.index_merges import MIN_MERGED, merge_indexes, plan_merge
from pairwright.data.id_index.verify_table import verify_table
from pairwright.data.identity import hash_ids
from pairwright.data.ingest.dedup import find_candidates
from pairwright.data.ingest.dry_run import validate
from pairwright.data.ingest.ingest import ingest
from pairwright.data.ingest.shards import IngestShard
from pairwright.data.table.compact import compact
from pairwright.data.table.erase import erase
from pairwright.data.table.manifest import IdIndex, IndexFile
from pairwright.data.table.table import DataFile, Table
from pairwright.data.table.vacuum import vacuum
from pairwright.data.table.version_log import restore
from pairwright.errors import DataError, StoreError

CONFIG = IngestConfig(split_bytes=1024)
IDS = st.lists(st.integers(0, 30), max_size=6)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ingest"), IDS),
        st.tuples(st.just("ingest"), IDS),
        st.tuples(st.just("erase"), st.integers(0, 2)),
        st.tuples(st.just("compact")),
        st.tuples(st.just("restore"), st.integers(1, 12)),
        st.tuples(st.just("vacuum")),
        st.tuples(st.just("damage"), st.sampled_from(["remove", "cut", "flip", "empty"]), st.integers(0, 5)),
    ),
    min_size=1,
    max_size=14,
)


def annotator_of(number: int) -> str:
    return f"ann{number % 3}"


def put(path: Path, numbers: list[int]) -> str:
    records: list[dict[str, Any]] = [
        {"id": f"r{n}", "prompt": f"q{n}", "completions": [{"text": "x"}, {"text": "y"}], "ranks": [1, 2]}
        | {"annotator": annotator_of(n)}
        for n in numbers
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def ids_in(url: str) -> list[str]:
    table = Table.open(url)
    return [name for rows in table.read(table.manifest(), ["id"]) for name in rows["id"].to_pylist()]


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    match how:
        case "remove":
            path.unlink()
        case "cut":
            path.write_bytes(content[:-1])
        case "empty":
            path.write_bytes(b"")
        case _:
            path.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])


def check(url: str, expected: set[str], is_damaged: bool) -> None:
    """Hold a table to a plain set, and its index to the ids of its files."""
    found = ids_in(url)
    assert len(found) == len(set(found))
    assert set(found) == expected
    table = Table.open(url)
    manifest = table.manifest()
    verified = verify_table(table, manifest)
    assert verified.damaged == []
    if not is_damaged:
        assert (verified.damaged_indexes, verified.not_indexed) == ([], 0)


@pytest.mark.hypothesis
@given(steps=STEPS)
@settings(max_examples=25, deadline=None)
def test_whatever_is_done_to_a_table_it_holds_what_a_plain_set_says(
    steps: list[tuple[Any, ...]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("steps")
    url, ids, history, is_damaged, erased_at = str(folder / "t"), set[str](), dict[int, set[str]](), False, 0
    table = Table(url, "annotations")
    for number, step in enumerate(steps):
        if step[0] != "ingest" and not table.versions():
            continue
        match step:
            case ("ingest", numbers):
                ingest([put(folder / f"{number}.jsonl", numbers)], url, CONFIG)
                ids = ids | {f"r{n}" for n in numbers}
            case ("erase", number):
                try:
                    erase(url, annotators=[f"ann{number}"], prompts=[])
                    erased_at = table.versions()[-1]
                except DataError:
                    assert not {name for name in ids if int(name[1:]) % 3 == number}
                ids = {name for name in ids if int(name[1:]) % 3 != number}
            case ("compact",):
                compact(url, file_bytes=1 << 20)
            case ("restore", version):
                if version in table.versions() and version >= erased_at:
                    restore(url, version)
                    ids = history[version]
            case ("vacuum",):
                vacuum(url, older_than=timedelta(), keep_versions=2, is_dry_run=False)
            case ("damage", how, at):
                files = sorted((folder / "t/index").glob("*"), key=os.path.getmtime)
                if files and files[at % len(files)].stat().st_size:
                    damage(files[at % len(files)], how)
                    is_damaged = True
            case _:
                raise AssertionError(step)
        if table.versions():
            history[table.versions()[-1]] = ids
            check(url, ids, is_damaged)


@pytest.mark.parametrize("how", ["remove", "cut", "flip", "empty"])
def test_a_damaged_index_is_found_costs_no_duplicate_and_is_made_again(how: str, tmp_path: Path) -> None:
    url = str(tmp_path / "t")
    ingest([put(tmp_path / "a.jsonl", list(range(20)))], url, CONFIG)
    for path in (tmp_path / "t/index").glob("*"):
        damage(path, how)
    table = Table.open(url)
    assert len(verify_table(table, table.manifest()).damaged_indexes) == len(table.manifest().indexes)
    summary = ingest([put(tmp_path / "b.jsonl", [19, 20])], url, CONFIG)
    assert summary.reasons == {"duplicate annotation": 1}
    assert sorted(ids_in(url)) == sorted(f"r{n}" for n in range(21))
    assert verify_table(table, table.manifest()).damaged_indexes == []


@pytest.mark.parametrize("verb", [compact, ingest])
def test_a_table_without_an_index_is_indexed_when_it_is_next_written(
    verb: Callable[..., object], tmp_path: Path
) -> None:
    url = str(tmp_path / "t")
    rows = [annotation_row(f"r{n}", ["x", "y"], [1, 2]) for n in range(9)]
    commit_annotations(url, [annotations_table(rows[start : start + 3]) for start in (0, 3, 6)])
    table = Table.open(url)
    assert verify_table(table, table.manifest()).not_indexed == 3
    if verb is compact:
        assert compact(url, file_bytes=1024).is_new
    else:
        assert ingest([put(tmp_path / "a.jsonl", [8, 9])], url, CONFIG).reasons == {"duplicate id at $.id": 1}
    verified = verify_table(table, table.manifest())
    assert (verified.not_indexed, verified.damaged_indexes) == (0, [])


def test_an_erasure_takes_the_hashes_of_erased_ids_out_of_the_index(tmp_path: Path) -> None:
    url = str(tmp_path / "t")
    for number in range(MIN_MERGED + 1):
        ingest([put(tmp_path / f"{number}.jsonl", [number])], url, CONFIG)
    table = Table.open(url)
    assert len(table.manifest().indexes) < MIN_MERGED
    erase(url, annotators=["ann0"], prompts=[])
    indexed = [
        entry
        for file in table.manifest().index_files
        for entries in IndexFileReader(url, file).all_blocks()
        for entry in truncated(entries).tolist()
    ]
    assert sorted(indexed) == sorted(truncated(hash_ids(ids_in(url))).tolist())


def test_a_validation_against_a_table_writes_nothing_into_it(tmp_path: Path) -> None:
    url = str(tmp_path / "t")
    commit_annotations(url, [annotations_table([annotation_row("r1", ["x", "y"], [1, 2])])])
    before = sorted(tmp_path.rglob("*"))
    source = put(tmp_path / "a.jsonl", [1, 2])
    found = validate([source], CONFIG, against=url, limit=5, scratch=None)
    assert (found.num_accepted, found.num_refused) == (1, 1)
    assert sorted(tmp_path.rglob("*")) == sorted([*before, Path(source)])


def random_entries(num: int, num_files: int, *, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    hashes = truncated(rng.integers(0, 1 << 64, num, dtype=np.uint64))
    return np.sort(hashes | rng.integers(0, num_files, num, dtype=np.uint64))


@pytest.mark.parametrize("num", [0, 1, ENTRIES_PER_BLOCK, ENTRIES_PER_BLOCK + 1, 10 * ENTRIES_PER_BLOCK - 1])
@pytest.mark.parametrize("place", ["local", "s3"])
def test_a_search_and_a_range_of_an_index_file_are_those_of_its_entries(
    num: int, place: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = str(tmp_path) if place == "local" else f"{request.getfixturevalue('s3_bucket')}/ids{num}"
    entries = random_entries(num, 3, seed=num)
    reader = IndexFileReader(url, write_index_file(url, entries))
    wanted = np.unique(np.concatenate([truncated(entries[::97]), truncated(random_entries(50, 1, seed=1))]))
    assert reader.among(wanted).tolist() == [e for e in entries.tolist() if e >> 16 << 16 in set(wanted.tolist())]
    assert np.concatenate([np.empty(0, "<u8"), *reader.all_blocks()]).tolist() == entries.tolist()
    for low, high in [(0, 2**64 - 1), *hash_ranges(7)]:
        assert reader.between(low, high).tolist() == [e for e in entries.tolist() if low <= e <= high]


def test_one_hash_in_many_blocks_is_found_in_all_of_them(tmp_path: Path) -> None:
    entries = np.sort(np.concatenate([np.arange(3 * ENTRIES_PER_BLOCK, dtype="<u8"), random_entries(5000, 1, seed=1)]))
    reader = IndexFileReader(str(tmp_path), write_index_file(str(tmp_path), entries))
    assert file_numbers(reader.among(np.array([0], "<u8"))).tolist() == list(range(3 * ENTRIES_PER_BLOCK))


def indexed_rows(table: Table, names: list[str]) -> tuple[DataFile, IdIndex]:
    file, index = write_indexed(table, annotations_table([annotation_row(name, ["x", "y"], [1, 2]) for name in names]))
    assert index is not None
    return file, index


def test_a_merged_index_finds_what_its_parts_find_but_nothing_of_removed_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pairwright.data.id_index.index_merges.IDS_PER_FILE", 7)
    table = Table(str(tmp_path), "annotations")
    parts = [indexed_rows(table, [f"{part}-{n}" for n in range(10)]) for part in range(4)]
    live = {index_name(file) for file, _ in parts[1:]}
    merged = merge_indexes(table, [index for _, index in parts], live, LOCAL)
    assert len(merged.files) == 6  # 40 ids at most, 7 a file
    wanted = np.unique(truncated(hash_ids(["0-1", "2-3", "3-4", "9-9"])))
    found = search(table.url, merged, wanted, live)
    assert found.data_files == {index_name(parts[2][0]), index_name(parts[3][0])}
    assert found.hashes.tolist() == np.unique(truncated(hash_ids(["2-3", "3-4"]))).tolist()


def shard_of(number: int, num: int, file: DataFile, index: IdIndex) -> IngestShard:
    counts: dict[str, Any] = {"split_index": 0, "index": number, "lines": num, "accepted": num, "refused": 0}
    empty: dict[str, Any] = {"completions": 2 * num, "quarantined_files": [], "reasons": {}, "shown": []}
    return IngestShard(**counts, **empty, data=file, id_index=index)


def test_candidates_are_the_same_however_many_hashes_are_compared_at_once(tmp_path: Path) -> None:
    table = Table(str(tmp_path), "annotations")
    known_file, known_index = indexed_rows(table, [f"k{n}" for n in range(50)])
    shards = []
    for number, names in enumerate([["a", "b", "k3"], ["c"], ["d", "b"], [f"e{n}" for n in range(40)]]):
        file, index = indexed_rows(table, names)
        shards.append(shard_of(number, len(names), file, index))
    for at_once in (1, 5, 1000):
        known = IdSearch(table, [known_file], [known_index], table, LOCAL, [])
        found = find_candidates(shards, known, table, at_once)
        assert found.hashes.tolist() == np.unique(truncated(hash_ids(["b", "k3"]))).tolist()
        assert (found.data_files, found.shards) == ({index_name(known_file)}, {0, 2})


def sized(num_ids: int) -> IdIndex:
    return IdIndex(["x"], [IndexFile("index/x.ids", num_ids, 0, "")])


def test_commits_of_equal_size_leave_few_indexes_and_move_each_id_few_times() -> None:
    indexes: list[IdIndex] = []
    num_moved, most = 0, 0
    for _ in range(3000):
        indexes.append(sized(1000))
        if chosen := plan_merge(indexes, 1000):
            num_ids = sum(index.rows for index in chosen)
            num_moved += num_ids
            indexes = [*(index for index in indexes if all(index is not one for one in chosen)), sized(num_ids)]
        most = max(most, len(indexes))
    assert most <= 32
    assert num_moved <= 5 * 3_000_000


def test_an_index_that_lies_about_its_size_is_refused(tmp_path: Path) -> None:
    file = write_index_file(str(tmp_path), random_entries(3000, 1, seed=1))
    for rows, num_bytes in (
        (10**12, file.bytes),
        (-1, 0),
        (file.rows, file.bytes + 8),
        (10**12, 10**12 // 1024 * 8208),
    ):
        lie = IndexFile(file.path, rows, num_bytes, file.directory_sha256)
        with pytest.raises(StoreError):
            IndexFileReader(str(tmp_path), lie).among(np.array([1 << 20], "<u8"))
