"""Grouping, repeats and near-duplicate prompts at growing numbers of annotations: seconds, memory, what is found.

    python benchmarks/similar_scaling.py --millions 1 2 4 --into FOLDER [--stages "expand" "expand, near-duplicates"]

Short synthetic annotations: about three judgements a prompt, lines in random order. One prompt in 50 is another one
with an edited word, one in 10 is filled into one template, and one record in 100 repeats an earlier one, half of those
with another ranking. Every stage is a command of its own and its whole life counts. Memory is looked at every 0.2 s: of
the command itself (the driver) and of the largest Ray worker, each with the shared memory that it maps. CPU seconds are
of all processes of a command, Ray's own among them; what else the machine does changes them little.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import psutil

STAGES = {
    "ingest": "new records, one in 100 a repeat",
    "ingest again": "the same file under another name: repeats alone",
    "expand": "groups and pairs, near-duplicates kept",
    "expand, near-duplicates": "the same, train prompts held against validation",
    "expand, evaluation set": "the same, all prompts held against 20,000 others",
}
WORDS = 20_000
EVALUATION_PROMPTS = 20_000
TEMPLATE = (
    "write a friendly product description of {} for the spring catalogue of our shop, in about two sentences please"
)


def main() -> None:
    parser = argparse.ArgumentParser(description="How the cost of looking after repeats and near-duplicates grows.")
    parser.add_argument("--millions", type=float, nargs="+", default=[1, 2, 4], help="annotations, in millions")
    parser.add_argument(
        "--stages", nargs="+", default=list(STAGES), choices=list(STAGES), help="after the first ingest"
    )
    parser.add_argument("--into", type=Path, required=True, help="folder for input and tables; emptied at the end")
    options = parser.parse_args()
    rows = []
    for millions in options.millions:
        for stage, measured in _measure(options.into / f"{millions:g}", round(millions * 1e6), options.stages).items():
            print(f"{millions:g} M {stage}: {measured}", flush=True)
            rows.append((millions, stage, measured))
        shutil.rmtree(options.into / f"{millions:g}")
    report = _report(rows, options)
    print(report)
    name = f"similar_scaling_{os.cpu_count()}cpu_{datetime.now(UTC):%Y-%m-%d}.md"
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    (results / name).write_text(report)


# ------------------------------------------------------------------------------------------------ input


def write_input(folder: Path, num_annotations: int, *, seed: int) -> int:
    """Write ``rankings.jsonl``, ``copy.jsonl`` and ``evaluation.jsonl``; return how many prompts are edited copies."""
    rng = np.random.default_rng(seed)
    words = np.array(["".join(rng.choice(list("etaoinshrdlucm"), size=n)) for n in rng.integers(3, 9, WORDS)])
    num_prompts = num_annotations // 3
    prompts = [" ".join(chosen) for chosen in words[rng.integers(0, WORDS, (num_prompts, 18))].tolist()]
    for number in range(0, num_prompts, 10):
        prompts[number] = TEMPLATE.format(" ".join(prompts[number].split()[:3]))
    edited = range(1, num_prompts - 1, 50)
    for number in edited:
        prompts[number + 1] = prompts[number].rpartition(" ")[0] + " changed"
    prompt_of = rng.integers(0, num_prompts, num_annotations)
    first_wins = rng.integers(0, 2, num_annotations)
    repeats = rng.random(num_annotations) < 0.01
    with (folder / "rankings.jsonl").open("w") as file:
        for number, (prompt, first) in enumerate(zip(prompt_of.tolist(), first_wins.tolist(), strict=True)):
            file.write(_record(number, prompts[prompt], first))
            if repeats[number]:
                file.write(_record(number, prompts[prompt], (first + number) % 2))
    os.link(folder / "rankings.jsonl", folder / "copy.jsonl")
    fresh = [" ".join(chosen) for chosen in words[rng.integers(0, WORDS, (EVALUATION_PROMPTS, 18))].tolist()]
    fresh[::20] = prompts[: len(fresh[::20])]
    lines = [json.dumps({"prompt": prompt}) + "\n" for prompt in fresh]
    (folder / "evaluation.jsonl").write_text("".join(lines))
    return len(edited)


def _record(number: int, prompt: str, first: int) -> str:
    return (
        f'{{"id":"{number}","prompt":"{prompt}","completions":[{{"text":"yes {prompt[:40]}"}},'
        f'{{"text":"no {prompt[-40:]}"}}],"ranks":[{1 + first},{2 - first}],"annotator":"a{number % 37}"}}\n'
    )


# ------------------------------------------------------------------------------------------- measurement


def _measure(folder: Path, num_annotations: int, stages: list[str]) -> dict[str, dict[str, float]]:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    num_edited = write_input(folder, num_annotations, seed=0)
    table = str(folder / "annotations")
    expand = ["expand", table, "--output"]
    commands = {
        "ingest": ["ingest", str(folder / "rankings.jsonl"), "--output", table],
        "ingest again": ["ingest", str(folder / "copy.jsonl"), "--output", table],
        "expand": [*expand, str(folder / "pairs")],
        "expand, near-duplicates": [*expand, str(folder / "pairs 2"), "--set", "near_duplicates=drop_train"],
        "expand, evaluation set": [
            *expand, str(folder / "pairs 3"), "--set", f'decontaminate=["{folder}/evaluation.jsonl"]',
        ],
    }  # fmt: skip
    measured = {}
    for stage, command in commands.items():
        if stage not in {"ingest", *stages}:
            continue
        watched = _watched([sys.executable, "-m", "pairwright", *command, "--json"])
        found = watched.pop("output")
        totals = found["totals"] or {}
        names = {"ingest": ["refused"], "ingest again": ["refused"], "expand": ["groups"]}
        excluded = ["groups_near_duplicate", "groups_contaminated"]
        measured[stage] = watched | {name: totals[name] for name in names.get(stage, excluded)}
    if "expand, near-duplicates" in measured:
        measured["expand, near-duplicates"]["edited_copies"] = num_edited
    return measured


def _watched(command: list[str]) -> dict:
    """Run a command; return its seconds by clock and by CPU, its most memory, that of its largest worker, its JSON."""
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        peak: dict[str, int] = {"driver_mib": 0, "worker_mib": 0}
        cpu: dict[int, float] = {}
        watcher = threading.Thread(target=_watch, args=(psutil.Process(process.pid), peak, cpu), daemon=True)
        watcher.start()
        assert process.stdout is not None
        output = process.stdout.read()
    watcher.join()
    if process.returncode > 1:  # 1 where every record was refused, as with a copy
        raise SystemExit(f"{' '.join(command)} ended with status {process.returncode}")
    seconds = round(time.perf_counter() - start, 1)
    return {"seconds": seconds, "cpu_seconds": round(sum(cpu.values()), 1), **peak, "output": json.loads(output)}


def _watch(driver: psutil.Process, peak: dict[str, int], cpu: dict[int, float]) -> None:
    while driver.is_running() and driver.status() != psutil.STATUS_ZOMBIE:
        try:
            peak["driver_mib"] = max(peak["driver_mib"], driver.memory_info().rss >> 20)
            cpu[driver.pid] = sum(driver.cpu_times()[:2])
            for child in driver.children(recursive=True):
                cpu[child.pid] = sum(child.cpu_times()[:2])
                if child.name().startswith("ray::"):
                    peak["worker_mib"] = max(peak["worker_mib"], child.memory_info().rss >> 20)
        except psutil.NoSuchProcess:
            pass
        time.sleep(0.2)


# ----------------------------------------------------------------------------------------------- report


def _report(rows: list[tuple[float, str, dict[str, float]]], options: argparse.Namespace) -> str:
    sizes = " ".join(f"{millions:g}" for millions in options.millions)
    lines = [
        "# Grouping, repeats and near-duplicates as annotations grow",
        "",
        f"`python benchmarks/similar_scaling.py --millions {sizes} --into FOLDER`, {datetime.now(UTC):%Y-%m-%d}, "
        f"{os.cpu_count()} CPUs, Python {platform.python_version()}, ray {version('ray')}, rensa {version('rensa')}. "
        "Wall-clock of whole commands, start of Ray included; memory is the most seen of one process.",
        "",
        *(f"- {stage}: {what}" for stage, what in STAGES.items()),
        "",
        "| stage | million annotations | seconds | CPU seconds | a million | driver MiB | largest worker MiB | found |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for stage in STAGES:
        for millions, name, measured in rows:
            if name == stage:
                found = ", ".join(f"{key} {value:,}" for key, value in measured.items() if key not in _MEASURES)
                lines.append(
                    f"| {stage} | {millions:g} | {measured['seconds']:.0f} | {measured['cpu_seconds']:.0f} | "
                    f"{measured['cpu_seconds'] / millions:.0f} | "
                    f"{measured['driver_mib']:,} | {measured['worker_mib']:,} | {found} |"
                )
    return "\n".join([*lines, ""])


_MEASURES = ("seconds", "cpu_seconds", "driver_mib", "worker_mib")


if __name__ == "__main__":
    main()
