"""Optimizer steps on the same groups by TRL's RewardTrainer and by us: seconds, and how many times faster.

    python benchmarks/train_vs_trl.py                  # random groups of the lengths in CASES
    python benchmarks/train_vs_trl.py --real FILE      # a rankings file, its own lengths, ties dropped

A Llama of 4 layers x 256 from the same weights on every side, in one process, a step of each in turn; every step has
new groups. One thread is timed by CPU time, two by wall clock. First loss and gradient of all sides are compared in
float32. Each side runs with the batch size that was fastest for it on the case (``_best``).

Timed on every side: collating lists of token ids, forward and backward in bfloat16 autocast over float32 weights,
clipping, AdamW (PyTorch's fused one) and clearing the gradient. On no side: reading and tokenising the data, writing
pairs out (for TRL), planning (ours), logging, saving, and TRL's gradient checkpointing, which is on by default.
"""

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from reward_groups import (
    PAD_ID,
    nameless_tokenizer,
    random_groups,
    real_groups,
    row_lengths,
    shared_tokens,
    tokenizer_of,
)
from transformers import AutoModelForSequenceClassification, LlamaConfig, PreTrainedModel
from trl_peer import TrlPeer, forward_sizes, padded_tokens, pairs_of

from pairwright.config import LossConfig
from pairwright.data.tokens.tokenize_groups import TokenGroup
from pairwright.model.collate import Layout, collate
from pairwright.model.loss import preference_loss
from pairwright.model.reward_model import RewardModel

VOCAB_SIZE = 32_000
LEARNING_RATE = 1e-5
# Tokens of one forward that are tried: TRL's rows and our padded ones with their padding.
BUDGETS = (1024, 2048, 4096, 8192, 16384, 32768)
MOST_TOKENS = 65_536
REAL_MAX_LENGTH = 1024
# TRL takes minutes for more.
REAL_GROUPS_PER_STEP = 8


@dataclass(frozen=True, slots=True)
class Case:
    """Groups of one kind, and what the project's goal says of them."""

    num_completions: int
    prompt_tokens: int
    completion_tokens: int
    groups_per_step: int
    must_reach: float
    aim: float


CASES = (
    Case(2, 128, 128, 32, 1.5, 1.8),
    Case(2, 512, 256, 16, 1.5, 1.8),
    Case(4, 128, 128, 16, 5.0, 6.0),
    Case(4, 512, 256, 8, 7.0, 8.5),
    Case(9, 128, 128, 8, 15.0, 19.0),
    Case(9, 512, 128, 4, 27.0, 33.0),
)


class Side(Protocol):
    """Someone who trains."""

    def step(self, groups: Sequence[TokenGroup], size: int) -> None:
        """Take one optimizer step, in forwards of a size that each side counts its own way."""
        ...

    def sizes(self, groups: Sequence[TokenGroup]) -> list[int]:
        """Return the sizes worth trying."""
        ...


# ----------------------------------------------------------------------------------------------- sides


class Ours:
    """Collate, RewardModel, preference_loss and AdamW, as the training loop has them, without DeepSpeed.

    Args:
        model: as transformers makes it, in float32.
        layout: of the micro-batches.
        precision: "bf16" for autocast, or "fp32".
    """

    def __init__(self, model: PreTrainedModel, layout: Layout, precision: str) -> None:
        self.model = RewardModel(model, model.config, cpu_kernels=True).train()
        self.model.accept_packed_sequences(enabled=layout != "padded")
        self.layout: Layout = layout
        self.autocast = precision == "bf16"
        self.device = next(model.parameters()).device
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)

    def step(self, groups: Sequence[TokenGroup], size: int) -> None:
        """Take one optimizer step in micro-batches of at most ``size`` tokens, padding included."""
        self.gradient(groups, size)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def gradient(self, groups: Sequence[TokenGroup], size: int) -> float:
        """Add the gradient of the groups' loss and return it."""
        global_weight = torch.tensor(sum(float(group.weight_P.sum()) for group in groups), device=self.device)
        total = 0.0
        for micro_batch in micro_batches(groups, self.layout, size):
            batch = collate(micro_batch, PAD_ID, self.layout).to(self.device)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
                rewards = self.model(
                    batch.input_ids_RT, batch.position_ids_RT, batch.attention_mask_RT, batch.segments, batch.last_N
                )
            loss = preference_loss(rewards, batch.targets, LossConfig(), global_weight=global_weight)
            loss.backward()
            total += loss.item()
        return total

    def sizes(self, groups: Sequence[TokenGroup]) -> list[int]:
        """Return budgets from what the largest group needs."""
        largest = max(_tokens([group], self.layout) for group in groups)
        return [budget for budget in BUDGETS if budget >= largest] or [largest]

    def named_gradients(self) -> dict[str, torch.Tensor]:
        """Return the gradient by the name of its parameter."""
        return {name.removeprefix("model."): p.grad for name, p in self.model.named_parameters() if p.grad is not None}


class Trl:
    """TRL's trainer, given pairs that were written out beforehand."""

    def __init__(self, model: PreTrainedModel, precision: str, scratch: Path) -> None:
        self.peer = TrlPeer(
            model, nameless_tokenizer(), learning_rate=LEARNING_RATE, precision=precision, scratch=scratch
        )
        self.pairs: dict[int, list] = {}

    def prepare(self, groups: Sequence[TokenGroup]) -> None:
        """Write out the pairs of a step, those of like length side by side, which saves TRL padding."""
        pairs = pairs_of(groups)
        pairs.sort(key=lambda pair: max(len(pair["chosen_ids"]), len(pair["rejected_ids"])))
        self.pairs[id(groups)] = pairs

    def step(self, groups: Sequence[TokenGroup], size: int) -> None:
        """Take one optimizer step, ``size`` pairs a forward."""
        self.peer.step(self.pairs[id(groups)], pairs_per_forward=size)

    def sizes(self, groups: Sequence[TokenGroup]) -> list[int]:
        """Return numbers of pairs a forward."""
        return forward_sizes(self.pairs[id(groups)], most_tokens=MOST_TOKENS)


def micro_batches(groups: Sequence[TokenGroup], layout: Layout, budget: int) -> list[list[TokenGroup]]:
    """Return groups in micro-batches under a budget of tokens, those of like length together."""
    batches: list[list[TokenGroup]] = []
    for group in sorted(groups, key=lambda group: max(row_lengths(group))):
        if not batches or _tokens([*batches[-1], group], layout) > budget:
            batches.append([])
        batches[-1].append(group)
    return batches


def _tokens(groups: Sequence[TokenGroup], layout: Layout) -> int:
    if layout == "shared":
        return sum(map(shared_tokens, groups))
    lengths = [length for group in groups for length in row_lengths(group)]
    return len(lengths) * max(lengths) if layout == "padded" else sum(lengths)


def small_llama(vocab_size: int) -> Callable[[], PreTrainedModel]:
    """Return a function that makes the model, every time with the same weights."""
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=704,
        max_position_embeddings=4096,
        pad_token_id=PAD_ID,
    )
    config.num_labels = 1
    weights = AutoModelForSequenceClassification.from_config(config, trust_remote_code=False).state_dict()

    def make() -> PreTrainedModel:
        model = AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)
        model.load_state_dict(weights)
        return model

    return make


# ---------------------------------------------------------------------------------------------- equality


def compare(make: Callable[[], PreTrainedModel], scratch: Path) -> str:
    """Return a line on how far losses and gradients of the sides lie apart in float32, on the same pairs.

    Raises:
        SystemExit: if they are not the same but for rounding.
    """
    rng = np.random.default_rng(0)
    # Of one size, so that groups that count alike are pairs that count alike.
    groups = [
        group
        for prompt, completion in ((31, 9), (64, 40), (5, 77))
        for group in random_groups(
            1, num_completions=4, prompt_tokens=prompt, completion_tokens=completion, vocab_size=VOCAB_SIZE, rng=rng
        )
    ]
    trl = Trl(make(), "fp32", scratch)
    trl_loss = trl.peer.gradient(pairs_of(groups), pairs_per_forward=18)
    expected = trl.peer.named_gradients()
    norm = sum(float(tensor.double().square().sum()) for tensor in expected.values()) ** 0.5
    found = []
    for layout in ("shared", "padded"):
        ours = Ours(make(), layout, "fp32")
        loss = ours.gradient(groups, 10**6)
        gradient = ours.named_gradients()
        off = sum(float((gradient[name] - expected[name]).double().square().sum()) for name in expected) ** 0.5 / norm
        found.append(f"{layout}: loss {abs(loss - trl_loss):.1e}, gradient {off:.1e} of its norm")
        if abs(loss - trl_loss) > 1e-5 or off > 1e-5:
            raise SystemExit(f"the sides do not compute the same: {'; '.join(found)}")
    return f"Off TRL in float32: {'; '.join(found)}."


# ------------------------------------------------------------------------------------------- measurement


@dataclass(frozen=True, slots=True)
class Measured:
    """Seconds of each step by side, in the order of the steps, and the size each side ran with."""

    seconds: dict[str, list[float]]
    sizes: dict[str, int]
    token_ratios: list[float]
    """Of each step: tokens that TRL computed, padding included, over those of the shared layout."""
    num_groups: int

    def median(self, side: str) -> float:
        """Return the median step, seconds."""
        return statistics.median(self.seconds[side])

    def ratio(self, over: str) -> tuple[float, float, float]:
        """Return how many times faster than another side the shared layout is: of medians, least and most of a step."""
        of_steps = self._of_steps(over)
        return self.median(over) / self.median("shared"), min(of_steps), max(of_steps)

    @property
    def share(self) -> float:
        """How many times faster than TRL a step is, over how many times fewer its tokens are; median of the steps.

        Step by step: where steps differ in size, medians and sums of them are of different steps.
        """
        of_steps = zip(self._of_steps("TRL"), self.token_ratios, strict=True)
        return statistics.median(faster / fewer for faster, fewer in of_steps)

    def _of_steps(self, over: str) -> list[float]:
        return [a / b for a, b in zip(self.seconds[over], self.seconds["shared"], strict=True)]


def measure(steps: list[list[TokenGroup]], make: Callable[[], PreTrainedModel], clock: Callable[[], float]) -> Measured:
    """Return the seconds of steps on the groups given, a step of each side in turn; the first is for choosing sizes."""
    with tempfile.TemporaryDirectory() as scratch:
        trl = Trl(make(), "bf16", Path(scratch))
        for groups in steps:
            trl.prepare(groups)
        sides: dict[str, Side] = {
            "TRL": trl,
            "padded": Ours(make(), "padded", "bf16"),
            "shared": Ours(make(), "shared", "bf16"),
        }
        sizes = {name: _best(side, steps[0], clock) for name, side in sides.items()}
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for number, groups in enumerate(steps[1:]):
            names = list(sides)
            for name in names[number % 3 :] + names[: number % 3]:
                seconds[name].append(_timed(sides[name], groups, sizes[name], clock))
        theirs = [padded_tokens(trl.pairs[id(groups)], pairs_per_forward=sizes["TRL"]) for groups in steps[1:]]
    ours = [_tokens(groups, "shared") for groups in steps[1:]]
    num_groups = round(statistics.mean(len(groups) for groups in steps[1:]))
    return Measured(seconds, sizes, [a / b for a, b in zip(theirs, ours, strict=True)], num_groups)


def _best(side: Side, groups: Sequence[TokenGroup], clock: Callable[[], float]) -> int:
    """Return the size with the fastest step, each tried twice after one step to warm up; the later time counts less."""
    candidates = side.sizes(groups)
    side.step(groups, candidates[-1])
    found: list[tuple[float, int]] = []
    for size in candidates:
        found.append((min(_timed(side, groups, size, clock) for _ in range(2)), size))
        if found[-1][0] > 1.25 * min(found)[0]:
            break
    return min(found)[1]


def _timed(side: Side, groups: Sequence[TokenGroup], size: int, clock: Callable[[], float]) -> float:
    start = clock()
    side.step(groups, size)
    return clock() - start


# ----------------------------------------------------------------------------------------------- report


def _row(name: str, measured: Measured, must_reach: str, aim: str) -> str:
    ratio, least, most = measured.ratio("TRL")
    cells = [name, f"{measured.num_groups}"]
    cells += [f"{measured.median(side):.3f} ({_spread(measured.seconds[side])})" for side in measured.seconds]
    cells += [f"{measured.sizes['TRL']} pairs, {measured.sizes['padded']}, {measured.sizes['shared']}"]
    cells += [f"{measured.num_groups / measured.median(side):.1f}" for side in ("TRL", "shared")]
    cells += [f"**{ratio:.2f}** ({least:.2f}-{most:.2f})", must_reach, aim, f"{measured.ratio('padded')[0]:.2f}"]
    cells += [f"{statistics.median(measured.token_ratios):.2f}", f"{measured.share:.2f}"]
    return f"| {' | '.join(cells)} |"


def _spread(seconds: list[float]) -> str:
    return f"{min(seconds):.3f}-{max(seconds):.3f}"


HEADER = (
    "| case | groups a step | TRL s | padded s | shared s | sizes: TRL, padded, shared tokens | TRL groups/s | shared "
    "groups/s | times faster than TRL | must reach | aim | than padded | token ratio | share of it |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|"
)


def _random_steps(case: Case, num_steps: int) -> list[list[TokenGroup]]:
    rng = np.random.default_rng(1)
    return [
        random_groups(
            case.groups_per_step,
            num_completions=case.num_completions,
            prompt_tokens=case.prompt_tokens,
            completion_tokens=case.completion_tokens,
            vocab_size=VOCAB_SIZE,
            rng=rng,
        )
        for _ in range(num_steps)
    ]


def _rows(options: argparse.Namespace) -> list[str]:
    rows = []
    for threads in options.threads:
        torch.set_num_threads(threads)
        clock = time.process_time if threads == 1 else time.perf_counter
        heading = f"{threads} thread{'s' * (threads > 1)}, {'CPU time' if threads == 1 else 'wall clock'}"
        if options.real:
            make = small_llama(VOCAB_SIZE)
            groups = real_groups(
                options.real, tokenizer_of(options.real, vocab_size=VOCAB_SIZE), max_length=REAL_MAX_LENGTH
            )
            order = np.random.default_rng(1).permutation(len(groups))
            steps = [
                [groups[g] for g in order[n * REAL_GROUPS_PER_STEP : (n + 1) * REAL_GROUPS_PER_STEP]]
                for n in range(options.steps + 1)
            ]
            rows.append(_row(f"{options.real.name}, {heading}", measure(steps, make, clock), "", ""))
            print(rows[-1], flush=True)
            continue
        for case in [CASES[number] for number in options.cases]:
            measured = measure(_random_steps(case, options.steps + 1), small_llama(VOCAB_SIZE), clock)
            name = f"K={case.num_completions} {case.prompt_tokens}/{case.completion_tokens}, {heading}"
            rows.append(_row(name, measured, f"{case.must_reach}", f"{case.aim}"))
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="Times faster than TRL's RewardTrainer.")
    parser.add_argument("--real", type=Path, help="rankings_dev.jsonl.zst, instead of random groups")
    parser.add_argument("--cases", type=int, nargs="+", default=list(range(len(CASES))), help="numbers of CASES")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=5, help="timed ones")
    parser.add_argument("--no-file", action="store_true", help="print only")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        equality = compare(small_llama(VOCAB_SIZE), Path(scratch))
    print(f"{equality}\n\n{HEADER}", flush=True)
    rows = _rows(options)
    if not options.no_file:
        _write(equality, rows, options)


def _write(equality: str, rows: list[str], options: argparse.Namespace) -> None:
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "trl"))
    command = "python benchmarks/train_vs_trl.py" + (f" --real {options.real.name}" if options.real else "")
    text = (
        f"# Optimizer steps: TRL's RewardTrainer and ours\n\n`{command} --steps {options.steps}`, "
        f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} CPUs, Python {platform.python_version()}, {versions}. "
        f"{options.steps} steps a side in turn: median (least-most).\n\n{equality}\n\n{HEADER}\n"
        + "\n".join(rows)
        + "\n"
    )
    kind = "train_vs_trl_real" if options.real else "train_vs_trl"
    results = Path(__file__).parent / "results"
    (results / f"{kind}_{os.cpu_count()}cpu_{datetime.now(UTC):%Y-%m-%d}.md").write_text(text)


if __name__ == "__main__":
    main()
