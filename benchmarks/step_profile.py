"""One optimizer step by TRL's RewardTrainer and by us -> microseconds per token that each kind of operation took.

    python benchmarks/step_profile.py                  # random groups of the lengths in CASES
    python benchmarks/step_profile.py --real FILE      # a rankings file, its own lengths, ties dropped

Says why the ratio of steps (train_vs_trl.py) is less than the ratio of tokens: which operations cost more for a token
of ours than for one of TRL's. Self time by PyTorch's profiler, one thread, the sizes of forward that --size names; the
profiler's own cost is in it, which weighs small operations more than large ones, and so is what else the machine does.
"""

import argparse
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from reward_groups import real_groups, tokenizer_of
from torch.profiler import ProfilerActivity, profile
from train_vs_trl import (
    CASES,
    REAL_GROUPS_PER_STEP,
    REAL_MAX_LENGTH,
    VOCAB_SIZE,
    Ours,
    Trl,
    _random_steps,
    _tokens,
    small_llama,
)
from trl_peer import padded_tokens

from pairwright.data.tokens.tokenize_groups import TokenGroup

# The first name that an operation's holds decides.
KINDS = {
    "attention backward": ("flash_attention_for_cpu_backward", "_AttentionBackward", "tiled", "bmm", "softmax", "exp"),
    "attention forward": ("flash_attention",),
    "matrix products": ("mm", "linear", "matmul"),
    "optimizer": ("adam", "clip", "_foreach"),
    "embedding": ("embedding", "index"),
    "copies": ("copy_", "cat", "contiguous", "clone", "stack", "fill_", "zero_", "split"),
    "sums": ("sum", "mean", "norm"),
    "elementwise": ("mul", "add", "silu", "sigmoid", "neg", "pow", "rsqrt", "div", "sub", "lerp"),
}


def kind_of(name: str) -> str:
    """Return the kind of an operation by its name."""
    return next((kind for kind, parts in KINDS.items() if any(part in name for part in parts)), "other")


def profiled(side: Ours | Trl, groups: list[TokenGroup], size: int, num_tokens: int) -> dict[str, float]:
    """Return microseconds per token by kind, of one step after one to warm up; ``all`` without the profiler."""
    side.step(groups, size)
    start = time.process_time()
    side.step(groups, size)
    found = defaultdict(float, {"all": (time.process_time() - start) * 1e6 / num_tokens})
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        side.step(groups, size)
    for event in recorded.key_averages():
        found[kind_of(event.key)] += event.self_cpu_time_total / num_tokens
    return found


def compare(name: str, groups: list[TokenGroup], sizes: tuple[int, int]) -> str:
    """Return a table of both sides' microseconds per token."""
    make = small_llama(VOCAB_SIZE)
    with tempfile.TemporaryDirectory() as scratch:
        trl = Trl(make(), "bf16", Path(scratch))
        trl.prepare(groups)
        theirs = padded_tokens(trl.pairs[id(groups)], pairs_per_forward=sizes[0])
        of_trl = profiled(trl, groups, sizes[0], theirs)
    ours = _tokens(groups, "shared")
    of_ours = profiled(Ours(make(), "shared", "bf16"), groups, sizes[1], ours)
    kinds = ["all", *sorted(of_trl.keys() | of_ours.keys() - {"all"}, key=lambda kind: -of_ours[kind])]
    rows = [f"| {kind} | {of_trl[kind]:.1f} | {of_ours[kind]:.1f} |" for kind in dict.fromkeys(kinds)]
    ratio = of_trl["all"] * theirs / (of_ours["all"] * ours)
    return (
        f"{name}: tokens {theirs:,} by TRL, {ours:,} by us ({theirs / ours:.2f}); step {ratio:.2f} times faster\n\n"
        "| us per token | TRL | shared |\n|---|---|---|\n" + "\n".join(rows) + "\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Where the time of a step goes, beside TRL's.")
    parser.add_argument("--real", type=Path, help="rankings_dev.jsonl.zst, instead of random groups")
    parser.add_argument("--case", type=int, default=3, help="number of CASES")
    parser.add_argument("--size", type=int, nargs=2, default=(4, 8192), help="TRL's pairs, our tokens of a forward")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.real:
        every = real_groups(options.real, tokenizer_of(options.real, vocab_size=VOCAB_SIZE), max_length=REAL_MAX_LENGTH)
        order = np.random.default_rng(1).permutation(len(every))
        groups = [every[g] for g in order[REAL_GROUPS_PER_STEP : 2 * REAL_GROUPS_PER_STEP]]
        print(compare(options.real.name, groups, options.size))
        return
    case = CASES[options.case]
    name = f"K={case.num_completions} {case.prompt_tokens}/{case.completion_tokens}"
    print(compare(name, _random_steps(case, 1)[0], options.size))


if __name__ == "__main__":
    main()
