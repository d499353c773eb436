"""Reads the steps that W&B's offline folders of a run hold, which W&B 0.31 itself cannot say.

W&B keeps what it got in memory, up to 32 kB, and loses it with a killed process, so what was delivered says little
about what a folder holds. A file `run-ID.wandb` is a log as LevelDB writes it: 7 bytes, then blocks of 32 kB.
"""

import struct
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

_FILE_HEADER_BYTES, _BLOCK_BYTES = 7, 32768
_RECORD_HEADER = struct.Struct("<IHB")
_WHOLE, _FIRST, _LAST = 1, 2, 4


def offline_maximum(files: Iterable[Path], metrics: Iterable[str]) -> Mapping[str, int]:
    """Return the greatest value of each metric, a whole number, in files of W&B; 0 where there is none."""
    greatest = dict.fromkeys(metrics, 0)
    proto: Any = import_module("wandb.proto.wandb_internal_pb2")
    for file in files:
        for content in _records(file.read_bytes()):
            record = proto.Record()
            record.ParseFromString(content)
            for item in record.history.item if record.WhichOneof("record_type") == "history" else ():
                name = item.key or "/".join(item.nested_key)
                if name in greatest:
                    greatest[name] = max(greatest[name], int(float(item.value_json)))
    return greatest


def _records(content: bytes) -> Iterator[bytes]:
    """Yield whole records, up to the first that a crash cut short."""
    position, pieces = _FILE_HEADER_BYTES, b""
    while position + _RECORD_HEADER.size <= len(content):
        left = _BLOCK_BYTES - position % _BLOCK_BYTES
        if left < _RECORD_HEADER.size:
            position += left
            continue
        _, num_bytes, kind = _RECORD_HEADER.unpack_from(content, position)
        position += _RECORD_HEADER.size
        if not kind or position + num_bytes > len(content):
            return
        piece = content[position : position + num_bytes]
        pieces = piece if kind in (_WHOLE, _FIRST) else pieces + piece
        position += num_bytes
        if kind in (_WHOLE, _LAST):
            yield pieces
