"""Spoilt records of foreign formats: each is accepted, refused with where and why, or blank, and no text is made up."""

import json
import random
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from mutations import mutated_lines
from pairwright.config import FieldPaths, IngestConfig
from pairwright.data.ingest.adapters import formats
from pairwright.data.ingest.parse import MAX_RECORD_COPIES
from pairwright.data.table.table import Table
from record_rules import is_blank
from spoilt_sources import Outcome, check_refusal, ingested, texts_in

SEED = 20261121
LIMITS = {"max_completions": 12, "max_characters": 3000}
LINES_PER_FILE = 5000
FIXTURES = Path(__file__).parents[2] / "fixtures/formats"
FIELDS = FieldPaths(
    id="id", prompt="prompt", completions="completions", text="text", rank="meta.rank", model="model",
    annotator="who", metadata={"page": "page[0].n"},
)  # fmt: skip
FIELDS_RECORD = {
    "id": 7,
    "prompt": [{"role": "user", "content": "p"}],
    "completions": [{"text": "x", "meta": {"rank": 2}}, {"text": "y", "model": "m", "meta": {"rank": 1}}],
    "who": 3,
    "page": [{"n": {"a": 1}}],
}
FOREIGN = ["fields", *sorted(formats().keys() - {"native", "helpsteer-rows"})]


@pytest.mark.parametrize(
    "num_records", [5_000, pytest.param(100_000, marks=[pytest.mark.slow, pytest.mark.timeout(900)])]
)
def test_every_spoilt_foreign_record_is_accepted_or_refused_with_line_path_and_reason(
    tmp_path: Path, num_records: int
) -> None:
    rng = random.Random(SEED)
    table = Table(str(tmp_path / "table"), "annotations")
    for name in FOREIGN:
        counts, reasons = spoil(name, num_records // len(FOREIGN), table, tmp_path, rng)
        print(f"seed {SEED}: {name}: {dict(counts)}, {len(reasons)} kinds of reasons: {dict(reasons.most_common(8))}")
        assert counts["accepted"] > counts["lines"] / 50
        assert counts["refused"] > counts["lines"] / 10
        assert len(reasons) < 150, "alike reasons must count together"


def spoil(
    name: str, num_records: int, table: Table, folder: Path, rng: random.Random
) -> tuple[Counter[str], Counter[str]]:
    """Return how many lines, and for which reasons, of so many spoilt records of a format."""
    stream = mutated_lines(seeds_of(name), rng, longest=LIMITS["max_characters"])
    config = IngestConfig.model_validate({"format": name, "fields": FIELDS if name == "fields" else None} | LIMITS)
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for start in range(0, num_records, LINES_PER_FILE):
        path = folder / f"{name}-{start}.jsonl"
        path.write_bytes(b"{}\n" + b"\n".join(islice(stream, min(LINES_PER_FILE, num_records - start))))
        outcome = ingested(path, table, config, LIMITS)
        check_lines(path, outcome)
        counts += Counter(
            lines=outcome.lines, accepted=len(outcome.rows), refused=len(outcome.refused), blank=outcome.blank
        )
        reasons += outcome.reasons
    return counts, reasons


def check_lines(path: Path, outcome: Outcome) -> None:
    """Hold refusals to their promise, and every completion to a text of its record."""
    assert outcome.errors == []
    lines = path.read_bytes().removesuffix(b"\n").split(b"\n")
    assert outcome.lines == len(lines)
    assert outcome.blank == sum(map(is_blank, lines))
    of_line: Counter[int] = Counter()
    for refused in outcome.refused:
        of_line[refused.line] += 1
        text = lines[refused.line - 1] if of_line[refused.line] <= MAX_RECORD_COPIES else b""
        check_refusal(refused, text, is_foreign=True)
    for row in outcome.rows:
        line = lines[row["line"] - 1]
        texts = list(texts_in(loosely_decoded(line)))
        texts += [inner for text in texts if text[:1] in "[{" for inner in texts_in(printed(text))]
        found = "\0".join(texts)
        assert all(one["text"] in found for one in row["completions"]), f"{row} from {line[:2000]!r}"
        if outcome.format not in ("openai-summarize", "alpaca", "alpaca-farm"):  # which make prompts of several fields
            assert all(turn["content"].strip() in found for turn in row["prompt"]), f"{row} from {line[:2000]!r}"


def loosely_decoded(line: bytes) -> Any:
    """Return the value of a line: what no format reads may be bad UTF-8, or a number of any length."""
    return json.loads(line.decode(errors="replace"), parse_int=str)


def printed(text: str) -> Any:
    """Return the conversation that a text is, as JSON."""
    try:
        return json.loads(text)
    except ValueError:
        return None


def seeds_of(name: str) -> list[dict[str, Any]]:
    """Return good records of a format: those of its fixtures."""
    if name == "fields":
        return [FIELDS_RECORD]
    found: list[dict[str, Any]] = []
    for path in sorted(FIXTURES.glob(f"{name}*.json*")):
        if ".expected." not in path.name:
            text = path.read_bytes()
            found += json.loads(text) if text.lstrip()[:1] == b"[" else list(map(json.loads, text.splitlines()))
    found += [json.loads(example) for example in formats()[name].examples]
    return found
