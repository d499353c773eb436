"""What is read out of a checkpoint's shards, and exported, is what the ranks held when they saved it, to the bit."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pairwright.config import LoraConfig, TokensConfig, TrainConfig
from pairwright.data.tokens.chat_template import resolve_template
from pairwright.data.tokens.tokenizer import load_tokenizer
from pairwright.errors import CheckpointError, DamagedCheckpointError, ModelError, PairwrightError, StoreError
from pairwright.evaluation.load_exported import model_digest
from pairwright.model.load_model import DTYPES, load_reward_model
from pairwright.model.lora import add_adapters
from pairwright.model.model_export import choose_pad_token, save_reward_model
from pairwright.runs.export_run import export_checkpoint
from pairwright.runs.run_dir import RunFolder
from pairwright.runs.run_identity import RunIdentity, identity_config
from pairwright.training.checkpoint import read_manifest
from pairwright.training.checkpoint_shards import consolidated_state_dict
from zero_runs import Results, all_cases, saved_in
from zero_world import World

STAGES = [f"zero{stage} {precision}" for stage in range(4) for precision in ("fp32", "bf16")]
# Half of them offloaded; their checkpoints hold what is trained, no more.
LORA_CASES = [f"lora zero{stage} {layout}" for stage in range(4) for layout in ("shared", "packed")]


@pytest.mark.parametrize(
    ("world_size", "name"),
    [*((world_size, name) for world_size in (1, 2, 3) for name in STAGES), *((2, name) for name in LORA_CASES)],
)
def test_weights_out_of_shards_are_those_of_the_run(
    runs: Callable[[int], Results], world: World, world_size: int, name: str
) -> None:
    expected = runs(world_size)[name]["state"]
    directory = Path(saved_in(world, world_size, name))
    manifest = read_manifest(directory)
    found = consolidated_state_dict(directory, manifest, dtype=DTYPES[manifest.precision])
    frozen = {key for key in expected if name.startswith("lora") and ".lora_" not in key and "score" not in key}
    assert found.keys() == expected.keys() - frozen
    assert all(np.array_equal(tensor.float().numpy(), expected[key]) for key, tensor in found.items())
    assert all(tensor.dtype == DTYPES[manifest.precision] for tensor in found.values())


def test_a_changed_byte_in_any_ranks_shard_is_refused(
    runs: Callable[[int], Results], world: World, tmp_path: Path
) -> None:
    assert runs(3)
    directory = Path(shutil.copytree(saved_in(world, 3, "zero3 fp32"), tmp_path / "checkpoint"))
    shard = directory / "state" / "zero_pp_rank_2_mp_rank_00_optim_states.pt"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DamagedCheckpointError, match=r"rank_2.*content differs"):
        consolidated_state_dict(directory, read_manifest(directory), dtype=DTYPES["fp32"])


# ---------------------------------------------------------------------------------------------- the directory


def model_with_tokenizer(folder: Path, world: World) -> Path:
    """Return the model that the cases start from, which has no tokenizer, with that of the model it was made from."""
    model = Path(shutil.copytree(world["llama"], folder / "model"))
    for file in (world["folder"] / "base_llama").glob("*token*"):
        shutil.copy(file, model)
    return model


def make_run(folder: Path, world: World, case: dict[str, Any]) -> Path:
    """Return the folder of a run whose one checkpoint is what a case saved."""
    model = model_with_tokenizer(folder, world)
    config = TrainConfig.model_validate(
        {
            "output": str(folder / "run"),
            "model": {"path": str(model)},
            "data": {"pairs": "unused"},
            "tokens": {"max_length": 64},
            "deepspeed": case["engine"],
            "lora": case["lora"],
        }
    )
    RunFolder(config.output).claim(
        RunIdentity(
            digest="",
            config=identity_config(config),
            pairs_url="unused",
            pairs_version=1,
            tokens_digest="",
            model_digest=model_digest(model),
        )
    )
    shutil.copytree(case["saves"], folder / "run" / "checkpoints" / "step-00000001-abcabc")
    return folder / "run"


def run_exports(path: Path, case: dict[str, Any], state: dict[str, np.ndarray], into: Path) -> None:
    """Write what a run exports: the weights that rank 0 gathered from its engine, by what the workers call."""
    tokenizer = load_tokenizer(str(path))
    dtype = DTYPES[case["engine"]["precision"]]
    model = load_reward_model(
        str(path),
        dtype=dtype,
        seed=0,
        dropout=False,
        gradient_checkpointing=False,
        pad_token_id=choose_pad_token(tokenizer),
        vocab_size=len(tokenizer),
        cpu_kernels=True,
    )
    if case["lora"] is not None:
        add_adapters(model, LoraConfig.model_validate(case["lora"]), seed=0)
    gathered = {name: torch.from_numpy(weight).to(dtype) for name, weight in state.items()}
    tokens = TokensConfig(max_length=64)
    template = resolve_template(tokenizer, tokens)
    save_reward_model(gathered, model, tokenizer, into, chat_template=template, dtype=dtype, tokens=tokens)


@pytest.mark.parametrize("name", ["zero1 bf16", "zero3 bf16", "zero3 fp32", "lora zero2 shared", "lora zero3 packed"])
def test_a_checkpoint_is_exported_as_the_run_would_have_been_byte_for_byte(
    runs: Callable[[int], Results], world: World, tmp_path: Path, name: str
) -> None:
    state = runs(2)[name]["state"]
    (case,) = [case for case in all_cases(world, 2) if case["name"] == name]
    run = make_run(tmp_path, world, case)
    run_exports(tmp_path / "model", case, state, tmp_path / "expected")
    exported = export_checkpoint(str(run), checkpoint="1", into=str(tmp_path / "exported"), model=None)
    assert (exported.checkpoint, exported.step) == ("step-00000001-abcabc", 1)
    assert contents(tmp_path / "exported") == contents(tmp_path / "expected")


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_what_cannot_be_exported_is_said_and_nothing_is_written(
    runs: Callable[[int], Results], world: World, tmp_path: Path
) -> None:
    assert runs(2)
    (case,) = [case for case in all_cases(world, 2) if case["name"] == "zero3 fp32"]
    run, into = make_run(tmp_path, world, case), tmp_path / "exported"

    def refused(
        error: type[PairwrightError], words: str, checkpoint: str | None = None, model: str | None = None
    ) -> None:
        with pytest.raises(error, match=words):
            export_checkpoint(str(run), checkpoint=checkpoint, into=str(into), model=model)
        assert not into.exists()

    refused(CheckpointError, r"no checkpoint 7; there are: step-00000001-abcabc \(step 1\)", checkpoint="7")
    refused(CheckpointError, "no checkpoint best", checkpoint="best")
    with pytest.raises(StoreError, match="something is here already"):
        export_checkpoint(str(run), checkpoint=None, into=str(tmp_path), model=None)
    refused(ModelError, "not the model that the run started from", model=str(world["gpt2"]))
    refused(ModelError, "say where it is now with --model", model=str(tmp_path / "moved"))
    shard = next(run.rglob("zero_pp_rank_1_*optim_states.pt"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    refused(CheckpointError, "content differs")
    shard.unlink()
    refused(CheckpointError, "is corrupt", checkpoint="1")
