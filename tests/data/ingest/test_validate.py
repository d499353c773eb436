"""`validate`: what `ingest` would refuse, in the same words, and nothing changed."""

import json
import tempfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pairwright.cli.main import app
from pairwright.config import IngestConfig
from pairwright.data.ingest.dry_run import Findings, num_allowed, validate
from pairwright.data.ingest.ingest import ingest
from pairwright.data.table.table import Table
from pairwright.errors import ConfigError

CONFIG = IngestConfig()


def record(name: str, **change: object) -> bytes:
    good = {"id": name, "prompt": f"question {name}", "completions": [{"text": "x"}, {"text": "y"}], "ranks": [1, 2]}
    return json.dumps(good | change).encode() + b"\n"


def write(path: Path, *lines: bytes) -> str:
    path.write_bytes(b"".join(lines))
    return str(path)


def check(*sources: str, against: str | None = None, limit: int = 100, scratch: str | None = None) -> Findings:
    return validate(sources, CONFIG, against=against, limit=limit, scratch=scratch)


def test_findings_are_what_an_ingestion_refuses_and_no_table_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, scratch = str(tmp_path / "t"), tmp_path / "tmp"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    old = write(tmp_path / "old.jsonl", record("old"), record("other"))
    ingest([old], table, CONFIG)
    new = write(
        tmp_path / "new.jsonl",
        record("a", ranks=[1, 1]),
        record("old", ranks=[2, 1]),
        b"{\n",
        record("b", completions=[{"text": "same"}, {"text": "same"}]),
        record("a"),
    )
    cut = write(tmp_path / "cut.jsonl.gz", b"\x1f\x8b")
    before = sorted(tmp_path.joinpath("t").rglob("*"))
    found = check(old, new, cut, against=table)
    assert sorted(tmp_path.joinpath("t").rglob("*")) == before
    assert list(scratch.iterdir()) == []
    assert (found.num_accepted, found.num_refused) == (2, 3)
    assert found.summary.skipped == [old]
    assert [uri for uri, _ in found.summary.failed] == [cut]
    assert "tie every completion" in found.text()
    assert "rank two completions with the same text apart" in found.text()
    real = ingest([new], table, CONFIG)
    assert sorted(map(str, found.refused)) == sorted(map(str, real.rejections))
    assert found.summary.reasons == real.reasons
    assert [(s.accepted, s.refused) for s in found.summary.sources] == [(s.accepted, s.refused) for s in real.sources]
    alone = check(new, limit=1)  # without the table `old` is new
    assert (alone.num_refused, len(alone.refused)) == (2, 1)
    assert "and 1 more; --limit 2 lists them all" in alone.text()


def test_a_scratch_place_of_ones_own_is_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    found = check(write(tmp_path / "a.jsonl", record("a"), b"{\n"), scratch=str(tmp_path / "scratch"))
    assert (found.num_accepted, found.num_refused) == (1, 1)
    assert [path for path in (tmp_path / "scratch").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("flags", "status"),
    [
        ([], 1),
        (["--max-refused", "0"], 1),
        (["--max-refused", "1"], 0),
        (["--max-refused", "24.9%"], 1),
        (["--max-refused", "25%"], 0),
    ],
)
def test_the_exit_status_says_whether_more_was_refused_than_is_allowed(
    tmp_path: Path, flags: list[str], status: int
) -> None:
    source = write(tmp_path / "a.jsonl", *map(record, "abc"), b"{\n")
    done = CliRunner().invoke(app, ["validate", source, "--json", *flags])
    assert done.exit_code == status, done.output
    told = json.loads(done.stdout)
    assert (told["accepted"], told["refused"]) == (3, 1)
    assert [(finding["line"], finding["path"]) for finding in told["findings"]] == [(4, "$")]


@pytest.mark.parametrize("wrong", ["many", "-1", "101%", "nan", ""])
def test_an_allowance_that_is_none_is_refused(wrong: str) -> None:
    with pytest.raises(ConfigError, match="--max-refused"):
        num_allowed(wrong, 10)


def test_against_must_be_a_table(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", record("a"))
    with pytest.raises(Exception, match="no table here"):
        check(source, against=str(tmp_path / "none"))
    assert Table(str(tmp_path / "none"), "annotations").versions() == []
