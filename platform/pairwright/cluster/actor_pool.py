"""A pool of Ray actors, each with a model, that maps the rows of a Ray Data pipeline to results.

Each actor has one CPU or one GPU: with a fixed number of threads a reward is the same to the last digit on any number
of actors. An error of ours is returned as data, as in ``cluster/passes.py``.
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
    """Refuse more workers than a cluster started for this command can ever have; a real cluster may still grow.

    Raises:
        ConfigError: if there are too few CPUs or GPUs, or if no worker is requested.
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
    """Yield the result of each row, in the order of the rows if the data context preserves it.

    Args:
        rows: inputs.
        load: called once in each actor, with its device; returns a function of a row. Must pickle.
        num_workers: number of actors.
        use_gpu: give each actor a GPU.

    Raises:
        PairwrightError: the first one that an actor raised, of its own type.
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
        # Bytes that an actor of this command made and Ray transferred; none of it comes from a file, a record or a
        # model.
        yield pickle.loads(row["payload"])  # noqa: S301


class _ModelActor:
    """Loads the model at the first row and not when it is created, so that errors are returned as data."""

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
