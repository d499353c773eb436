"""cluster.yaml is valid for Ray, and for what Ray's own validator lets pass."""

from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def test_ray_accepts_the_cluster_file(cluster: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(cluster))


def test_all_node_types_but_the_head_start_at_zero_and_stay_within_the_global_maximum(cluster: dict[str, Any]) -> None:
    types = cluster["available_node_types"]
    for name, node in types.items():
        assert 0 <= node["min_workers"] <= node["max_workers"], name
        assert node["min_workers"] == 0, name
    assert types[cluster["head_node_type"]]["max_workers"] == 0
    assert sum(node["max_workers"] for node in types.values()) <= cluster["max_workers"]


def test_every_node_config_names_an_instance_an_image_and_a_disk(cluster: dict[str, Any]) -> None:
    known = {"InstanceType", "ImageId", "BlockDeviceMappings", "InstanceMarketOptions"}
    for name, node in cluster["available_node_types"].items():
        config = node["node_config"]
        assert {"InstanceType", "ImageId", "BlockDeviceMappings"} <= config.keys() <= known, name
        assert config.get("InstanceMarketOptions", {"MarketType": "spot"}) == {"MarketType": "spot"}, name
        assert all(disk["Ebs"]["VolumeSize"] >= 100 for disk in config["BlockDeviceMappings"]), name


def test_the_head_has_no_gpu_and_is_not_spot(cluster: dict[str, Any]) -> None:
    head = cluster["available_node_types"][cluster["head_node_type"]]["node_config"]
    assert not head["InstanceType"].startswith(("p", "g"))
    assert "InstanceMarketOptions" not in head


def test_every_mounted_file_exists_here(cluster: dict[str, Any]) -> None:
    for local in cluster["file_mounts"].values():
        assert local == "~/.ray/auth_token" or (ROOT / local).exists(), local


def test_token_authentication_is_on_wherever_ray_starts(cluster: dict[str, Any]) -> None:
    started = [c for c in cluster["head_start_ray_commands"] + cluster["worker_start_ray_commands"] if "ray start" in c]
    assert len(started) == 2
    assert all(command.startswith("RAY_AUTH_MODE=token ") for command in started)
    assert cluster["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"


def test_nodes_install_the_pinned_versions(cluster: dict[str, Any]) -> None:
    assert any("-c /home/ubuntu/pairwright/constraints.txt" in command for command in cluster["setup_commands"])
