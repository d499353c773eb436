"""Folders of runs that never ran: checkpoints of two ranks whose shards are a few bytes, and Ray's list of them."""

import json
from pathlib import Path

from pairwright.runs.run_dir import RunFolder
from pairwright.runs.run_identity import RunIdentity
from pairwright.training.checkpoint import TAG, CheckpointManifest, write_manifests


def claim(root: Path) -> None:
    RunFolder(str(root)).claim(
        RunIdentity(digest="d", config={}, pairs_url="p", pairs_version=1, tokens_digest="t", model_digest="m")
    )


def add(root: Path, step: int, validation: dict[str, float]) -> None:
    folder = root / "checkpoints" / name(step)
    (folder / TAG).mkdir(parents=True)
    for rank in range(2):
        (folder / TAG / f"rank-{rank}.pt").write_bytes(bytes([rank]) * 1000)
        manifest = CheckpointManifest(
            format_version=1,
            step=step,
            num_steps=40,
            world_size=2,
            zero_stage=2,
            precision="fp32",
            run_digest="d",
            code_version="0",
            validation=validation,
        )
        write_manifests(folder, manifest, rank=rank)


def name(step: int) -> str:
    return f"step-{step:08d}-abcabc"


def commit(root: Path, *steps: int) -> None:
    results = [{"version": 0, "checkpoint_dir_name": name(step), "metrics": {}} for step in steps]
    snapshot = {"ray_version": "2.60.0", "checkpoint_results": results}
    (root / "checkpoints" / "checkpoint_manager_snapshot.json").write_text(json.dumps(snapshot))
