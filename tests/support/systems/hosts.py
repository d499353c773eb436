"""Several hosts on one machine: network namespaces with their own addresses on one bridge, and a Ray node in each.

What is in a namespace is reached from the others alone, not from outside. Each host has a folder of its own for its
cache and for Ray. It takes root and iproute2; `why_not` says what is missing.
"""

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

GCS_PORT = 6379
START_TIMEOUT_SECONDS = 300.0
NODE_DEATH_SECONDS = 10
"""After which Ray gives up a silent node, by the settings below; a minute by default."""
_KEEPALIVE = {"RAY_grpc_client_keepalive_time_ms": "20000", "RAY_grpc_client_keepalive_timeout_ms": "40000"}
"""As in ``cluster.yaml``, on every node: a task on a silent node is given up after a minute, and not after seven."""
_HEALTH_CHECKS = {
    "RAY_health_check_initial_delay_ms": "5000",
    "RAY_health_check_period_ms": "2000",
    "RAY_health_check_timeout_ms": "4000",
    "RAY_health_check_failure_threshold": "2",
}


def why_not() -> str | None:
    """Return why hosts cannot be made here, or None."""
    name = f"pw{os.getpid()}"
    try:
        made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "iproute2 is not installed"
    if made.returncode:
        return f"network namespaces cannot be made: {made.stderr.strip()}"
    _ip("netns", "del", name)
    return None


class Host:
    """A namespace with an address, and what runs there."""

    def __init__(self, folder: Path, name: str, number: int) -> None:
        self.name = name
        self.address = f"10.77.0.{number}"
        self.cache = folder / name / "cache"
        self._port = f"v{name}"
        # A short path: Ray's sockets lie below it, and theirs may have 107 characters.
        self._ray_folder = Path(tempfile.mkdtemp(prefix="pw"))
        self._processes: list[subprocess.Popen[str]] = []
        self._ray: list[subprocess.Popen[str]] = []
        self.environment: dict[str, str] = {}
        (folder / name).mkdir()

    def popen(self, *command: str | Path, **environment: str) -> subprocess.Popen[str]:
        """Start a command on this host; it ends with the host."""
        process = subprocess.Popen(
            ["ip", "netns", "exec", self.name, *command],
            env=self.environment | {"XDG_CACHE_HOME": str(self.cache)} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._processes.append(process)
        return process

    def start_ray(self, *options: str) -> subprocess.Popen[str]:
        """Start a Ray node here."""
        log = (self._ray_folder / "start.log").open("a")
        command = ["ip", "netns", "exec", self.name, str(Path(sys.executable).with_name("ray")), "start", "--block"]
        command += [f"--node-ip-address={self.address}", f"--temp-dir={self._ray_folder}"]
        process = subprocess.Popen(
            [*command, "--object-store-memory=200000000", *options],
            env=self.environment | {"XDG_CACHE_HOME": str(self.cache)},
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._processes.append(process)
        self._ray.append(process)
        return process

    def terminate_ray(self) -> None:
        """Send SIGTERM to `ray start --block`, as Kubernetes does to a pod's first process."""
        self._ray[-1].terminate()

    def cut_off(self) -> None:
        """Drop every packet from and to this host; nothing is killed, and no connection is told."""
        subprocess.run(["bridge", "link", "set", "dev", self._port, "state", "0"], check=True)

    def reconnect(self) -> None:
        """Let packets pass again."""
        subprocess.run(["bridge", "link", "set", "dev", self._port, "state", "3"], check=True)

    def slow_down(self, megabits: int) -> None:
        """Let so many megabits a second leave this host."""
        rate = ["tbf", "rate", f"{megabits}mbit", "burst", "64kbit", "latency", "400ms"]
        _ip("netns", "exec", self.name, "tc", "qdisc", "replace", "dev", "eth0", "root", *rate)

    def full_speed(self) -> None:
        """Take the limit away."""
        _ip("netns", "exec", self.name, "tc", "qdisc", "del", "dev", "eth0", "root")

    def join(self, bridge: str) -> None:
        """Make the namespace and connect it."""
        _ip("netns", "add", self.name)
        _ip("link", "add", self._port, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        _ip("link", "set", self._port, "master", bridge, "up")
        _ip("-n", self.name, "addr", "add", f"{self.address}/24", "dev", "eth0")
        for device in ("eth0", "lo"):
            _ip("-n", self.name, "link", "set", device, "up")

    def process_titles(self) -> list[str]:
        """Return what each process here calls itself: Ray's workers have the name of their task."""
        titles = []
        for process in self._living():
            with suppress(psutil.NoSuchProcess):
                titles.append(" ".join(process.cmdline()[:1]))
        return titles

    def end_processes(self) -> None:
        """Kill everything in this namespace, where nothing else is than what was started here."""
        for process in self._living():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        for process in self._processes:
            process.wait(30)
        self._processes.clear()

    def _living(self) -> list[psutil.Process]:
        """Return the processes in this namespace, those among them whose parent has ended."""
        listed = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True, check=True)
        found = []
        for pid in listed.stdout.split():
            with suppress(psutil.NoSuchProcess):
                found.append(psutil.Process(int(pid)))
        return found

    def leave(self) -> None:
        """End what runs here, and the namespace."""
        self.end_processes()
        shutil.rmtree(self._ray_folder, ignore_errors=True)
        _ip("netns", "del", self.name)


@contextmanager
def hosts(folder: Path, *names: str) -> Iterator[list[Host]]:
    """Yield connected hosts; the first has an empty S3 bucket `bucket` and Ray's head, without CPUs."""
    bridge = f"pwbr{os.getpid() % 100000}"
    made = [Host(folder, f"pw{os.getpid() % 100000}{name}", number) for number, name in enumerate(names, start=1)]
    joined: list[Host] = []
    _ip("link", "add", bridge, "type", "bridge")
    try:
        _ip("link", "set", bridge, "up")
        for host in made:
            joined.append(host)
            host.join(bridge)
        shared = _environment(made[0].address)
        for host in made:
            host.environment = shared
        _start_s3(made)
        made[0].start_ray("--head", f"--port={GCS_PORT}", "--num-cpus=0", "--include-dashboard=false")
        yield made
    finally:
        for host in joined:
            with suppress(subprocess.CalledProcessError):
                host.leave()
        _ip("link", "del", bridge)


def _environment(head: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "AWS_"))}
    return (
        kept
        | _HEALTH_CHECKS
        | _KEEPALIVE
        | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_ADDRESS": f"{head}:{GCS_PORT}",
            "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",
            "RAY_raylet_start_wait_time_s": "240",
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "20",
            # All hosts have this machine's name, by which gloo would look for its address.
            "GLOO_SOCKET_IFNAME": "eth0",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
        }
    )


def _start_s3(made: list[Host]) -> None:
    head = made[0]
    server = head.popen(sys.executable, Path(__file__).with_name("s3_server.py"), head.address)
    assert server.stdout is not None
    url = f"http://{head.address}:{server.stdout.readline().strip()}"
    for host in made:
        host.environment = host.environment | {"AWS_ENDPOINT_URL": url}
    program = f"import boto3; boto3.client('s3', endpoint_url='{url}').create_bucket(Bucket='bucket')"
    made_bucket = head.popen(sys.executable, "-c", program, AWS_DEFAULT_REGION="us-east-1")
    output, _ = made_bucket.communicate(timeout=START_TIMEOUT_SECONDS)
    assert made_bucket.returncode == 0, output


def wait_for_nodes(head: Host, num_nodes: int) -> None:
    """Wait until so many nodes are alive, the head's among them."""
    program = (
        "import logging, ray; ray.init(logging_level=logging.ERROR, log_to_driver=False); "
        "print(sum(node['Alive'] for node in ray.nodes()))"
    )
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while True:
        asked = head.popen(sys.executable, "-c", program)
        output, _ = asked.communicate(timeout=START_TIMEOUT_SECONDS)
        if output.strip().endswith(str(num_nodes)):
            return
        assert time.monotonic() < deadline, output
        time.sleep(1)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
