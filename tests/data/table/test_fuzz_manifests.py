"""Spoilt manifests of tables and of scores, and spoilt leases: used, or refused in one line; nothing else."""

import random
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from annotation_tables import annotation_row, annotations_table, manifest
from pairwright.data.storage.lease import Lease
from pairwright.data.storage.ownership import RUN
from pairwright.data.table.inspect import format_inspection, inspect_version
from pairwright.data.table.manifest import Source
from pairwright.data.table.table import Table
from pairwright.data.table.vacuum import vacuum
from pairwright.data.table.version_log import format_version_log, version_log
from pairwright.errors import LeaseError, StoreError
from pairwright.evaluation.load_exported import ModelIdentity
from pairwright.evaluation.score_files import ScoreFiles, read_scores_manifest
from spoilt_models import outcome_of, spoilt

SEED = 20261129
SIZES = [30, pytest.param(1500, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])]
IDENTITY = ModelIdentity(
    path="m", digest="0" * 64, dtype="float32", max_length=64, overlong="drop", special_in_text="keep"
)


def write_table(url: Path) -> Path:
    table = Table(str(url), "annotations")
    source = Source(uri="/data/a.jsonl", size=10, etag="sha256:0", lines=2, accepted=2, refused=0)
    for name in ("a", "b"):
        file = table.write_data(annotations_table([annotation_row(name, ["x", "y"], [1, 2])]))
        built = manifest(kind="annotations", files=[file], totals={"annotations": 1}, sources=[source])
        assert table.commit(lambda _, built=built: built)
    return url / "versions/00000002.json"


def use_table(url: Path) -> None:
    """Do what the verbs do that read a table, and look for what a vacuum would take."""
    table = Table.open(str(url))
    for rows in table.read(table.manifest()):
        assert rows.num_rows >= 0
    format_inspection(inspect_version(str(url), version=None, num_sample=2))
    format_version_log(version_log(str(url), last=5))
    vacuum(str(url), older_than=timedelta(), keep_versions=1, is_dry_run=True)


def write_scores(url: Path) -> Path:
    ScoreFiles(str(url), overwrite=False).commit(model=IDENTITY, inputs=[], sources=[], failed=[])
    return url / "scores.json"


def use_scores(url: Path) -> None:
    read_scores_manifest(str(url))
    ScoreFiles(str(url), overwrite=True)


def write_lease(url: Path) -> Path:
    with Lease(str(url), RUN, what="`x`", lost=lambda: None):
        pass
    return url / "lease/00000001.json"


def use_lease(url: Path) -> None:
    """Read a lease, without waiting for what cannot be read."""
    lease = Lease(str(url), RUN, what="`x`", lost=lambda: None)
    found = lease._newest()
    if found is not None and found[1] is not None:
        try:
            lease._refusal(found[1])
        except (LeaseError, StoreError):
            raise AssertionError("a message that cannot be made") from None


@pytest.mark.parametrize("num_cases", SIZES)
@pytest.mark.parametrize(
    ("write", "use"),
    [(write_table, use_table), (write_scores, use_scores), (write_lease, use_lease)],
    ids=["manifest", "scores", "lease"],
)
def test_a_spoilt_record_of_ours_is_used_or_refused_in_one_line(
    write: Callable[[Path], Path], use: Callable[[Path], None], num_cases: int, tmp_path: Path
) -> None:
    path = write(tmp_path / "place")
    content = path.read_bytes()
    assert outcome_of(lambda: use(tmp_path / "place")) == "used"
    rng = random.Random(SEED)
    counts: Counter[str] = Counter()
    wrong = []
    for number in range(num_cases):
        path.write_bytes(spoilt(content, rng))
        found = outcome_of(lambda: use(tmp_path / "place"))
        counts[found if found in ("used", "refused") else "WRONG"] += 1
        if found not in ("used", "refused"):
            wrong.append(f"{number}: {found}")
    print(f"{path.name}, seed {SEED}: {dict(counts)}")
    assert not wrong, f"{len(wrong)} of {num_cases}: " + "\n".join(wrong[:20])
