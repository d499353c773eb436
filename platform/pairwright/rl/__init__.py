"""Rewards inside an RL loop: a client of ``pairwright serve``, and reward functions for TRL and verl. No Ray.

In reading order:

- ``reward_client.py``: asks a server, with retries and a deadline; the standard library only
- ``reward_functions.py``: what TRL's trainers and verl call
"""

from pairwright.rl.reward_client import RewardClient
from pairwright.rl.reward_functions import compute_score, reward_function

__all__ = ["RewardClient", "compute_score", "reward_function"]
