"""Hosts with addresses, disks and caches of their own, and S3 for all data: the whole road, and a host cut off in it.

Packets to and from the host are dropped and nothing is killed: no connection ends by itself. The work goes on, or says
what it waits for until another node comes, and the results are those of the road without an accident.
"""

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hosts import Host, hosts, wait_for_nodes, why_not
from pairwright.cluster.ray_map import MIN_TASK_BYTES
from pairwright.data.synthetic import write_rankings
from training_runs import make_model, wait_until

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1800)]

NUM_STEPS = 30
NUM_FILES = 6
MOST_SECONDS_WITHOUT_A_HOST = 180.0
"""Keepalive gives a host up after a minute; then its work is done on the other."""
BUCKET = "s3://bucket"
TRAINING = f"""
output = "{BUCKET}/runs/NAME"
model.path = "MODEL"
data.pairs = "{BUCKET}/pairs"
tokens.max_length = 128
batches = {{groups_per_step = 16, micro_batch_tokens = 1024}}
optimizer.learning_rate = 3e-3
training = {{epochs = 10, max_steps = {NUM_STEPS}, checkpoint_every_steps = 5, log_every_steps = 1}}
workers.num_workers = 2
"""


class Command:
    """A verb on the head's host, whose log is read while it runs."""

    def __init__(self, host: Host, *arguments: str) -> None:
        self.started_at = time.monotonic()
        self._process = host.popen("python", "-m", "pairwright", *arguments)
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        self.lines.extend(self._process.stdout)

    def wait_for(self, part: str, seconds: float = 400) -> None:
        wait_until(lambda: self.has(part) or self._process.poll() is not None, timeout_seconds=seconds, what=part)
        assert self.has(part), "".join(self.lines)

    def has(self, part: str) -> bool:
        return any(part in line for line in self.lines)

    def end(self) -> str:
        self._process.wait(900)
        self._reader.join()
        assert self._process.returncode == 0, "".join(self.lines)
        print(f"{time.monotonic() - self.started_at:.0f} s")
        return "".join(self.lines)


class Cluster:
    """A head's host, and two hosts with a node of one CPU each."""

    def __init__(self, folder: Path, made: list[Host]) -> None:
        self.folder = folder
        self.head, *self.others = made

    def verb(self, *arguments: str) -> Command:
        return Command(self.head, *arguments)

    def read(self, key: str) -> bytes:
        """Return an object of the bucket."""
        program = (
            "import boto3, os, sys; s3 = boto3.client('s3', endpoint_url=os.environ['AWS_ENDPOINT_URL'])\n"
            "open(sys.argv[2], 'wb').write(s3.get_object(Bucket='bucket', Key=sys.argv[1])['Body'].read())"
        )
        into = self.folder / "object"
        asked = self.head.popen("python", "-c", program, key, str(into), AWS_DEFAULT_REGION="us-east-1")
        output, _ = asked.communicate(timeout=120)
        assert asked.returncode == 0, output
        return into.read_bytes()

    def replace_node(self, host: Host) -> None:
        """End what is left of a node that was cut off, and start another there."""
        host.reconnect()
        host.end_processes()
        host.start_ray(f"--address={self.head.address}:6379", "--num-cpus=1")

    def manifest(self, table: str) -> dict[str, Any]:
        """Return the first version of a table."""
        return json.loads(self.read(f"{table}/versions/{1:08d}.json"))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if reason := why_not():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("h")
    with hosts(folder, "a", "b", "c") as made:
        found = Cluster(folder, made)
        wait_for_nodes(found.head, 1)
        for host in found.others:
            host.start_ray(f"--address={found.head.address}:6379", "--num-cpus=1")
        wait_for_nodes(found.head, 3)
        yield found


@pytest.fixture(scope="module")
def road(cluster: Cluster) -> Cluster:
    """Walk the whole road with everything on S3, and nothing in its way."""
    folder = cluster.folder
    write_rankings(folder / "rankings.jsonl", 600, seed=0)
    make_model(folder / "base")
    upload(cluster, folder / "rankings.jsonl", "exports/rankings.jsonl")
    cluster.verb("ingest", f"{BUCKET}/exports/", "--output", f"{BUCKET}/annotations/road").end()
    cluster.verb("expand", f"{BUCKET}/annotations/road", "--output", f"{BUCKET}/pairs").end()
    train(cluster, "undisturbed").end()
    evaluate(cluster, "undisturbed").end()
    cluster.verb("report", f"{BUCKET}/pairs", "--output", f"{BUCKET}/page.html").end()
    return cluster


def upload(cluster: Cluster, file: Path, key: str) -> None:
    program = (
        "import boto3, os, sys; s3 = boto3.client('s3', endpoint_url=os.environ['AWS_ENDPOINT_URL'])\n"
        "s3.upload_file(sys.argv[1], 'bucket', sys.argv[2])"
    )
    asked = cluster.head.popen("python", "-c", program, str(file), key, AWS_DEFAULT_REGION="us-east-1")
    output, _ = asked.communicate(timeout=120)
    assert asked.returncode == 0, output


def train(cluster: Cluster, name: str) -> Command:
    config = cluster.folder / f"{name}.toml"
    config.write_text(TRAINING.replace("NAME", name).replace("MODEL", str(cluster.folder / "base")))
    return cluster.verb("train", "--config", str(config))


def evaluate(cluster: Cluster, name: str) -> Command:
    where = ["--pairs", f"{BUCKET}/pairs", "--output", f"{BUCKET}/reports/{name}.json"]
    how = ["--num-workers", "2"]
    return cluster.verb("evaluate", f"{BUCKET}/runs/undisturbed/model", *where, *how)


def test_the_road_on_s3_leaves_verified_tokens_on_each_host_alone(road: Cluster) -> None:
    summary = json.loads(road.read("runs/undisturbed/summary.json"))
    assert summary["steps"] == NUM_STEPS
    assert json.loads(road.read("reports/undisturbed.json"))["overall"]["pairs"] > 0
    assert road.read("page.html").lstrip().startswith(b"<!")
    names = []
    for host in road.others:
        files = list((host.cache / "pairwright" / "tokens").glob("*.arrow"))
        assert files, "each host has the tokens that its rank reads"
        assert all(hashlib.sha256(file.read_bytes()).hexdigest() == file.stem for file in files)
        names.append({file.name for file in files})
    assert names[0] == names[1]


def test_an_ingestion_goes_on_without_a_host_that_is_cut_off(road: Cluster) -> None:
    for number in range(NUM_FILES):
        file = road.folder / f"{number}.jsonl"
        write_rankings(file, 1200, seed=number + 1)
        assert file.stat().st_size > MIN_TASK_BYTES, "a task each"
        upload(road, file, f"large/{file.name}")
    lost = road.others[1]
    ingest(road, "undisturbed").end()
    lost.slow_down(2)
    running = ingest(road, "cut")
    wait_until(lambda: is_at_work(lost), timeout_seconds=200, what="a task on the host")
    lost.cut_off()
    began = time.monotonic()
    print(running.end())
    assert time.monotonic() - began < MOST_SECONDS_WITHOUT_A_HOST, "Ray alone takes seven minutes"
    lost.full_speed()
    road.replace_node(lost)
    undisturbed, cut = (road.manifest(f"annotations/{name}") for name in ("undisturbed", "cut"))
    assert cut["totals"] == undisturbed["totals"]
    assert sorted(file["sha256"] for file in cut["files"]) == sorted(file["sha256"] for file in undisturbed["files"])
    wait_for_nodes(road.head, 3)


def ingest(cluster: Cluster, name: str) -> Command:
    return cluster.verb("ingest", f"{BUCKET}/large/", "--output", f"{BUCKET}/annotations/{name}")


def test_a_training_says_that_it_waits_for_a_host_and_goes_on_with_another(road: Cluster) -> None:
    lost = road.others[1]
    running = train(road, "cut")
    running.wait_for("step 8/")
    lost.slow_down(20)
    running.wait_for("step 12/")
    lost.cut_off()
    running.wait_for("waiting")
    lost.full_speed()
    road.replace_node(lost)
    print(running.end())
    assert road.read("runs/cut/model/model.safetensors") == road.read("runs/undisturbed/model/model.safetensors")


def test_a_node_that_is_told_to_go_has_its_training_write_a_checkpoint(road: Cluster) -> None:
    """Kubernetes sends SIGTERM to `ray start --block`, the first process of a pod: the node drains before it ends."""
    wait_for_nodes(road.head, 3)
    leaving = road.others[1]
    running = train(road, "drained")
    running.wait_for("step 7/")
    leaving.slow_down(20)  # else the run ends before the node does, within its 20 s
    running.wait_for("step 9/")
    leaving.terminate_ray()
    running.wait_for("will be preempted")
    running.wait_for("waiting")
    leaving.full_speed()
    road.replace_node(leaving)
    log = running.end()
    print(log)
    assert "SIGTERM to rank" not in log, "the drain is the one notice: its processes live until its end"
    assert road.read("runs/drained/model/model.safetensors") == road.read("runs/undisturbed/model/model.safetensors")


def test_an_evaluation_goes_on_with_another_host(road: Cluster) -> None:
    wait_for_nodes(road.head, 3)
    lost = road.others[1]
    running = evaluate(road, "cut")
    wait_until(lambda: is_at_work(lost), timeout_seconds=200, what="an actor on the host")
    lost.cut_off()
    time.sleep(20)
    road.replace_node(lost)
    running.end()
    first, second = (json.loads(road.read(f"reports/{name}.json")) for name in ("undisturbed", "cut"))
    assert first["overall"] == second["overall"]


def is_at_work(host: Host) -> bool:
    """Whether a task or an actor of ours runs there."""
    return any(name in line for line in host.process_titles() for name in ("ray::FlatMap", "ray::Map", "ray::_Model"))
