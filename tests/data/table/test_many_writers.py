"""Eight ingestions into one table at once, on one Ray head: no record is lost, none is there twice."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import obstore
import pytest

from killed_commands import Command, reading
from pairwright.data.table.table import Table, open_store
from ray_head import ray_head

NUM_OWN = 6
NUM_RECORDS = 400

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(900)]


@pytest.mark.parametrize("place", ["local", "s3"])
def test_eight_ingestions_at_once_are_all_kept_and_the_source_that_two_bring_goes_in_once(
    place: str, tmp_path: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    """Six bring a source of their own, two the same one; each source repeats the first ten ids of the next one."""
    base = str(tmp_path) if place == "local" else request.getfixturevalue("s3_bucket")
    names = [*(f"own{writer}" for writer in range(NUM_OWN)), "shared", "shared"]
    sources = {name: put_source(base, name, ids_of(index)) for index, name in enumerate(dict.fromkeys(names))}
    url = f"{base}/table"
    with reading() as reader, ray_head(tmp_path, num_cpus=2) as head:
        environment = head.environment | {"RAY_ADDRESS": head.gcs_address}
        reader.look_at(url)
        arguments = [["ingest", sources[name], "--output", url, "--json"] for name in names]
        commands = [Command(each, tmp_path / f"{i}.log", environment) for i, each in enumerate(arguments)]
        try:
            seconds = [command.wait() for command in commands]
        finally:
            for command in commands:
                command.end()
        looks, contents = reader.seen()
    table = Table.open(url, "annotations")
    check_kept(table, sources)
    assert table.versions() == list(range(1, len(sources) + 1))
    assert all(content.rows == dict(content.totals)["annotations"] for content in contents)
    skipped = [
        json.loads(command.log.read_text()[command.log.read_text().index("{") :])["skipped"] for command in commands
    ]
    assert sorted(filter(None, skipped)) == [[sources["shared"]]]
    with capsys.disabled():
        print(
            f"\n{place}: 8 ingestions at once took {max(seconds):.0f} s: {len(table.versions())} versions, "
            f"{table.manifest().totals}; {looks} looks saw {len(contents)} of them, each whole"
        )


def summary(command: Command) -> dict[str, Any]:
    """Return what a command printed as JSON, among lines of progress."""
    text = command.log.read_text()
    return json.JSONDecoder().raw_decode(text, text.index("{"))[0]


def check_kept(table: Table, sources: dict[str, str]) -> None:
    """Hold the newest version to what the sources say: each id once, the later one of two refused with its place."""
    manifest = table.manifest()
    rows = [row for rows in table.read(manifest, ["id", "source"]) for row in rows.to_pylist()]
    refused = [one for file in manifest.quarantined_files for one in table.read_quarantined(file)]
    expected = {name for index in range(len(sources)) for name in ids_of(index)}
    assert Counter(row["id"] for row in rows) == dict.fromkeys(expected, 1)
    assert sorted(source.uri for source in manifest.sources) == sorted(sources.values())
    for index, uri in enumerate(sources.values()):
        taken = [row["id"] for row in rows if row["source"] == uri]
        refused_ids = [json.loads(one.record)["id"] for one in refused if one.source == uri]
        assert sorted([*taken, *refused_ids]) == sorted(ids_of(index))
    assert manifest.totals["annotations"] == len(rows)
    assert (
        manifest.totals["refused"] == len(refused) == sum(len(ids_of(i)) for i in range(len(sources))) - len(expected)
    )


def ids_of(index: int) -> list[str]:
    """Return the ids in a source: its own, and the first ten of the next source."""
    own = [f"{index}-{number}" for number in range(NUM_RECORDS)]
    return own if index == NUM_OWN else [*own, *(f"{index + 1}-{number}" for number in range(10))]


def put_source(base: str, name: str, ids: list[str]) -> str:
    records: list[dict[str, Any]] = [
        {"id": one, "prompt": f"q {one}", "completions": [{"text": f"x {name}"}, {"text": "y"}], "ranks": [1, 2]}
        for one in ids
    ]
    content = b"".join(json.dumps(record).encode() + b"\n" for record in records)
    if "://" in base:
        obstore.put(open_store(base), f"in/{name}.jsonl", content)
    else:
        (Path(base) / "in").mkdir(exist_ok=True)
        (Path(base) / f"in/{name}.jsonl").write_bytes(content)
    return f"{base}/in/{name}.jsonl"
