"""Measures groups of completions scored a second, and latency: `pairwright serve` beside two servers of others.

One model of 4 layers x 256, the same rendered texts by OpenRLHF's `/get_reward`, the same cores, one server at a time,
in rounds, so that a change of the machine's load meets all. Prompts of 512 tokens, completions of 64 to 128, from real
rankings if a file is named. Each row is written to the output as it is measured. Ten minutes on two quiet cores.

    pip download --no-deps openrlhf
    python benchmarks/serve_vs_peers.py --wheel openrlhf-*.whl --rankings rankings_dev.jsonl.zst \
        --output benchmarks/results/serve_vs_peers_2cpu_DATE.md
"""

import argparse
import asyncio
import itertools
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import psutil
import torch
import transformers
from reward_groups import rankings
from transformers import AutoTokenizer

from pairwright.config import TokensConfig
from pairwright.data.tokens.chat_template import resolve_template
from pairwright.data.tokens.tokenizer import load_tokenizer
from pairwright.model.load_model import load_reward_model
from pairwright.model.model_export import choose_pad_token, save_reward_model
from pairwright.model.tiny_models import new_tiny_model

WORDS = ("deck", "grow", "shrink", "whale", "captain", "bend", "bread", "lucid", "warm", "hollow", "and", "a", "the")
OURS, PLAIN, OPENRLHF = "pairwright", "plain", "openrlhf"
NUM_GROUPS, NUM_RECORDS = 40, 300
SHARES = (0.3, 0.6, 0.9, 2.0)
MAX_QUEUE = 512
"""Of our server: small enough that twice the load fills it within a measurement."""


@dataclass(slots=True)
class Load:
    """What clients saw."""

    seconds: list[float] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    ended: float = 0.0
    """Of the last answer, from the start."""

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.seconds) / self.ended if self.ended else 0.0


def main() -> None:
    arguments = _arguments()
    peers = (OURS, PLAIN, OPENRLHF) if arguments.wheel else (OURS, PLAIN)
    with tempfile.TemporaryDirectory() as folder:
        source = _source(arguments.rankings)
        model = make_model(Path(folder), source)
        texts = Texts(model, source, arguments)
        report = Report(arguments, texts.description)
        report.add(f"- Largest difference of a reward from ours: {_differences(peers, model, texts, arguments)}.\n")
        report.add(f"| what | {' | '.join(f'{p}, groups/s' for p in peers)} | times the best | tokens a request |")
        report.add("|---" * (len(peers) + 3) + "|")
        rate_of_8 = 0.0
        for number in arguments.completions:
            rates = _rates(peers, model, texts.groups(number), arguments)
            report.add(_row(number, rates, texts))
            rate_of_8 = float(np.mean(rates[OURS].rates)) if number == 8 or not rate_of_8 else rate_of_8
        report.add("\n| load on ours, 8 completions | groups/s asked | statuses | p50, p95, p99 (s) | memory, MB |")
        report.add("|---|---|---|---|---|")
        for share in SHARES:
            report.add(_latency_row(share, rate_of_8, model, texts, arguments))
        report.add(f"\nLoad average at the end {os.getloadavg()[0]:.1f}.")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--wheel", help="OpenRLHF's wheel; its server is left out if not given")
    parser.add_argument("--rankings", help="real rankings (.jsonl.zst) to take texts from; else words at random")
    parser.add_argument("--output", help="file for the results, Markdown")
    parser.add_argument("--seconds", type=float, default=9, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--completions", type=int, nargs="+", default=[1, 4, 8, 16, 64])
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--completion-tokens", type=int, default=128)
    return parser.parse_args()


# ------------------------------------------------------------------------------------------------ model and texts


def _source(path: str | None) -> list[str]:
    """Return texts to take prompts and completions from."""
    if path is None:
        rng = np.random.default_rng(0)
        return [" ".join(rng.choice(WORDS, 300)) for _ in range(NUM_RECORDS)]
    records = itertools.islice(rankings(Path(path)), NUM_RECORDS)
    return [text for r in records for text in (r["instruction"], *(answer["text"] for answer in r["answers"])) if text]


def make_model(folder: Path, source: Sequence[str]) -> Path:
    """Return an export of a random model of 4 layers x 256."""
    base = new_tiny_model(
        folder / "base",
        architecture="llama",
        texts=source,
        vocab_size=4000,
        hidden_size=256,
        num_layers=4,
        num_heads=4,
        max_positions=2048,
        seed=1,
        chat_template=None,
    )
    tokens = TokensConfig(max_length=1024, special_in_text="keep")
    tokenizer = load_tokenizer(str(base))
    model = load_reward_model(
        str(base),
        dtype=torch.float32,
        seed=2,
        dropout=False,
        gradient_checkpointing=False,
        pad_token_id=choose_pad_token(tokenizer),
        vocab_size=len(tokenizer),
        cpu_kernels=True,
    )
    template = resolve_template(tokenizer, tokens)
    where = folder / "model"
    state = model.state_dict()
    save_reward_model(state, model, tokenizer, where, chat_template=template, dtype=torch.float32, tokens=tokens)
    return where


class Texts:
    """Rendered texts of groups, of the lengths asked for."""

    def __init__(self, model: Path, source: Sequence[str], arguments: argparse.Namespace) -> None:
        self._tokenizer: Any = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
        encoded = self._tokenizer(list(source), add_special_tokens=False, verbose=False)["input_ids"]
        self._ids = [token for ids in encoded for token in ids]
        self._prompt, self._completion = arguments.prompt_tokens, arguments.completion_tokens
        where = Path(arguments.rankings).name if arguments.rankings else "random words"
        self.description = f"Texts of {where}: prompts of {self._prompt} tokens, completions of half of to all of "
        self.description += f"{self._completion}."

    def groups(self, number: int) -> list[list[str]]:
        """Return groups of one prompt with so many completions each."""
        rng = np.random.default_rng(number)
        return [self._group(rng, number) for _ in range(NUM_GROUPS)]

    def _group(self, rng: np.random.Generator, number: int) -> list[str]:
        prompt = {"role": "user", "content": self._words(rng, self._prompt)}
        lengths = rng.integers(self._completion // 2, self._completion + 1, number)
        replies = [{"role": "assistant", "content": self._words(rng, length)} for length in lengths]
        return [self._tokenizer.apply_chat_template([prompt, reply], tokenize=False) for reply in replies]

    def _words(self, rng: np.random.Generator, length: int) -> str:
        start = int(rng.integers(0, len(self._ids) - length))
        return self._tokenizer.decode(self._ids[start : start + length])

    def padded_tokens(self, number: int) -> float:
        """Return the tokens of a request as a padded server computes them, all its texts in one batch."""
        groups = self.groups(number)
        lengths = [[len(ids) for ids in self._tokenizer(group)["input_ids"]] for group in groups]
        return float(np.mean([len(row) * max(row) for row in lengths]))


# ----------------------------------------------------------------------------------------------------- servers


@contextmanager
def _running(peer: str, model: Path, arguments: argparse.Namespace) -> Iterator[tuple[str, psutil.Process]]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    if peer == OURS:
        command = ["-m", "pairwright", "serve", str(model), "--port", str(port), "--max-queue", str(MAX_QUEUE)]
        if max(arguments.completions) * arguments.clients > MAX_QUEUE:
            command[-1] = str(max(arguments.completions) * arguments.clients)
    else:
        wheel = ["--wheel", arguments.wheel] if peer == OPENRLHF else []
        command = [str(Path(__file__).with_name("serving_peers.py")), peer, str(model), str(port), *wheel]
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            _wait_until_open(port, process)
            yield url, psutil.Process(process.pid)
        finally:
            process.kill()


def _wait_until_open(port: int, process: subprocess.Popen[bytes]) -> None:
    """Wait for an answer of any status: our socket listens while the model is still being loaded."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=60).close()
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise SystemExit(f"a server did not start: {process.args}")


# -------------------------------------------------------------------------------------------------- measurements


async def _post(session: aiohttp.ClientSession, url: str, texts: Sequence[str]) -> tuple[int, Any]:
    async with session.post(f"{url}/get_reward", json={"query": texts}) as reply:
        return reply.status, await reply.json()


def _differences(peers: Sequence[str], model: Path, texts: Texts, arguments: argparse.Namespace) -> str:
    groups, rewards = texts.groups(4)[:5], {}
    for peer in peers:
        with _running(peer, model, arguments) as (url, _):

            async def ask(url: str = url) -> list[float]:
                async with aiohttp.ClientSession() as session:
                    return [reward for group in groups for reward in (await _post(session, url, group))[1]["rewards"]]

            rewards[peer] = np.array(asyncio.run(ask()))
    return ", ".join(f"{peer} {np.abs(rewards[peer] - rewards[OURS]).max():.1e}" for peer in peers[1:])


async def _closed_loop(url: str, groups: Sequence[Sequence[str]], clients: int, seconds: float) -> Load:
    """Return what so many clients saw that each send the next request when the last is answered."""
    found, upcoming = Load(), itertools.cycle(groups)
    started = time.monotonic()

    async def client(session: aiohttp.ClientSession) -> None:
        while True:
            begun = time.monotonic()
            status, _ = await _post(session, url, next(upcoming))
            assert status == 200, status
            found.seconds.append(time.monotonic() - begun)
            found.ended = time.monotonic() - started

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(None)) as session:
        tasks = [asyncio.create_task(client(session)) for _ in range(clients)]
        await asyncio.sleep(seconds)
        while not found.seconds:
            await asyncio.sleep(0.1)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return found


async def _open_loop(
    url: str, groups: Sequence[Sequence[str]], rate: float, seconds: float, sample: Callable[[], None]
) -> Load:
    """Return what clients saw that send so many requests a second at random times, whether or not any is answered."""
    found, rng, started = Load(), np.random.default_rng(0), time.monotonic()

    async def one(session: aiohttp.ClientSession, texts: Sequence[str]) -> None:
        begun = time.monotonic()
        status, _ = await _post(session, url, texts)
        found.statuses.append(status)
        if status == 200:
            found.seconds.append(time.monotonic() - begun)

    tasks = []
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(None)) as session:
        for texts in itertools.cycle(groups):
            if time.monotonic() - started > seconds:
                break
            tasks.append(asyncio.create_task(one(session, texts)))
            sample()
            await asyncio.sleep(rng.exponential(1 / rate))
        await asyncio.gather(*tasks)
    return found


@dataclass(slots=True)
class Rates:
    """Of one server, in each round."""

    rates: list[float] = field(default_factory=list)
    tokens: float | None = None
    """Computed for a request."""


def _rates(
    peers: Sequence[str], model: Path, groups: Sequence[Sequence[str]], arguments: argparse.Namespace
) -> dict[str, Rates]:
    found = {peer: Rates() for peer in peers}
    for _ in range(arguments.rounds):
        for peer in peers:
            # Started anew: a server that does not notice that clients went away would go on with the last case.
            with _running(peer, model, arguments) as (url, _process):
                load = asyncio.run(_closed_loop(url, groups, arguments.clients, arguments.seconds))
                found[peer].rates.append(load.rate)
                if peer == OURS:
                    found[peer].tokens = asyncio.run(_computed_tokens(url)) / len(load.seconds)
    return found


async def _computed_tokens(url: str) -> float:
    async with aiohttp.ClientSession() as session, session.get(f"{url}/metrics") as reply:
        lines = (await reply.text()).splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("pairwright_tokens_computed_total "))


def _row(number: int, rates: dict[str, Rates], texts: Texts) -> str:
    cells = [f"{np.mean(r.rates):.2f} ({', '.join(f'{rate:.2f}' for rate in r.rates)})" for r in rates.values()]
    best = max(float(np.mean(r.rates)) for peer, r in rates.items() if peer != OURS)
    times = f"{float(np.mean(rates[OURS].rates)) / best:.1f}"
    tokens = f"{rates[OURS].tokens:,.0f} of {texts.padded_tokens(number):,.0f} padded"
    name = "1 completion, no shared prompt" if number == 1 else f"{number} completions"
    return f"| {name} | {' | '.join(cells)} | {times} | {tokens} |"


def _latency_row(share: float, rate: float, model: Path, texts: Texts, arguments: argparse.Namespace) -> str:
    with _running(OURS, model, arguments) as (url, process):
        groups = texts.groups(8)
        asyncio.run(_closed_loop(url, groups, 2, 1))
        before = process.memory_info().rss
        largest = [before]
        load = asyncio.run(
            _open_loop(url, groups, share * rate, arguments.seconds, lambda: largest.append(process.memory_info().rss))
        )
    counts = {status: load.statuses.count(status) for status in sorted(set(load.statuses))}
    shown = ", ".join(f"{status}: {count}" for status, count in counts.items())
    percentiles = ", ".join(f"{np.percentile(load.seconds, p):.3f}" for p in (50, 95, 99))
    memory = f"{before / 1e6:.0f} to {max(largest) / 1e6:.0f}"
    return f"| {100 * share:.0f} % | {share * rate:.2f} | {shown} | {percentiles} | {memory} |"


class Report:
    """The results, written as they come."""

    def __init__(self, arguments: argparse.Namespace, description: str) -> None:
        self._path = Path(arguments.output) if arguments.output else None
        self._lines: list[str] = []
        cpus, load = os.cpu_count(), os.getloadavg()[0]
        self.add("# Rewards over HTTP: pairwright serve beside other servers\n")
        command = " ".join(Path(part).name if part.startswith("/") else part for part in sys.argv)
        self.add(f"`python {command}`\n")
        self.add(f"- {platform.machine()}, {cpus} CPUs, load average {load:.1f} before.")
        self.add(f"- torch {torch.__version__}, transformers {transformers.__version__}.")
        self.add(f"- {description} {arguments.clients} clients.")
        self.add("- openrlhf: its own serve_rm.py; its model loading is replaced (float32, no flash-attn).")

    def add(self, line: str) -> None:
        """Print a line, and write all so far."""
        print(line, flush=True)
        self._lines.append(line)
        if self._path is not None:
            self._path.write_text("\n".join(self._lines) + "\n")


if __name__ == "__main__":
    main()
