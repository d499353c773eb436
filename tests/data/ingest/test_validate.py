"""`validate`: what `ingest` would refuse, in the same words, and nothing changed."""

import csv
import json
import tempfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pairwright.cli.main import app
from pairwright.config import IngestConfig
from pairwright.data.ingest.dry_run import Findings, num_allowed, validate
from pairwright.data.ingest.findings_file import Finding, write_findings
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


# ------------------------------------------------------------------------------------------------ findings as a file


def test_every_finding_is_written_with_its_place_however_few_are_listed(tmp_path: Path) -> None:
    source = write(
        tmp_path / "=a.jsonl",
        record("a"),
        record("b", ranks=[0, 1]),
        b'{"id": "c"}\n',
        b'"=SUM(A1)"\n',
        *[record(f"d{k}", ranks=[1]) for k in range(300)],
    )
    cut = write(tmp_path / "cut.jsonl.gz", b"\x1f\x8b")
    for name in ("f.csv", "f.jsonl"):
        output = tmp_path / name
        found = validate([source, cut], CONFIG, against=None, limit=2, scratch=None, output=str(output))
        assert (len(found.refused), found.num_refused) == (2, 303)
        if name == "f.csv":
            with output.open(newline="") as file:
                rows = list(csv.DictReader(file))
        else:
            rows = [json.loads(line) for line in output.read_text().splitlines()]
        assert [str(row["line"]) for row in rows[:3]] == ["2", "3", "4"]
        assert len(rows) == 304
        assert (rows[0]["path"], rows[0]["found"], rows[0]["expected"]) == ("$.ranks[0]", "0", "`int` >= 1 (1 = best)")
        assert (rows[1]["found"], rows[1]["expected"]) == ("no such field", "`prompt`")
        assert (rows[-1]["file"], rows[-1]["line"] or "") == (cut, "")
        assert rows[-1]["reason"].startswith("not a whole gzip file")


def test_a_cell_of_findings_is_no_formula(tmp_path: Path) -> None:
    output = tmp_path / "f.csv"
    write_findings(str(output), [Finding("=cmd()", 1, "$", "+x", "-y", "@z")], overwrite=False)
    [row] = csv.DictReader(output.open(newline=""))
    assert [row[name] for name in ("file", "reason", "found", "expected")] == ["'=cmd()", "'+x", "'-y", "'@z"]


def test_findings_replace_older_ones_alone_and_when_asked(tmp_path: Path) -> None:
    source, output = write(tmp_path / "a.jsonl", record("a", ranks=[0, 1])), tmp_path / "f.csv"
    flags = ["validate", source, "--output", str(output)]
    assert CliRunner().invoke(app, flags).exit_code == 1
    before = output.read_bytes()
    again = CliRunner().invoke(app, flags)
    assert "is there; replace it with --overwrite" in str(again.exception)
    write(tmp_path / "a.jsonl", record("a"))
    assert CliRunner().invoke(app, [*flags, "--overwrite"]).exit_code == 0
    assert output.read_bytes() != before
    output.write_text("mine")
    assert "is not findings of" in str(CliRunner().invoke(app, [*flags, "--overwrite"]).exception)
    assert output.read_text() == "mine"
    named = CliRunner().invoke(app, ["validate", source, "--output", str(tmp_path / "f.txt")])
    assert "expected a name that ends in .csv or .jsonl" in str(named.exception)


def test_a_check_of_a_replacement_says_what_the_replacement_does(tmp_path: Path) -> None:
    table = str(tmp_path / "t")
    source = write(tmp_path / "a.jsonl", record("a"), record("b"), record("c"))
    other = write(tmp_path / "b.jsonl", record("z"))
    ingest([source, other], table, CONFIG)
    write(tmp_path / "a.jsonl", record("a", ranks=[2, 1]), record("b"), record("z", ranks=[2, 1]), b"{\n")
    assert "has changed since it was ingested" in check(source, against=table).text()
    found = validate([source, other], CONFIG, against=table, limit=9, scratch=None, replace=True)
    assert (found.num_accepted, found.num_refused, found.replaced) == (2, 2, {source: 3})
    assert f"would replace {source}: 3 old annotations would be removed" in found.text()
    real = ingest([source, other], table, CONFIG, replace=True)
    assert sorted(map(str, real.rejections)) == sorted(map(str, found.refused))
    assert (real.replaced, real.sources[0].accepted) == ({source: 3}, 2)
    assert f"replaced {source}: removed 3 old annotations" in real.text()
    with pytest.raises(ConfigError, match="--replace says what would be replaced in a table"):
        validate([source], CONFIG, against=None, limit=9, scratch=None, replace=True)
