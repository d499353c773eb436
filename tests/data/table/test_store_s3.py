"""The store against a real S3 server on a loopback port."""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context

import numpy as np
import obstore
import pyarrow as pa
import pytest
from obstore.exceptions import AlreadyExistsError

from annotation_tables import annotation_row, annotations_table, manifest
from pairwright.data.shuffle import Shuffle
from pairwright.data.table.table import DataFile, Manifest, Table, open_store
from pairwright.errors import StoreError

NUM_WRITERS = 16


def rows(*names: str) -> pa.Table:
    return annotations_table([annotation_row(name, ["a", "b"], [1, 2]) for name in names])


def adding(*files: DataFile) -> Callable[[Manifest | None], Manifest]:
    def build(newest: Manifest | None) -> Manifest:
        return manifest(kind="annotations", files=[*(newest.files if newest else []), *files])

    return build


def append(url: str, names: list[str]) -> list[int]:
    table = Table(url, "annotations")

    def commit(name: str) -> int:
        committed = table.commit(adding(table.write_data(rows(name))))
        assert committed is not None
        return committed.version

    with ThreadPoolExecutor(len(names)) as pool:
        return list(pool.map(commit, names))


def test_the_server_lets_one_of_sixteen_creators_win(s3_bucket: str) -> None:
    store = open_store(f"{s3_bucket}/creators")

    def create(writer: int) -> int | None:
        try:
            obstore.put(store, "version", str(writer).encode(), mode="create")
        except AlreadyExistsError:
            return None
        return writer

    with ThreadPoolExecutor(NUM_WRITERS) as pool:
        winners = [writer for writer in pool.map(create, range(NUM_WRITERS)) if writer is not None]
    assert [str(winner).encode() for winner in winners] == [obstore.get(store, "version").bytes().to_bytes()]


def test_sixteen_writers_in_two_processes_are_all_kept(s3_bucket: str) -> None:
    url = f"{s3_bucket}/deep/writers"
    names = [[f"process {p} thread {t}" for t in range(NUM_WRITERS // 2)] for p in range(2)]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        versions = [version for each in pool.map(append, [url] * 2, names) for version in each]
    table = Table.open(url, "annotations")
    assert sorted(versions) == table.versions() == list(range(1, NUM_WRITERS + 1))
    kept = pa.concat_tables(table.read(table.manifest()))["id"].to_pylist()
    assert sorted(kept) == sorted(name for each in names for name in each)


def test_a_file_above_the_multipart_limit_comes_back_as_it_was_written(s3_bucket: str) -> None:
    table = Table(f"{s3_bucket}/large", "annotations")
    written = annotations_table([annotation_row("one", ["a" * 12_000_000, "b"], [1, 2])])
    file = table.write_data(written, compress=False)
    assert file.bytes > 12_000_000
    assert table.read_file(file).equals(written)
    assert table.local_path(file) is None


def test_a_damaged_or_missing_file_is_named(s3_bucket: str) -> None:
    table = Table(f"{s3_bucket}/damaged", "annotations")
    file = table.write_data(rows("one"))
    whole = obstore.get(open_store(table.url), file.path).bytes().to_bytes()
    obstore.put(open_store(table.url), file.path, whole[:-1] + b"\x00")
    with pytest.raises(StoreError, match=f"{s3_bucket}/damaged/{file.path}: damaged"):
        table.read_file(file)
    table.delete([file])
    with pytest.raises(StoreError, match=f"{file.path}: the file is missing"):
        table.read_file(file)
    table.delete([file])


def test_a_bucket_that_is_not_there_is_named(s3_bucket: str) -> None:
    with pytest.raises(StoreError, match=r"s3://elsewhere/table/versions: .*404.*check the address"):
        Table.open("s3://elsewhere/table")


def test_a_commit_whose_answer_was_lost_is_not_made_twice(s3_bucket: str) -> None:
    table = Table(f"{s3_bucket}/lost-answers/table", "annotations")
    file = table.write_data(rows("one"))
    committed = table.commit(adding(file))
    assert committed is not None
    assert committed.version == 1
    assert table.versions() == [1]


def test_rows_are_exchanged_through_the_server_and_a_lost_file_is_named(s3_bucket: str) -> None:
    exchange = Shuffle(f"{s3_bucket}/deep/exchange", num_buckets=3)
    starts = [
        exchange.write(0, rows("a", "b", "c"), np.array([2, 0, 2])),
        [],
        exchange.write(2, rows("d"), np.array([2])),
    ]
    found = [exchange.read(partition, starts)["id"].to_pylist() for partition in (0, 2)]
    assert found == [["b"], ["a", "c", "d"]]
    obstore.delete(open_store(exchange.url), "2")
    with pytest.raises(StoreError, match="exchange/2: what another task wrote there is gone; run"):
        exchange.read(2, starts)
