"""Files that would run something when they are read carelessly, put where a checkpoint or a model is expected."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import torch

from pairwright.training.checkpoint import TAG, ShardFile, _describe


class Runs:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self._call


def marking(marker: Path) -> dict[str, Any]:
    """Return what a shard may hold beside its state, and what leaves ``marker`` behind if it is unpickled."""
    return {"odd": Runs(os.system, f"touch '{marker}'"), "odder": Runs(exec, f"open({str(marker)!r}, 'w')")}


def change_shard(shard: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Write a shard anew, and its size and hash into every list of the checkpoint, as whoever can write there could."""
    state = torch.load(shard, weights_only=False)
    torch.save(change(state), shard)
    directory = shard.parent.parent
    for listing in directory.glob("files-*.json"):
        files = msgspec.json.decode(listing.read_bytes(), type=list[ShardFile])
        listing.write_bytes(msgspec.json.encode([_describe(directory / file.path, directory) for file in files]))


def shards(directory: Path) -> list[Path]:
    return sorted((directory / TAG).glob("*.pt"))
