"""Every exception that Pairwright raises on purpose, as one tree.

One positional message and nothing else: with two positional constructor arguments Ray cannot unpickle an
exception, and `except` on the driver misses it (measured with Ray 2.60). The message says where, what was found,
what was expected and what to do; the command line prints it alone, without a traceback. It quotes names and data, so
its text is one line whatever they hold; a list of messages is a line each.

PairwrightError
├── ConfigError       a configuration or a flag that cannot be used
├── DataError         input, or a table's content, that cannot be used
│   └── SourceError   a source that cannot be read to its end (missing, truncated, wrong compression)
├── StoreError        a table that is missing, of another kind, or damaged; a URL that is not ours to write to
│   ├── CommitConflict  another writer took this version (retried; reaches a user only when retries run out)
│   └── LeaseError      another command is at work in this directory
├── ModelError        a model or tokenizer that cannot be used
├── CheckpointError   a checkpoint that cannot be used, or belongs to another run
│   └── DamagedCheckpointError  a checkpoint that is not what was written; an older one may do
├── TrainingError     a run that cannot go on (lost workers, no memory)
│   ├── NotFiniteError  a step whose loss or gradient is not finite
│   └── OutOfMemoryError  a rank that got no memory
├── RewardError       rewards that a server did not give: a request it refuses, or one that it cannot be reached with
├── StoppedError      a run that SIGTERM asked to stop; the same command goes on with it
└── ClusterError      a task that failed in a way nobody foresaw, or a cluster that gave up
"""

from collections.abc import Sequence

from pairwright.terminal import escaped, one_per_line

MAX_MESSAGE_CHARACTERS = 600
"""How much of a reason or a path is kept: both may quote what a source calls its fields and ids."""


def one_line(message: str) -> str:
    """Return a message as one line of printable text, without the middle of a long one: the advice stands at the end.

    What it quotes from a source may hold newlines, control characters of a terminal, halves of surrogate pairs.
    """
    if len(message) > MAX_MESSAGE_CHARACTERS:
        kept = MAX_MESSAGE_CHARACTERS // 2
        message = f"{message[:kept]}[... {len(message) - 2 * kept:,} characters]{message[-kept:]}"
    return escaped(message)


class PairwrightError(Exception):
    """An error that the message explains to its reader."""

    def __init__(self, message: str | Sequence[str]) -> None:
        super().__init__(message)

    def __str__(self) -> str:
        [message] = self.args
        return one_per_line([message] if isinstance(message, str) else message)


class ConfigError(PairwrightError):
    """A configuration or a flag that cannot be used."""


class DataError(PairwrightError):
    """Input, or a table's content, that cannot be used."""


class SourceError(DataError):
    """A source that cannot be read to its end: missing, truncated, or not what its name says."""


class StoreError(PairwrightError):
    """A table that is missing, of another kind, or damaged."""


class CommitConflict(StoreError):  # noqa: N818 - what it is, not that it is one more error
    """Another writer created this version first."""


class LeaseError(StoreError):
    """Another command is at work in this directory, or has taken it over."""


class ModelError(PairwrightError):
    """A model or tokenizer that cannot be used."""


class CheckpointError(PairwrightError):
    """A checkpoint that is damaged or belongs to another run."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint that is not what was written; an older one may do."""


class TrainingError(PairwrightError):
    """A run that cannot go on."""


class NotFiniteError(TrainingError):
    """A step whose loss or gradient is not finite, and which changed nothing."""


class RewardError(PairwrightError):
    """Rewards that could not be had; an RL loop must stop rather than train on a stand-in."""


class StoppedError(PairwrightError):  # exit status 143, not 1: nothing went wrong
    """A run that SIGTERM asked to stop; the same command goes on with it."""


class OutOfMemoryError(TrainingError):
    """A rank that got no memory; the same again would end the same way."""


class ClusterError(PairwrightError):
    """A task that failed in a way nobody foresaw, or a cluster that gave up."""
