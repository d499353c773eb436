"""Seed -> JSON Lines of native annotations with realistic lengths, by the gigabyte, for the other benchmarks."""

import json
from pathlib import Path

import numpy as np

WORDS = 20_000
POOL_WORDS = 2_000_000


def write_annotations(path: Path, num_bytes: int, *, seed: int) -> int:
    """Write annotations until the file holds ``num_bytes``; return how many.

    K is 4 to 9, texts are lognormal around 540 characters, words follow Zipf's law as those of a language do, so that
    compression has about as much to do as with real text (3 to 4 times).
    """
    rng = np.random.default_rng(seed)
    text = _text(rng)
    num_written = num_annotations = 0
    with path.open("w", encoding="ascii") as file:
        while num_written < num_bytes:
            line = json.dumps(_annotation(text, rng, f"{seed}-{num_annotations}"))
            file.write(line + "\n")
            num_written += len(line) + 1
            num_annotations += 1
    return num_annotations


def _text(rng: np.random.Generator) -> str:
    letters = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))
    weights = np.linspace(2.0, 0.1, len(letters))
    lengths = rng.integers(2, 11, WORDS)
    words = np.array(["".join(rng.choice(letters, size=n, p=weights / weights.sum())) for n in lengths])
    return " ".join(words[np.minimum(rng.zipf(1.25, POOL_WORDS), WORDS) - 1])


def _annotation(text: str, rng: np.random.Generator, name: str) -> dict:
    num_completions = int(rng.integers(4, 10))
    lengths = np.clip(rng.lognormal(6.3, 0.6, num_completions + 1), 40, 8000).astype(int).tolist()
    starts = rng.integers(0, len(text) - 8000, num_completions + 1).tolist()
    prompt, *completions = [text[start : start + length] for start, length in zip(starts, lengths, strict=True)]
    number = int(name.rpartition("-")[2])
    return {
        "id": name,
        "prompt": prompt,
        "completions": [{"text": text, "model": f"model {int(rng.integers(40))}"} for text in completions],
        "ranks": (rng.permutation(num_completions) + 1).tolist(),
        "annotator": f"annotator {number % 37}",
        "subset": f"subset {number % 5}",
    }
