"""cluster.yaml and deploy/gcp.yaml are valid for Ray, and for what Ray's own validator lets pass."""

import json
import re
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


@pytest.fixture(scope="module", params=["cluster.yaml", "deploy/gcp.yaml"])
def either(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Return the file for AWS, then that for Google Cloud."""
    return yaml.safe_load((ROOT / request.param).read_text())


def test_ray_accepts_the_cluster_file(either: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(deepcopy(either)))


def test_all_node_types_but_the_head_start_at_zero_and_stay_within_the_global_maximum(either: dict[str, Any]) -> None:
    types = either["available_node_types"]
    for name, node in types.items():
        assert 0 <= node["min_workers"] <= node["max_workers"], name
        assert node["min_workers"] == 0, name
    assert types[either["head_node_type"]]["max_workers"] == 0
    assert sum(node["max_workers"] for node in types.values()) <= either["max_workers"]


def test_data_work_and_training_find_their_nodes_by_label(either: dict[str, Any]) -> None:
    from pairwright.cluster.node_pools import POOL_LABELS, POOLS_VARIABLE

    labels = {name: node.get("labels") for name, node in either["available_node_types"].items()}
    assert labels == {"head": None, "cpu_data": POOL_LABELS["data"], "gpu_training": POOL_LABELS["training"]}
    assert f" {POOLS_VARIABLE}=1 " in either["head_start_ray_commands"][-1]


def test_every_node_config_names_an_instance_an_image_and_a_disk(cluster: dict[str, Any]) -> None:
    for name, node in cluster["available_node_types"].items():
        config = node["node_config"]
        assert {"InstanceType", "ImageId", "BlockDeviceMappings"} <= config.keys(), name
        assert config.get("InstanceMarketOptions", {"MarketType": "spot"}) == {"MarketType": "spot"}, name
        assert all(disk["Ebs"]["VolumeSize"] >= 100 for disk in config["BlockDeviceMappings"]), name


def test_every_node_of_google_cloud_has_sizes_an_account_a_subnet_and_a_disk() -> None:
    types = yaml.safe_load((ROOT / "deploy" / "gcp.yaml").read_text())["available_node_types"]
    for name, node in types.items():
        config = node["node_config"]
        assert node["resources"]["CPU"] > 0, "Ray cannot look it up there, as it does on AWS"
        assert config["machineType"], name
        assert config["serviceAccounts"][0]["email"].startswith("pairwright-"), name
        assert config["networkInterfaces"][0]["subnetwork"], name
        assert all(disk["initializeParams"]["diskSizeGb"] >= 100 for disk in config["disks"]), name
    assert "scheduling" not in types["head"]["node_config"], "the head is not preemptible"
    assert types["cpu_data"]["node_config"]["scheduling"] == [{"preemptible": True}]
    assert types["gpu_training"]["resources"]["GPU"] == 8


def test_the_head_has_no_gpu_and_is_not_spot(cluster: dict[str, Any]) -> None:
    head = cluster["available_node_types"][cluster["head_node_type"]]["node_config"]
    assert not head["InstanceType"].startswith(("p", "g"))
    assert "InstanceMarketOptions" not in head


def test_every_mounted_file_exists_here(either: dict[str, Any]) -> None:
    for local in either["file_mounts"].values():
        assert local == "~/.ray/auth_token" or (ROOT / local).exists(), local


def test_token_authentication_is_on_wherever_ray_starts(either: dict[str, Any]) -> None:
    started = [c for c in either["head_start_ray_commands"] + either["worker_start_ray_commands"] if "ray start" in c]
    assert len(started) == 2
    assert all(command.startswith("RAY_AUTH_MODE=token ") for command in started)
    assert either["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"


def test_nodes_install_only_files_whose_hash_is_locked(either: dict[str, Any]) -> None:
    installs = [command for command in either["setup_commands"] if "pip install" in command]
    assert either["file_mounts"]["/home/ubuntu/pairwright/locks"] == "./locks"
    for command in installs:
        assert "--require-hashes" in command or "--no-deps --no-build-isolation /home/ubuntu/pairwright" in command


# ------------------------------------------------------------------ what AWS would be asked for, by Ray's own provider


@pytest.fixture(scope="module")
def started(cluster: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator["Started"]:
    """Start one node of each type with Ray's own code, on an AWS that moto plays in this process."""
    import boto3
    from moto import mock_aws

    with pytest.MonkeyPatch.context() as patch, mock_aws():
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))  # Ray puts an SSH key there
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        for name in ("AWS_ENDPOINT_URL", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
            patch.delenv(name, raising=False)
        region = cluster["provider"]["region"]
        ec2, iam = boto3.client("ec2", region), boto3.client("iam", region)
        vpc = ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
        group = ec2.create_security_group(GroupName="ours", Description="ours", VpcId=vpc)["GroupId"]
        image = ec2.describe_images()["Images"][0]["ImageId"]
        for profile in ("pairwright-head", "pairwright-worker"):
            iam.create_instance_profile(InstanceProfileName=profile)
        filled = yaml.safe_load(
            (ROOT / "cluster.yaml")
            .read_text()
            .replace("sg-00000000000000000", group)
            .replace("ami-00000000000000000", image)
        )
        yield Started(filled, group)


class Started:
    """What Ray asked AWS for, and what there was afterwards."""

    def __init__(self, config: dict[str, Any], group: str) -> None:
        import boto3
        from ray.autoscaler._private.aws.config import bootstrap_aws
        from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
        from ray.autoscaler._private.util import prepare_config

        self.group = group
        self.config = bootstrap_aws(prepare_config(config))
        region = config["provider"]["region"]
        provider = AWSNodeProvider(self.config["provider"], self.config["cluster_name"])
        self.calls: set[str] = set()
        for resource in (provider.ec2, provider.ec2_fail_fast):
            resource.meta.client.meta.events.register("before-call.ec2.*", self._note)
        for kind, node in self.config["available_node_types"].items():
            provider.create_node(node["node_config"], {"ray-user-node-type": kind, "ray-node-name": kind}, 1)
        client = boto3.client("ec2", region)
        self.instances = {
            next(tag["Value"] for tag in instance["Tags"] if tag["Key"] == "ray-user-node-type"): instance
            for reservation in client.describe_instances()["Reservations"]
            for instance in reservation["Instances"]
        }
        self.volumes = client.describe_volumes()["Volumes"]
        self.groups = {found["GroupName"] for found in client.describe_security_groups()["SecurityGroups"]}
        self.roles = boto3.client("iam", region).list_roles()["Roles"]
        provider.terminate_nodes(provider.non_terminated_nodes({}))

    def _note(self, model: Any, **_: Any) -> None:
        self.calls.add(f"ec2:{model.name}")


def test_ray_makes_no_security_group_and_no_role_of_its_own(started: Started) -> None:
    assert started.groups == {"ours", "default"}
    assert started.roles == []


def test_every_node_has_our_group_a_role_encrypted_disks_and_imdsv2(started: Started) -> None:
    assert started.instances.keys() == {"head", "cpu_data", "gpu_training"}
    for kind, instance in started.instances.items():
        assert [group["GroupId"] for group in instance["SecurityGroups"]] == [started.group], kind
        role = "pairwright-head" if kind == "head" else "pairwright-worker"
        assert instance["IamInstanceProfile"]["Arn"].endswith(f":instance-profile/{role}"), kind
        options = instance["MetadataOptions"]
        assert (options["HttpTokens"], options["HttpEndpoint"], options["HttpPutResponseHopLimit"]) == (
            "required",
            "enabled",
            1,
        ), kind
    assert len(started.volumes) == 3
    assert all(volume["Encrypted"] for volume in started.volumes)


def test_the_roles_in_the_manual_allow_what_ray_calls_and_no_more(started: Started) -> None:
    text = (ROOT / "docs" / "network.md").read_text()
    policies = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", text, re.DOTALL)]
    worker, head = ({action for part in policy["Statement"] for action in part["Action"]} for policy in policies)
    # RunInstances names tags and a profile, for which AWS asks these; and Ray tags a node again once it is set up.
    assert head == started.calls | {"ec2:CreateTags", "iam:PassRole"}
    assert all(action.startswith("s3:") and "*" not in action for action in worker)
