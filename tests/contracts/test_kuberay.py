"""deploy/kuberay/ is what KubeRay's own definitions allow, and each pod has a token, sizes and time to end."""

import tomllib
from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "deploy" / "kuberay"
DEFINITIONS = ROOT.parent / "shared/data/kuberay"
CLUSTERS = {
    "cluster": ("RayCluster", ()),
    "pipeline": ("RayJob", ("rayClusterSpec",)),
    "rewards": ("RayService", ("rayClusterConfig",)),
}
DRAIN = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"


@cache
def documents(name: str) -> dict[str, dict[str, Any]]:
    """Return the objects of a manifest by kind."""
    loaded = yaml.safe_load_all((MANIFESTS / f"{name}.yaml").read_text())
    return {document["kind"]: document for document in loaded}


def cluster_of(name: str) -> dict[str, Any]:
    """Return the specification of the Ray cluster in a manifest."""
    kind, path = CLUSTERS[name]
    spec = documents(name)[kind]["spec"]
    for key in path:
        spec = spec[key]
    return spec


def pods(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name and the template of each kind of pod."""
    cluster = cluster_of(name)
    yield "head", cluster["headGroupSpec"]["template"]
    for group in cluster["workerGroupSpecs"]:
        yield group["groupName"], group["template"]


def environment(template: dict[str, Any]) -> dict[str, Any]:
    return {entry["name"]: entry.get("value") for entry in template["spec"]["containers"][0]["env"]}


# ------------------------------------------------------------------------------------------- KubeRay's definitions


def strict(schema: Any) -> Any:
    """Return a schema that allows no unknown fields, as an API server does that is asked to validate strictly."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: strict(value) for key, value in schema.items()}
    if found.get("x-kubernetes-int-or-string"):
        found.pop("type", None)
    is_open = "additionalProperties" in found or found.get("x-kubernetes-preserve-unknown-fields")
    if isinstance(found.get("properties"), dict) and "type" in found and not is_open:
        found["additionalProperties"] = False
    return found


@cache
def definition(kind: str) -> dict[str, Any]:
    """Return the strict schema of a kind of object."""
    path = DEFINITIONS / f"ray.io_{kind.lower()}s.yaml.zst"
    if not path.exists():
        pytest.skip(f"{path.name} is not here: shared/data is handed out with the project, not in it")
    import zstandard

    text = zstandard.ZstdDecompressor().stream_reader(path.read_bytes()).read()
    versions = yaml.load(text, yaml.CSafeLoader)["spec"]["versions"]
    return strict(next(version for version in versions if version["name"] == "v1")["schema"]["openAPIV3Schema"])


@pytest.mark.parametrize("name", CLUSTERS)
def test_kuberay_accepts_the_manifest_and_no_field_is_unknown_to_it(name: str) -> None:
    from jsonschema import Draft202012Validator

    kind, path = CLUSTERS[name]
    document = documents(name)[kind]
    validator = Draft202012Validator(definition(kind))
    found = [f"{'/'.join(map(str, error.path))}: {error.message[:200]}" for error in validator.iter_errors(document)]
    assert found == []
    wrong = deepcopy(document)
    cluster = wrong["spec"]
    for key in path:
        cluster = cluster[key]
    cluster["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["resource"] = {}
    assert not validator.is_valid(wrong), "the check finds a misspelt field of a container"


# ----------------------------------------------------------------------------------------------- what each must have


@pytest.mark.parametrize("name", CLUSTERS)
def test_the_cluster_has_the_token_the_installed_ray_and_the_autoscaler_that_knows_labels(name: str) -> None:
    cluster = cluster_of(name)
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["rayVersion"] == pinned["ray"]
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["autoscalerOptions"]["version"] == "v2"
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0", "no work on the head"


@pytest.mark.parametrize("name", CLUSTERS)
def test_every_pod_says_what_it_takes_and_runs_without_privileges(name: str) -> None:
    for kind, template in pods(name):
        spec = template["spec"]
        assert spec["serviceAccountName"] == "pairwright", kind
        assert spec["securityContext"]["runAsNonRoot"] is True, kind
        assert template["metadata"]["labels"]["app.kubernetes.io/part-of"] == "pairwright", "the network policy's label"
        volumes = {volume["name"] for volume in spec["volumes"]}
        for container in spec["containers"]:
            requests, limits = container["resources"]["requests"], container["resources"]["limits"]
            assert {"cpu", "memory", "ephemeral-storage"} <= requests.keys() == limits.keys(), kind
            assert requests["memory"] == limits["memory"], "Ray takes the limit for the node's memory"
            assert container["securityContext"]["allowPrivilegeEscalation"] is False, kind
            assert {mount["name"] for mount in container["volumeMounts"]} == volumes, kind
        assert all(volume["emptyDir"]["sizeLimit"] for volume in spec["volumes"] if "emptyDir" in volume), kind


@pytest.mark.parametrize("name", CLUSTERS)
def test_every_pod_has_time_to_drain_before_it_is_killed(name: str) -> None:
    for kind, template in pods(name):
        grace, drain = template["spec"]["terminationGracePeriodSeconds"], float(environment(template)[DRAIN])
        assert grace >= drain + 15, kind


@pytest.mark.parametrize("name", ["cluster", "pipeline"])
def test_a_training_node_and_the_head_have_time_for_a_checkpoint(name: str) -> None:
    templates = dict(pods(name))
    assert float(environment(templates["training"])[DRAIN]) >= 300
    head = templates["head"]["spec"]
    hook = head["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert (ROOT / Path(hook[-1]).relative_to("/opt/pairwright")).is_file()
    drain = float(environment(templates["head"])[DRAIN])
    assert head["terminationGracePeriodSeconds"] >= 600 + drain, "as long as a driver waits for its checkpoint"


@pytest.mark.parametrize("name", ["cluster", "pipeline"])
def test_the_cache_stays_below_the_size_of_its_volume(name: str) -> None:
    for kind, template in pods(name):
        [volume] = [volume for volume in template["spec"]["volumes"] if volume["name"] == "cache"]
        size = volume["emptyDir"]["sizeLimit"].removesuffix("Gi")
        assert int(environment(template)["PAIRWRIGHT_CACHE_GB"]) < int(size), kind


@pytest.mark.parametrize("name", ["cluster", "pipeline"])
def test_data_and_training_nodes_come_from_zero_by_their_label(name: str) -> None:
    from pairwright.cluster.node_pools import POOL_LABELS, POOLS_VARIABLE

    groups = {group["groupName"]: group for group in cluster_of(name)["workerGroupSpecs"]}
    assert {pool: group["labels"] for pool, group in groups.items()} == POOL_LABELS
    assert all((group["replicas"], group["minReplicas"]) == (0, 0) for group in groups.values())
    assert environment(dict(pods(name))["head"])[POOLS_VARIABLE] == "1"


@pytest.mark.parametrize("name", CLUSTERS)
def test_the_head_is_not_evicted_while_it_works(name: str) -> None:
    budget = documents(name)["PodDisruptionBudget"]["spec"]
    labels = dict(pods(name))["head"]["metadata"]["labels"]
    assert budget["minAvailable"] == 1, "of pods that no built-in controller made, Kubernetes takes this alone"
    assert budget["selector"]["matchLabels"].items() <= labels.items()


# ------------------------------------------------------------------------------------------------ what they run


def test_the_pipeline_and_its_training_are_valid(tmp_path: Path) -> None:
    from pairwright.config import TrainConfig

    files = documents("pipeline")["ConfigMap"]["data"]
    assert TrainConfig.model_validate(tomllib.loads(files["train.toml"])).workers.use_gpu
    job = documents("pipeline")["RayJob"]["spec"]
    assert job["entrypoint"] == "pairwright run /etc/pairwright/pipeline.toml"
    stop_seconds = yaml.safe_load(job["runtimeEnvYAML"])["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"]
    assert int(stop_seconds) == 600
    pipeline = pytest.importorskip("pairwright.config.pipeline", reason="`pairwright run` is not here yet")
    for name, text in files.items():
        (tmp_path / name).write_text(text.replace("/etc/pairwright", str(tmp_path)))
    pipeline.load_pipeline(str(tmp_path / "pipeline.toml"))
