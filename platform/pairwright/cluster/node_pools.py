"""Node pools of a cluster: data work and training ask for nodes with a label of their own.

Where ``PAIRWRIGHT_NODE_POOLS=1`` is in the environment of the head, as ``cluster.yaml`` and ``deploy/kuberay/`` set it,
Ray's autoscaler starts data nodes for data work and training nodes for training, and work goes to no others.
"""

import os
from collections.abc import Mapping
from typing import Literal

import ray

POOLS_VARIABLE = "PAIRWRIGHT_NODE_POOLS"
POOL_LABEL = "ray-subcluster"
"""The label by which Ray Data itself tells nodes apart: its requests to the autoscaler carry it."""

Pool = Literal["data", "training"]


def pool_labels(pool: Pool) -> dict[str, str]:
    """Return the labels that a node must have for work of this pool; none on a cluster without pools."""
    return {POOL_LABEL: pool} if _has_pools() else {}


def model_pool(*, use_gpu: bool) -> Pool:
    """Return the pool for models that compute rewards: GPUs are on training nodes."""
    return "training" if use_gpu else "data"


def pool_sizes() -> str:
    """Return how many nodes each pool has, for a person; nothing on a cluster without pools."""
    if not _has_pools():
        return ""
    pools = [node["Labels"].get(POOL_LABEL) for node in ray.nodes() if node["Alive"]]
    return f" ({pools.count('data')} data, {pools.count('training')} training)"


def training_room(resources: Mapping[str, float]) -> int:
    """Return how many ranks, with so many CPUs and GPUs each, the living nodes for training can hold."""
    labels = pool_labels("training").items()
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"] and labels <= node["Labels"].items()]
    return sum(int(min(node.get(name, 0.0) // need for name, need in resources.items())) for node in nodes)


def _has_pools() -> bool:
    # A Ray that this command starts for itself is one node without labels.
    return os.environ.get(POOLS_VARIABLE) == "1" and os.environ.get("RAY_ADDRESS", "local") != "local"
