"""The preview of a run: its first lines, and what ``train --dry-run`` prints.

Both say the same, from the plan of the run and from what its output holds; nothing here starts or writes anything.
"""

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from pairwright.config import TrainConfig
from pairwright.data.tokens.tokenize_groups import EQUAL_IN_TEMPLATE, REFUSED_PREFIX, counts_behind, special_line
from pairwright.errors import CheckpointError
from pairwright.model.batching.memory_model import checkpoint_bytes, model_bytes, rank_memory
from pairwright.runs.checkpoints import kept_checkpoints, step_of
from pairwright.runs.run_dir import RunClaim, RunFolder
from pairwright.runs.run_plan import RunPlan
from pairwright.terminal import counted, one_per_line

_LABEL = 12


class OutputPreview(msgspec.Struct, frozen=True, kw_only=True):
    """What becomes of the output."""

    url: str
    status: Literal["new", "started", "resumed", "finished", "replaced"]
    """started: the run began here and has no checkpoint yet; replaced: another run, which never took a step."""
    step: int = 0
    """The run goes on after it."""
    replaced: str = ""
    """How the run that gives way differs."""


class StepsPreview(msgspec.Struct, frozen=True, kw_only=True):
    """How long the run is."""

    total: int
    per_epoch: int
    epochs: int
    groups_per_step: int
    limited_by: Literal["epochs", "max_steps"]
    """Which of ``training.epochs`` and ``training.max_steps`` decides ``total``."""


class MemoryPreview(msgspec.Struct, frozen=True, kw_only=True):
    """An estimate of what a rank holds in a step, in bytes, without the libraries of its process."""

    device: Literal["CPU", "GPU"]
    total: int
    weights: int
    gradients: int
    optimizer: int
    activations: int
    micro_batch_tokens: int
    """Of the largest micro-batch, for which the activations are."""


class CheckpointsPreview(msgspec.Struct, frozen=True, kw_only=True):
    """How many checkpoints are written and kept, and an estimate of their bytes."""

    written: int
    kept: int
    bytes_each: int
    model_bytes: int
    """Of the exported model."""
    disk_bytes: int
    """Of the run's folder at its fullest: what is kept, one more while it is written, the best one, the model."""


class RunPreview(msgspec.Struct, frozen=True, kw_only=True):
    """What a run will do; ``train --dry-run --json`` prints it."""

    output: OutputPreview
    pairs: str
    pairs_version: int
    groups: int
    """To train on; each has one prompt."""
    groups_held_out: int
    steps: StepsPreview
    tokens: dict[str, int | float]
    """Totals of the token table."""
    longest_row: int
    """Tokens of the longest completion with its prompt, under the limit."""
    max_positions: int | None
    """Longest row that the model has positions for, in tokens."""
    checkpoints: CheckpointsPreview
    memory: MemoryPreview
    config: dict[str, Any]

    def text(self) -> str:
        """Return the preview for a person, one fact a line."""
        lines = [
            f"run {self.output.url}: {_output_line(self.output, self.steps)}",
            _line(
                "data",
                f"{self.pairs} version {self.pairs_version}: {self.groups:,} groups to train on, one prompt "
                f"each, and {self.groups_held_out:,} held out",
            ),
            *_token_lines(self),
            _line("steps", _steps_line(self.steps, self.config["training"]["max_steps"])),
            _line("checkpoints", _checkpoints_line(self.checkpoints, self.config["training"])),
            _line("memory", _memory_line(self.memory)),
            _line(
                "disk",
                f"about {_size(self.checkpoints.disk_bytes)} in the output at most, "
                f"{_size(self.checkpoints.model_bytes)} of it the model",
            ),
            _line("workers", _workers_line(self.config)),
        ]
        return one_per_line(lines)


def preview_of(config: TrainConfig, plan: RunPlan, claim: RunClaim, folder: RunFolder | None, url: str) -> RunPreview:
    """Return what a run will do.

    Args:
        config: of the run.
        plan: of the run.
        claim: what its start finds in the output.
        folder: of the run; None where there is none yet.
        url: of that folder.
    """
    output = _output(claim, folder, url)
    totals = plan.tokens_manifest.totals
    held_out = len(plan.tokens.rows_of_split("validation"))
    return RunPreview(
        output=output,
        pairs=config.data.pairs,
        pairs_version=plan.pairs.version,
        groups=plan.schedule.num_groups,
        groups_held_out=held_out,
        steps=_steps(config, plan),
        tokens=dict(totals),
        longest_row=_longest(plan),
        max_positions=plan.outline.max_positions,
        checkpoints=_checkpoints(config, plan, output.step),
        memory=_memory(config, plan),
        config=config.model_dump(mode="json"),
    )


# ------------------------------------------------------------------------------------------------- figures


def _output(claim: RunClaim, folder: RunFolder | None, url: str) -> OutputPreview:
    if claim.status != "same" or folder is None:
        status = "replaced" if claim.status == "replaced" else "new"
        return OutputPreview(url=url, status=status, replaced=claim.replaced)
    if (summary := folder.summary()) is not None:
        return OutputPreview(url=url, status="finished", step=summary.steps)
    found = kept_checkpoints(folder.url, verify=False)
    if found.next_start is not None:
        return OutputPreview(url=url, status="resumed", step=step_of(found.next_start))
    if found.best is not None:
        return OutputPreview(url=url, status="resumed", step=step_of(found.best))
    if any(kept.committed for kept in found.checkpoints):
        raise CheckpointError(
            f"{url}: no checkpoint of this run is valid; `pairwright checkpoints {url}` says what is wrong with them"
        )
    return OutputPreview(url=url, status="started")


def _steps(config: TrainConfig, plan: RunPlan) -> StepsPreview:
    training, per_epoch = config.training, plan.schedule.steps_per_epoch
    is_cut = training.max_steps is not None and training.max_steps < per_epoch * training.epochs
    return StepsPreview(
        total=plan.schedule.num_steps,
        per_epoch=per_epoch,
        epochs=training.epochs,
        groups_per_step=config.batches.groups_per_step,
        limited_by="max_steps" if is_cut else "epochs",
    )


def _checkpoints(config: TrainConfig, plan: RunPlan, first_step: int) -> CheckpointsPreview:
    every, total = config.training.checkpoint_every_steps, plan.schedule.num_steps
    written = total // every - first_step // every + (total % every > 0 and first_step < total)
    each, model = checkpoint_bytes(plan.outline, config), model_bytes(plan.outline, config)
    kept = min(config.training.keep_checkpoints, max(1, written))
    most = min(kept + 1, max(1, written)) + (config.training.best_metric is not None)
    return CheckpointsPreview(
        written=written, kept=kept, bytes_each=each, model_bytes=model, disk_bytes=most * each + model
    )


def _memory(config: TrainConfig, plan: RunPlan) -> MemoryPreview:
    totals, workers = plan.tokens_manifest.totals, config.workers
    per_step = totals["tokens"] / max(1, totals["groups"]) * config.batches.groups_per_step / workers.least
    num_tokens = min(config.batches.micro_batch_tokens, max(_longest(plan), int(per_step)))
    found = rank_memory(plan.outline, config, num_ranks=workers.least, num_tokens=num_tokens)
    return MemoryPreview(
        device="GPU" if workers.use_gpu else "CPU",
        total=found.total,
        weights=found.weights,
        gradients=found.gradients,
        optimizer=found.optimizer,
        activations=found.activations,
        micro_batch_tokens=num_tokens,
    )


def _longest(plan: RunPlan) -> int:
    return plan.tokens.longest_row_tokens


# --------------------------------------------------------------------------------------------------- words


def _line(label: str, text: str) -> str:
    return f"  {label:<{_LABEL}}{text}"


def _output_line(output: OutputPreview, steps: StepsPreview) -> str:
    match output.status:
        case "new":
            return "new"
        case "started":
            return "started before, without a checkpoint yet: from the first step"
        case "resumed":
            return f"resumed from the checkpoint of step {output.step} of {steps.total}"
        case "finished":
            return f"finished, {output.step} steps: there is nothing to do"
        case "replaced":
            return f"replaces a run that never took a step ({output.replaced})"


def _token_lines(preview: RunPreview) -> list[str]:
    totals, tokens = preview.tokens, preview.config["tokens"]
    positions = "" if preview.max_positions is None else f"; the model has {preview.max_positions:,} positions"
    return [
        _line(
            "tokens",
            f"{totals['tokens']:,.0f} with the held-out ones; the longest completion takes "
            f"{preview.longest_row:,} with its prompt{positions}",
        ),
        _line(
            "truncated",
            f"{totals['completions_truncated']:,.0f} of {totals['completions']:,.0f} completions at "
            f"{tokens['max_length']:,} tokens; dropped {totals['completions_dropped']:,.0f}",
        ),
        _line(
            "unpaired",
            f"{totals['pairs_identical']:,.0f} pairs of equal tokens, {totals['groups_dropped']:,.0f} "
            "groups without pairs",
        ),
        *_rare_lines(totals, tokens["special_in_text"]),
    ]


def _rare_lines(totals: Mapping[str, int | float], rule: str) -> list[str]:
    lines = []
    if num_pairs := totals["pairs_equal_in_template"]:
        lines.append(_line("equal", f"{num_pairs:,.0f} pairs {EQUAL_IN_TEMPLATE}"))
    if num_groups := totals["groups_refused"]:
        reasons = [f"{reason} ({count:,})" for reason, count in counts_behind(totals, REFUSED_PREFIX).items()]
        lines.append(_line("refused", f"{num_groups:,.0f} groups by the chat template: {'; '.join(reasons)}"))
    if num_groups := totals["groups_with_special"]:
        lines.append(_line("special", f"{num_groups:,.0f} groups {special_line(totals, rule)}"))
    return lines


def _steps_line(steps: StepsPreview, max_steps: int | None) -> str:
    epochs = counted(steps.epochs, "epoch")
    line = f"{steps.total:,} of {steps.groups_per_step} groups"
    if steps.limited_by == "max_steps":
        return f"{line}, by training.max_steps; {epochs} would take {steps.per_epoch * steps.epochs:,}"
    line = f"{line}: {epochs} of {counted(steps.per_epoch, 'step')}"
    if max_steps is None or max_steps == steps.total:
        return line
    return f"{line}, over before training.max_steps = {max_steps:,}; for more, raise training.epochs"


def _checkpoints_line(checkpoints: CheckpointsPreview, training: Mapping[str, Any]) -> str:
    best = "" if training["best_metric"] is None else f" and the best by {training['best_metric']}"
    return (
        f"{checkpoints.written:,} to write, every {training['checkpoint_every_steps']:,} steps and at the end; the "
        f"last {checkpoints.kept}{best} kept, about {_size(checkpoints.bytes_each)} each"
    )


def _memory_line(memory: MemoryPreview) -> str:
    return (
        f"about {_size(memory.total)} a rank ({memory.device}) beside its libraries: weights {_size(memory.weights)}, "
        f"gradients {_size(memory.gradients)}, optimizer {_size(memory.optimizer)}, activations "
        f"{_size(memory.activations)} (micro-batch of {memory.micro_batch_tokens:,} tokens)"
    )


def _workers_line(config: Mapping[str, Any]) -> str:
    workers, deepspeed = config["workers"], config["deepspeed"]
    number = workers["num_workers"]
    shown = number if isinstance(number, int) else " to ".join(map(str, number))
    device = "GPU" if workers["use_gpu"] else "CPU"
    return f"{shown} ({device}), ZeRO-{deepspeed['zero_stage']}, {deepspeed['precision']}"


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:,.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:,.1f} MB"
