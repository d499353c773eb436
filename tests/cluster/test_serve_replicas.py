"""Several replicas behind one address: a killed one loses no request of our client."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from exported_models import export_small_model, plain_rewards
from pairwright.cluster.models.serve_replicas import ReplicaSettings
from pairwright.errors import ConfigError
from pairwright.rl import RewardClient
from reward_servers import asked, free_port

PROMPT, TEXTS = "Why is the sky blue?", ["Because of scattering.", "It is not; it is green."]
TOKEN = "a-token-of-more-than-16-characters"


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, psutil.Process, str]]:
    """Yield a model, the process that serves it in two replicas, and its address."""
    model = export_small_model(tmp_path)
    port = free_port()
    command = [sys.executable, "-m", "pairwright", "serve", str(model), "--replicas", "2", "--port", str(port)]
    environment = os.environ | {"PAIRWRIGHT_TOKEN": TOKEN}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert "in 2 replicas" in process.stdout.readline()
        yield model, psutil.Process(process.pid), f"http://127.0.0.1:{port}"
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def replicas_of(server: psutil.Process) -> list[psutil.Process]:
    """Return the processes of the replicas, among those that the server started."""
    found = []
    for process in server.children(recursive=True):
        try:
            if any("ServeReplica" in word for word in process.cmdline()):
                found.append(process)
        except psutil.Error:
            pass
    return found


@pytest.mark.slow
@pytest.mark.ray
def test_a_replica_that_is_killed_under_load_loses_no_request(served: tuple[Path, psutil.Process, str]) -> None:
    model, server, url = served
    assert asked(f"{url}/v1/rewards", {"prompt": PROMPT, "completions": TEXTS})[0] == 401
    expected = plain_rewards(model, [{"role": "user", "content": PROMPT}], TEXTS)
    client = RewardClient(url, TOKEN, deadline_seconds=120)
    answers: list[list[float]] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            answers.append(client.rewards(PROMPT, TEXTS))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(3):
        time.sleep(3)
        killed = replicas_of(server)[0]
        killed.send_signal(signal.SIGKILL)
        before = len(answers)
        deadline = time.monotonic() + 60
        while len(answers) < before + 20 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert len(answers) >= before + 20
    stop.set()
    for thread in threads:
        thread.join(150)
    assert not any(thread.is_alive() for thread in threads)
    assert all(answer == pytest.approx(expected, abs=2e-6) for answer in answers)


@pytest.mark.parametrize("text", ["", "0", "3:2", "two", "1:", "-1"])
def test_a_number_of_replicas_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected N or LEAST:MOST"):
        ReplicaSettings.counts(text)
