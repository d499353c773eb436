"""Pairwright: from ranked annotations to a reward model, on a laptop or on a Ray cluster.

Rooms, from the data to its use:

- ``config/``: what a person writes, with every default
- ``data/``: sources into annotations, pairs and token tables
- ``model/``: tokens into rewards, and the loss
- ``training/``: one rank of a training run
- ``evaluation/``: metrics of a model, and scoring
- ``serving/``: rewards over HTTP
- ``rl/``: rewards inside an RL loop: a client, and functions for its trainers
- ``runs/``: the directory of a training run
- ``cluster/``: all of it on Ray
- ``cli/``: the command line

The base layer, which every room may import:

- ``errors.py``: the exceptions
- ``records.py``: record types, and the schemas of the tables
- ``events.py``: the events of a training run
- ``progress_bar.py``: progress in a terminal and in a log
- ``addresses.py``: URLs without their credentials
- ``terminal.py``: prints text that holds data
"""

__version__ = "0.1.0"
