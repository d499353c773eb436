"""Seconds and size of the report and page of an evaluation of many pairs, and how fast a browser opens it.

    python benchmarks/report_page.py --pairs 100000 --output FOLDER

A table of synthetic rankings in FOLDER, rewards drawn from the annotations plus noise, and from there the code of
`evaluate`: texts described, report computed, page rendered. Rewards themselves are not timed. The browser is Chromium;
its figure is the time until the load event, by its own clock, median of five. The bar: a minute, 10 MB, 2 s.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import pairwright
from pairwright.data.synthetic import write_rankings
from pairwright.data.table.table import Table
from pairwright.evaluation.evaluation_report import Measured, build_report, report_json
from pairwright.evaluation.group_rows import REWARD_ROWS, described_groups, merged_rows, pair_arrays, texts_of_groups
from pairwright.evaluation.load_exported import ModelIdentity
from pairwright.evaluation.page.model_page import page_content, render_page
from pairwright.evaluation.reports.report_schema import DataIdentity
from pairwright.evaluation.single_annotations import read_judgements

SECONDS_PROBE = "performance.getEntriesByType('navigation')[0].loadEventEnd"


def pairs_table(folder: Path, num_pairs: int) -> str:
    """Return the URL of a pairs table with at least so many pairs to train on."""
    url = str(folder / "pairs")
    if not (folder / "pairs").exists():
        source = folder / "rankings.jsonl"
        write_rankings(source, num_pairs // 17, seed=0)
        pairwright.ingest([str(source)], str(folder / "annotations"))
        pairwright.expand(str(folder / "annotations"), url)
    return url


def rewarded(rows: list[dict[str, Any]], rng: np.random.Generator) -> pa.Table:
    """Return rows as a worker computes them: rewards that say what most annotators said, with noise."""
    found = []
    for row in rows:
        num = len(row["completions"])
        reward_K = rng.normal(0, 1.5, num)
        for pair in row["pairs"]:
            reward_K[pair["chosen"]] += 2 / num
            reward_K[pair["rejected"]] -= 2 / num
        found.append(
            {
                "group_id": row["group_id"],
                "subsets": [row["subset"] or "none"],
                "completion_index": list(range(num)),
                "num_characters": [len(completion["text"]) for completion in row["completions"]],
                "reward": reward_K.tolist(),
                "pairs": row["pairs"],
            }
        )
    return merged_rows([pa.Table.from_pylist(found, schema=REWARD_ROWS)])


def browser_seconds(page: Path) -> float:
    """Return the median time until Chromium's load event, in seconds."""
    probed = page.with_name("probed.html")
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text(encoding="utf-8"))
    script = f"<script>addEventListener('load',()=>setTimeout(()=>{{document.title='ms '+{SECONDS_PROBE}}}))</script>"
    probed.write_text(text.replace("</head>", f"{script}</head>", 1), encoding="utf-8")
    seconds = []
    for _ in range(5):
        with tempfile.TemporaryDirectory() as profile:
            options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}", "--dump-dom"]
            command = ["chromium", *options, "--virtual-time-budget=60000", probed.as_uri()]
            shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
        match = re.search(r"<title>ms ([\d.]+)</title>", shown)
        assert match is not None, "the page was not loaded"
        seconds.append(float(match[1]) / 1000)
    return statistics.median(seconds)


@contextmanager
def timed(name: str, into: dict[str, float]) -> Iterator[None]:
    """Note the wall and CPU seconds of a block."""
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    into[name], into[f"{name}, CPU"] = time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description="Seconds and size of the page of an evaluation.")
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--output", type=Path, required=True, help="folder for the table and the page")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    url = pairs_table(options.output, options.pairs)
    table = Table.open(url, "pairs")
    manifest = table.manifest(None)
    rows = [row for batch in table.read(manifest) for row in batch.to_pylist() if row["split"] == "train"]
    rewards = rewarded(rows, np.random.default_rng(0))
    seconds: dict[str, float] = {}
    with timed("texts described", seconds):
        arrays = pair_arrays(rewards, described_groups(table, manifest, rewards["group_id"].combine_chunks()))
        judgements = read_judgements(table, manifest, arrays)
    num_pairs = len(arrays.chosen_P)

    def read_texts(names: Any) -> dict[str, dict[str, Any]]:
        return texts_of_groups(table, manifest, names)

    model = ModelIdentity(path="model", digest="0" * 64, dtype="bf16", max_length=512, overlong="drop")
    data = DataIdentity(url=url, version=1, digest="0" * 64, split="train", pairs=num_pairs, tokens={})
    with timed("report", seconds):
        report, _ = build_report(Measured(arrays, judgements), model, data, read_texts, None)
        content = report_json(report)
    with timed("page", seconds):
        page = render_page(report, page_content(report, manifest, arrays, read_texts))
    path = options.output / "report.html"
    path.write_text(page, encoding="utf-8")
    print(f"{num_pairs:,} pairs of {len(rows):,} groups, {os.cpu_count()} CPUs")
    print(json.dumps({name: round(value, 2) for name, value in seconds.items()}))
    print(f"report.json {len(content) / 1e6:.2f} MB, report.html {path.stat().st_size / 1e6:.2f} MB")
    if shutil.which("chromium"):
        print(f"load event after {browser_seconds(path):.2f} s")


if __name__ == "__main__":
    main()
