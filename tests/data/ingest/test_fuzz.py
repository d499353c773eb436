"""Spoilt records by the hundred thousand: every line is accepted, refused with where and why, or blank."""

import json
import random
import unicodedata
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from mutations import mutated_lines
from pairwright.config import IngestConfig
from pairwright.data.ingest.adapters import native
from pairwright.data.ingest.parse import parse_lines
from pairwright.data.table.table import Table
from record_rules import Broken, expected_row, has_a_key_twice, is_blank
from spoilt_sources import MAX_REASON_CHARACTERS, Outcome, check_refusal, ingested

SEED = 20261121
LIMITS = {"max_completions": 12, "max_characters": 2000}
LINES_PER_FILE = 5000
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
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    names: dict[str, set[Any]] = {}
    for start in range(0, num_records, LINES_PER_FILE):
        path = tmp_path / f"spoilt-{start}.jsonl"
        lines = list(islice(stream, min(LINES_PER_FILE, num_records - start)))
        path.write_bytes(b"\n".join([FIRST, *lines]) + rng.choice([b"", b"\n"]))
        ranges = {"split_bytes": rng.choice([1024, 100_000, 1_000_000])}
        config = IngestConfig.model_validate({"format": "native"} | ranges | LIMITS)
        outcome = ingested(path, table, config, LIMITS)
        check_lines(path, outcome, names)
        counts += Counter(
            lines=outcome.lines, accepted=len(outcome.rows), refused=len(outcome.refused), blank=outcome.blank
        )
        reasons += outcome.reasons
        path.unlink()
    print(f"\nseed {SEED}: {num_records:,} spoilt native records: {dict(counts)}, {len(reasons)} kinds of reasons")
    for reason, count in reasons.most_common():
        print(f"{count:>8,}  {reason}")
    assert counts["accepted"] > num_records / 10
    assert counts["refused"] > num_records / 3
    assert len(reasons) < 150, "alike reasons must count together"
    assert all(len(found) == 1 for found in names.values()), "one name a prompt or group, and one of them a name"


def check_lines(path: Path, outcome: Outcome, names: dict[str, set[Any]]) -> None:
    """Hold what became of each line to the rules of docs/data.md, applied a second time."""
    assert outcome.errors == []
    lines = path.read_bytes().removesuffix(b"\n").split(b"\n")
    rows = {row["line"]: row for row in outcome.rows}
    refused = {one.line: one for one in outcome.refused}
    assert outcome.lines == len(lines)
    assert (len(rows), len(refused)) == (len(outcome.rows), len(outcome.refused))
    assert len(rows) + len(refused) + sum(map(is_blank, lines)) == len(lines)
    for number, line in enumerate(lines, start=1):
        if is_blank(line):
            continue
        expected, why = verdict(line)
        if number in refused:
            needed = expected is None or has_a_key_twice(line)
            assert needed, f"refused without need: {refused[number]}: {line[:2000]!r}"
            check_refusal(refused[number], line)
            continue
        assert expected is not None, f"accepted against the rules ({why}): {line[:2000]!r}"
        assert {key: rows[number][key] for key in expected} == expected
        add_names(rows[number], names)


def verdict(line: bytes) -> tuple[dict[str, Any] | None, str]:
    """Return what a line must become, or None and which rule it breaks."""
    try:
        return expected_row(line, **LIMITS), ""
    except Broken as why:
        return None, str(why)


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
    assert refused.reason.endswith("[fields] in --config)")


def test_half_of_a_surrogate_pair_is_told_from_a_record_that_is_cut_off() -> None:
    whole = rb'{"id":"a","prompt":"p","completions":[{"text":"x"},{"text":"y"}],"ranks":[1,2],"subset":"\ud83d"}'
    cut = rb'{"id":"a","prompt":"p","completions":[{"text":"\ud83d'
    _, rejections = parse_lines(whole + b"\n" + cut, 1, "s.jsonl", native, IngestConfig())
    assert [one.reason.partition(";")[0] for one in rejections] == [
        r"not JSON: \ud800 to \udfff stand in pairs, for one character",
        "not JSON: the record is cut off",
    ]
