"""Pairwright: from ranked annotations to a reward model, on a laptop or on a Ray cluster.

Rooms, from the data to its use:

- ``config/``: what a person writes, with every default
- ``data/``: sources into annotations, pairs and token tables
- ``pages/``: what the HTML pages are made of
- ``model/``: tokens into rewards, and the loss
- ``training/``: one rank of a training run
- ``evaluation/``: metrics of a model, and scoring
- ``serving/``: rewards over HTTP
- ``rl/``: rewards inside an RL loop: a client, and functions for its trainers
- ``runs/``: the directory of a training run
- ``cluster/``: all of it on Ray
- ``cli/``: the command line
- ``api.py``: the Python API, which this package offers

The base layer, which every room may import:

- ``errors.py``: the exceptions
- ``records.py``: record types, and the schemas of the tables
- ``events.py``: the events of a training run
- ``progress_bar.py``: progress in a terminal and in a log
- ``addresses.py``: URLs without their credentials
- ``suggestions.py``: the name that was perhaps meant
- ``terminal.py``: prints text that holds data
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pairwright.api import RewardModel, evaluate, expand, ingest, report, score, train
    from pairwright.config import ExpandConfig, IngestConfig, TrainConfig, load_config
    from pairwright.errors import PairwrightError

__version__ = "0.1.0"
__all__ = [
    "ExpandConfig",
    "IngestConfig",
    "PairwrightError",
    "RewardModel",
    "TrainConfig",
    "evaluate",
    "expand",
    "ingest",
    "load_config",
    "report",
    "score",
    "train",
]
_MODULE_OF = {
    "ExpandConfig": "config",
    "IngestConfig": "config",
    "TrainConfig": "config",
    "load_config": "config",
    "PairwrightError": "errors",
}


def __getattr__(name: str) -> Any:
    """Import what the package offers when it is first used, so that ``import pairwright`` takes no time."""
    if name not in __all__:
        raise AttributeError(f"module 'pairwright' has no attribute {name!r}")
    value = getattr(import_module(f"pairwright.{_MODULE_OF.get(name, 'api')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
