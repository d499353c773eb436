"""Random tokenised groups, expanded from rankings by plain loops."""

import itertools
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from clusters import ray_cluster, s3_bucket, s3_server
from pairwright.data.tokens.tokenize_groups import TokenGroup
from worker_groups import GroupScheduling, rank_of

__all__ = ["ray_cluster", "s3_bucket", "s3_server"]
"""Fixtures from elsewhere."""

# No test needs the model hub, and without a network each look-up would retry for 45 seconds. Set before anything
# imports huggingface_hub, and so for every process that a test starts.
os.environ["HF_HUB_OFFLINE"] = "1"
# `forget` empties the cache: not that of whoever runs the tests. What torch compiled may stay where it is.
os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path.home() / ".cache" / "torch_extensions"))
# What fails once fails again: only `make test-slow` and `make test-nightly` look for new examples.
settings.register_profile("repeatable", derandomize=True)
settings.register_profile("search", max_examples=2000, deadline=None)
settings.load_profile("repeatable")
_CACHE = tempfile.TemporaryDirectory(prefix="pairwright-tests-")
os.environ["XDG_CACHE_HOME"] = _CACHE.name


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: rank_of(item.nodeid))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """Return what deals groups of tests to the workers of `pytest -n 2`, in the order of collection."""
    return GroupScheduling(config, log)


@pytest.fixture(scope="session")
def random_group() -> Callable[..., TokenGroup]:
    """Return a function that draws a group: rankings with ties by several annotators, margins on some pairs only."""
    return _random_group


def _random_group(
    rng: np.random.Generator,
    *,
    num_completions: int,
    num_annotators: int = 1,
    vocab: tuple[int, int] = (10, 100),
    prompt_tokens: tuple[int, int] = (1, 12),
    completion_tokens: tuple[int, int] = (1, 12),
    subset: str | None = None,
) -> TokenGroup:
    pairs = []
    for _ in range(num_annotators):
        ranks = rng.integers(0, num_completions, num_completions)
        ranks[0], ranks[1] = 0, 1  # at least one pair is no tie
        for i, j in itertools.combinations(range(num_completions), 2):
            weight = 1 / (num_completions * (num_completions - 1) / 2) / num_annotators
            margin = float(rng.uniform(0, 2)) if rng.random() < 0.5 else float("nan")
            if ranks[i] == ranks[j]:
                pairs += [(i, j, weight / 2, float("nan")), (j, i, weight / 2, float("nan"))]
            else:
                pairs.append((i, j, weight, margin) if ranks[i] < ranks[j] else (j, i, weight, margin))
    lengths = rng.integers(completion_tokens[0], completion_tokens[1] + 1, num_completions)
    columns = list(zip(*pairs, strict=True))
    return TokenGroup(
        group_id=f"{rng.integers(1 << 62):032x}",
        subset=subset,
        prompt_ids=rng.integers(*vocab, rng.integers(prompt_tokens[0], prompt_tokens[1] + 1)).astype(np.int32),
        completion_ids=[rng.integers(*vocab, length).astype(np.int32) for length in lengths],
        num_characters=(lengths * 5).astype(np.int32),
        completion_index=np.arange(num_completions, dtype=np.int16),
        chosen_P=np.array(columns[0], np.int64),
        rejected_P=np.array(columns[1], np.int64),
        weight_P=np.array(columns[2], np.float32),
        margin_P=np.array(columns[3], np.float32),
    )
