"""A real Ray head on loopback; on demand with Ray's own autoscaler, whose nodes are processes on this machine.

Such nodes share one folder for what jobs bring along, and each that comes unpacks it anew under the feet of the others
(real nodes have a folder each). So jobs on a growing head bring nothing along: they run the installed package.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from pairwright.cluster.node_pools import POOL_LABELS

START_TIMEOUT_SECONDS = 300.0
JOB_TIMEOUT_SECONDS = 400.0
HEAD_NODE_ID = "fffffffffffffffffffffffffffffffffffffffffffffffffff00000"
"""By which Ray's provider of such nodes knows the head (``FAKE_HEAD_NODE_ID``)."""


@dataclass(frozen=True)
class NodePool:
    """A node type of the autoscaler, whose label is its name."""

    num_cpus: int
    max_nodes: int


class RayHead:
    """A running head: its addresses for jobs and for drivers, and what its dashboard says."""

    def __init__(self, gcs_port: int, dashboard_port: int, environment: dict[str, str], process: int) -> None:
        self._process = process
        self.address = f"http://127.0.0.1:{dashboard_port}"
        self.gcs_address = f"127.0.0.1:{gcs_port}"
        self.restarted: subprocess.Popen[bytes] | None = None
        self.environment = environment

    def living_nodes(self) -> list[dict[str, Any]]:
        """Return the nodes that are alive now, the head among them."""
        request = urllib.request.Request(f"{self.address}/api/v0/nodes?limit=100")
        token = Path.home() / ".ray" / "auth_token"
        if token.is_file():
            request.add_header("Authorization", f"Bearer {token.read_text().strip()}")
        with urllib.request.urlopen(request, timeout=30) as answer:
            nodes = json.load(answer)["data"]["result"]["result"]
        return [node for node in nodes if node["state"] == "ALIVE"]

    @contextmanager
    def without_dashboard(self) -> Iterator[None]:
        """Kill -9 the dashboard, and start it again, as it was started, at the end of the block."""
        parent = psutil.Process(self._process)
        parent.suspend()  # `ray start --block` would end the head when one of its processes ends
        if self.restarted is not None:
            dashboard = psutil.Process(self.restarted.pid)
        else:
            [dashboard] = [
                child for child in parent.children(recursive=True) if "dashboard.py" in " ".join(child.cmdline())
            ]
        command, environment = dashboard.cmdline(), dashboard.environ()
        dashboard.kill()
        while dashboard.is_running() and dashboard.status() != psutil.STATUS_ZOMBIE:  # nobody collects it
            time.sleep(0.05)
        yield
        self.restarted = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def start_node(self, num_cpus: int, log: Path) -> subprocess.Popen[bytes]:
        """Start a node beside the head, in a session of its own, by which all of its processes are known."""
        command = [
            str(Path(sys.executable).with_name("ray")),
            *("start", "--block", f"--address={self.gcs_address}", "--node-ip-address=127.0.0.1"),
            *(f"--num-cpus={num_cpus}", "--object-store-memory=200000000"),
        ]
        with log.open("ab") as output:
            return subprocess.Popen(
                command, env=self.environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )

    def wait_for_nodes(self, num_nodes: int) -> None:
        """Wait until so many nodes are alive, the head among them."""
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while len(self.living_nodes()) < num_nodes:
            assert time.monotonic() < deadline, f"{len(self.living_nodes())} of {num_nodes} nodes"
            time.sleep(0.2)

    def pairwright(self, folder: Path, *arguments: str) -> subprocess.Popen[str]:
        """Start a verb with ``--address`` in a folder."""
        return subprocess.Popen(
            [sys.executable, "-m", "pairwright", *arguments, "--address", self.address],
            cwd=folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def submit_packaged(self, root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a job as the manual says, with the recipes and the package brought along, and wait for its end."""
        runtime_env = json.dumps({"py_modules": ["platform/pairwright"]})
        return self._submit(root, ["--working-dir", ".", "--runtime-env-json", runtime_env], arguments)

    def submit_installed(self, root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a job with what is installed on the nodes, and wait for its end."""
        return self._submit(root, [], arguments)

    def _submit(self, root: Path, options: Sequence[str], arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
        command = ["ray", "job", "submit", "--address", self.address, *options, "--", "python", *arguments]
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while True:
            job = subprocess.run(
                command,
                cwd=root,
                env=self.environment,
                capture_output=True,
                text=True,
                timeout=JOB_TIMEOUT_SECONDS,
                check=False,
            )
            # The head answers before the agent that starts jobs is up.
            if "No available agent to submit job" not in job.stderr or time.monotonic() > deadline:
                return job
            time.sleep(1)


@contextmanager
def ray_head(
    folder: Path,
    *,
    num_cpus: int,
    max_nodes: int = 0,
    cpus_per_node: int = 0,
    pools: Mapping[str, NodePool] | None = None,
    idle_minutes: float = 0.2,
) -> Iterator[RayHead]:
    """Start a head that grows by up to ``max_nodes``, or by nodes of ``pools``, and end it with all that it started.

    With pools Ray's second autoscaler decides, as under ``ray up`` and KubeRay: only it knows labels. It ends a node
    that had nothing to do for ``idle_minutes``.
    """
    gcs_port, dashboard_port = _free_port(), _free_port()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")} | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "RAY_FAKE_CLUSTER": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_AUTH_MODE": "token",
        "RAY_raylet_start_wait_time_s": "240",  # by default a loaded machine's head gives up after 60
    }
    if pools:
        environment |= {
            "PAIRWRIGHT_NODE_POOLS": "1",
            "RAY_enable_autoscaler_v2": "1",
            "RAY_CLOUD_INSTANCE_ID": HEAD_NODE_ID,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_NODE_ID,
        }
    subprocess.run(["ray", "get-auth-token", "--generate"], env=environment, check=True, capture_output=True)
    command = ["ray", "start", "--head", "--block", f"--port={gcs_port}", f"--dashboard-port={dashboard_port}"]
    # Two more ports that have one default for every cluster of a machine; without its agent a head starts no job.
    command += [f"--dashboard-agent-listen-port={_free_port()}", f"--ray-client-server-port={_free_port()}"]
    command += ["--node-ip-address=127.0.0.1", f"--num-cpus={num_cpus}"]
    types = dict(pools or ({"worker": NodePool(cpus_per_node, max_nodes)} if max_nodes else {}))
    if types:
        config = folder / "autoscaling.json"
        config.write_text(
            json.dumps(_autoscaling_config(gcs_port, num_cpus, types) | {"idle_timeout_minutes": idle_minutes})
        )
        command.append(f"--autoscaling-config={config}")
    log = (folder / "head.log").open("w")
    process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    head = RayHead(gcs_port, dashboard_port, environment, process.pid)
    try:
        _wait_for(head, process, folder / "head.log")
        yield head
    finally:
        _end(process)
        if head.restarted is not None:
            _end(head.restarted)
        log.close()


def _autoscaling_config(gcs_port: int, head_cpus: int, types: Mapping[str, NodePool]) -> dict[str, Any]:
    workers = {
        name: {
            "resources": {"CPU": pool.num_cpus},
            "labels": POOL_LABELS.get(name, {}),
            "node_config": {},
            "min_workers": 0,
            "max_workers": pool.max_nodes,
        }
        for name, pool in types.items()
    }
    return {
        "cluster_name": "pairwright-test",
        "max_workers": sum(pool.max_nodes for pool in types.values()),
        "upscaling_speed": 10.0,
        "provider": {
            # Not "fake_multinode": the second autoscaler reads that provider's example.yaml, which no wheel of Ray has.
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "gcs_address": f"127.0.0.1:{gcs_port}",
            # All nodes have this machine's address, so the autoscaler must tell them apart by id.
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "launch_multiple": True,
            "head_node_id": HEAD_NODE_ID,
        },
        "auth": {},
        "available_node_types": {
            # The provider knows its head by this name.
            "ray.head.default": {"resources": {"CPU": head_cpus}, "node_config": {}, "max_workers": 0},
            **workers,
        },
        "head_node_type": "ray.head.default",
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "rsync_exclude": [],
        "rsync_filter": [],
        "initialization_commands": [],
        "setup_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "head_start_ray_commands": [],
        "worker_start_ray_commands": [],
    }


def _wait_for(head: RayHead, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while True:
        try:
            if head.living_nodes():
                return
        except OSError:
            pass
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.5)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the head and every process below it, by pid."""
    started = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    process.send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs(started, timeout=3)
    for child in alive:
        with suppress(psutil.NoSuchProcess):  # some end between the look and the kill
            child.kill()
    process.wait(timeout=30)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
