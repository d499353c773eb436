"""Several replicas behind one address: a killed one loses no request of our client."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from pydantic import ValidationError

from exported_models import export_small_model, plain_rewards
from pairwright.cluster.models.serve_config import ServeArguments, build
from pairwright.cluster.models.serve_replicas import ReplicaSettings
from pairwright.errors import ConfigError
from pairwright.rl import RewardClient
from pairwright.serving.serving_metrics import ServingMetrics, by_replica
from reward_servers import asked, free_port
from training_runs import wait_until

PROMPT, TEXTS = "Why is the sky blue?", ["Because of scattering.", "It is not; it is green."]
JOBS = Path(__file__).parents[2] / "jobs"
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


def wait_until_there(url: str) -> int:
    """Wait for Ray Serve's proxy, and return its first status: 404 where the application is not there yet."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            return asked(f"{url}/health")[0]
        time.sleep(0.1)
    raise AssertionError("the proxy did not start")


@pytest.mark.slow
@pytest.mark.ray
def test_a_serve_config_file_serves_every_replica_s_metrics_at_one_address(tmp_path: Path) -> None:
    """The project's own jobs/serve.yaml, as `serve deploy` reads it, but for the model, the token and the port."""
    model, port = export_small_model(tmp_path), free_port()
    config = yaml.safe_load((JOBS / "serve.yaml").read_text())
    config["http_options"]["port"] = port
    application = config["applications"][0]
    application["args"]["models"] = [str(model)]
    del application["args"]["no_auth"]
    application["runtime_env"] = {"env_vars": {"PAIRWRIGHT_TOKEN": TOKEN}}
    file = tmp_path / "serve.yaml"
    file.write_text(yaml.safe_dump(config))
    command = [str(Path(sys.executable).with_name("serve")), "run", "--address", "local", str(file)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            assert wait_until_there(url) == 404, "the proxy is there before the application"
            client = RewardClient(url, TOKEN, deadline_seconds=240)
            body = {"prompt": PROMPT, "completions": TEXTS}
            expected = plain_rewards(model, [{"role": "user", "content": PROMPT}], TEXTS)
            for _ in range(20):
                assert client.rewards(PROMPT, TEXTS) == pytest.approx(expected, abs=2e-6)
            assert asked(f"{url}/v1/rewards", body)[0] == 401
            bearer = {"Authorization": f"Bearer {TOKEN}"}
            replicas: list[str] = []

            def are_both_there() -> bool:
                replicas[:] = asked(f"{url}/v1/models", **bearer)[1]["replicas"]
                return len(replicas) == 2

            wait_until(are_both_there, timeout_seconds=120, what="the second replica, which may start later")
            _, text = asked(f"{url}/metrics", **bearer)
            families = {family.name: family.samples for family in text_string_to_metric_families(text)}
            counted = {sample.labels["replica"]: sample.value for sample in families["pairwright_texts"][:2]}
            assert sorted(counted) == replicas
            assert sum(counted.values()) == 40
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)


def test_the_metrics_of_replicas_are_one_text_that_prometheus_reads() -> None:
    one, other = ServingMetrics(), ServingMetrics()
    one.count_request("/v1/rewards", 200, 0.5)
    other.count_request("/v1/rewards", 200, 0.5)
    other.count_request("/classify", 422, 0.5)
    text = by_replica({"a": one.text().decode(), "b": other.text().decode()}).decode()
    families = list(text_string_to_metric_families(text))
    assert len({family.name for family in families}) == len(families)
    found = {
        (sample.labels["replica"], sample.labels["path"], sample.labels["status"]): sample.value
        for family in families
        for sample in family.samples
        if sample.name == "pairwright_requests_total"
    }
    assert found == {
        ("a", "/v1/rewards", "200"): 1,
        ("b", "/v1/rewards", "200"): 1,
        ("b", "/classify", "422"): 1,
    }


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"models": ["model"], "replicas": "0", "no_auth": True}, "expected N or LEAST:MOST"),
        ({"models": ["model"]}, "no token"),
        ({"models": ["model"], "token": "x"}, "Extra inputs"),
        ({"models": []}, "at least 1 item"),
    ],
)
def test_a_serve_config_file_that_cannot_be_used_is_refused(
    monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], reason: str
) -> None:
    monkeypatch.delenv("PAIRWRIGHT_TOKEN", raising=False)
    with pytest.raises((ConfigError, ValidationError), match=reason):
        build(ServeArguments(**arguments))


@pytest.mark.parametrize("text", ["", "0", "3:2", "two", "1:", "-1"])
def test_a_number_of_replicas_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected N or LEAST:MOST"):
        ReplicaSettings.counts(text)
