"""One rank of a training run, as Ray Train starts it: joins the process group, trains, and exports on rank 0.

An error of our own stops every rank alike and is returned as a value: if it were raised, Ray would replace the workers,
which would meet the same error again. Any other exception is raised, so that Ray replaces the whole group.
"""

import dataclasses
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import get_args

import ray
import ray.train
import ray.train.torch
import torch.distributed as dist
from torch import Tensor
from transformers import PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from pairwright.cluster.train.coordinator import (
    CheckpointRejected,
    RunFailed,
    RunFinished,
    RunStopped,
    WorkerResult,
    WorkerTask,
)
from pairwright.cluster.train.heartbeat import HeartbeatSender
from pairwright.cluster.train.ray_context import RayRunContext
from pairwright.data.storage.backoff import retry_with_backoff
from pairwright.data.tokens.tokenize_groups import TokenTable, local_token_paths
from pairwright.data.tokens.tokenizer import load_tokenizer
from pairwright.errors import DamagedCheckpointError, OutOfMemoryError, PairwrightError
from pairwright.events import HeadInitialized, LayoutChosen, PhaseStarted, WholeModelRead, WorkersStarted
from pairwright.model.collate import Layout
from pairwright.model.layout_check import LayoutChoice, choose_layout
from pairwright.model.load_model import DTYPES, starting_model
from pairwright.model.lora import KeptAdapter
from pairwright.model.model_export import choose_pad_token, save_reward_model
from pairwright.model.reward_model import RewardModel
from pairwright.runs.run_dir import store_model
from pairwright.training.collectives import raise_on_all_ranks
from pairwright.training.engine import Engine, join_process_group
from pairwright.training.global_batch import Run, shape_of
from pairwright.training.loop import Stopped, train


@dataclass(frozen=True)
class _Setup:
    """What a rank has in memory before it joins the others."""

    run: Run
    model: RewardModel
    tokenizer: PreTrainedTokenizerFast
    template: str
    layout_choice: LayoutChoice


def train_worker(task: WorkerTask) -> WorkerResult:
    """Train on this rank; the result is the same on every rank."""
    disable_progress_bar()
    if (reason := ray.get(task.coordinator.abort_reason.remote())) is not None:
        return RunFailed(message=reason)
    join_process_group()
    try:
        return _train(task, _set_up_on_all_ranks(task))
    except DamagedCheckpointError as error:
        corrupt = ray.train.get_checkpoint()
        assert corrupt is not None
        return CheckpointRejected(name=Path(corrupt.path).name, reason=str(error))
    except OutOfMemoryError as error:
        # The other ranks wait for this one in a collective, so Ray has to replace them; the new ones end with this.
        ray.get(task.coordinator.abort.remote(str(error)))
        raise
    except PairwrightError as error:
        return RunFailed(message=str(error))


def _set_up_on_all_ranks(task: WorkerTask) -> _Setup:
    """Return this rank's setup; an error of one rank, such as a model that is missing on its node, stops all."""
    setup: _Setup | None = None
    error: PairwrightError | None = None
    try:
        setup = _set_up(task)
    except PairwrightError as found:
        error = found
    raise_on_all_ranks(error)
    assert setup is not None
    return _with_agreed_layout(setup)


def _with_agreed_layout(setup: _Setup) -> _Setup:
    """Return the setup with the most conservative layout that a rank chose, so that all ranks use the same one."""
    choices = [setup.layout_choice] * dist.get_world_size()
    dist.all_gather_object(choices, setup.layout_choice)
    choice = max(choices, key=lambda choice: get_args(Layout).index(choice.layout))
    setup.model.accept_packed_sequences(enabled=choice.layout != "padded")
    run = dataclasses.replace(setup.run, layout=choice.layout)
    return dataclasses.replace(setup, run=run, layout_choice=choice)


def _set_up(task: WorkerTask) -> _Setup:
    config = task.config
    _report_phase(task, "loading the model")
    tokenizer = load_tokenizer(config.model.path)
    template = str(task.tokens_manifest.config["chat_template"])  # as the driver resolved it
    pad_token_id = choose_pad_token(tokenizer)
    load = partial(starting_model, config, tokenizer, pad_token_id=pad_token_id)
    # Under ZeRO-3 the model may fit neither this rank's memory nor its GPU; the check needs its architecture only.
    is_partitioned = config.deepspeed.zero_stage == 3
    model = load(reading="first layers" if is_partitioned else "all")
    tokens = TokenTable(local_token_paths(task.tokens_url, task.tokens_manifest))
    _report_phase(task, "choosing the layout of micro-batches")
    choice = choose_layout(
        model,
        config.batches.layout,
        pad_token_id=pad_token_id,
        max_length=tokens.longest_row_tokens,
        device=ray.train.torch.get_device(),
    )
    if is_partitioned:
        del model  # before the next one is made
        model = load(reading="deferred")
    run = Run(
        config=config,
        run_digest=task.run_digest,
        tokens=tokens,
        pad_token_id=pad_token_id,
        layout=choice.layout,
        shape=shape_of(model),
    )
    return _Setup(run=run, model=model, tokenizer=tokenizer, template=template, layout_choice=choice)


def _report_phase(task: WorkerTask, phase: str) -> None:
    if dist.get_rank() == 0:
        task.coordinator.push.remote(PhaseStarted(phase=phase))


def _heartbeat_sender(task: WorkerTask, context: RayRunContext) -> HeartbeatSender:
    return HeartbeatSender(
        task.coordinator,
        context.status,
        rank=context.rank,
        world_size=context.world_size,
        attempt=context.attempt,
        hang_seconds=task.config.workers.hang_timeout_seconds,
    )


def _train(task: WorkerTask, setup: _Setup) -> RunFinished | RunStopped:
    with ExitStack() as stack:
        retry_seconds = task.config.training.storage_retry_seconds
        context = stack.enter_context(RayRunContext(task.coordinator, retry_seconds=retry_seconds))
        stack.enter_context(_heartbeat_sender(task, context))
        if context.rank == 0:
            _log_setup(setup, context)
        trained = train(setup.run, setup.model, context)
        if isinstance(trained, Stopped):
            context.wait_for_upload()
            return RunStopped(step=trained.step)
        _export(trained.engine, setup, task, context)
        context.wait_for_upload()
    return RunFinished(validation=trained.validation, skipped_steps=trained.skipped_steps)


def _log_setup(setup: _Setup, context: RayRunContext) -> None:
    context.log_event(WorkersStarted(world_size=context.world_size))
    if ignored_heads := setup.model.ignored_heads:
        context.log_event(HeadInitialized(ignored_heads=tuple(ignored_heads)))
    if setup.model.read_because is not None:
        context.log_event(WholeModelRead(reason=setup.model.read_because))
    choice = setup.layout_choice
    context.log_event(LayoutChosen(layout=choice.layout, reason=choice.reason))


def _export(engine: Engine, setup: _Setup, task: WorkerTask, context: RayRunContext) -> None:
    """Write the plain Hugging Face model directory from rank 0; gathering the weights takes every rank."""
    state = engine.full_state_dict()
    error: PairwrightError | None = None
    if state is not None:
        try:
            _write_model(state, setup, task, context)
        except PairwrightError as found:
            error = found
    raise_on_all_ranks(error)


def _write_model(state: dict[str, Tensor], setup: _Setup, task: WorkerTask, context: RayRunContext) -> None:
    with tempfile.TemporaryDirectory(prefix="pairwright-export-") as directory:
        save_reward_model(
            state,
            setup.model,
            setup.tokenizer,
            directory,
            chat_template=setup.template,
            dtype=DTYPES[task.config.deepspeed.precision],
            tokens=task.config.tokens,
            kept_adapter=KeptAdapter.of(task.config),
        )
        retry_with_backoff(
            lambda: store_model(Path(directory), task.run_url),
            task.config.training.storage_retry_seconds,
            lambda reason, delay: context.log_retry(f"the model cannot be stored: {reason}", delay),
        )
