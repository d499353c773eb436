"""Text that would take a terminal over, or write a line of its own, and what must be true of all that is shown."""

import io
import json
import sys
import unicodedata
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pairwright.cli.main import main

FORGED = "version 9 of the table holds 1,000,000 annotations"
HOSTILE = f"evil\x1b]0;OWNED\x07\x1b[2J\x9b31m\x7f\u202e\u2066\u200f\u061c\ufeff\u2028\u2029\x85\r\n{FORGED}"
MARKUP = ("[math]", "science[/hard]", ":smile:", HOSTILE)
JOINERS = "\u200c\u200d"


class Shown(NamedTuple):
    status: int
    out: str
    err: str


def record(name: str, **changes: Any) -> dict[str, Any]:
    """Return an annotation in each of whose texts HOSTILE stands."""
    return {
        "id": f"{name} {HOSTILE}",
        "prompt": [{"role": HOSTILE, "content": f"{name} {HOSTILE}"}],
        "completions": [{"text": f"{i} {HOSTILE}", "model": f"{i} {HOSTILE}", "id": f"{i} {HOSTILE}"} for i in "abc"],
        "ranks": [1, 2, 3],
        "annotator": HOSTILE,
        "subset": HOSTILE,
        "metadata": {HOSTILE: HOSTILE},
    } | changes


def write_records(folder: Path) -> Path:
    """Write a file of such records, some of them refused, under such a name."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{HOSTILE}.jsonl"
    good = [record(f"{subset}{n}", subset=subset) for subset in MARKUP for n in range(3)]
    bad = [{HOSTILE: 1}, record("bad", ranks=[0, 0, 0]), record("worse", grade=HOSTILE), [HOSTILE]]
    lines = [*(json.dumps(one) for one in [*good, good[0], *bad]), HOSTILE.partition("\r")[0]]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def run(*arguments: str, encoding: str = "utf-8") -> Shown:
    """Run `pairwright` in this process, on streams of an encoding that refuse what it has not got."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="") for _ in range(2)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["pairwright", *arguments])
        patch.setattr(sys, "stdout", streams[0])
        patch.setattr(sys, "stderr", streams[1])
        with pytest.raises(SystemExit) as end:
            main()
    assert isinstance(end.value.code, int)
    out, err = (_content(stream, encoding) for stream in streams)
    return Shown(end.value.code, out, err)


def _content(stream: io.TextIOWrapper, encoding: str) -> str:
    stream.flush()
    assert isinstance(stream.buffer, io.BytesIO)
    return stream.buffer.getvalue().decode(encoding)


def check_shown(text: str) -> None:
    """Assert that no character of a text does anything, and that no line is a forged one."""
    odd = {c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") and c not in f"\n{JOINERS}"}
    assert not odd, f"{sorted(map(ascii, odd))} in {text!r}"
    assert not [line for line in text.split("\n") if line.strip().startswith(FORGED)], text
