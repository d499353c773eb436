"""Error messages for URLs that do not hold a table: what is there instead, and what to do."""

from collections.abc import Sequence
from pathlib import PurePosixPath

import obstore

from pairwright.data.storage.object_store import local_root, open_store, store_errors
from pairwright.suggestions import did_you_mean_path

MAKING = {
    "annotations": "`pairwright ingest SOURCES... --output {url}`",
    "pairs": "`pairwright expand ANNOTATIONS --output {url}`",
    "tokens": "`pairwright train`, which makes its token tables itself",
}
_LINE_ENDINGS = (".jsonl", ".ndjson", ".json", ".gz", ".zst")
_MARKS = {
    "run.json": "a training run: `pairwright evaluate {url}/model --pairs PAIRS` measures its model",
    "scores.json": "the rewards of a model: scores/*.parquet, and scores.json says of what",
    "checkpoint.json": "a checkpoint; `pairwright train` with the run's configuration goes on from it",
    "pairwright.json": "a reward model; `pairwright evaluate {url} --pairs PAIRS` measures it",
    "config.json": "a model; set model.path to it and train one with `pairwright train`",
}


def no_table_message(url: str, kind: str | None) -> str:
    """Return the message that a URL holds no table: what is there, and which verb creates one.

    Args:
        url: where there is none, as the user named it.
        kind: what was expected; None if any.
    """
    root = local_root(url)
    if root is not None and root.is_file():
        if root.name == "report.json":
            return f"{url}: a file, not a table; what `pairwright evaluate` wrote, as JSON"
        if url.endswith(_LINE_ENDINGS):
            return f"{url}: a file, not a table; make one from it with `pairwright ingest {url} --output URL`"
        return f"{url}: a file, not a table; name the folder that holds one"
    names = names_at(url)
    for name, meaning in _MARKS.items():
        if name in names:
            return f"{url}: no table here but {meaning.format(url=url.rstrip('/'))}"
    making = " or ".join([MAKING[kind]] if kind else list(MAKING.values())[:2]).format(url=url)
    close = "" if root is None or root.exists() else did_you_mean_path(url)
    return f"{url}: no table here (nothing under versions/); make one with {making}{close}"


def wrong_kind_message(url: str, found: str, expected: str) -> str:
    """Return the message that a table is of another kind than a command takes."""
    return f"{url}: holds {found}, expected {expected}; make {expected} with {MAKING[expected].format(url='URL')}"


def no_version_message(url: str, version: int | None, versions: Sequence[int], removed: Sequence[int]) -> str:
    """Return the message that a table has no such version: those that it has, and whether it was removed."""
    known = f"there are {_ranges(versions)}" if versions else "there is none yet"
    if version in removed:
        return f"{url}: version {version} was removed by `pairwright vacuum`; {known}"
    wanted = "no version" if version is None else f"no version {version}"
    return f"{url}: {wanted}; {known}; `pairwright versions {url}` lists them"


def _ranges(versions: Sequence[int]) -> str:
    if len(versions) == versions[-1] - versions[0] + 1 > 2:
        return f"{versions[0]} to {versions[-1]}"
    return ", ".join(map(str, versions))


def names_at(url: str) -> list[str]:
    """Return the names right below a URL, sorted; none where nothing is.

    Raises:
        StoreError: if it cannot be listed.
    """
    root = local_root(url)
    with store_errors(url):
        if root is not None:
            return sorted(entry.name for entry in root.iterdir()) if root.is_dir() else []
        found = obstore.list_with_delimiter(open_store(url))
    paths = [*(entry["path"] for entry in found["objects"]), *found["common_prefixes"]]
    return sorted(PurePosixPath(path).name for path in paths)
