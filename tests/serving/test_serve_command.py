"""The verb `serve` as a process: it starts without Ray, says where it listens, and ends when it is told to."""

import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from exported_models import export_small_model
from reward_servers import asked

GOOD = {"prompt": "Why is the sky blue?", "completions": ["Because of scattering.", "It is not."]}
RUN = [sys.executable, "-m", "pairwright"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_small_model(tmp_path_factory.mktemp("command"))


@contextmanager
def serving(*arguments: str) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """Yield the process of `pairwright serve`, and its address once it has printed it."""
    command = [*RUN, "serve", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert "http://" in line, line
            yield process, line.split()[-1]
        finally:
            process.kill()


def test_it_starts_without_ray_and_ends_at_sigterm_with_every_accepted_request_answered(model: Path) -> None:
    with serving(str(model), "--port", "0", "--max-wait-ms", "800") as (process, url):
        assert asked(f"{url}/health")[0] == 200
        loaded = Path(f"/proc/{process.pid}/maps").read_text()
        assert "libtorch_cpu" in loaded
        assert "_raylet" not in loaded
        replies = []
        asking = threading.Thread(target=lambda: replies.append(asked(f"{url}/v1/rewards", GOOD)))
        asking.start()
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        asking.join(20)
        assert replies[0][0] == 200
        assert process.wait(20) == 0
        with pytest.raises(OSError):  # noqa: PT011 - refused, however urllib words it
            urllib.request.urlopen(f"{url}/health", timeout=5)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["{model}", "--host", "0.0.0.0"], "can be reached from other machines"),
        (["{model}", "--port", "{taken}"], "cannot listen on 127.0.0.1 port"),
        (["{model}", "--token-file", "{model}/none"], "cannot be read"),
        (["{model}", "--port", "0", "--micro-batch-tokens", "64"], "raise it to at least 128"),
        (["{model}", "--port", "0", "--combine", "max"], "expected mean, min or mean-std:LAMBDA"),
        (["{model}", "{model}", "--port", "0"], "name each model once"),
        (["{model}", "--port", "0", "--normalized"], "pairwright normalize"),
        (["{model}-none", "--port", "0"], "no such model directory"),
    ],
)
@pytest.mark.parametrize("status", [1])
def test_what_cannot_be_served_ends_in_one_message(
    model: Path,
    arguments: list[str],
    named: str,
    status: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from pairwright.cli.main import main

    monkeypatch.delenv("PAIRWRIGHT_TOKEN", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        fields = {"model": model, "taken": taken.getsockname()[1]}
        monkeypatch.setattr(sys, "argv", ["pairwright", "serve", *(text.format(**fields) for text in arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
    message = capsys.readouterr().err
    assert (ended.value.code, named in message, "Traceback" in message) == (status, True, False), message
