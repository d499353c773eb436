"""The store on local disk: what is committed, what is read back, and what is said when it cannot be."""

import multiprocessing
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest

from annotation_tables import annotation_row, annotations_table, manifest
from pairwright.data.table.table import DataFile, Manifest, Table
from pairwright.errors import CommitConflict, StoreError
from pairwright.records import ANNOTATIONS_SCHEMA, Rejection

NUM_WRITERS = 16


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return Table(str(tmp_path / "with space, 100%#ü"), "annotations")


def rows(*names: str) -> pa.Table:
    return annotations_table([annotation_row(name, ["a", "b"], [1, 2]) for name in names])


def adding(*files: DataFile) -> Callable[[Manifest | None], Manifest]:
    def build(newest: Manifest | None) -> Manifest:
        return manifest(kind="annotations", files=[*(newest.files if newest else []), *files])

    return build


def append(url: str, names: list[str]) -> list[int]:
    """Commit one file a name, each from a thread of its own; return the versions they became."""
    table = Table(url, "annotations")

    def commit(name: str) -> int:
        committed = table.commit(adding(table.write_data(rows(name))))
        assert committed is not None
        return committed.version

    with ThreadPoolExecutor(len(names)) as pool:
        return list(pool.map(commit, names))


def assert_every_commit_is_kept(table: Table, versions: list[int], names: list[str]) -> None:
    assert sorted(versions) == table.versions() == list(range(1, len(names) + 1))
    assert [table.manifest(version).parent for version in table.versions()] == [None, *range(1, len(names))]
    kept = pa.concat_tables(table.read(table.manifest()))["id"].to_pylist()
    assert sorted(kept) == sorted(names)


def test_sixteen_threads_that_commit_at_once_are_all_kept(table: Table) -> None:
    names = [f"writer {i}" for i in range(NUM_WRITERS)]
    assert_every_commit_is_kept(table, append(table.url, names), names)


def test_sixteen_writers_in_four_processes_are_all_kept(table: Table) -> None:
    names = [[f"process {p} thread {t}" for t in range(4)] for p in range(4)]
    with ProcessPoolExecutor(4, mp_context=multiprocessing.get_context("spawn")) as pool:
        versions = [version for each in pool.map(append, [table.url] * 4, names) for version in each]
    assert_every_commit_is_kept(table, versions, [name for each in names for name in each])


def test_a_reader_sees_all_of_a_version_or_nothing(table: Table) -> None:
    done = threading.Event()
    seen: list[int] = []

    def read() -> None:
        while not done.is_set():
            newest = Table(table.url, "annotations").latest()
            if newest is not None:
                assert sum(part.num_rows for part in table.read(newest)) == 2 * newest.version
                seen.append(newest.version)

    with ThreadPoolExecutor(5) as pool:
        readers = [pool.submit(read) for _ in range(4)]
        for version in range(1, 41):
            table.commit(adding(table.write_data(rows(f"{version}a", f"{version}b"))))
        done.set()
        for reader in readers:
            reader.result()
    assert seen
    assert max(seen) <= 40


def test_a_build_that_finds_nothing_to_do_adds_no_version(table: Table) -> None:
    table.commit(adding())
    assert table.commit(lambda newest: None) is None
    assert table.versions() == [1]


def test_a_writer_that_always_loses_says_so(table: Table) -> None:
    rival = Table(table.url, "annotations")

    def build(newest: Manifest | None) -> Manifest:
        rival.commit(adding())
        return adding()(newest)

    with pytest.raises(CommitConflict, match="3 times in a row"):
        table.commit(build, max_attempts=3)
    assert table.versions() == [1, 2, 3]


@pytest.mark.parametrize("compress", [True, False])
def test_rows_come_back_as_they_were_written(table: Table, compress: bool) -> None:
    written = rows(*(f"annotation {i}" for i in range(1000)))
    file = table.write_data(written, compress=compress)
    assert table.read_file(file).equals(written)
    assert table.read_file(file, ["ranks", "id"]).equals(written.select(["ranks", "id"]))
    assert table.read_file(file).schema.equals(ANNOTATIONS_SCHEMA, check_metadata=True)


def test_batches_hold_256_rows_however_the_table_was_chunked(table: Table) -> None:
    whole = rows(*(f"annotation {i}" for i in range(600)))
    chunked = pa.concat_tables([whole.slice(0, 10), whole.slice(10, 400), whole.slice(410)])
    files = [table.write_data(whole), table.write_data(chunked)]
    assert files[0].sha256 == files[1].sha256
    assert files[0].path != files[1].path
    path = table.local_path(files[0])
    assert path is not None
    reader = pa.ipc.open_file(path)
    assert [reader.get_batch(i).num_rows for i in range(reader.num_record_batches)] == [256, 256, 88]


def test_an_uncompressed_local_file_is_mapped_and_not_copied(table: Table) -> None:
    file = table.write_data(rows(*(f"annotation {i}" for i in range(1000))), compress=False)
    before = pa.total_allocated_bytes()
    kept = table.read_file(file)
    assert kept.nbytes > 100_000
    num_nulls = 1000 + sum(len(row["prompt"]) + len(row["completions"]) for row in kept.to_pylist())
    assert pa.total_allocated_bytes() - before < 10_000 + 5 * num_nulls, "nulls for fields that the file has not"


def test_refused_records_come_back_as_they_were_written(table: Table) -> None:
    refused = [
        Rejection(source="a.jsonl", line=3, path="$.ranks[2]", reason="expected\n1", record='{"x": "\u2028\r\n"}'),
        Rejection(source="a.jsonl", line=4, path="$", reason="not JSON", record="{"),
    ]
    file = table.write_quarantined(refused)
    assert file.rows == 2
    assert table.read_quarantined(file) == refused


@pytest.mark.parametrize("compress", [True, False])
def test_a_flipped_bit_anywhere_in_a_data_file_is_found_and_the_file_named(table: Table, compress: bool) -> None:
    file = table.write_data(rows("one", "two"), compress=compress)
    path = table.local_path(file)
    assert path is not None
    whole = path.read_bytes()
    for position in range(0, len(whole), 211):
        damaged = bytearray(whole)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(StoreError, match=file.path):
            table.read_file(file)


@pytest.mark.parametrize("damage", ["cut", "empty", "missing"])
def test_a_cut_or_missing_data_file_is_named(table: Table, damage: str) -> None:
    file = table.write_data(rows("one"))
    path = table.local_path(file)
    assert path is not None
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: 0 if damage == "empty" else -10])
    with pytest.raises(StoreError, match=f"{file.path}.*(damaged|missing)"):
        table.read_file(file)


def test_a_manifest_that_is_none_is_named(table: Table) -> None:
    table.commit(adding())
    (Path(table.url) / "versions/00000001.json").write_text("{")
    with pytest.raises(StoreError, match=r"versions/00000001\.json.*not a manifest"):
        table.manifest()


def test_a_manifest_of_a_later_format_is_refused(table: Table) -> None:
    table.commit(adding())
    path = Path(table.url) / "versions/00000001.json"
    path.write_text(path.read_text().replace('"format_version": 1', '"format_version": 2'))
    with pytest.raises(StoreError, match="format_version is 2, this Pairwright reads 1"):
        table.latest()


def test_opening_what_is_no_table_says_which_verb_makes_one(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    with pytest.raises(StoreError, match=r"no table here.*pairwright ingest"):
        Table.open(str(missing))
    with pytest.raises(StoreError, match=r"no table here.*pairwright expand"):
        Table.open(str(missing), "pairs")
    assert not missing.exists()


def test_a_table_of_another_kind_is_neither_opened_nor_written(table: Table) -> None:
    table.commit(adding())
    with pytest.raises(StoreError, match=r"holds annotations, expected pairs.*pairwright expand"):
        Table.open(table.url, "pairs")
    with pytest.raises(StoreError, match="holds annotations, expected pairs"):
        Table(table.url, "pairs").commit(lambda newest: manifest(kind="pairs"))
    assert table.versions() == [1]


def test_a_version_that_is_not_there_names_those_that_are(table: Table) -> None:
    with pytest.raises(StoreError, match="there is none yet"):
        table.manifest()
    for _ in range(4):
        table.commit(adding())
    with pytest.raises(StoreError, match="no version 9; there are 1 to 4"):
        table.manifest(9)


def test_every_version_can_still_be_read(table: Table) -> None:
    append(table.url, ["one"])
    append(table.url, ["two"])
    ids = [pa.concat_tables(table.read(table.manifest(version)))["id"].to_pylist() for version in (1, 2)]
    assert ids == [["one"], ["one", "two"]]


def test_the_same_content_made_twice_has_the_same_digest(table: Table, tmp_path: Path) -> None:
    other = Table(str(tmp_path / "other"), "annotations")
    made = [
        store.commit(adding(*(store.write_data(rows(name)) for name in names)))
        for store, names in ((table, ["one", "two"]), (other, ["two", "one"]))
    ]
    digests = {each.digest for each in made if each is not None}
    assert len(digests) == 1
    further = table.commit(adding(table.write_data(rows("three"))))
    assert further is not None
    assert further.digest not in digests


def test_a_table_travels_to_another_process_by_its_url(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(table.url).parent)
    relative = Table("relative", "annotations")
    relative.commit(adding(relative.write_data(rows("one"))))
    sent = pickle.dumps(relative)
    monkeypatch.chdir("/")
    assert pickle.loads(sent).manifest().files == relative.manifest().files


def test_a_file_url_is_the_same_table_as_its_path(table: Table) -> None:
    table.commit(adding())
    assert Table(Path(table.url).as_uri(), "annotations").versions() == [1]


def test_deleted_files_are_gone_and_deleting_again_is_no_error(table: Table) -> None:
    file = table.write_data(rows("one"))
    table.delete([file])
    table.delete([file])
    with pytest.raises(StoreError, match="missing"):
        table.read_file(file)


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(StoreError, match=r"unknown scheme ftp://; expected a local path"):
        Table("ftp://host/table", "pairs")
