"""Suggests the name that was perhaps meant: of known names, and of files beside a path where nothing is."""

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

MOST_NAMES = 10_000
"""Known names that are compared; a folder or a table may hold millions."""


def close_to(name: str, known: Iterable[str]) -> list[str]:
    """Return the known names that are spelled much like a name, the closest first, at most three."""
    spelled: dict[str, str] = {}
    for _, one in zip(range(MOST_NAMES), known, strict=False):
        spelled.setdefault(one.casefold(), one)
    return [spelled[match] for match in get_close_matches(name.casefold(), spelled, n=3, cutoff=0.7)]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``; did you mean X?`` for the known name that is closest to one, or nothing where none is close."""
    return "".join(f"; did you mean {close}?" for close in close_to(name, known)[:1])


def did_you_mean_path(path: str) -> str:
    """Return ``; did you mean X?`` for the name closest to a local path's own in its nearest folder, or nothing.

    A path whose folder is missing is compared by the first part that is missing.
    """
    wanted = Path(path)
    missing = wanted
    try:
        while not missing.parent.is_dir():
            if missing.parent == missing:
                return ""
            missing = missing.parent
        close = close_to(missing.name, (entry.name for entry in missing.parent.iterdir()))
    except (OSError, ValueError):  # not to be listed, or no path at all
        return ""
    rest = wanted.relative_to(missing).parts
    for name in close:
        found = missing.parent.joinpath(name, *rest)
        if found.exists():
            return f"; did you mean {found}?"
    return ""
