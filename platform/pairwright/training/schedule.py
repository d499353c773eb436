"""The number of steps of a run, and the learning rate of each, as pure functions: a resume needs no state."""

import math
from dataclasses import dataclass

from pairwright.config import OptimizerConfig, TrainConfig
from pairwright.errors import ConfigError
from pairwright.terminal import counted
from pairwright.training.order import steps_per_epoch


def learning_rate_at(step: int, num_steps: int, config: OptimizerConfig) -> float:
    """Return the learning rate of one optimizer step.

    The last step's rate is exactly ``min_lr_ratio`` of the peak. That needs ``num_steps`` to be the steps of the whole
    run, all epochs together: with the epochs multiplied in twice, as open-instruct did, the rate never gets there.

    Args:
        step: the step about to be taken, from 0.
        num_steps: steps of the whole run.
        config: peak, warm-up and minimum.

    Source: cosine to 10 % (Ouyang et al. 2022, arXiv:2203.02155, appendix C.2); 3 % linear warm-up (Touvron et al.
        2023, arXiv:2307.09288, section 3.2.2).
    """
    num_warmup_steps = math.ceil(config.warmup_ratio * num_steps)
    if step < num_warmup_steps:
        return config.learning_rate * (step + 1) / num_warmup_steps
    num_decay_steps = max(1, num_steps - 1 - num_warmup_steps)
    progress = min(1.0, (step - num_warmup_steps) / num_decay_steps)
    fraction = config.min_lr_ratio + (1.0 - config.min_lr_ratio) * 0.5 * (1.0 + math.cos(math.pi * progress))
    return config.learning_rate * fraction


@dataclass(frozen=True)
class Schedule:
    """The length of a run."""

    num_groups: int
    steps_per_epoch: int
    num_steps: int


def schedule_of(num_groups: int, config: TrainConfig) -> Schedule:
    """Return the number of steps of a run.

    Raises:
        ConfigError: if there is no group to train on, or fewer than one step takes.
    """
    groups_per_step = config.batches.groups_per_step
    if num_groups < groups_per_step:
        raise ConfigError(
            f"batches.groups_per_step is {groups_per_step}, but {config.data.pairs} has only "
            f"{counted(num_groups, 'group')} to train on; lower it, or add data"
        )
    per_epoch = steps_per_epoch(num_groups, groups_per_step)
    num_steps = per_epoch * config.training.epochs
    if config.training.max_steps is not None:
        num_steps = min(num_steps, config.training.max_steps)
    return Schedule(num_groups=num_groups, steps_per_epoch=per_epoch, num_steps=num_steps)
