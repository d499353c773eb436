"""Node pools of a cluster: data work and training ask for nodes with a label of their own.

Where ``PAIRWRIGHT_NODE_POOLS=1`` is in the environment of the head, as ``cluster.yaml`` and ``deploy/kuberay/`` set it,
Ray's autoscaler starts data nodes for data work and training nodes for training, and work goes to no others.
"""

import os
from collections.abc import Mapping
from typing import Any, Literal

import ray
from ray._private.state import available_resources_per_node

POOLS_VARIABLE = "PAIRWRIGHT_NODE_POOLS"
POOL_LABELS: dict[str, dict[str, str]] = {
    "data": {"ray-subcluster": "data"},
    "training": {"pairwright-pool": "training"},
}
"""The label of each pool's nodes. ``ray-subcluster`` is Ray Data's own: its requests to the autoscaler carry it. A node
for training must not have it: to a training whose number of ranks is a range, Ray 2.60 gives only nodes without it.
"""

Pool = Literal["data", "training"]


def pool_labels(pool: Pool) -> dict[str, str]:
    """Return the labels that a node must have for work of this pool; none on a cluster without pools."""
    return POOL_LABELS[pool] if _has_pools() else {}


def model_pool(*, use_gpu: bool) -> Pool:
    """Return the pool for models that compute rewards: GPUs are on training nodes."""
    return "training" if use_gpu else "data"


def pool_sizes() -> str:
    """Return how many nodes each pool has, for a person; nothing on a cluster without pools."""
    if not _has_pools():
        return ""
    return f" ({len(_living_nodes('data'))} data, {len(_living_nodes('training'))} training)"


def training_room(resources: Mapping[str, float], *, only_free: bool = False) -> int:
    """Return how many ranks, with so many CPUs and GPUs each, the living nodes for training can hold.

    Args:
        resources: of each rank, by the names that Ray has for them.
        only_free: whether to count what is free now, and not all that a node has.
    """
    free = available_resources_per_node() if only_free else {}
    nodes = [free.get(node["NodeID"], {}) if only_free else node["Resources"] for node in _living_nodes("training")]
    return sum(int(min(node.get(name, 0.0) // need for name, need in resources.items())) for node in nodes)


def _living_nodes(pool: Pool) -> list[dict[str, Any]]:
    labels = pool_labels(pool).items()
    return [node for node in ray.nodes() if node["Alive"] and labels <= node["Labels"].items()]


def _has_pools() -> bool:
    # A Ray that this command starts for itself is one node without labels.
    return os.environ.get(POOLS_VARIABLE) == "1" and os.environ.get("RAY_ADDRESS", "local") != "local"
