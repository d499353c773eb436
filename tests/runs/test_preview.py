"""What a run says that it will do, by `train --dry-run` and in its first lines; no Ray is started."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from pairwright.cluster.train.driver import dry_run
from pairwright.config import TrainConfig
from pairwright.data.storage.lease import Lease
from pairwright.data.storage.ownership import RUN
from pairwright.data.table.table import Table
from pairwright.errors import ConfigError, DataError, LeaseError, ModelError, StoreError
from pairwright.model.batching.memory_model import ModelOutline, checkpoint_bytes, outline_of, rank_memory
from pairwright.model.model_config import meta_model
from pairwright.runs.run_dir import RunFolder
from pairwright.runs.run_identity import RunIdentity
from pairwright.runs.run_plan import plan_run
from run_folders import add, commit
from training_runs import make_model, make_pairs, run_config

NUM_GROUPS = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("preview")
    make_pairs(folder / "pairs", num_groups=NUM_GROUPS)
    make_model(folder / "model")
    return folder


def config_of(folder: Path, name: str = "run", **sections: dict[str, Any]) -> TrainConfig:
    values: dict[str, dict[str, Any]] = {
        "batches": {"groups_per_step": 8},
        "training": {"epochs": 1, "max_steps": None},
        "workers": {"num_workers": 1},
    }
    return run_config(folder, name, **{key: values.get(key, {}) | sections.get(key, {}) for key in values | sections})


def test_it_names_groups_steps_tokens_checkpoints_memory_and_disk_and_makes_nothing_but_tokens(folder: Path) -> None:
    preview = dry_run(config_of(folder))
    assert preview.output.status == "new"
    assert preview.groups + preview.groups_held_out == preview.tokens["groups"] == NUM_GROUPS
    assert preview.steps.total == preview.steps.per_epoch == -(-preview.groups // 8)
    assert preview.config["optimizer"]["learning_rate"] == 3e-3
    assert not (folder / "run").exists()
    assert list((folder / "tokens").iterdir()), "the run finds the tokens"
    assert "ray" not in sys.modules or not sys.modules["ray"].is_initialized()
    text = preview.text()
    for label in ("data", "tokens", "truncated", "unpaired", "steps", "checkpoints", "memory", "disk", "workers"):
        assert f"\n  {label} " in text


def test_steps_are_counted_after_groups_were_dropped(folder: Path) -> None:
    """35 steps were said, and 25 taken: groups without pairs under the limit counted."""
    preview = dry_run(config_of(folder, tokens={"max_length": 44}))
    assert preview.tokens["groups_dropped"] > 0
    left = preview.tokens["groups"] - preview.tokens["groups_dropped"]
    assert preview.groups + preview.groups_held_out == left < NUM_GROUPS
    assert preview.steps.total == -(-preview.groups // 8)


def test_max_steps_that_the_epochs_do_not_reach_are_said(folder: Path) -> None:
    beyond = dry_run(config_of(folder, training={"max_steps": 1000}))
    assert beyond.steps.limited_by == "epochs"
    assert "over before training.max_steps = 1,000; for more, raise training.epochs" in beyond.text()
    within = dry_run(config_of(folder, training={"max_steps": 3}))
    assert (within.steps.total, within.steps.limited_by) == (3, "max_steps")
    assert f"3 of 8 groups, by training.max_steps; 1 epoch would take {within.steps.per_epoch}" in within.text()


def test_truncated_completions_are_said_with_their_limit(folder: Path) -> None:
    preview = dry_run(config_of(folder, tokens={"max_length": 60, "overlong_policy": "truncate"}))
    cut, total = preview.tokens["completions_truncated"], preview.tokens["completions"]
    assert 0 < cut < total
    assert f"truncated   {cut:,} of {total:,} completions at 60 tokens; dropped 0" in preview.text()


def test_a_template_that_refuses_groups_is_counted_and_one_that_refuses_all_is_an_error(folder: Path) -> None:
    refusing = "{{% if {} %}}{{{{ raise_exception('no') }}}}{{% endif %}}{{{{ messages[-1].content }}}}"
    some, every = refusing.format("messages[0].content | length is odd"), refusing.format("'a' in messages[0].content")
    preview = dry_run(config_of(folder, tokens={"chat_template": some}, batches={"groups_per_step": 1}))
    refused = preview.tokens["groups_refused"]
    assert 0 < refused < NUM_GROUPS
    assert f"refused     {refused:,} groups by the chat template: " in preview.text()
    with pytest.raises(DataError, match="refuses every one of 60 groups"):
        dry_run(config_of(folder, tokens={"chat_template": every}))


def test_a_model_with_fewer_positions_than_the_longest_text_is_refused(folder: Path, tmp_path: Path) -> None:
    short = make_model(tmp_path / "short")
    text = (short / "config.json").read_text()
    (short / "config.json").write_text(text.replace('"max_position_embeddings": 256', '"max_position_embeddings": 16'))
    with pytest.raises(ModelError, match=r"knows 16 positions.*set tokens.max_length to 16 or less"):
        dry_run(config_of(folder, model={"path": str(short)}))


@pytest.mark.skipif("RAY_ADDRESS" in os.environ, reason="a cluster may have what this machine lacks")
def test_more_workers_or_gpus_than_there_are_are_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="needs 4096 CPUs"):
        dry_run(config_of(folder, workers={"num_workers": 4096}))
    with pytest.raises(ConfigError, match="as many GPUs"):
        dry_run(
            config_of(
                folder,
                workers={"num_workers": 1, "use_gpu": True, "cpus_per_worker": 1}
                | {"num_workers": min(64, os.cpu_count() or 1)},
            )
        )


def test_an_output_is_resumed_replaced_or_refused_as_the_start_would(folder: Path, tmp_path: Path) -> None:
    config = config_of(folder).model_copy(update={"output": str(tmp_path / "run")})
    RunFolder(config.output).claim(identity_of(config))
    assert dry_run(config).output.status == "started"
    other = config.model_copy(update={"training": config.training.model_copy(update={"seed": 9})})
    replaced = dry_run(other).output
    assert (replaced.status, replaced.replaced) == ("replaced", "training.seed is 0 there and 9 here")
    add(tmp_path / "run", 5, {})
    commit(tmp_path / "run", 5)
    resumed = dry_run(config)
    assert (resumed.output.status, resumed.output.step) == ("resumed", 5)
    assert resumed.checkpoints.written == 1
    assert "resumed from the checkpoint of step 5 of " in resumed.text()
    with pytest.raises(ConfigError, match=r"holds another run \(training\.seed is 0 there and 9 here\)"):
        dry_run(other)
    lease = Lease(config.output, RUN, what="`pairwright train`", lost=lambda: None)
    with lease, pytest.raises(LeaseError, match="another command does `pairwright train` here"):
        dry_run(config)
    dry_run(config)


def identity_of(config: TrainConfig) -> RunIdentity:
    pairs = Table.open(config.data.pairs, "pairs")
    return plan_run(config, pairs, pairs.manifest()).identity


def test_an_output_with_other_files_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(StoreError, match=r"holds no run but notes\.txt"):
        dry_run(config_of(folder).model_copy(update={"output": str(tmp_path)}))


OUTLINE = ModelOutline(
    num_parameters=1000, num_trained=1000, linear_width=70, hidden_size=8, num_layers=2, max_positions=None
)


def test_zero_parts_what_its_stage_parts(folder: Path) -> None:
    """Rajbhandari et al. 2020, arXiv:1910.02054, figure 1: 4, 4 and 12 bytes a weight here, in float32."""
    expected = {0: (4000, 4000, 8000), 1: (4000, 4000, 3000), 2: (4000, 1000, 3000), 3: (1000, 1000, 3000)}
    for stage, parts in expected.items():
        config = config_of(folder, deepspeed={"zero_stage": stage})
        found = rank_memory(OUTLINE, config, num_ranks=4, num_tokens=10)
        assert (found.weights, found.gradients, found.optimizer) == parts
        assert found.activations == 10 * 70 * 4
    assert checkpoint_bytes(OUTLINE, config_of(folder, deepspeed={"zero_stage": 2})) == 16000


def test_adapters_are_what_is_trained(folder: Path) -> None:
    config = config_of(folder, lora={"rank": 4})
    model = meta_model(str(folder / "model"))
    full, adapted = outline_of(model, None), outline_of(model, config.lora)
    assert full.num_parameters == full.num_trained == sum(p.numel() for p in model.parameters())
    assert adapted.num_trained == 4 * full.linear_width + 96  # and the head, one output for 96 hidden
    assert adapted.num_parameters == full.num_parameters + 4 * full.linear_width
