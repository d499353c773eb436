"""A training run on a Ray cluster of several nodes, with its driver in a process of its own: what may befall it.

Every node is a raylet on this machine with its workers below it; what is killed or stopped is found among the processes
that this one started, and nothing else ever is.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from ray._private.node import Node
from ray.cluster_utils import Cluster

from pairwright.config import TrainConfig
from training_runs import committed_steps, start_command, training_workers, wait_until

DRIVER_TIMEOUT_SECONDS = 600.0


class Nodes:
    """A head, where drivers and nothing else run, and nodes with one CPU each, one for a rank."""

    def __init__(self, num_nodes: int) -> None:
        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        self.address = str(self._cluster.address)
        for _ in range(num_nodes):
            self.add()

    def add(self) -> None:
        """Start another node and wait until the cluster knows it."""
        self._cluster.add_node(num_cpus=1)

    def living(self) -> int:
        """Return how many nodes there are, without the head."""
        return len(self._cluster.worker_nodes)

    def of(self, worker: psutil.Process) -> Node:
        """Return the node that a worker runs on."""
        above = {parent.pid for parent in worker.parents()}
        return next(node for node in self._cluster.worker_nodes if _raylet(node).pid in above)

    def kill(self, node: Node) -> None:
        """Kill -9 a node's raylet, if it is there, and what else the node ran."""
        _raylet(node).kill()
        self._cluster.remove_node(node, allow_graceful=False)

    def drain(self, node: Node, *, seconds: int) -> None:
        """Tell the cluster, as a cloud's notice does, that a node will be taken back in so many seconds."""
        command = [str(Path(sys.executable).parent / "ray"), "drain-node", f"--address={self.address}"]
        command += [f"--node-id={node.node_id}", f"--deadline-remaining-seconds={seconds}"]
        command += ["--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot instance taken back"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    def end(self) -> None:
        """End all nodes."""
        self._cluster.shutdown()


def _raylet(node: Node) -> subprocess.Popen[bytes]:
    return node.all_processes["raylet"][0].process


@contextmanager
def nodes(num_nodes: int) -> Iterator[Nodes]:
    """Run a cluster."""
    cluster = Nodes(num_nodes)
    try:
        yield cluster
    finally:
        cluster.end()


class Ordeal:
    """A run that is watched from outside: by its files, its log and its processes."""

    def __init__(self, config: TrainConfig, folder: Path, cluster: Nodes) -> None:
        self.config, self.cluster = config, cluster
        self.output = Path(config.output)
        self._file = folder / f"{self.output.name}.toml"
        self.driver = self._started()
        self.struck_at = time.time()

    def _started(self) -> subprocess.Popen[str]:
        return start_command(self.config, self._file, address=self.cluster.address)

    def start_again(self) -> None:
        """Give the same command again, once the last one has ended."""
        self.driver.communicate(timeout=DRIVER_TIMEOUT_SECONDS)
        wait_until(lambda: not self.workers(), timeout_seconds=60, what="the workers of a dead driver to end")
        self.driver = self._started()

    def end(self) -> str:
        """Wait for the run's end, which must be a good one, and return the log of its last command."""
        log, _ = self.driver.communicate(timeout=DRIVER_TIMEOUT_SECONDS)
        assert self.driver.returncode == 0, log[-5000:]
        return log

    def abandon(self) -> None:
        """Kill the driver, if it lives."""
        if self.driver.poll() is None:
            self.driver.kill()
            self.driver.communicate()

    def workers(self) -> list[psutil.Process]:
        """Return the processes of the run's ranks."""
        return training_workers(psutil.Process())

    def last_resume(self) -> tuple[int, int]:
        """Return the last step taken before the run last went on from a checkpoint, and that checkpoint's step."""
        records = self.records("step", "resumed")
        place = max(number for number, record in enumerate(records) if record["kind"] == "resumed")
        return max(record["step"] for record in records[:place]), records[place]["step"]

    def records(self, *kinds: str) -> list[dict[str, Any]]:
        """Return what the run has recorded of these kinds, in the order of writing."""
        found = []
        for file in sorted(self.output.glob("metrics-*.jsonl")):
            for line in file.read_text().splitlines():
                try:
                    found.append(json.loads(line))
                except json.JSONDecodeError:
                    continue  # the driver was killed in the middle of it, or is writing it now
        return [record for record in found if record["kind"] in kinds]

    def strikes(self) -> None:
        """Take note that an accident happens now."""
        self.struck_at = time.time()

    def parts(self) -> str:
        """Return how long each part of a recovery took, in seconds, from the accident to the first step."""
        parts, before = [], self.struck_at
        for name, kind in (("lost", "restart"), ("workers", "workers"), ("load", "resumed"), ("step", "step")):
            times = [record["time"] for record in self.records(kind) if record["time"] > before]
            if not times:
                continue  # a driver that was killed or asked to stop: no loss for its next one to know of
            parts.append(f"{name} {times[0] - before:.1f}")
            before = times[0]
        return ", ".join(parts)

    def last_step(self) -> int:
        """Return the last step recorded."""
        return max((record["step"] for record in self.records("step")), default=0)

    def wait(self, condition: Callable[[], bool], what: str, *, seconds: float = 400.0) -> None:
        """Wait for something, or fail with the log if the driver ends before."""

        def holds() -> bool:
            if condition():
                return True
            assert self.driver.poll() is None, f"ended before {what}:\n{self.driver.communicate()[0][-5000:]}"
            return False

        wait_until(holds, timeout_seconds=seconds, what=what)

    def wait_for_steps(self, num_more: int) -> None:
        """Wait until so many more steps are recorded, and a checkpoint is committed."""
        wanted = self.last_step() + num_more
        self.wait(lambda: self.last_step() >= wanted, f"step {wanted}")
        self.wait(lambda: bool(committed_steps(self.output)), "a checkpoint")

    def wait_for_upload(self) -> None:
        """Wait until a checkpoint's folder is there that is not committed yet."""
        folder = self.output / "checkpoints"

        def is_uploading() -> bool:
            written = {int(found.name.split("-")[1]) for found in folder.glob("step-*")}
            return bool(written - set(committed_steps(self.output)))

        self.wait(is_uploading, "a checkpoint on its way")

    @contextmanager
    def refused(self, name: str) -> Iterator[None]:
        """Let the file system refuse to write a file of the run, or anything new in a folder of it."""
        # What root may do whatever the permissions say, it may not where nothing can be changed.
        command, refuse, allow = ("chattr", "+i", "-i") if os.geteuid() == 0 else ("chmod", "a-w", "u+w")
        subprocess.run([command, refuse, str(self.output / name)], check=True)
        try:
            yield
        finally:
            subprocess.run([command, allow, str(self.output / name)], check=True)

    def damage_newest(self, damage: Callable[[bytes], bytes]) -> str:
        """Change a file of the newest committed checkpoint."""
        step = max(committed_steps(self.output))
        folder = next((self.output / "checkpoints").glob(f"step-{step:08d}-*"))
        file = max(folder.rglob("*.pt"), key=lambda path: (path.stat().st_size, path.name))
        file.write_bytes(damage(file.read_bytes()))
        return f"of step {step}"
