"""Rows of a Ray Data pipeline -> results, through a pool of actors that each hold a model.

Each actor has one CPU, or one GPU: with a fixed number of threads a reward is the same to the last digit however many
actors there are. A mistake that the message explains crosses as data, as in ``cluster/passes.py``.
"""

import os
import pickle
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias, TypeVar, cast

import ray
import torch
from ray.data import ActorPoolStrategy, Dataset

from pairwright import errors
from pairwright.errors import ConfigError

ResultT = TypeVar("ResultT")
Row: TypeAlias = dict[str, Any]
Worker: TypeAlias = Callable[[Row], ResultT]

CPUS_PER_WORKER = 1


def check_workers(num_workers: int, *, use_gpu: bool) -> None:
    """Refuse at once what a cluster started for this command can never give; a real cluster may still grow.

    Raises:
        ConfigError: if there are too few CPUs or GPUs, or no worker is asked for.
    """
    if num_workers < 1:
        raise ConfigError(f"num_workers is {num_workers}, expected at least 1")
    if "RAY_ADDRESS" in os.environ:
        return
    kind, per_worker = ("GPU", 1) if use_gpu else ("CPU", CPUS_PER_WORKER)
    found = int(ray.cluster_resources().get(kind, 0))
    if num_workers * per_worker > found:
        raise ConfigError(
            f"num_workers is {num_workers} and each takes a {kind}, but this machine has {found}; ask for fewer"
            f"{', or leave out the GPU' if use_gpu else ''}, or submit the job to a cluster"
        )


def run_on_models(
    rows: Dataset, load: Callable[[torch.device], Worker[ResultT]], *, num_workers: int, use_gpu: bool
) -> Iterator[ResultT]:
    """Yield the result of each row, in the order of the rows where the data context asks for it.

    Args:
        rows: what there is to do.
        load: called once in each actor, with its device; returns what is called with each row. Must pickle.
        num_workers: actors.
        use_gpu: give each actor a GPU.

    Raises:
        PairwrightError: the first one that any actor raised, of its own kind.
    """
    results = rows.map(
        cast(Any, _ModelActor),  # Ray's annotation knows functions only
        fn_constructor_kwargs={"load": load, "use_gpu": use_gpu},
        compute=ActorPoolStrategy(size=num_workers),
        num_cpus=CPUS_PER_WORKER,
        num_gpus=1 if use_gpu else 0,
    )
    for row in results.iter_rows():
        if row["kind"]:
            raise getattr(errors, row["kind"])(row["payload"].decode())
        # Bytes that an actor of this very command made, carried by Ray, which pickles all that it carries; nothing of
        # it comes from a file, a record or a model.
        yield pickle.loads(row["payload"])  # noqa: S301


class _ModelActor:
    """Loads at the first row and not when it is made, so that what goes wrong comes back as data."""

    def __init__(self, load: Callable[[torch.device], Worker[Any]], *, use_gpu: bool) -> None:
        self._load = load
        self._device = torch.device("cuda" if use_gpu else "cpu")
        self._work: Worker[Any] | None = None
        torch.set_num_threads(CPUS_PER_WORKER)

    def __call__(self, row: Row) -> Row:
        try:
            if self._work is None:
                self._work = self._load(self._device)
            return {"kind": "", "payload": pickle.dumps(self._work(row))}
        except errors.PairwrightError as error:
            return {"kind": type(error).__name__, "payload": str(error).encode()}
