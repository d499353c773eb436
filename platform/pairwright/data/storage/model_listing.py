"""Lists the files of an exported model, with sizes and hashes, in its ``pairwright.json``."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import msgspec

from pairwright.records import UNREADABLE_JSON

RULES_FILE = "pairwright.json"


class ModelFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file of an exported model, as it was written."""

    path: str
    bytes: int
    sha256: str


class _Listed(msgspec.Struct, frozen=True):
    files: list[ModelFile] = []


def list_files(directory: Path) -> list[ModelFile]:
    """Return every file of a model directory but its ``pairwright.json``, in order of path."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file() and path != directory / RULES_FILE)
    return [
        ModelFile(path=path.relative_to(directory).as_posix(), bytes=path.stat().st_size, sha256=_sha256(path))
        for path in paths
    ]


def written_files(rules: bytes | None) -> set[str]:
    """Return the paths that Pairwright wrote in a model directory, by the content of its ``pairwright.json``."""
    try:
        listed = msgspec.json.decode(rules or b"{}", type=_Listed)
    except UNREADABLE_JSON:
        return set()
    return {RULES_FILE, *(file.path for file in listed.files)} if listed.files else set()


def damage(directory: Path, files: Iterable[ModelFile], *, hashes: bool) -> str | None:
    """Return the first thing that is wrong with a model's files; None if they are what was written.

    Args:
        directory: of the model.
        files: as they were written.
        hashes: whether to read the files and compare their hashes, at about 1 GB/s, or only their sizes.
    """
    for file in files:
        path = directory / file.path
        if ".." in Path(file.path).parts or not path.is_file():
            return f"{file.path} is missing"
        if path.stat().st_size != file.bytes:
            return f"{file.path} has {path.stat().st_size:,} bytes, expected {file.bytes:,}"
        if hashes and _sha256(path) != file.sha256:
            return f"{file.path} is not what was exported (SHA-256)"
    return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
