"""CPU seconds of every verb on nothing to do, on 100 records, and on a mistake.

    python benchmarks/cold_start.py --output FOLDER [--verbs ingest score]

Each command is a process of its own, as a user starts it, one after another. Its figure is user and system time of the
process and all processes below it (Ray's too), polled every 50 ms, so a last slice of that length may be missing.
Writes a table to standard output.
"""

import argparse
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil

START = [sys.executable, "-m", "pairwright"]
CONFIG = """output = "run"
[model]
path = "model"
[data]
pairs = "pairs"
[tokens]
max_length = 256
[batches]
groups_per_step = 8
micro_batch_tokens = 2048
[training]
max_steps = 3
[workers]
num_workers = 1
"""
NAMES = ("nothing to do", "100 records", "a mistake")
# Verb -> its three command lines, in the order in which they can run; None where there is no such case.
VERBS: dict[str, tuple[str | None, str | None, str | None]] = {
    "pairwright": ("--help", None, "ingets"),
    "synthesize": (
        "synthesize --output r.jsonl --num-groups 77",
        "synthesize --output r2.jsonl --num-groups 77",
        "synthesize --output other",
    ),
    "validate": ("validate r.jsonl --against ann", "validate r.jsonl", "validate rr.jsonl"),
    "formats": ("formats native", None, "formats nativ"),
    "schemas": ("schemas --output contracts", None, "schemas --output r.jsonl"),
    "ingest": ("ingest r.jsonl --output ann", "ingest r.jsonl --output ann2", "ingest rr.jsonl --output ann"),
    "expand": (
        "expand ann --output pairs --set validation_fraction=0.2",
        "expand ann --output pairs2",
        "expand an --output pairs",
    ),
    "inspect": ("inspect ann --sample 0", "inspect ann --sample 100", "inspect an"),
    "report": (None, "report ann --output page2.html", "report an"),
    "export-pairs": (
        "export-pairs pairs --output x.jsonl",
        "export-pairs pairs --output y.jsonl",
        "export-pairs ann --output z.jsonl",
    ),
    "versions": ("versions ann", None, "versions an"),
    "diff": ("diff ann 1 1", None, "diff ann 1 9"),
    "compact": ("compact ann", None, "compact an"),
    "vacuum": ("vacuum ann --dry-run", None, "vacuum an"),
    "forget": (None, "forget ann2 --annotator annotator-1", "forget ann --annotator nobody"),
    "new-model": (None, "new-model --output model2 --texts r.jsonl", "new-model --output m --texts rr.jsonl"),
    "train": (
        "train --config t.toml",
        "train --config t.toml --output run2",
        "train --config t.toml --set model.path=./modl",
    ),
    "checkpoints": ("checkpoints run", None, "checkpoints rn"),
    "export": (None, "export run --output exported", "export rn --output m"),
    "evaluate": (None, "evaluate run/model --pairs pairs --output e.json", "evaluate run/modl --pairs pairs"),
    "score": (None, "score run/model r.jsonl --output rewards", "score run/modl r.jsonl --output o"),
    "score of 3 texts": (
        None,
        "score run/model three.jsonl --output rewards3",
        "score run/model thre.jsonl --output o",
    ),
}
SETUP = (
    "synthesize --output r.jsonl --num-groups 77",
    "ingest r.jsonl --output ann",
    "expand ann --output pairs --set validation_fraction=0.2",
    "export-pairs pairs --output x.jsonl",
    "schemas --output contracts",
    "new-model --output model --texts r.jsonl",
    "train --config t.toml",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder for inputs and outputs; must be empty")
    parser.add_argument("--verbs", nargs="*", default=[*VERBS], help="only these")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    os.chdir(arguments.output)
    set_up()
    print(f"| verb | {' | '.join(f'{name}, s' for name in NAMES)} |\n|---|---|---|---|")
    for verb in arguments.verbs:
        cells = ["" if command is None else f"{cpu_seconds(command):.2f}" for command in VERBS[verb]]
        print(f"| {verb} | {' | '.join(cells)} |", flush=True)


def set_up() -> None:
    Path("other").mkdir()
    Path("other", "notes.txt").write_text("mine")
    Path("t.toml").write_text(CONFIG)
    for command in SETUP:
        subprocess.run([*START, *command.split()], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    lines = Path("r.jsonl").read_text().splitlines()
    Path("three.jsonl").write_text("\n".join(lines[:3]) + "\n")


def cpu_seconds(command: str) -> float:
    """Return the CPU seconds of a command's process and of all below it.

    The system's own sum leaves out what was not waited for (Ray's daemons), the polled one a last slice of each.
    """
    process = subprocess.Popen([*START, *command.split()], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    polled: dict[int, float] = {}
    while True:
        pid, _, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            process.returncode = 0
            return max(usage.ru_utime + usage.ru_stime, sum(polled.values()))
        polled |= seconds_below(process.pid)
        time.sleep(0.05)


def seconds_below(pid: int) -> dict[int, float]:
    """Return the CPU seconds so far of a process and of each one below it."""
    found = {}
    with suppress(psutil.Error):
        for one in (process := psutil.Process(pid), *process.children(recursive=True)):
            with suppress(psutil.Error):
                times = one.cpu_times()
                found[one.pid] = times.user + times.system
    return found


if __name__ == "__main__":
    main()
