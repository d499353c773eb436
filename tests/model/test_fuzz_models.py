"""Spoilt files of models and runs: used, or refused in one line; no other exception, no hang, no great memory."""

import json
import os
import random
import resource
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

import spoilt_models
from exported_models import export_small_model
from spoilt_models import evaluate_and_score, look_at_run, outcome_of, repair_run, spoilt, train_from

SEED = 20261128
MODEL_FILES = {
    "config.json": 8,
    "tokenizer.json": 6,
    "tokenizer_config.json": 5,
    "model.safetensors": 5,
    "pairwright.json": 2,
}
INDEX = "model.safetensors.index.json"
RUN_FILES = {
    "run.json": 4,
    "checkpoints/checkpoint_manager_snapshot.json": 3,
    "checkpoints/step-00000001-abcabc/checkpoint.json": 4,
    "checkpoints/step-00000001-abcabc/files-00000.json": 3,
    "checkpoints/step-00000001-abcabc/state/mp_rank_00_model_states.pt": 2,
}
MOST_BYTES = 3 << 30
"""Address space that a case may take beyond what this process has."""
SIZES = [2, pytest.param(65, marks=[pytest.mark.slow, pytest.mark.timeout(7200)])]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with an exported model, the model that it was made from, one in shards, and a run."""
    folder = tmp_path_factory.mktemp("whole")
    rules = export_small_model(folder) / "pairwright.json"
    # Without hashes, as somebody else's: else each spoilt file would be refused for its hash alone.
    rules.write_text(json.dumps(json.loads(rules.read_text()) | {"files": []}))
    spoilt_models.make_run(folder, folder / "base")
    spoilt_models.shard_model(Path(shutil.copytree(folder / "model", folder / "sharded")))
    return folder


def spoil_each(
    place: Path, files: dict[str, int], num_cases: int, uses: list[Callable[[Path], None]]
) -> tuple[Counter[str], list[str]]:
    """Spoil each file so many times, use the place each time, and return the outcomes and those that may not be."""
    counts: Counter[str] = Counter()
    wrong = []
    for file, times in files.items():
        rng = random.Random(f"{SEED} {file}")
        path = place / file
        content = path.read_bytes()
        for number in range(times * num_cases):
            path.write_bytes(spoilt(content, rng))
            for use in uses:
                found = outcome_of(lambda use=use: use(place))
                counts[f"{file.rpartition('/')[2]}: {found if found in ('used', 'refused') else 'WRONG'}"] += 1
                if found not in ("used", "refused"):
                    wrong.append(f"{file} {number} {use.__name__}: {found}")
        path.write_bytes(content)
    return counts, wrong


@pytest.fixture
def limited_memory() -> object:
    before = resource.getrlimit(resource.RLIMIT_AS)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (taken + MOST_BYTES, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("num_cases", SIZES)
@pytest.mark.parametrize("kind", ["model", "base", "sharded", "run"])
@pytest.mark.usefixtures("limited_memory")
def test_a_spoilt_file_of_a_model_or_a_run_is_used_or_refused_in_one_line(
    whole: Path, kind: str, num_cases: int
) -> None:
    files = {
        "model": MODEL_FILES,
        "base": {name: times for name, times in MODEL_FILES.items() if name != "pairwright.json"},
        "sharded": {INDEX: 4},
        "run": RUN_FILES,
    }[kind]
    uses = {
        "model": [evaluate_and_score],
        "base": [train_from],
        "sharded": [evaluate_and_score, train_from],
        "run": [repair_run, look_at_run],
    }[kind]
    for use in uses:
        assert outcome_of(lambda use=use: use(whole / kind)) == "used", "as long as nothing is spoilt"
    counts, wrong = spoil_each(whole / kind, files, num_cases, uses)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(f"{kind}, seed {SEED}: {dict(sorted(counts.items()))}; {counts.total():,} uses, peak memory {peak:,} MB")
    assert not wrong, f"{len(wrong)} of {counts.total()}: " + "\n".join(wrong[:40])
