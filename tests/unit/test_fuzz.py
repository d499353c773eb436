"""Spoilt records by the hundred thousand: every line is accepted, refused with where and why, or blank."""

import json
import random
import re
import unicodedata
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from mutations import mutated_lines
from pairwright.config import IngestConfig
from pairwright.data.annotations import parse_lines
from pairwright.data.formats import native
from pairwright.data.lines import LineRange, count_newlines, number_ranges, plan_ranges
from pairwright.data.parts import Part, write_parts
from pairwright.data.sources import find_sources
from pairwright.data.store import Table
from pairwright.records import Rejection
from record_rules import Broken, check_row, decoded, expected_row, has_a_key_twice, is_blank

SEED = 20261121
LIMITS = {"max_completions": 12, "max_characters": 2000}
LINES_PER_FILE = 5000
MAX_REASON_CHARACTERS = 1000
FIRST = b'{"id":"first","prompt":"p","completions":[{"text":"x"},{"text":"y"}],"ranks":[1,2]}'

SEEDS: list[dict[str, Any]] = [
    {"id": "r1", "prompt": "Why is it blue?", "completions": [{"text": "air"}, {"text": "paint"}], "ranks": [1, 2]},
    {
        "id": "r2",
        "prompt": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "Grüße\u2028?"}],
        "completions": [{"text": f"answer {i}", "id": name, "model": "m"} for i, name in enumerate("abcd")],
        "order": ["b", ["a", "d"], "c"],
        "annotator": "w17",
        "created_at": "2026-11-20T14:05:00+01:00",
    },
    {
        "id": "r3",
        "prompt": "Translate: Übung macht den Meister",
        "completions": [{"text": "practice"}, {"text": "exercise"}, {"text": "練習\U0001f600", "id": None}],
        "scores": [8.5, 1, 1.0],
        "subset": "translation",
        "metadata": {"page": "7", "language": "de"},
    },
    {
        "id": "r4",
        "prompt": "p",
        "completions": [{"text": f"t{i}"} for i in range(9)],
        "ranks": [3, 1, 4, 1, 5, 9, 2, 6, 5],
        "metadata": {},
        "annotator": None,
    },
]  # fmt: skip


@pytest.mark.parametrize(
    "num_records", [5_000, pytest.param(100_000, marks=[pytest.mark.slow, pytest.mark.timeout(900)])]
)
def test_every_spoilt_native_record_is_accepted_by_the_rules_or_refused_with_line_path_and_reason(
    tmp_path: Path, num_records: int
) -> None:
    rng = random.Random(SEED)
    table = Table(str(tmp_path / "table"), "annotations")
    stream = mutated_lines(SEEDS, rng, longest=LIMITS["max_characters"])
    counts = {"lines": 0, "accepted": 0, "refused": 0, "blank": 0}
    reasons: dict[str, int] = {}
    names: dict[str, set[Any]] = {}
    for start in range(0, num_records, LINES_PER_FILE):
        path = tmp_path / f"spoilt-{start}.jsonl"
        lines = list(islice(stream, min(LINES_PER_FILE, num_records - start)))
        path.write_bytes(b"\n".join([FIRST, *lines]) + rng.choice([b"", b"\n"]))
        config = IngestConfig.model_validate({"range_bytes": rng.choice([1024, 100_000, 1_000_000]), **LIMITS})
        parts = list(written(path, table, config))
        check_lines(path, parts, table, names)
        for part in parts:
            counts = {name: count + getattr(part, name, 0) for name, count in counts.items()}
            reasons = {key: reasons.get(key, 0) + part.reasons.get(key, 0) for key in reasons | part.reasons}
            table.delete(part.files)
        path.unlink()
    counts["blank"] = counts["lines"] - counts["accepted"] - counts["refused"]
    print(f"\nseed {SEED}: {num_records:,} spoilt native records: {counts}, {len(reasons)} kinds of reasons")
    for reason, count in sorted(reasons.items(), key=lambda item: -item[1]):
        print(f"{count:>8,}  {reason}")
    assert sum(reasons.values()) == counts["refused"]
    assert counts["accepted"] > num_records / 10
    assert counts["refused"] > num_records / 3
    assert len(reasons) < 150, "alike reasons must count together"
    assert all(len(found) == 1 for found in names.values()), "one name a prompt or group, and one of them a name"


def written(path: Path, table: Table, config: IngestConfig) -> Iterator[Part]:
    """Yield the parts that a source becomes, range by range, as the tasks of an ingestion do."""
    for index, unit in enumerate(planned(path, config)):
        yield from write_parts(index, unit, table, config)


def planned(path: Path, config: IngestConfig) -> list[LineRange]:
    source = find_sources([str(path)]).sources[0]
    ranges = plan_ranges(source, config.range_bytes)
    return number_ranges(source, ranges, [count_newlines(source, *bounds) for bounds in ranges[:-1]])


def check_lines(path: Path, parts: list[Part], table: Table, names: dict[str, set[Any]]) -> None:
    """Hold what became of each line to the rules of docs/data.md, applied a second time."""
    assert [part.error for part in parts] == [None] * len(parts)
    content = path.read_bytes()
    lines = content.removesuffix(b"\n").split(b"\n")
    rows = {row["line"]: row for part in parts if part.data for row in table.read_file(part.data).to_pylist()}
    refused = {one.line: one for part in parts for file in part.refused_files for one in table.read_refused(file)}
    assert sum(part.lines for part in parts) == len(lines)
    assert (sum(part.accepted for part in parts), sum(part.refused for part in parts)) == (len(rows), len(refused))
    assert not rows.keys() & refused.keys()
    assert len(rows) + len(refused) + sum(map(is_blank, lines)) == len(lines)
    for number, line in enumerate(lines, start=1):
        if is_blank(line):
            continue
        expected, why = verdict(line)
        if number in refused:
            needed = expected is None or has_a_key_twice(line)
            assert needed, f"refused without need: {refused[number]}: {line[:2000]!r}"
            check_refusal(refused[number], str(path), line)
            continue
        assert expected is not None, f"accepted against the rules ({why}): {line[:2000]!r}"
        row = rows[number]
        assert {key: row[key] for key in expected} == expected
        assert (row["source"], row["line"]) == (str(path), number)
        check_row(row, **LIMITS)
        add_names(row, names)


def verdict(line: bytes) -> tuple[dict[str, Any] | None, str]:
    """Return what a line must become, or None and which rule it breaks."""
    try:
        return expected_row(line, **LIMITS), ""
    except Broken as why:
        return None, str(why)


def check_refusal(refused: Rejection, source: str, line: bytes) -> None:
    """Hold a refusal to its promise: where, a reason in one line, and the text that was refused."""
    assert refused.source == source
    assert refused.reason.strip()
    assert len(refused.reason) <= MAX_REASON_CHARACTERS, refused.reason[:2000]
    assert refused.reason.isprintable(), f"a reason is one line of text: {refused.reason!r}"
    assert refused.path.isprintable(), f"a path is one line of text: {refused.path!r}"
    assert refused.record == line.decode(errors="replace")[:10_000]
    assert refused.path.startswith("$"), refused
    try:
        record = decoded(line)
    except Broken:
        return
    assert has_a_key_twice(line) or points_into(record, refused.path), f"{refused} points nowhere in {line[:2000]!r}"


def points_into(record: Any, path: str) -> bool:
    """Return whether all of a path but its last step is there in a record."""
    steps = re.findall(r"\.([^.\[\]]+)|\[(-?\d+|\.\.\.)\]", path)
    for position, (key, index) in enumerate(steps):
        is_last = position == len(steps) - 1
        if key:
            if not isinstance(record, dict) or (key not in record and not is_last):
                return False
            record = record.get(key)
        elif index == "...":
            return isinstance(record, dict)
        else:
            if not isinstance(record, list) or (not 0 <= int(index) < len(record) and not is_last):
                return False
            record = record[int(index)] if int(index) < len(record) else None
    return True


def add_names(row: dict[str, Any], names: dict[str, set[Any]]) -> None:
    """Note which prompt and group go by which id, both ways."""
    prompt = tuple(
        (turn["role"], " ".join(unicodedata.normalize("NFC", turn["content"]).split())) for turn in row["prompt"]
    )
    group = (prompt, tuple(sorted(one["text"] for one in row["completions"])))
    for name, what in ((row["prompt_id"], prompt), (row["group_id"], group)):
        names.setdefault(f"id {name}", set()).add(what)
        names.setdefault(f"of {json.dumps(what)}", set()).add(name)


# --------------------------------------------------------------------------------------- what it found, case by case


@pytest.mark.parametrize("name", ["a\nb\x1b[31m", "\u2028", "x" * 100_000])
def test_a_reason_stays_one_short_line_whatever_a_record_calls_its_parts(name: str) -> None:
    # An id of a megabyte stood in its reason whole, and newlines and colours of a terminal in the summary.
    record = {"id": "a", "prompt": "p", "completions": [{"text": "x"}, {"text": "y"}], "order": [name, "1"]}
    for line in (json.dumps(record), json.dumps({name: 1})):
        _, [refused] = parse_lines(line.encode(), 1, "s.jsonl", native, IngestConfig())
        assert refused.reason.isprintable()
        assert len(refused.reason) < MAX_REASON_CHARACTERS
    assert refused.reason.startswith("unknown field, got `")
    assert refused.reason.endswith("map a foreign record with field paths ([fields] in --config)")


def test_half_of_a_surrogate_pair_is_told_from_a_record_that_is_cut_off() -> None:
    whole = rb'{"id":"a","prompt":"p","completions":[{"text":"x"},{"text":"y"}],"ranks":[1,2],"subset":"\ud83d"}'
    cut = rb'{"id":"a","prompt":"p","completions":[{"text":"\ud83d'
    _, rejections = parse_lines(whole + b"\n" + cut, 1, "s.jsonl", native, IngestConfig())
    assert [one.reason.partition(";")[0] for one in rejections] == [
        r"not JSON: \ud800 to \udfff stand in pairs, for one character",
        "not JSON: the record is cut off",
    ]
