"""Kills a replica of `pairwright serve --replicas 2` with SIGKILL again and again under load; counts lost requests.

Half of the clients are ours, half do what OpenRLHF's does (0.11): one POST, five tries one second apart, then no
reward. A request is lost where a client ends without rewards. Printed after each kill: seconds until answers come at
90 % of the rate before, over a second.

    python benchmarks/kill_replicas.py --kills 20 --output benchmarks/results/kill_replicas_2cpu_DATE.md
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
from serve_vs_peers import WORDS, make_model

from pairwright.errors import RewardError
from pairwright.rl import RewardClient

PROMPT, COMPLETIONS = " ".join(WORDS * 4), [" ".join(WORDS[start:]) for start in range(4)]
TRIES = 5
FULL_SHARE = 0.9
LONGEST_SECONDS = 90.0


@dataclass(slots=True)
class Answers:
    """What clients of one kind got."""

    times: list[float] = field(default_factory=list)
    num_lost: int = 0

    def rate(self, since: float, until: float) -> float:
        """Return answers a second."""
        return sum(since <= when < until for when in self.times[-20000:]) / max(until - since, 1e-3)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--clients", type=int, default=4, help="of each kind")
    parser.add_argument("--output", help="file for the results, Markdown")
    arguments = parser.parse_args()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(Path(folder), [" ".join(WORDS)] * 50)
        command = [sys.executable, "-m", "pairwright", "serve", str(model), "--replicas", "2", "--port", str(port)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            assert process.stdout is not None
            assert "replicas" in process.stdout.readline(), "the server did not start"
            try:
                text = measure(f"http://127.0.0.1:{port}", psutil.Process(process.pid), arguments)
            finally:
                process.send_signal(signal.SIGTERM)
                process.wait(90)
    print(text)
    if arguments.output:
        Path(arguments.output).write_text(text)


def measure(url: str, server: psutil.Process, arguments: argparse.Namespace) -> str:
    """Return the results as Markdown."""
    stop, ours, theirs = threading.Event(), Answers(), Answers()
    client = RewardClient(url, deadline_seconds=300)
    threads = [
        threading.Thread(target=_ask, args=(stop, kept, ask), daemon=True)
        for kept, ask in ((ours, lambda: client.rewards(PROMPT, COMPLETIONS)), (theirs, lambda: _as_openrlhf(url)))
        for _ in range(arguments.clients)
    ]
    for thread in threads:
        thread.start()
    time.sleep(5)
    seconds = []
    for number in range(arguments.kills):
        now = time.monotonic()
        before = sum(kept.rate(now - 3, now) for kept in (ours, theirs))
        _replicas_of(server)[number % 2].send_signal(signal.SIGKILL)
        seconds.append(_until_full((ours, theirs), before))
        print(f"kill {number + 1}: {before:.1f} answers/s before, full after {seconds[-1]:.1f} s", flush=True)
        _wait_for(lambda: len(_replicas_of(server)) == 2)
        time.sleep(3)
    stop.set()
    for thread in threads:
        thread.join(320)
    shown = " ".join(Path(part).name if part.startswith("/") else part for part in sys.argv)
    rows = [
        f"| {name} | {len(kept.times)} | {kept.num_lost} |" for name, kept in (("ours", ours), ("OpenRLHF's", theirs))
    ]
    return "\n".join(
        [
            f"# Replicas killed under load\n\n`python {shown}`\n",
            f"{arguments.kills} kills (SIGKILL), 2 replicas, {arguments.clients} clients of each kind, "
            f"{os.cpu_count()} CPUs, load average {os.getloadavg()[0]:.1f}.\n",
            "| client | requests answered | requests lost |\n|---|---|---|",
            *rows,
            f"\nSeconds to {100 * FULL_SHARE:.0f} % of the rate before: median {np.median(seconds):.1f}, "
            f"longest {max(seconds):.1f}.\n",
        ]
    )


def _ask(stop: threading.Event, kept: Answers, ask: Callable[[], list[float] | None]) -> None:
    while not stop.is_set():
        try:
            rewards = ask()
        except RewardError:
            rewards = None
        if rewards is None:
            kept.num_lost += 1
        else:
            kept.times.append(time.monotonic())


def _as_openrlhf(url: str) -> list[float] | None:
    body = json.dumps({"query": [f"{PROMPT}\n\n{COMPLETIONS[0]}"], "prompts": [PROMPT], "labels": [""]}).encode()
    request = urllib.request.Request(f"{url}/get_reward", body, {"Content-Type": "application/json"})
    for _ in range(TRIES):
        try:
            with urllib.request.urlopen(request, timeout=180) as reply:
                return json.loads(reply.read())["rewards"]
        except (OSError, ValueError, KeyError):  # of which urllib's errors are
            time.sleep(1)
    return None


def _until_full(kinds: tuple[Answers, ...], before: float) -> float:
    killed = time.monotonic()
    while (now := time.monotonic()) - killed < LONGEST_SECONDS:
        since = max(killed, now - 1)
        if now - killed >= 1 and sum(kept.rate(since, now) for kept in kinds) >= FULL_SHARE * before:
            return since - killed
        time.sleep(0.1)
    return LONGEST_SECONDS


def _wait_for(is_done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONGEST_SECONDS
    while not is_done() and time.monotonic() < deadline:
        time.sleep(0.2)


def _replicas_of(server: psutil.Process) -> list[psutil.Process]:
    found = []
    for process in server.children(recursive=True):
        try:
            if any("ServeReplica" in word for word in process.cmdline()):
                found.append(process)
        except psutil.Error:
            pass
    return found


if __name__ == "__main__":
    main()
