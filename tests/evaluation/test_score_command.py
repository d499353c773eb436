"""Scoring as a command runs it: files or tables and an exported model in, Parquet out."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from annotation_tables import annotation_row, annotations_table, manifest
from exported_models import export_small_model, plain_rewards
from pairwright.cluster.models.score_input import split_lines
from pairwright.cluster.models.score_job import ScoreSummary, score
from pairwright.config import IngestConfig, SourceLimits
from pairwright.data.table.table import Table
from pairwright.errors import ConfigError, SourceError, StoreError

pytestmark = pytest.mark.ray

NUM_RECORDS = 400


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_small_model(tmp_path_factory.mktemp("exported"))


def records() -> Iterator[dict[str, Any]]:
    rng = np.random.default_rng(8)
    words = ["sky", "blue", "green", "because", "scattering", "mostly", "not", "at", "all"]
    for i in range(NUM_RECORDS):
        texts = [" ".join(rng.choice(words, rng.integers(1, 9))) + f" {k}" for k in range(rng.integers(1, 5))]
        yield {"id": f"r{i}", "prompt": f"Why is {i}?", "completions": [{"text": text} for text in texts]}


def write_lines(path: Path, rows: list[Any]) -> bytes:
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows).encode()
    packers = {".gz": gzip.compress, ".zst": zstandard.compress}
    path.write_bytes(packers.get(path.suffix, bytes)(text))
    return text


def run(model: Path, place: Path | str, output: Path, **changes: Any) -> ScoreSummary:
    options: dict[str, Any] = {"num_workers": 1, "use_gpu": False, "micro_batch_tokens": 1024}
    return score(str(model), str(place), str(output), **(options | changes))


def rows_in(output: Path) -> pa.Table:
    return pq.read_table(output / "scores")


def test_a_truncated_source_is_excluded_whole_and_the_others_are_scored(model: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    rows = list(records())
    write_lines(tmp_path / "in/a.jsonl", rows[:30])
    write_lines(tmp_path / "in/b.jsonl.gz", rows[30:300])
    write_lines(tmp_path / "in/c.jsonl", rows[300:320])
    whole = (tmp_path / "in/b.jsonl.gz").read_bytes()
    (tmp_path / "in/b.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    summary = run(model, tmp_path / "in", tmp_path / "out")
    assert [Path(source.uri).name for source in summary.failed] == ["b.jsonl.gz"]
    assert [Path(source.uri).name for source in summary.manifest.sources] == ["a.jsonl", "c.jsonl"]
    wanted = [row["id"] for row in rows[:30] + rows[300:320] for _ in row["completions"]]
    assert rows_in(tmp_path / "out").column("id").to_pylist() == wanted


def test_input_of_which_nothing_can_be_read_leaves_no_output(model: Path, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl.zst").write_bytes(b"this is not zstd")
    with pytest.raises(SourceError, match=r"in\.jsonl\.zst"):
        run(model, tmp_path / "in.jsonl.zst", tmp_path / "out")
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_a_source_that_is_mostly_refused_is_excluded_as_soon_as_it_is_known(model: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write_lines(tmp_path / "in/a.jsonl", list(records())[:30])
    (tmp_path / "in/b.jsonl.gz").write_bytes(gzip.compress(b"1\n" * 50_000))
    limits = IngestConfig(limits=SourceLimits(max_refused_records=1000))
    summary = run(model, tmp_path / "in", tmp_path / "out", limits=limits)
    assert [Path(source.uri).name for source in summary.manifest.sources] == ["a.jsonl"]
    [failed] = summary.failed
    assert "more than 1,000 of its records are refused" in failed.reason
    assert summary.manifest.totals["records_refused"] == 0


def test_input_that_is_not_there_is_named(model: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"nothing\.jsonl: no such file"):
        run(model, tmp_path / "nothing.jsonl", tmp_path / "out")


def test_a_length_limit_that_no_row_can_keep_is_refused(model: Path, tmp_path: Path) -> None:
    write_lines(tmp_path / "in.jsonl", [{"prompt": "p", "completion": "x"}])
    with pytest.raises(ConfigError, match="max_length is 3"):
        run(model, tmp_path / "in.jsonl", tmp_path / "out", max_length=3)


def test_stretches_hold_every_line_once_with_its_number() -> None:
    lines = [b"x" * (i % 50) for i in range(1000)]
    found: list[tuple[int, bytes]] = []
    for first_line, text in split_lines(b"\n".join(lines) + b"\n", 41):
        found += enumerate(text.split(b"\n"), start=first_line)
    assert found == list(enumerate(lines, start=41))


def test_records_of_trl_are_scored_and_an_input_without_a_good_record_is_no_success(
    model: Path, tmp_path: Path
) -> None:
    write_lines(tmp_path / "trl.jsonl", [{"prompt": "Name a lake.", "chosen": "Lake Como.", "rejected": "A puddle."}])
    assert not run(model, tmp_path / "trl.jsonl", tmp_path / "good").is_all_refused
    rewards = plain_rewards(model, [{"role": "user", "content": "Name a lake."}], ["Lake Como.", "A puddle."])
    np.testing.assert_allclose(rows_in(tmp_path / "good").column("reward").to_numpy(), rewards, atol=1e-5)
    write_lines(tmp_path / "bad.jsonl", [{"messages": [{"role": "user", "content": "Name a lake."}]}])
    assert run(model, tmp_path / "bad.jsonl", tmp_path / "bad").is_all_refused


# Ray is up from here to the end of the module, and takes what would fit this process too.


@pytest.mark.usefixtures("ray_cluster")
def test_every_good_line_gets_its_rewards_in_order_on_one_worker_and_on_two(model: Path, tmp_path: Path) -> None:
    rows: list[Any] = list(records())
    write_lines(tmp_path / "in.jsonl.zst", [*rows[:150], "nonsense", *rows[150:300], {"id": "x"}, *rows[300:]])
    summary = run(model, tmp_path / "in.jsonl.zst", tmp_path / "one")
    run(model, tmp_path / "in.jsonl.zst", tmp_path / "two", num_workers=2)
    one = rows_in(tmp_path / "one")
    assert one.equals(rows_in(tmp_path / "two"))

    wanted = [(row["id"], str(k)) for row in rows for k in range(len(row["completions"]))]
    assert list(zip(one.column("id").to_pylist(), one.column("completion_id").to_pylist(), strict=True)) == wanted
    found = dict(zip(wanted, one.column("reward").to_pylist(), strict=True))
    for row in rows[:: NUM_RECORDS // 8]:
        texts = [completion["text"] for completion in row["completions"]]
        expected = plain_rewards(model, [{"role": "user", "content": row["prompt"]}], texts)
        np.testing.assert_allclose([found[row["id"], str(k)] for k in range(len(texts))], expected, atol=1e-5)

    totals = summary.manifest.totals
    assert (totals["records"], totals["records_refused"]) == (NUM_RECORDS + 2, 2)
    assert totals["completions"] == len(wanted)
    (refused,) = (tmp_path / "one/quarantine").iterdir()
    assert [json.loads(line)["line"] for line in refused.read_text().splitlines()] == [151, 302]
    assert "in.jsonl.zst:151" in summary.text()

    before = sorted(tmp_path.joinpath("one").rglob("*"))
    with pytest.raises(StoreError, match="--overwrite"):
        run(model, tmp_path / "in.jsonl.zst", tmp_path / "one")
    assert sorted(tmp_path.joinpath("one").rglob("*")) == before


@pytest.mark.usefixtures("ray_cluster")
def test_a_table_gets_a_reward_for_each_completion_by_annotation_id(model: Path, tmp_path: Path) -> None:
    rows = [row for row in records() if len(row["completions"]) > 1]
    texts = [[completion["text"] for completion in row["completions"]] for row in rows]
    annotations = [
        annotation_row(row["id"], group, [1] * len(group), prompt=row["prompt"])
        for row, group in zip(rows, texts, strict=True)
    ]
    table = Table(str(tmp_path / "annotations"), "annotations")
    half = len(annotations) // 2
    files = [table.write_data(annotations_table(part)) for part in (annotations[:half], annotations[half:])]
    table.commit(lambda _: manifest(kind="annotations", files=files))
    table.commit(lambda _: manifest(kind="annotations", files=files[:1]))
    summary = run(model, tmp_path / "annotations", tmp_path / "out", num_workers=2, version=1)
    assert [(i.url, i.version) for i in summary.manifest.inputs] == [(table.url, 1)]
    found = rows_in(tmp_path / "out")
    assert found.column("id").to_pylist() == [row["id"] for row in rows for _ in row["completions"]]
    last = plain_rewards(model, [{"role": "user", "content": rows[-1]["prompt"]}], texts[-1])
    np.testing.assert_allclose(found.column("reward").to_pylist()[-len(last) :], last, atol=1e-5)
