"""Measures held-out groups a second: forward passes of `pairwright evaluate` beside a plain transformers loop.

The peer is what an evaluation script does: `AutoModelForSequenceClassification`, each completion with its prompt, rows
in the order of the data, batches padded to their longest. Both get the same token ids and one model, on the same
threads, in turn in one process; rewards are compared. Tokenisation and the report are left out on both sides.

    python benchmarks/evaluate_throughput.py                       # random groups, K = 4..9
    python benchmarks/evaluate_throughput.py --real FILE           # rankings_dev.jsonl.zst, its own lengths
    python benchmarks/evaluate_throughput.py --output benchmarks/results/evaluate_throughput_2cpu_DATE.md
"""

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from reward_groups import PAD_ID, random_groups, real_groups, row_lengths, shared_tokens, tokenizer_of
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from pairwright.data.tokens.token_table import TokenGroup
from pairwright.evaluation.rewards import rewards_in_layout
from pairwright.model.layout_check import choose_layout
from pairwright.model.load_model import load_reward_model
from pairwright.model.reward_model import RewardModel

VOCAB_SIZE = 4096
MICRO_BATCH_TOKENS = 16384
MUST_REACH = 3.0
Rewards = NDArray[np.float32]
ItemT = TypeVar("ItemT")


@dataclass(frozen=True)
class Case:
    """The groups of one comparison."""

    name: str
    groups: list[TokenGroup]


def random_case(num_completions: int, num_groups: int, prompt_tokens: int, completion_tokens: int) -> Case:
    """Return groups of about so many tokens: lengths are log-normal, as those of real texts are."""
    rng = np.random.default_rng(num_completions)
    groups = []
    for _ in range(num_groups):
        prompt = int(np.clip(rng.lognormal(np.log(prompt_tokens), 0.5), 16, 4 * prompt_tokens))
        lengths = np.clip(rng.lognormal(np.log(completion_tokens), 0.6, num_completions), 8, 4 * completion_tokens)
        (group,) = random_groups(
            1,
            num_completions=num_completions,
            prompt_tokens=prompt,
            completion_tokens=int(lengths.max()),
            vocab_size=VOCAB_SIZE,
            rng=rng,
        )
        cut = [ids[: int(length)] for ids, length in zip(group.completion_ids, lengths, strict=True)]
        group.completion_ids[:] = cut
        groups.append(group)
    return Case(f"K = {num_completions}", groups)


def plain_loop(model: PreTrainedModel, groups: Sequence[TokenGroup], rows_per_batch: int) -> Rewards:
    """Return all rewards as a plain loop computes them."""
    rows = [np.concatenate([group.prompt_ids, ids]) for group in groups for ids in group.completion_ids]
    found = []
    for batch in batched(rows, rows_per_batch):
        width = max(row.size for row in batch)
        token_ids = torch.full((len(batch), width), PAD_ID, dtype=torch.int64)
        mask = torch.zeros((len(batch), width), dtype=torch.int64)
        for row, ids in enumerate(batch):
            token_ids[row, : ids.size], mask[row, : ids.size] = torch.from_numpy(ids.astype(np.int64)), 1
        with torch.inference_mode():
            found.append(model(input_ids=token_ids, attention_mask=mask).logits[:, 0].float().numpy())
    return np.concatenate(found)


def ours(model: RewardModel, groups: Sequence[TokenGroup], layout: str) -> Rewards:
    """Return all rewards as an evaluation computes them."""
    found = rewards_in_layout(
        model,
        groups,
        layout=layout,  # pyright: ignore[reportArgumentType]
        pad_token_id=PAD_ID,
        micro_batch_tokens=MICRO_BATCH_TOKENS,
        device="cpu",
    )
    return np.concatenate(found)


def batched(items: Sequence[ItemT], size: int) -> Iterator[Sequence[ItemT]]:
    """Yield neighbours, so many at a time."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def timed(call: Callable[[], Rewards]) -> tuple[float, Rewards]:
    """Return the seconds of a call, and what it returned."""
    started = time.perf_counter()
    found = call()
    return time.perf_counter() - started, found


def saved_model(folder: Path, *, hidden_size: int, num_layers: int) -> Path:
    """Write a random Llama with a reward head, and return where."""
    config = transformers.LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=hidden_size,
        intermediate_size=4 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=hidden_size // 64,
        num_key_value_heads=hidden_size // 64,
        max_position_embeddings=8192,
        pad_token_id=PAD_ID,
    )
    config.num_labels = 1
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(config, trust_remote_code=False).save_pretrained(folder)
    return folder


def measured(case: Case, folder: Path, arguments: argparse.Namespace) -> tuple[str, float]:
    """Return a row of the table, and the median ratio of one case."""
    peer = AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=False
    ).eval()
    model = load_reward_model(
        str(folder),
        dtype=torch.float32,
        seed=0,
        dropout=False,
        gradient_checkpointing=False,
        pad_token_id=PAD_ID,
        vocab_size=VOCAB_SIZE,
        cpu_kernels=True,
    ).eval()
    choice = choose_layout(model, "auto", pad_token_id=PAD_ID, max_length=4096, device="cpu")
    _, expected = timed(lambda: plain_loop(peer, case.groups, arguments.peer_rows))
    _, found = timed(lambda: ours(model, case.groups, choice.layout))
    seconds: list[tuple[float, float]] = []
    for _ in range(arguments.rounds):  # after one that warms up
        slow, _ = timed(lambda: plain_loop(peer, case.groups, arguments.peer_rows))
        fast, _ = timed(lambda: ours(model, case.groups, choice.layout))
        seconds.append((slow, fast))
    apart = float(np.abs(found - expected).max() / expected.std())
    ratios = [slow / fast for slow, fast in seconds]
    peers, own = (statistics.median(times) for times in zip(*seconds, strict=True))
    every = [length for group in case.groups for length in row_lengths(group)]
    padded = sum(len(part) * max(part) for part in batched(every, arguments.peer_rows))
    shared = sum(shared_tokens(group) for group in case.groups)
    ratio = statistics.median(ratios)
    number = len(case.groups)
    row = (
        f"| {case.name} | {number} | {padded:,} | {shared:,} | {padded / shared:.2f} | {number / peers:.2f} | "
        f"{number / own:.2f} | **{ratio:.2f}** ({min(ratios):.2f}-{max(ratios):.2f}) | {choice.layout} | {apart:.1e} |"
    )
    return row, ratio


def cases(arguments: argparse.Namespace) -> list[Case]:
    """Return what is compared."""
    if arguments.real is None:
        sizes = (arguments.groups, arguments.prompt_tokens, arguments.completion_tokens)
        return [random_case(number, *sizes) for number in arguments.completions]
    tokenizer = tokenizer_of(arguments.real, vocab_size=VOCAB_SIZE)
    groups = real_groups(arguments.real, tokenizer, max_length=2048)
    found = []
    for number in arguments.completions:
        of_size = [group for group in groups if len(group.completion_ids) == number]
        found.append(Case(f"{arguments.real.name}, K = {number}", of_size[: arguments.groups]))
    return found


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", type=Path, help="rankings_dev.jsonl.zst, instead of random groups")
    parser.add_argument("--completions", type=int, nargs="+", default=[4, 5, 6, 7, 8, 9], help="values of K")
    parser.add_argument("--groups", type=int, default=32)
    parser.add_argument("--prompt-tokens", type=int, default=384, help="median of a prompt")
    parser.add_argument("--completion-tokens", type=int, default=128, help="median of a completion")
    parser.add_argument("--hidden-size", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--peer-rows", type=int, default=8, help="rows of a batch of the peer")
    parser.add_argument("--rounds", type=int, default=5, help="timed ones")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--output", type=Path, help="file of results, Markdown")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = saved_model(Path(name) / "model", hidden_size=arguments.hidden_size, num_layers=arguments.layers)
        found = [measured(case, folder, arguments) for case in cases(arguments)]
    lines = [
        "# Evaluation: a plain transformers loop and ours",
        "",
        f"`python {' '.join(sys.argv)}`, {arguments.threads} threads, Python {platform.python_version()}, torch "
        f"{torch.__version__}, transformers {transformers.__version__}; a Llama of {arguments.layers} layers x "
        f"{arguments.hidden_size}; {arguments.rounds} rounds in turn: median (least-most).",
        "",
        "| case | groups | tokens, loop | tokens, ours | token ratio | loop groups/s | ours groups/s "
        "| times faster | layout | rewards apart, of their spread |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *(row for row, _ in found),
        "",
        f"Asked for: {MUST_REACH} times; lowest median {min(ratio for _, ratio in found):.2f}.",
    ]
    print("\n".join(lines))
    if arguments.output is not None:
        arguments.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
