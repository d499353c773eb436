"""One odd thing in a folder stops nothing else in it: it is passed over and named, and the rest goes in."""

import json
import os
import socket
from pathlib import Path

import msgspec
import pytest

from annotation_tables import manifest
from pairwright.config import IngestConfig
from pairwright.data.ingest.ingest import ingest
from pairwright.data.ingest.sources.file_search import LEADS_OUT, LINKED_FOLDER, NO_FILE, NO_UTF8
from pairwright.data.ingest.sources.listing import find_sources, list_sources
from pairwright.errors import SourceError

LATIN = os.fsdecode(b"caf\xe9.jsonl")


def record(name: str) -> str:
    return json.dumps({"id": name, "prompt": "p", "completions": [{"text": "a"}, {"text": "b"}], "ranks": [1, 2]})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with one good source and everything odd that a file system has."""
    folder, outside = tmp_path / "in", tmp_path / "outside"
    for place in (folder / "x.jsonl", outside):
        place.mkdir(parents=True)
    (folder / "good.jsonl").write_text(record("good"))
    (folder / "x.jsonl/inner.jsonl").write_text(record("inner"))
    (folder / "two\nlines\x1b[2J.jsonl").write_text(record("odd name"))
    (outside / "secret.jsonl").write_text("root:x:0:0\n")
    (folder / LATIN).write_text(record("latin"))
    os.mkfifo(folder / "pipe.jsonl")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "s.jsonl"))
    (folder / "out.jsonl").symlink_to(outside / "secret.jsonl")
    (folder / "inside.jsonl").symlink_to("good.jsonl")
    (folder / "dangling.jsonl").symlink_to("nothing")
    (folder / "self.jsonl").symlink_to("self.jsonl")
    (folder / "elsewhere").symlink_to(outside)
    (folder / "circle").symlink_to(folder)
    (folder / "device.jsonl").symlink_to("/dev/zero")
    for name in ("empty.jsonl", "empty.json", "empty.csv"):
        (folder / name).write_bytes(b"")
    for name in ("bad.parquet", "bad.arrow", "bad.jsonl.gz"):
        (folder / name).write_bytes(b"")
    return folder


def test_a_folder_of_odd_things_gives_what_is_good_in_it(folder: Path, tmp_path: Path) -> None:
    summary = ingest([str(folder)], str(tmp_path / "t"), IngestConfig())
    accepted = {Path(source.uri).name: source.accepted for source in summary.sources if source.accepted}
    assert accepted == {"good.jsonl": 1, "inner.jsonl": 1, "two\nlines\x1b[2J.jsonl": 1}
    assert {Path(uri).name for uri, _ in summary.failed} == {"bad.parquet", "bad.arrow", "bad.jsonl.gz"}
    ignored = {str(Path(path).relative_to(folder)): reason for path, reason in summary.ignored.items()}
    assert ignored == {
        "caf\\xe9.jsonl": NO_UTF8,
        "pipe.jsonl": NO_FILE,
        "s.jsonl": NO_FILE,
        "out.jsonl": LEADS_OUT,
        "device.jsonl": NO_FILE,
        "dangling.jsonl": "cannot be looked at: No such file or directory",
        "self.jsonl": "cannot be looked at: Too many levels of symbolic links",
        "elsewhere": LINKED_FOLDER,
        "circle": LINKED_FOLDER,
    }
    summary.text().encode()
    json.dumps(summary.as_dict()).encode()
    assert not any(b"root:x" in path.read_bytes() for path in (tmp_path / "t").rglob("*") if path.is_file())


@pytest.mark.parametrize("pattern", ["*.jsonl", "**/*.jsonl", "**"])
@pytest.mark.timeout(60)
def test_a_pattern_passes_over_the_same_things_and_goes_in_no_circle(folder: Path, pattern: str) -> None:
    listing = find_sources([f"{folder}/{pattern}"])
    names = {str(Path(source.uri).relative_to(folder)) for source in listing.sources if source.uri.endswith(".jsonl")}
    inner = {"x.jsonl/inner.jsonl"} if pattern != "*.jsonl" else set()
    assert names == {"good.jsonl", "two\nlines\x1b[2J.jsonl", "inside.jsonl", "empty.jsonl"} | inner
    reasons = {Path(path).name: reason for path, reason in listing.ignored.items()}
    assert reasons["caf\\xe9.jsonl"] == NO_UTF8
    assert reasons["out.jsonl"] == LEADS_OUT
    assert reasons["pipe.jsonl"] == NO_FILE


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (LATIN, r"caf\\xe9\.jsonl: its name is not UTF-8; rename it"),
        ("pipe.jsonl", "pipe.jsonl: it is no regular file, expected a file, a directory or a pattern"),
        ("s.jsonl", "s.jsonl: it is no regular file"),
        ("device.jsonl", "device.jsonl: it is no regular file"),
        ("dangling.jsonl", "dangling.jsonl: no such file or directory"),
        ("self.jsonl", "self.jsonl: "),
    ],
)
def test_an_odd_thing_named_by_itself_is_refused_with_its_reason(folder: Path, name: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        list_sources([str(folder / name)])


def test_a_link_named_by_itself_is_followed(folder: Path, tmp_path: Path) -> None:
    assert [source.uri for source in list_sources([str(folder / "out.jsonl")])] == [str(folder / "out.jsonl")]
    found = list_sources([str(folder / "elsewhere")])
    assert [source.uri for source in found] == [str(folder / "elsewhere/secret.jsonl")]


def test_a_folder_that_cannot_be_opened_is_named_and_stops_no_other(folder: Path) -> None:
    locked = folder / "locked"
    locked.mkdir(mode=0o000)
    for place in (folder, *folder.parents[:3]):
        place.chmod(0o755)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        listing = find_sources([str(folder)])
        with pytest.raises(SourceError, match="locked: cannot be listed: Permission denied"):
            list_sources([str(folder)])
    finally:
        os.seteuid(user)
    assert listing.failed == {str(locked): "cannot be listed: Permission denied"}
    assert str(folder / "good.jsonl") in [source.uri for source in listing.sources]


def test_a_date_among_versions_makes_no_table_of_a_data_set(tmp_path: Path) -> None:
    for name in ("data/a.jsonl", "data/b.jsonl", "refused/c.jsonl", "versions/20240101.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(record(name))
    listing = find_sources([str(tmp_path)])
    assert len(listing.sources) == 4
    assert listing.ignored == {}
    # A manifest of another version is none of this table either.
    (tmp_path / "versions/20240101.json").write_bytes(msgspec.json.encode(manifest(version=7)))
    assert len(find_sources([str(tmp_path)]).sources) == 4
    (tmp_path / "versions/00000007.json").write_bytes(msgspec.json.encode(manifest(version=7)))
    with pytest.raises(SourceError, match="holds 5 files, none of them a source"):
        find_sources([str(tmp_path)])
