"""Memory that cannot be had -> an error that says in which micro-batch, and which settings take less.

Where a rank runs out of memory the others wait for it in a collective, and a second try would end the same way. So the
error goes to the driver beside Ray's own way (cluster/train/worker.py), and the next start of the ranks ends with it.
"""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pairwright.errors import OutOfMemoryError
from pairwright.model.collate import MicroBatch

# As torch 2.13 words it where the CPU's memory ends; a GPU's has an exception of its own.
CPU_WORDS = ("DefaultCPUAllocator", "std::bad_alloc", "Cannot allocate memory")
OTHER_WAYS = (
    "model.gradient_checkpointing = true, a higher engine.zero_stage, engine.offload_optimizer, [lora] or a smaller "
    "tokens.max_length"
)


@contextmanager
def named(doing: str, batch: MicroBatch | None, *, rank: int) -> Iterator[None]:
    """Name what a rank was doing when its memory ended.

    Args:
        doing: "the forward pass", for the message.
        batch: what it was computing, if that decides how much it took.
        rank: this rank.

    Raises:
        OutOfMemoryError: in place of what torch raises there.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(describe(doing, batch, rank=rank)) from None


def is_out_of_memory(error: Exception) -> bool:
    """Whether an exception says that there was no memory, on a GPU or on the CPU."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(word in str(error) for word in CPU_WORDS)


def describe(doing: str, batch: MicroBatch | None, *, rank: int) -> str:
    """Return the message: where, with what, and what to set."""
    where = f"rank {rank} on {socket.gethostname()} ran out of memory in {doing}"
    if batch is None:
        return f"{where}; {OTHER_WAYS} take less"
    rows, tokens = batch.input_ids_RT.shape
    groups = ", ".join(batch.group_ids[:4]) + (
        f" and {len(batch.group_ids) - 4} more" if len(batch.group_ids) > 4 else ""
    )
    return (
        f"{where} of a micro-batch of {rows * tokens:,} tokens, padding included ({rows} rows of {tokens:,}; "
        f"{len(batch.last_N)} completions of groups {groups}); set batches.micro_batch_tokens to {rows * tokens // 2} "
        f"or less, and where a completion does not fit that, {OTHER_WAYS} take less too"
    )
