"""Care of a table on a real S3 server: forget, compact, vacuum, and writers at once with all of them."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import obstore

from annotation_tables import annotation_row, annotations_table, manifest
from pairwright.data.storage.object_store import open_store
from pairwright.data.table.compact import compact
from pairwright.data.table.diff import diff
from pairwright.data.table.erase import erase
from pairwright.data.table.table import Manifest, Table
from pairwright.data.table.vacuum import vacuum
from pairwright.data.table.version_log import version_log
from pairwright.records import Rejection

LANDED = f"staging/{'0a' * 16}/{'1b' * 16}.jsonl"
NUM_FILES = 6


def add(table: Table, name: str) -> None:
    rows = [annotation_row(f"{name} {who}", ["a", "b"], [1, 2], annotator=who) for who in ("ann", "bob")]
    file = table.write_data(annotations_table(rows))
    refused = table.write_quarantined(
        [Rejection(source=name, line=9, path="$", reason="no ranks", record='{"annotator": "ann"}')]
    )

    def build(newest: Manifest | None) -> Manifest:
        files, quarantined_files = (newest.files, newest.quarantined_files) if newest else ([], [])
        return manifest(kind="annotations", files=[*files, file], quarantined_files=[*quarantined_files, refused])

    table.commit(build)


def annotators(table: Table, version: int | None = None) -> list[str]:
    return [name for rows in table.read(table.manifest(version)) for name in rows.column("annotator").to_pylist()]


def stored(url: str) -> set[str]:
    listed = [entry["path"] for chunk in obstore.list(open_store(url)) for entry in chunk]
    return {path for path in listed if not path.startswith("versions/")}


def test_a_table_is_cared_for_on_s3_while_others_write_to_it(s3_bucket: str) -> None:
    table = Table(f"{s3_bucket}/deep/care", "annotations")
    add(table, "first")
    with ThreadPoolExecutor(NUM_FILES) as pool:
        writers = [pool.submit(add, table, f"writer {n}") for n in range(NUM_FILES - 1)]
        compactions = [pool.submit(compact, table.url, file_bytes=1 << 20) for _ in range(2)]
        for job in [*writers, *compactions]:
            job.result()
    assert sorted(annotators(table)) == ["ann"] * NUM_FILES + ["bob"] * NUM_FILES
    summary = erase(table.url, annotators=["ann"], prompts=[])
    assert (summary.num_annotations, summary.num_refused_without_text) == (NUM_FILES, NUM_FILES)
    assert summary.verification.num_rows == summary.verification.num_refused == NUM_FILES
    assert annotators(table) == ["bob"] * NUM_FILES
    assert diff(table.url, summary.version - 1, summary.version)["rows"]["removed"] == NUM_FILES
    assert version_log(table.url, last=1)["versions"][0]["operation"] == "forget"
    compacted = compact(table.url, file_bytes=1 << 20)
    assert compacted.num_files == 2  # one of rows, one of refused records
    obstore.put(open_store(table.url), LANDED, b"{}\n")
    orphan = table.write_data(annotations_table([annotation_row("orphan", ["a", "b"], [1, 2])]))
    young = vacuum(table.url, older_than=timedelta(hours=1), keep_versions=1, is_dry_run=False)
    assert (young.removed_files, young.removed_versions) == ([], [])
    done = vacuum(table.url, older_than=timedelta(), keep_versions=1, is_dry_run=False)
    assert {LANDED, orphan.path} < set(done.removed_files)
    assert table.versions() == [compacted.version]
    assert stored(table.url) == table.manifest().paths
    assert annotators(table) == ["bob"] * NUM_FILES
    for path in stored(table.url):
        assert b"ann" not in obstore.get(open_store(table.url), path).bytes().to_bytes() or path.startswith("data/")
    add(table, "later")
    assert table.versions() == [compacted.version, compacted.version + 1]
