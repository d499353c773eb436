"""Writes docs/licenses.md: each locked package with its version, its licence and what brings it.

`make licenses` runs it. It fails where a plain install would bring a package under the GPL, LGPL or AGPL, or one whose
metadata says nothing of its licence.
"""

import sys
from importlib.metadata import PackageNotFoundError, distribution

from packaging.requirements import Requirement

from lock import LOCKS, ROOT, normal, pinned

PAGE = ROOT / "docs" / "licenses.md"
EXTRAS = ("postgresql", "delta", "iceberg", "huggingface", "kafka", "peers", "dev")
HEAD = """# Licences of what is installed

Written by `make licenses` from the metadata of the packages that `locks/` names; a test holds it to them.
Pairwright itself is under the Apache License 2.0. A plain install brings nothing under the GPL, LGPL or AGPL.

| package | version | licence, as its metadata says | brought by |
|---|---|---|---|
"""
TAIL = """
On Linux, PyPI's torch brings these besides, for CUDA. Their packages hold their licences; most are NVIDIA's own terms:
"""


def main() -> None:
    """Write the page."""
    PAGE.write_text(written_page())


def written_page() -> str:
    """Return the page for the locked versions; exits where a plain install brings what it must not."""
    plain, dev = pinned(LOCKS / "plain.txt"), pinned(LOCKS / "dev.txt")
    reached = {extra: closure(extra) for extra in ("", *EXTRAS)}
    if differing := reached[""] ^ plain.keys():
        sys.exit(f"locks/plain.txt is not what a plain install takes: {', '.join(sorted(differing))}; run `make lock`")
    rows, refused = [], []
    for name, version in sorted((plain | dev).items()):
        extras = [extra for extra in EXTRAS if name in reached[extra]]
        source = "plain install" if name in plain else ", ".join(f"`{e}`" for e in extras if e != "dev") or "`dev`"
        licence = _licence(name, version)
        rows.append(f"| {name} | {version} | {licence} | {source} |")
        if name in plain and not may_be_plain(licence):
            refused.append(f"{name} {version}: {licence}")
    if refused:
        sys.exit("a plain install would bring what it must not: " + "; ".join(refused))
    cuda = ", ".join(" ".join(pin) for pin in pinned(LOCKS / "cuda.txt").items())
    return HEAD + "\n".join(rows) + "\n" + TAIL + cuda + ".\n"


def may_be_plain(licence: str) -> bool:
    """Return whether a package under this licence may come with every installation."""
    return licence != "unknown" and not any(word in licence.lower() for word in ("gpl", "general public"))


def closure(extra: str) -> set[str]:
    """Return the names of all packages that Pairwright takes with one of its extras, '' for a plain install."""
    seen: set[tuple[str, str]] = set()
    queue = [("pairwright", ""), ("pairwright", extra)]
    while queue:
        name, wanted = queue.pop()
        if (name, wanted) in seen:
            continue
        seen.add((name, wanted))
        for text in distribution(name).requires or []:
            needed = Requirement(text)
            if needed.marker is None or needed.marker.evaluate({"extra": wanted}):
                queue += [(normal(needed.name), part) for part in ("", *needed.extras)]
    return {name for name, _ in seen} - {"pairwright"}


def _licence(name: str, version: str) -> str:
    try:
        metadata = distribution(name).metadata
    except PackageNotFoundError:
        sys.exit(f"{name} is not installed; run `make setup`")
    if metadata["Version"].partition("+")[0] != version:
        sys.exit(f"{name} {version} is locked and {metadata['Version']} is installed; run `make setup`")
    expression, text = ((metadata.get_all(field) or [""])[0].strip() for field in ("License-Expression", "License"))
    kinds = [kind.rpartition(" :: ")[2] for kind in metadata.get_all("Classifier") or [] if kind.startswith("License")]
    short = text if "\n" not in text and len(text) < 60 else ""
    return expression or short or "; ".join(kinds) or text.partition("\n")[0].strip() or "unknown"


if __name__ == "__main__":
    main()
