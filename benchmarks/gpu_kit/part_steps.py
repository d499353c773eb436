"""Part d: steps of 1B, 0.5B and 8B models by layout: seconds, groups and tokens a second, FLOPs utilisation, memory.

As model_flops.py beside the kit, which says what is counted; 8B has fewer groups a step, or it would not fit the time.
"""

import argparse
import dataclasses
import statistics

import numpy as np
import torch
from kit import TINY, TINY_CASE, Kit, free, in_words, start
from model_flops import LAYOUTS, SHAPES, measure, peak_tflops
from reward_groups import random_groups

# Shape, case, groups a step, timed steps, steps before them, and about how many seconds all layouts take.
PLAN = (
    ("1B", (9, 512, 128), 8, 3, 2, 20),
    ("0.5B", (9, 512, 128), 8, 3, 2, 12),
    ("8B", (9, 512, 128), 4, 2, 1, 40),
    ("1B", (4, 512, 256), 8, 3, 2, 10),
    ("0.5B", (4, 512, 256), 8, 3, 2, 8),
    ("8B", (4, 512, 256), 4, 2, 1, 25),
)
TINY_SHAPES = {"tiny": TINY, "tiny, recomputed": dataclasses.replace(TINY, recomputes=True)}
TINY_PLAN = tuple((name, TINY_CASE, 4, 2, 1, 0) for name in TINY_SHAPES)


def compare(kit: Kit, name: str, case: tuple[int, int, int], num_groups: int, steps: int, warm_ups: int) -> None:
    """Record a step of one model on one kind of groups, in every layout."""
    shape = (SHAPES | TINY_SHAPES)[name]
    num_completions, prompt, completion = case
    groups = random_groups(
        num_groups,
        num_completions=num_completions,
        prompt_tokens=prompt,
        completion_tokens=completion,
        vocab_size=shape.vocab_size,
        rng=np.random.default_rng(0),
    )
    peak = peak_tflops(torch.cuda.get_device_name()) if kit.device.type == "cuda" else None
    options = argparse.Namespace(micro_batch_tokens=16_384, steps=steps, warm_ups=warm_ups)
    for layout in LAYOUTS:
        more = {"layout": layout, "groups": f"{num_groups} of K={num_completions} {prompt}/{completion}"}
        try:
            found = measure(shape, groups, layout, options)
        except torch.OutOfMemoryError as error:
            kit.record(name, **more, error=in_words(error))
            continue
        finally:
            free()
        seconds = statistics.median(found.seconds)
        tflops = found.flops / seconds / 1e12
        kit.record(
            name,
            **more,
            step_s=seconds,
            least_s=min(found.seconds),
            most_s=max(found.seconds),
            groups_per_s=found.num_groups / seconds,
            tokens_per_s=found.num_tokens / seconds,
            model_tflops=tflops,
            utilisation=None if peak is None else tflops / peak,
            peak_gib=found.peak_memory / 2**30 if kit.device.type == "cuda" else None,
            has_adamw=found.has_optimizer,
        )


def main() -> None:
    kit = start("d")
    for name, case, num_groups, steps, warm_ups, seconds in TINY_PLAN if kit.is_tiny else PLAN:
        if kit.deadline.is_near(needs_seconds=seconds):
            kit.record(name, note="no time left", groups=f"{num_groups} of K={case[0]} {case[1]}/{case[2]}")
            continue
        compare(kit, name, case, num_groups, steps, warm_ups)


if __name__ == "__main__":
    main()
