"""Computes on models in this process, or on a pool of Ray actors, as ``sized_executor.py`` decides.

Both use one thread for each model on a CPU, so a reward is the same to the last digit. Ray is imported only where it
computes, and torch only once a model is loaded.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

from pairwright.cluster.sized_executor import fits_this_process
from pairwright.errors import ConfigError

if TYPE_CHECKING:
    import torch

ResultT = TypeVar("ResultT")
Row: TypeAlias = dict[str, Any]
Worker: TypeAlias = Callable[[Row], ResultT]

CPUS_PER_WORKER = 1


class ModelRunner(Protocol):
    """Maps rows over one or more models."""

    @property
    def is_local(self) -> bool:
        """Whether it is this process that computes."""
        ...

    def run(self, rows: Iterable[Row], load: "Callable[[torch.device], Worker[ResultT]]") -> Iterator[ResultT]:
        """Yield the result of each row, in the order of the rows.

        Args:
            rows: inputs.
            load: called once for each model, with its device; returns a function of a row. Must pickle.

        Raises:
            PairwrightError: the first one that a model's function raised, of its own type.
        """
        ...

    def resources(self) -> str:
        """Return what there is to work with, for a person."""
        ...


@contextmanager
def model_runner(*, model_bytes: int, input_bytes: int, num_workers: int, use_gpu: bool) -> Iterator[ModelRunner]:
    """Return what computes on models, for the block.

    Args:
        model_bytes: of the model's files.
        input_bytes: of the rows to be.
        num_workers: number of models.
        use_gpu: give each a GPU.

    Raises:
        ConfigError: if there are too few CPUs or GPUs, or if no worker is requested.
        ClusterError: if Ray is needed and cannot be started.
    """
    if fits_this_process(model_bytes, input_bytes, num_workers=num_workers, use_gpu=use_gpu):
        yield _ThisProcess()
        return
    _check_workers(num_workers, use_gpu=use_gpu)
    from pairwright.cluster.session import ray_session

    with ray_session():
        _check_workers(num_workers, use_gpu=use_gpu)
        yield _Actors(num_workers, use_gpu)


class _ThisProcess:
    """One model, in this process."""

    is_local = True

    def run(self, rows: Iterable[Row], load: "Callable[[torch.device], Worker[ResultT]]") -> Iterator[ResultT]:
        import torch

        before = torch.get_num_threads()
        torch.set_num_threads(CPUS_PER_WORKER)
        work: Worker[ResultT] | None = None
        try:
            for row in rows:
                if work is None:
                    work = load(torch.device("cpu"))
                yield work(row)
        finally:
            torch.set_num_threads(before)

    def resources(self) -> str:
        return "1 process"


@dataclass(frozen=True, slots=True)
class _Actors:
    """A pool of Ray actors, each with a model."""

    num_workers: int
    use_gpu: bool
    is_local: bool = False

    def run(self, rows: Iterable[Row], load: "Callable[[torch.device], Worker[ResultT]]") -> Iterator[ResultT]:
        from pairwright.cluster.models.actor_pool import run_on_actors

        return run_on_actors(rows, load, num_workers=self.num_workers, use_gpu=self.use_gpu)

    def resources(self) -> str:
        from pairwright.cluster.session import ray_resources

        return ray_resources()


def _check_workers(num_workers: int, *, use_gpu: bool) -> None:
    """Refuse more workers than a cluster started for this command can ever have; a real cluster may still grow."""
    if num_workers < 1:
        raise ConfigError(f"num_workers is {num_workers}, expected at least 1")
    if "RAY_ADDRESS" in os.environ:
        return
    from pairwright.cluster.local_ray import local_resources

    resources = local_resources()
    kind, found = ("GPU", resources.num_gpus) if use_gpu else ("CPU", resources.num_cpus // CPUS_PER_WORKER)
    if num_workers > found:
        raise ConfigError(
            f"num_workers is {num_workers} and each takes a {kind}, but this machine has {found}; ask for fewer"
            f"{', or leave out the GPU' if use_gpu else ''}, or submit the job to a cluster"
        )
