"""Every workaround of training/deepspeed_workarounds.py is still needed: stock DeepSpeed still has its defect.

A test that fails here after an upgrade of DeepSpeed is good news: remove the workaround that it names.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pairwright.training.checkpoint_shards import TRUSTED_TYPES

# One process for all of it: to import DeepSpeed takes seconds, and nothing of ours may be in that process.
STOCK = """
import argparse, contextlib, io, json, os, sys
from pathlib import Path

import torch
import torch.distributed as dist

found = {}
import deepspeed
found["version"] = deepspeed.__version__
found["compiles_shm"] = bool(deepspeed.ops.__compatible_ops__.get("deepspeed_shm_comm"))
found["compiler_before"] = "torch._dynamo" in sys.modules
import deepspeed.runtime.zero.muon.original_muon
found["compiler_after"] = "torch._dynamo" in sys.modules

deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False)
folder = Path(sys.argv[1])

config_of_zero_3 = {
    "train_micro_batch_size_per_gpu": 1,
    "gradient_accumulation_steps": 1,
    "zero_optimization": {"stage": 3},
    "zero_allow_untested_optimizer": True,
    "zero_force_ds_cpu_optimizer": False,
}

def engine_of():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 1))
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    engine, optimizer, _, _ = deepspeed.initialize(
        model=model, optimizer=torch.optim.AdamW(groups, lr=0.1), config=config_of_zero_3, dist_init_required=False
    )
    return engine, optimizer

engine, optimizer = engine_of()
for _ in range(2):
    engine.backward(engine(torch.ones(1, 4)).sum())
    engine.step()
found["decay_before"] = [group["weight_decay"] for group in optimizer.param_groups]
engine.save_checkpoint(str(folder / "saved"), tag="state", save_latest=False)
found["scripts"] = sorted(path.name for path in (folder / "saved").glob("*.py"))

# A file where the folder should be: this rank cannot write, as on a full disk.
(folder / "blocked").write_text("")
calls = []
barrier = dist.barrier
dist.barrier = lambda *args, **keywords: (calls.append("barrier"), barrier(*args, **keywords))[1]
try:
    engine.save_checkpoint(str(folder / "blocked"), tag="state", save_latest=False)
except OSError:
    found["failed_write"] = "raised"
dist.barrier = barrier

def without_zero():
    torch.manual_seed(0)
    layer = torch.nn.Linear(4, 4).bfloat16()
    config = {"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1, "bf16": {"enabled": True}}
    config |= {"zero_optimization": {"stage": 0}, "zero_allow_untested_optimizer": True}
    adamw = torch.optim.AdamW(layer.parameters(), lr=0.1, weight_decay=0.1)
    return deepspeed.initialize(model=layer, optimizer=adamw, config=config, dist_init_required=False)[:2]

plain, unfused = without_zero()
found["steps_before_the_first"] = [int(state["step"]) for state in unfused.state.values()]
masters = [parameter for group in unfused.param_groups for parameter in group["params"]]
found["decayed"] = not torch.equal(masters[0].bfloat16(), plain.module.weight)

try:
    deepspeed.zero.Init(torch.nn.Linear(4, 4, device="meta"), config_dict_or_path=config_of_zero_3)
except NotImplementedError:  # of torch: a meta tensor has no values to move
    found["without_values"] = "raised"

from deepspeed.checkpoint import ds_to_universal
(folder / "universal" / "state").mkdir(parents=True)
ds_to_universal.main(argparse.Namespace(
    input_folder=str(folder / "saved" / "state"), output_folder=str(folder / "universal" / "state"),
    num_extract_workers=1, num_merge_workers=1, keep_temp_folder=False, strict=True, inject_missing_state=True,
))
other, loaded = engine_of()
other._config.load_universal_checkpoint = True
other.load_checkpoint(str(folder / "universal"), tag="state", load_lr_scheduler_states=False)
found["decay_after"] = [group["weight_decay"] for group in loaded.param_groups]
steps = [state["step"] for state in loaded.state.values() if "step" in state]
found["steps"], found["distinct_steps"] = len(steps), len({step.data_ptr() for step in steps})

class Runs:
    def __reduce__(self):
        return os.system, (f"touch '{folder / 'ran'}'",)

shard = next((folder / "saved" / "state").glob("*model_states.pt"))
torch.save(torch.load(shard, weights_only=False) | {"extra": Runs()}, shard)
third, _ = engine_of()
with contextlib.suppress(Exception):
    third.load_checkpoint(str(folder / "saved"), tag="state", load_lr_scheduler_states=False)
found["ran"] = (folder / "ran").exists()
from deepspeed.checkpoint.constants import AUTOEP_LAYERS_KEY, AUTOEP_LAYERS_KEY_LEGACY, UNIVERSAL_CHECKPOINT_INFO
found["foreign_keys"] = sorted([AUTOEP_LAYERS_KEY, AUTOEP_LAYERS_KEY_LEGACY, UNIVERSAL_CHECKPOINT_INFO])
found["public_state_dict"] = [name for name in ("save_16bit_model", "_zero3_consolidated_16bit_state_dict",
                                                "consolidated_16bit_state_dict") if hasattr(third, name)]
print("FOUND " + json.dumps(found))
"""


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return what DeepSpeed does without our workarounds."""
    folder = tmp_path_factory.mktemp("stock")
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", STOCK, str(folder)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"LOCAL_RANK": "0", "DS_ACCELERATOR": "cpu"},
    )
    lines = [line for line in ran.stdout.splitlines() if line.startswith("FOUND ")]
    assert lines, ran.stderr[-3000:]
    return json.loads(lines[0].removeprefix("FOUND "))


def test_the_defects_are_those_of_this_version(stock: dict[str, Any]) -> None:
    assert stock["version"].startswith("0.19."), "read deepspeed_workarounds.py again before this test is changed"


def test_without_shared_memory_kernel(stock: dict[str, Any]) -> None:
    assert stock["compiles_shm"]


def test_import_muon(stock: dict[str, Any]) -> None:
    assert not stock["compiler_before"]
    assert stock["compiler_after"]


def test_without_recovery_script(stock: dict[str, Any]) -> None:
    assert "zero_to_fp32.py" in stock["scripts"]


def test_checkpoint_writer(stock: dict[str, Any]) -> None:
    assert stock["failed_write"] == "raised"


def test_safe_loading(stock: dict[str, Any]) -> None:
    assert stock["ran"]


def test_restore_param_groups(stock: dict[str, Any]) -> None:
    assert stock["decay_after"] != stock["decay_before"]
    assert stock["distinct_steps"] < stock["steps"]


def test_undo_empty_step(stock: dict[str, Any]) -> None:
    assert stock["steps_before_the_first"] == [1, 1]
    assert stock["decayed"]


def test_partition_weights(stock: dict[str, Any]) -> None:
    assert stock["without_values"] == "raised", "weights that were not read yet may be partitioned now"


def test_consolidated_16bit_state_dict(stock: dict[str, Any]) -> None:
    assert stock["public_state_dict"] == ["save_16bit_model", "_zero3_consolidated_16bit_state_dict"]


def test_keys_that_the_converter_reads_are_those_that_shards_are_checked_for(stock: dict[str, Any]) -> None:
    from pairwright.training.checkpoint_shards import _FOREIGN_KEYS

    assert stock["foreign_keys"] == sorted(_FOREIGN_KEYS)


def test_trusted_types_exist_under_their_names() -> None:
    from pairwright.training import deepspeed_workarounds as workarounds

    kinds = (workarounds.ZeroStageEnum, workarounds.LossScaler, workarounds.fragment_address)
    assert tuple(f"{kind.__module__}.{kind.__qualname__}" for kind in kinds) == TRUSTED_TYPES


def test_export_needs_no_deepspeed(tmp_path: Path) -> None:
    """``pairwright export`` is one process without a cluster, and need not wait for DeepSpeed's import."""
    program = "import sys; import pairwright.runs.export_run; sys.exit('deepspeed' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False, cwd=tmp_path).returncode == 0
