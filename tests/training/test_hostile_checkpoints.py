"""A checkpoint that somebody else wrote, with sizes and hashes put right: nothing in it runs, whoever reads it."""

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hostile_files import Runs, change_shard, marking, shards
from pairwright.errors import CheckpointError
from pairwright.training.checkpoint import read_manifest
from pairwright.training.checkpoint_shards import (
    TRUSTED_TYPES,
    check_shards,
    consolidated_state_dict,
    trusted_types_only,
)
from pairwright.training.universal_checkpoint import converted
from zero_runs import Results, case, run_ranks, saved_in
from zero_world import World

STAGES = [f"zero{stage} {precision}" for stage in range(4) for precision in ("fp32", "bf16")]


@pytest.fixture
def checkpoint(
    runs: Callable[[int], Results], world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Path]:
    """Return a function from a case of two ranks to a fresh copy of its checkpoint."""
    assert runs(2)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    copies = iter(range(100))
    return lambda name: Path(shutil.copytree(saved_in(world, 2, name), tmp_path / f"copy-{next(copies)}"))


@pytest.mark.parametrize("name", [*STAGES, *(f"lora zero{stage} packed" for stage in range(4))])
def test_shards_name_no_type_but_the_trusted_ones(checkpoint: Callable[[str], Path], name: str) -> None:
    """Torch's list, taken from the files themselves; the LoRA cases are offloaded."""
    found = {
        kind
        for shard in shards(checkpoint(name))
        for kind in torch.serialization.get_unsafe_globals_in_checkpoint(shard)
    }
    assert found <= set(TRUSTED_TYPES)


@pytest.mark.parametrize("name", ["zero0 fp32", "zero2 bf16", "zero3 fp32"])
def test_a_shard_that_would_run_something_is_refused_by_name_and_nothing_runs(
    checkpoint: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    for shard in [path.name for path in shards(checkpoint(name))]:
        directory, marker = checkpoint(name), tmp_path / f"{shard}.ran"
        change_shard(directory / "state" / shard, lambda state, marker=marker: state | marking(marker))
        manifest, message = read_manifest(directory), rf"{shard}: names (posix|nt)\.system, .*nothing of it was run"
        with pytest.raises(CheckpointError, match=f"(?i){message}"):
            check_shards(directory)
        if manifest.zero_stage > 0:
            with pytest.raises(CheckpointError, match=f"(?i){message}"), converted(directory, manifest):
                pass
        # Up to ZeRO-2 an export reads the weights alone; under ZeRO-3 every rank's part, and names from rank 0.
        if "optim" not in shard if manifest.zero_stage < 3 else "optim" in shard or "rank_0_" in shard:
            with pytest.raises(CheckpointError, match=f"(?i){message}") as refused:
                consolidated_state_dict(directory, manifest, dtype=torch.float32)
            assert refused.type is CheckpointError, "damage would send a run to an older one without a word"
        assert not marker.exists()


def test_a_rank_that_goes_on_runs_nothing_neither_by_our_check_nor_by_deepspeeds_load(world: World) -> None:
    cases = [case(world, "zero0", 0), case(world, "zero2 bf16", 2, precision="bf16"), case(world, "zero3", 3)]
    found = run_ranks(world, 1, cases, ranks="hostile_ranks")
    for name, of_case in found.items():
        assert of_case, name
        for shard, outcome in of_case.items():
            assert not outcome["ran"], (name, shard)
            assert outcome["load"] == "UnpicklingError", (name, shard)
            assert outcome["said"].startswith("CheckpointError"), (name, shard)
            assert shard in outcome["said"]


def renamed(state: dict[str, Any]) -> dict[str, Any]:
    groups = [{f"../../{key}": value for key, value in group.items()} for group in state["param_shapes"]]
    return state | {"param_shapes": groups}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (renamed, r"holds '\.\./\.\./model"),
        (lambda state: state | {"ds_autoep_layers": [{"expert_key_prefix": "/x"}]}, "holds 'ds_autoep_layers'"),
        (lambda state: state | {"universal_checkpoint_info": {"x": "(a+)+"}}, "holds 'universal_checkpoint_info'"),
        (lambda state: [], "holds a list"),
        (lambda state: {}, "not converted for another number of workers"),
    ],
    ids=["names that are paths", "experts' files", "patterns", "no state", "nothing"],
)
def test_what_the_converter_would_take_for_names_of_files_is_refused(
    checkpoint: Callable[[str], Path], change: Callable[..., Any], message: str
) -> None:
    directory = checkpoint("zero3 fp32")
    for shard in directory.glob("state/*model_states.pt"):
        change_shard(shard, change)
    with pytest.raises(CheckpointError, match=message), converted(directory, read_manifest(directory)):
        pass


# ------------------------------------------------------------------------------------------- torch.load itself

LOADS = "import sys, torch; torch.load(sys.argv[1], weights_only=False)"


@pytest.mark.parametrize("others", [{}, {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}])
def test_who_asks_for_everything_gets_trusted_types_only_in_threads_and_child_processes_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: dict[str, str]
) -> None:
    file, marker = tmp_path / "file.pt", tmp_path / "ran"
    torch.save(Runs(os.system, f"touch '{marker}'"), file)
    for name, value in others.items():
        monkeypatch.setenv(name, value)
    before = dict(os.environ)
    kinds: list[str] = []

    def load() -> None:
        for _ in range(20):
            with trusted_types_only([]):
                try:
                    torch.load(file, weights_only=False)
                except Exception as error:
                    kinds.append(type(error).__name__)

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with trusted_types_only([]):
        child = subprocess.run([sys.executable, "-c", LOADS, str(file)], capture_output=True, text=True, check=False)
    assert "UnpicklingError" in child.stderr
    assert kinds == ["UnpicklingError"] * 80
    assert not marker.exists()
    assert dict(os.environ) == before
    torch.load(file, weights_only=False)
    assert marker.exists(), "the file does what it is for"
