"""Groups of tokens -> optimizer steps by TRL's own RewardTrainer, one at a time, for benchmarks that compare with it.

``RewardTrainer.train()`` is a loop around collator, ``training_step``, clipping and ``optimizer.step()``; it cannot be
stopped between two steps, which interleaving needs, so that loop is written out here (transformers' Trainer,
``_run_epoch``) without its logging, saving, callbacks and reading of the dataset. All else is TRL's: collator, padding,
loss, metrics, autocast, optimizer.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import RewardTrainer

from pairwright.data.tokens.tokenize_groups import TokenGroup

Pair = dict[str, list[int]]


class TrlPeer:
    """TRL's RewardTrainer around a model, with the optimizer and the clipping of its defaults.

    Args:
        model: a sequence-classification model with one label and no padding index, in float32.
        tokenizer: only its pad token is used.
        learning_rate: of AdamW.
        precision: "bf16" for autocast, TRL's default, or "fp32".
        scratch: folder that the trainer may create files in.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        learning_rate: float,
        precision: str,
        scratch: Path,
    ) -> None:
        config = RewardConfig(
            output_dir=str(scratch),
            learning_rate=learning_rate,
            bf16=precision == "bf16",
            # On by default; the same without is faster, so TRL gets that here.
            gradient_checkpointing=False,
            max_length=None,
            use_cpu=not torch.cuda.is_available(),
            report_to="none",
            disable_tqdm=True,
        )
        any_pair = datasets.Dataset.from_list([{"chosen_ids": [1], "rejected_ids": [2]}])
        self.trainer = RewardTrainer(model=model, args=config, train_dataset=any_pair, processing_class=tokenizer)
        self.trainer.create_optimizer()
        prepared = self.trainer.accelerator.prepare(self.trainer.model, self.trainer.optimizer)
        self.model, self.optimizer = prepared
        self.trainer.model_wrapped, self.trainer.optimizer = prepared

    def step(self, pairs: Sequence[Pair], *, pairs_per_forward: int) -> None:
        """Take one optimizer step on pairs, ``pairs_per_forward`` at a time; the last forward may be smaller."""
        self.gradient(pairs, pairs_per_forward=pairs_per_forward)
        self.trainer.accelerator.clip_grad_norm_(self.model.parameters(), self.trainer.args.max_grad_norm)
        self.optimizer.step()
        self.model.zero_grad()

    def gradient(self, pairs: Sequence[Pair], *, pairs_per_forward: int) -> float:
        """Add the gradient of the mean of the forwards' losses and return that mean."""
        forwards = [list(pairs[start : start + pairs_per_forward]) for start in range(0, len(pairs), pairs_per_forward)]
        self.trainer.current_gradient_accumulation_steps = len(forwards)
        total = 0.0
        for examples in forwards:
            inputs: dict[str, Any] = self.trainer.data_collator(examples)
            total += float(self.trainer.training_step(self.model, inputs))
        return total

    def named_gradients(self) -> dict[str, torch.Tensor]:
        """Return the gradient by the name of its parameter."""
        assert isinstance(self.trainer.model, nn.Module)
        return {name: p.grad for name, p in self.trainer.model.named_parameters() if p.grad is not None}


def pairs_of(groups: Sequence[TokenGroup]) -> list[Pair]:
    """Return each pair of the groups as TRL wants it: two whole rows, group after group."""
    return [
        {
            "chosen_ids": [*group.prompt_ids.tolist(), *group.completion_ids[chosen].tolist()],
            "rejected_ids": [*group.prompt_ids.tolist(), *group.completion_ids[rejected].tolist()],
        }
        for group in groups
        for chosen, rejected in zip(group.chosen_P.tolist(), group.rejected_P.tolist(), strict=True)
    ]


def padded_tokens(pairs: Sequence[Pair], *, pairs_per_forward: int) -> int:
    """Return the tokens that TRL computes for these pairs, padding included."""
    lengths = [max(len(pair["chosen_ids"]), len(pair["rejected_ids"])) for pair in pairs]
    return sum(
        2 * len(part) * max(part)
        for part in (lengths[start : start + pairs_per_forward] for start in range(0, len(lengths), pairs_per_forward))
    )


def forward_sizes(pairs: Sequence[Pair], *, most_tokens: int) -> list[int]:
    """Return numbers of pairs a forward that are worth trying: powers of two, up to all pairs or ``most_tokens``."""
    longest = max(max(len(pair["chosen_ids"]), len(pair["rejected_ids"])) for pair in pairs)
    most = max(1, min(len(pairs), most_tokens // (2 * longest)))
    return [2**power for power in range(most.bit_length())]
