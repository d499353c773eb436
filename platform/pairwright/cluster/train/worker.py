"""One rank of a training run, as Ray Train starts it: joins the process group, trains, and exports on rank 0.

A mistake that the message explains stops every rank alike and comes back as a value: raised, Ray would take it for a
lost worker and make the same mistake again. Any other exception is raised, so that the whole group is replaced.
"""

import dataclasses
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import ray
import ray.train
import ray.train.torch
import torch.distributed as dist
from torch import Tensor
from transformers import PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from pairwright.cluster.train.heartbeat import Heart
from pairwright.cluster.train.ray_context import RayTrainHost
from pairwright.cluster.train.worker_args import WorkerTask
from pairwright.config import TrainConfig
from pairwright.data.storage.backoff import retry_with_backoff
from pairwright.data.tokens.chat_template import chosen_template
from pairwright.data.tokens.tokenize_groups import TokenTable, local_token_paths
from pairwright.data.tokens.tokenizer import load_tokenizer
from pairwright.errors import DamagedCheckpointError, ModelError, OutOfMemoryError, PairwrightError
from pairwright.model.collate import Layout
from pairwright.model.layout_check import LayoutChoice, choose_layout
from pairwright.model.model_export import choose_pad_token, save_reward_model
from pairwright.model.reward_model import RewardModel
from pairwright.runs.run_dir import store_model
from pairwright.training.collectives import raise_together
from pairwright.training.engine import DTYPES, Engine, join_process_group
from pairwright.training.global_batch import Run, shape_of
from pairwright.training.loop import Stopped, train
from pairwright.training.starting_model import starting_model


@dataclass(frozen=True)
class _Prepared:
    """What a rank has in hand before it meets the others."""

    run: Run
    model: RewardModel
    tokenizer: PreTrainedTokenizerFast
    template: str
    layout_choice: LayoutChoice


def train_worker(task: WorkerTask) -> dict[str, Any]:
    """Train on this rank.

    Returns:
        The final evaluation; ``{"stopped": step}`` if the run was asked to stop; or what all ranks found wrong:
        ``{"error": message}``, or ``{"damaged": name, "reason": message}`` for the checkpoint that they were to start
        from, which the driver then sets aside.
    """
    disable_progress_bar()
    if (refusal := ray.get(task.board.refusal.remote())) is not None:
        return {"error": refusal}
    join_process_group()
    try:
        return _train(task, _prepare_together(task))
    except DamagedCheckpointError as error:
        damaged = ray.train.get_checkpoint()
        assert damaged is not None
        return {"damaged": Path(damaged.path).name, "reason": str(error)}
    except OutOfMemoryError as error:
        # The other ranks wait for this one in a collective: Ray has to replace them, and the new ones end with this.
        ray.get(task.board.refuse.remote(str(error)))
        raise
    except PairwrightError as error:
        return {"error": str(error)}


def _prepare_together(task: WorkerTask) -> _Prepared:
    """Return what every rank has ready; what one cannot read, such as a model that is not on its node, stops all."""
    prepared: _Prepared | None = None
    error: PairwrightError | None = None
    try:
        prepared = _prepare(task)
    except PairwrightError as found:
        error = found
    raise_together(error)
    assert prepared is not None
    return _with_agreed_layout(prepared)


def _with_agreed_layout(prepared: _Prepared) -> _Prepared:
    """Return it with the layout that asks least of the model, of those that the ranks found; the same on every rank."""
    choices = [prepared.layout_choice] * dist.get_world_size()
    dist.all_gather_object(choices, prepared.layout_choice)
    choice = max(choices, key=lambda choice: get_args(Layout).index(choice.layout))
    prepared.model.take_flat_rows(enabled=choice.layout != "padded")
    run = dataclasses.replace(prepared.run, layout=choice.layout)
    return dataclasses.replace(prepared, run=run, layout_choice=choice)


def _prepare(task: WorkerTask) -> _Prepared:
    config = task.config
    tokenizer = load_tokenizer(config.model.path)
    template = chosen_template(tokenizer, config.tokens)
    pad_token_id = choose_pad_token(tokenizer)
    model = starting_model(config, tokenizer, pad_token_id=pad_token_id)
    tokens = TokenTable(local_token_paths(task.tokens_url, task.tokens_manifest))
    _check_positions(model, tokens, config)
    choice = choose_layout(
        model,
        config.batches.layout,
        pad_token_id=pad_token_id,
        max_length=int(tokens.longest_row_tokens_G.max()),
        device=ray.train.torch.get_device(),
    )
    run = Run(
        config=config,
        run_digest=task.run_digest,
        tokens=tokens,
        pad_token_id=pad_token_id,
        layout=choice.layout,
        shape=shape_of(model),
    )
    return _Prepared(run=run, model=model, tokenizer=tokenizer, template=template, layout_choice=choice)


def _heart(task: WorkerTask, host: RayTrainHost) -> Heart:
    return Heart(
        task.board,
        host.pulse,
        rank=host.rank,
        world_size=host.world_size,
        attempt=host.attempt,
        hang_seconds=task.config.workers.hang_seconds,
    )


def _train(task: WorkerTask, prepared: _Prepared) -> dict[str, Any]:
    with ExitStack() as stack:
        patience_seconds = task.config.training.storage_patience_seconds
        host = stack.enter_context(RayTrainHost(task.board, patience_seconds=patience_seconds))
        stack.enter_context(_heart(task, host))
        if host.rank == 0:
            choice = prepared.layout_choice
            host.progress({"kind": "workers", "step": 0, "world_size": host.world_size})
            if left_out := prepared.model.left_out:
                host.progress({"kind": "new_head", "step": 0, "left_out": [*left_out]})
            host.progress({"kind": "layout", "step": 0, "layout": choice.layout, "reason": choice.reason})
        trained = train(prepared.run, prepared.model, host)
        if isinstance(trained, Stopped):
            host.wait_for_upload()
            return {"stopped": trained.step}
        _export(trained.engine, prepared, task, host)
        host.wait_for_upload()
    return {"validation": trained.validation, "skipped_steps": trained.skipped_steps}


def _check_positions(model: RewardModel, tokens: TokenTable, config: TrainConfig) -> None:
    longest, limit = int(tokens.longest_row_tokens_G.max()), model.max_positions
    if limit is not None and longest > limit:
        raise ModelError(
            f"{config.model.path}: knows {limit} positions, but the longest completion takes {longest} tokens with its "
            f"prompt; set tokens.max_length to {limit} or less"
        )


def _export(engine: Engine, prepared: _Prepared, task: WorkerTask, host: RayTrainHost) -> None:
    """Write the plain Hugging Face model directory from rank 0; gathering the weights takes every rank."""
    state = engine.full_state_dict()
    error: PairwrightError | None = None
    if state is not None:
        try:
            _write_model(state, prepared, task, host)
        except PairwrightError as found:
            error = found
    raise_together(error)


def _write_model(state: dict[str, Tensor], prepared: _Prepared, task: WorkerTask, host: RayTrainHost) -> None:
    with tempfile.TemporaryDirectory(prefix="pairwright-export-") as directory:
        save_reward_model(
            state,
            prepared.model,
            prepared.tokenizer,
            directory,
            chat_template=prepared.template,
            dtype=DTYPES[task.config.engine.precision],
            tokens=task.config.tokens,
        )
        retry_with_backoff(
            lambda: store_model(Path(directory), task.run_url),
            task.config.training.storage_patience_seconds,
            lambda reason, pause: host.refused(f"the model cannot be stored: {reason}", pause),
        )
