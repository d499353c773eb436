"""What trackers' local stores hold, read without the code that wrote them."""

import json
import sqlite3
import struct
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

Curve = list[tuple[int, float]]


def store_variables(folder: Path) -> dict[str, str]:
    """Return the environment in which every tracker keeps its data in a folder, and reaches no network."""
    return {
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        "_MLFLOW_SERVER_ARTIFACT_ROOT": str(folder / "mlruns"),  # else the current folder, for a store in SQLite
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(folder),
        "WANDB_DATA_DIR": str(folder / "wandb-data"),
        "TRACKIO_DIR": str(folder / "trackio"),
        "HF_HUB_OFFLINE": "1",
    }


def needs(name: str) -> None:
    if (spec := find_spec(name)) is None or spec.origin is None:
        pytest.skip(f"{name} is not installed: pip install pairwright[{name}]")


def mlflow_curves(folder: Path) -> tuple[int, Mapping[str, Curve]]:
    with sqlite3.connect(folder / "mlflow.db") as store:
        rows = store.execute("select key, step, value from metrics order by step").fetchall()
        (runs,) = store.execute("select count(*) from runs").fetchone()
    return runs, {key: [(step, value) for name, step, value in rows if name == key] for key, _, _ in rows}


def trackio_curves(folder: Path) -> tuple[int, Mapping[str, Curve]]:
    (file,) = (folder / "trackio").glob("*.db")
    with sqlite3.connect(file) as store:
        rows = store.execute("select run_id, step, metrics from metrics order by step").fetchall()
    curves: dict[str, Curve] = {}
    for _, step, metrics in rows:
        for key, value in json.loads(metrics).items():
            curves.setdefault(key, []).append((step, value))
    return len({run for run, _, _ in rows}), curves


def wandb_curves(folder: Path) -> tuple[int, Mapping[str, Curve]]:
    curves: dict[str, Curve] = {}
    ids = set()
    for file in sorted(folder.glob("wandb/offline-run-*/run-*.wandb")):
        ids.add(file.stem)
        for row in wandb_history(file.read_bytes()):
            for key, value in row.items():
                curves.setdefault(key, []).append((int(row["train/global_step"]), value))
    return len(ids), curves


def wandb_history(content: bytes) -> Iterator[dict[str, float]]:
    """Yield the rows of a W&B transaction log: records in blocks of 32 kB, as LevelDB writes them, behind 7 bytes."""
    proto: Any = import_module("wandb.proto.wandb_internal_pb2")

    position, pieces = 7, b""
    while position + 7 <= len(content):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", content[position : position + 7])
        pieces += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            record = proto.Record()
            record.ParseFromString(pieces)
            pieces = b""
            if record.WhichOneof("record_type") == "history":
                yield {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}


def artifact(name: str, folder: Path) -> bytes:
    """Return the newest file that a tracker's local store keeps with a run; W&B's is waiting to be sent."""
    files = {
        "mlflow": folder.rglob("artifacts/*.html"),
        "wandb": folder.glob("wandb-data/**/artifacts/staging/*"),
        "trackio": folder.rglob("blobs/sha256/*/*"),
    }[name]
    return max(files, key=lambda file: file.stat().st_mtime).read_bytes()


STORES: Mapping[str, Callable[[Path], tuple[int, Mapping[str, Curve]]]] = {
    "mlflow": mlflow_curves,
    "wandb": wandb_curves,
    "trackio": trackio_curves,
}
