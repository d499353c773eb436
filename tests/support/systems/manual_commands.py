"""Runs the commands that a page of the manual shows, and compares what they print with what the page says."""

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# What differs from run to run: times, dates, rates, digests, columns that depend on the length of a path.
_CHANGING = (
    (re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d"), "DATE"),
    (re.compile(r"\b\d\d:\d\d:\d\d\b"), "TIME"),
    (re.compile(r"[\d,.]+ (tokens|records|groups|completions|pairs|prompts|MB)/s"), r"N \1/s"),
    (re.compile(r"\([0-9a-f]{12}\)"), "(DIGEST)"),
    (re.compile(r"\d\.\de-\d\d"), "SMALL"),
    (re.compile(r"\s+"), " "),
)


@dataclass(frozen=True, slots=True)
class ShownCommand:
    """A command of the manual, and the lines that it prints there."""

    words: str
    lines: list[str]
    """Without those that stand for others (``...``)."""


def shown_commands(page: Path) -> Iterator[ShownCommand]:
    """Yield the commands of our own in a page's console blocks, in their order."""
    for language, body in _BLOCK.findall(page.read_text(encoding="utf-8")):
        if language != "console":
            continue
        for part in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]:
            words, *lines = part.splitlines()
            if words.startswith("pairwright "):
                yield ShownCommand(words, [line for line in lines if line.strip(" .")])


def run(command: str, folder: Path) -> tuple[int, str]:
    """Run a command in a folder, and return its exit status and all that it printed."""
    words = command.replace("pairwright ", f"{sys.executable} -m pairwright ", 1)
    done = subprocess.run(
        words, shell=True, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    return done.returncode, done.stdout


def not_printed(shown: ShownCommand, printed: str, folder: Path) -> list[str]:
    """Return the lines of the manual that a command did not print; a line that ends in ``...`` is the beginning."""
    found = [_settled(line, folder) for line in printed.splitlines()]
    missing = []
    for line in shown.lines:
        expected = _settled(line, folder)
        beginning = expected.removesuffix("...")
        if not any(each == expected or (beginning != expected and each.startswith(beginning)) for each in found):
            missing.append(line)
    return missing


def _settled(line: str, folder: Path) -> str:
    line = line.replace(f"{folder}/", "")
    for pattern, stands_for in _CHANGING:
        line = pattern.sub(stands_for, line)
    return line.strip()
