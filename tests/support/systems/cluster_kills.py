"""A real cluster of a head without CPUs and one node, whose parts are killed with ``kill -9`` while a command works.

A part is the command's driver, a process of the stage at work, the node with all that runs there, or the dashboard. A
node is replaced after some seconds, as an autoscaler would do, and so is the dashboard.
"""

import random
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from killed_commands import Command, session_members
from ray_head import RayHead, ray_head

PARTS = ("driver", "stage", "node", "dashboard")
REPLACEMENT_SECONDS = (1.0, 15.0)
_OF_RAY = ("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent")


class KilledCluster:
    """The running cluster."""

    def __init__(self, head: RayHead, folder: Path, rng: random.Random) -> None:
        self.environment = {"RAY_ADDRESS": head.gcs_address, "RAY_AUTH_MODE": "token"}
        self._head, self._log, self._rng = head, folder / "node.log", rng
        self._node = self._started_node()

    def kill(self, part: str, command: Command) -> bool:
        """Kill one part; return whether it was there: a stage that works in the driver has no process of its own."""
        if part == "driver":
            command.kill_driver()
        elif part == "stage":
            return self._kill_stage()
        elif part == "node":
            self.end_node()
            self._wait()
            self._node = self._started_node()
        else:
            with self._head.without_dashboard():
                self._wait()
        return True

    def end_node(self) -> None:
        """Kill everything that runs on the node."""
        while members := session_members(self._node.pid):
            for member in members:
                with suppress(psutil.NoSuchProcess):
                    member.kill()
            psutil.wait_procs(members, timeout=5)
        self._node.wait()

    def _kill_stage(self) -> bool:
        found = []
        for member in session_members(self._node.pid):
            with suppress(psutil.NoSuchProcess):
                title = " ".join(member.cmdline()[:1])
                if title.startswith("ray::") and not title.startswith(_OF_RAY):
                    found.append(member)
        if not found:
            return False
        with suppress(psutil.NoSuchProcess):
            self._rng.choice(found).kill()
        return True

    def _wait(self) -> None:
        time.sleep(self._rng.uniform(*REPLACEMENT_SECONDS))

    def _started_node(self) -> subprocess.Popen[bytes]:
        return self._head.start_node(2, self._log)


@contextmanager
def killed_cluster(folder: Path, rng: random.Random) -> Iterator[KilledCluster]:
    """Start the cluster, and end it with all that it started."""
    with ray_head(folder, num_cpus=0) as head:
        cluster = KilledCluster(head, folder, rng)
        try:
            head.wait_for_nodes(2)
            yield cluster
        finally:
            cluster.end_node()
