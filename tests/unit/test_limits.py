"""Limits on the way from a line to pairs refuse what is above them, and leave what is not exactly as it is."""

import json

import pytest

from pairwright.config import ExpandConfig, IngestConfig
from pairwright.data.annotations import annotations_to_arrow, parse_lines
from pairwright.data.formats import native
from pairwright.data.pairs import expand_groups

CONFIG = IngestConfig(max_completions=12, max_characters=50_000)
LONG = "".join(chr(0x1F600 + n % 50) + "é中 \n"[n % 4] for n in range(25_000))


def line(prompt: object, texts: list[str]) -> bytes:
    completions = [{"text": text} for text in texts]
    record = {"id": "r", "prompt": prompt, "completions": completions, "ranks": list(range(1, len(texts) + 1))}
    return json.dumps(record).encode()


def accepted(raw: bytes) -> dict:
    """Return the row of the pairs table that a line becomes."""
    annotations, refused = parse_lines(raw, 1, "s", native, CONFIG)
    assert not refused, refused
    table, _ = expand_groups(annotations_to_arrow(annotations), ExpandConfig())
    return table.to_pylist()[0]


def test_what_is_just_within_the_limits_comes_out_whole() -> None:
    assert len(LONG) == CONFIG.max_characters
    texts = [LONG[:-2] + f"{number:02}" for number in range(12)]
    row = accepted(line(LONG, texts))
    assert row["prompt"] == [{"role": "user", "content": LONG}]
    assert [completion["text"] for completion in row["completions"]] == texts
    assert len(row["pairs"]) == 66


@pytest.mark.parametrize(
    ("raw", "path", "found"),
    [
        (line(LONG + "x", ["a", "b"]), "$.prompt", "50,001"),
        (line([{"role": "user", "content": LONG}, {"role": "user", "content": "x"}], ["a", "b"]), "$.prompt", "50,001"),
        (line("p", ["a", LONG + "x"]), "$.completions[1].text", "50,001"),
        (line("p", [f"c{number}" for number in range(13)]), "$.completions", "got 13"),
    ],
)
def test_one_more_is_refused_and_nothing_of_it_kept(raw: bytes, path: str, found: str) -> None:
    annotations, refused = parse_lines(raw, 1, "s", native, CONFIG)
    assert annotations == []
    assert [(one.path, found in one.reason) for one in refused] == [(path, True)]
