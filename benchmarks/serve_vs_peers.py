"""Measures groups of completions scored a second, and latency: `pairwright serve` beside a plain padded server.

The peer does what OpenRLHF's `serve_rm` does with transformers: each text with its prompt, padded to the longest, in
batches, one request at a time; its server is ours in starlette, so that HTTP costs both the same. Both serve one model
of 4 layers x 256, get the same rendered texts by OpenRLHF's `/get_reward`, and use the same threads, one server at a
time. Rewards of both are compared.

    python benchmarks/serve_vs_peers.py --output benchmarks/results/serve_vs_peers_2cpu_DATE.md
"""

import argparse
import asyncio
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import starlette
import torch
import transformers
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from pairwright.config import TokensConfig
from pairwright.data.tokens.chat_template import resolve_template
from pairwright.data.tokens.tokenizer import load_tokenizer
from pairwright.model.load_model import load_reward_model
from pairwright.model.model_export import choose_pad_token, save_reward_model
from pairwright.model.tiny_models import new_tiny_model
from pairwright.serving.http_server import listen

WORDS = ("deck", "grow", "shrink", "whale", "captain", "bend", "bread", "lucid", "warm", "hollow", "and", "a", "the")
PEER_BATCH = 8
ROUNDS = 2


@dataclass(frozen=True)
class Case:
    """What is asked for."""

    name: str
    num_completions: int
    is_single: bool = False
    """Whether each completion is a request of its own, as OpenRLHF's and verl's clients send them."""


CASES = (
    *(Case(f"{number} completions in a request", number) for number in (4, 8, 16, 64)),
    Case("8 completions, each its own request", 8, is_single=True),
    Case("1 completion a prompt", 1),
)


def main() -> None:
    arguments = _arguments()
    if arguments.peer is not None:
        _serve_as_peer(arguments.peer)
        return
    started = _load()
    with tempfile.TemporaryDirectory() as folder:
        model = _make_model(Path(folder))
        command = [sys.executable, "-m", "pairwright", "serve", str(model), "--port", "0"]
        with _running(command) as ours, _running([sys.executable, __file__, "--peer", str(model)]) as theirs:
            difference = _largest_difference(ours, theirs, model, arguments)
            rows = [_row(case, ours, theirs, model, arguments) for case in CASES]
    text = _report(rows, difference, arguments, started)
    print(text)
    if arguments.output:
        Path(arguments.output).write_text(text)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--peer", help="serve this model as the peer does (internal)")
    parser.add_argument("--output", help="file for the results, Markdown")
    parser.add_argument("--seconds", type=float, default=4, help="of each measurement, at least one round")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--prompt-words", type=int, default=400)
    parser.add_argument("--completion-words", type=int, default=100)
    return parser.parse_args()


def _make_model(folder: Path) -> Path:
    """Return an export of a random model of 4 layers x 256."""
    base = new_tiny_model(
        folder / "base",
        architecture="llama",
        texts=[" ".join(WORDS)] * 4,
        vocab_size=400,
        hidden_size=256,
        num_layers=4,
        num_heads=4,
        max_positions=2048,
        seed=1,
        chat_template=None,
    )
    tokens = TokensConfig(max_length=1024)
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
    state = model.state_dict()
    where = folder / "model"
    save_reward_model(state, model, tokenizer, where, chat_template=template, dtype=torch.float32, tokens=tokens)
    return where


# ------------------------------------------------------------------------------------------------ the peer


def _serve_as_peer(path: str) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(path, trust_remote_code=False).eval()
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)

    @torch.no_grad()
    def rewards(texts: Sequence[str]) -> list[float]:
        found: list[float] = []
        for start in range(0, len(texts), PEER_BATCH):
            part = list(texts[start : start + PEER_BATCH])
            rows = tokenizer(part, add_special_tokens=False, padding=True, return_tensors="pt")
            found += model(**rows).logits[:, 0].tolist()
        return found

    lock = asyncio.Lock()

    async def get_reward(request: Request) -> JSONResponse:
        texts = (await request.json())["query"]
        async with lock:
            return JSONResponse({"rewards": await asyncio.to_thread(rewards, texts)})

    listening = listen("127.0.0.1", 0)
    print(f"serving at http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
    app = Starlette(routes=[Route("/get_reward", get_reward, methods=["POST"])])
    uvicorn.Server(uvicorn.Config(app, log_config=None)).run(sockets=[listening])


# --------------------------------------------------------------------------------------------- measurements


def _largest_difference(ours: str, theirs: str, model: Path, arguments: argparse.Namespace) -> float:
    texts = _texts(model, 8, 0, arguments)
    return float(np.abs(np.array(_post(ours, texts)) - np.array(_post(theirs, texts))).max())


def _row(case: Case, ours: str, theirs: str, model: Path, arguments: argparse.Namespace) -> str:
    """Return a row of the table: both servers in turn, so that a change of the machine's load meets both."""
    rates: dict[str, list[float]] = {ours: [], theirs: []}
    seconds: dict[str, list[float]] = {ours: [], theirs: []}
    for _ in range(ROUNDS):
        for url in (ours, theirs):
            rate, taken = _load_of(url, model, case, arguments)
            rates[url].append(rate)
            seconds[url] += taken
    found = [f"{np.mean(rates[url]):.2f} ({', '.join(f'{rate:.2f}' for rate in rates[url])})" for url in (ours, theirs)]
    ratio = np.mean(rates[ours]) / np.mean(rates[theirs])
    row = f"| {case.name} | {' | '.join(found)} | {ratio:.1f} | {_shares(seconds[ours])} | {_shares(seconds[theirs])} |"
    print(row, flush=True)
    return row


@contextmanager
def _running(command: list[str]) -> Iterator[str]:
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split()[-1]
        finally:
            process.terminate()


def _load_of(url: str, model: Path, case: Case, arguments: argparse.Namespace) -> tuple[float, list[float]]:
    """Return groups a second and the seconds of each request, with so many clients that always wait for one."""
    number = case.num_completions
    groups = [_texts(model, number, seed, arguments) for seed in range(1, 40)]
    pieces = [[text] for group in groups for text in group] if case.is_single else groups
    clients = arguments.clients * (number if case.is_single else 1)
    seconds: list[float] = []
    started = time.monotonic()

    def ask(texts: list[str]) -> None:
        if seconds and time.monotonic() - started > arguments.seconds:
            return
        begun = time.monotonic()
        _post(url, texts)
        seconds.append(time.monotonic() - begun)

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(ask, pieces))
    taken = time.monotonic() - started
    return len(seconds) / (number if case.is_single else 1) / taken, seconds


def _texts(model: Path, number: int, seed: int, arguments: argparse.Namespace) -> list[str]:
    """Return rendered texts of one group: a prompt and so many completions of half to all of the length."""
    rng = np.random.default_rng(seed)
    tokenizer = _tokenizers.setdefault(model, AutoTokenizer.from_pretrained(model, trust_remote_code=False))

    def words(count: int) -> str:
        return " ".join(rng.choice(WORDS, count))

    prompt = {"role": "user", "content": words(arguments.prompt_words)}
    longest = arguments.completion_words
    replies = [{"role": "assistant", "content": words(rng.integers(longest // 2, longest))} for _ in range(number)]
    return [tokenizer.apply_chat_template([prompt, reply], tokenize=False) for reply in replies]


_tokenizers: dict[Path, Any] = {}


def _post(url: str, texts: list[str]) -> list[float]:
    body = json.dumps({"query": texts}).encode()
    with urllib.request.urlopen(urllib.request.Request(f"{url}/get_reward", body), timeout=300) as reply:
        return json.loads(reply.read())["rewards"]


# -------------------------------------------------------------------------------------------------- report


def _report(rows: Sequence[str], difference: float, arguments: argparse.Namespace, load: str) -> str:
    lines = [
        "# Rewards over HTTP: pairwright serve beside a plain padded server",
        "",
        f"`python {' '.join(sys.argv)}`",
        "",
        f"- {platform.machine()}, {os.cpu_count()} CPUs, load average {load} before, {_load()} after: {_state(load)}.",
        f"- torch {torch.__version__}, transformers {transformers.__version__}, starlette {starlette.__version__}, "
        f"uvicorn {uvicorn.__version__}.",
        f"- Prompts of {arguments.prompt_words} words, completions of {arguments.completion_words // 2} to "
        f"{arguments.completion_words}; {arguments.clients} clients (times completions where each is a request).",
        f"- Largest difference of a reward between the two: {difference:.1e}.",
        f"- OpenRLHF's server was not run: flash-attn, which it needs, does not build here. Batches of {PEER_BATCH}.",
        "",
        "| what | groups/s, ours (each round) | groups/s, padded | times | p50, p95, p99 ours, s | the same, padded |",
        "|---|---|---|---|---|---|",
        *rows,
    ]
    return "\n".join(lines) + "\n"


def _shares(seconds: list[float]) -> str:
    return ", ".join(f"{np.percentile(seconds, share):.2f}" for share in (50, 95, 99))


def _load() -> str:
    return f"{os.getloadavg()[0]:.1f}"


def _state(load: str) -> str:
    busiest = max(float(load), os.getloadavg()[0])
    if busiest > (os.cpu_count() or 1) + 1:
        return "the machine was shared, so only the ratios mean something, and those roughly"
    return "the machine was quiet"


if __name__ == "__main__":
    main()
