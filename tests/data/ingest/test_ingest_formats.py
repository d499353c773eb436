"""Exports of every tool into one table by one ingestion, each recognised by its records."""

import json
import shutil
from pathlib import Path

from pairwright.config import IngestConfig
from pairwright.data.ingest.adapters import formats
from pairwright.data.ingest.ingest import ingest
from pairwright.data.table.table import Table

FIXTURES = Path(__file__).parents[2] / "fixtures/formats"


def test_one_ingestion_takes_the_exports_of_every_tool(tmp_path: Path) -> None:
    exports = tmp_path / "exports"
    exports.mkdir()
    expected: dict[str, tuple[str, int]] = {}
    for fixture in FIXTURES.iterdir():
        if ".expected." not in fixture.name:
            shutil.copy(fixture, exports)
            name = next(name for name in formats() if fixture.name.startswith(name))
            meant = fixture.with_name(f"{fixture.stem}.expected.jsonl").read_text().splitlines()
            expected[fixture.name] = (name, len(meant))
    pairs = [{"prompt": f"Question {n}?", "chosen": "Yes, it is.", "rejected": "No."} for n in range(200)]
    (exports / "many-ranges.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    (exports / "unknown.jsonl").write_text('{"question": "?", "good": "a", "bad": "b"}\n')
    expected |= {"many-ranges.jsonl": ("trl", 200)}

    summary = ingest(
        [str(exports)],
        str(tmp_path / "annotations"),
        IngestConfig(buckets=("good", "_", "bad"), split_bytes=1024),
    )

    assert {Path(source.uri).name: (source.format, source.accepted) for source in summary.sources} == expected
    assert [uri for uri, _ in summary.failed] == [str(exports / "unknown.jsonl")]
    text = summary.text()
    assert f"read {exports / 'argilla-sdk.json'} as argilla" in text
    assert f"failed {exports / 'unknown.jsonl'}: its one record cannot be read as a known layout" in text
    assert summary.manifest is not None
    table = Table.open(str(tmp_path / "annotations"), "annotations")
    ids = [name for rows in table.read(summary.manifest, ["id"]) for name in rows["id"].to_pylist()]
    assert len(set(ids)) == len(ids) == sum(accepted for _, accepted in expected.values())
