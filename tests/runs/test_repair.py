"""What a repair of a run's checkpoints does, as a table of the states that a crash can leave."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

import pytest

from pairwright.errors import CheckpointError
from pairwright.runs.checkpoints import KeptCheckpoint, KeptCheckpoints
from pairwright.runs.repair import Repair, plan_repair
from pairwright.training.checkpoint import CheckpointManifest
from run_folders import name

WRITTEN_AT = datetime(2026, 11, 21, tzinfo=UTC)


def kept(step: int, *, committed: bool = True, corruption: str | None = None, is_gone: bool = False) -> KeptCheckpoint:
    manifest = CheckpointManifest(
        format_version=1,
        step=step,
        num_steps=40,
        world_size=2,
        zero_stage=2,
        precision="fp32",
        run_digest="d",
        code_version="0",
    )
    return KeptCheckpoint(
        name=name(step),
        committed=committed,
        manifest=None if is_gone else manifest,
        bytes=0 if is_gone else 1000,
        written_at=None if is_gone else WRITTEN_AT,
        corruption="the folder is gone" if is_gone else corruption,
    )


def found(
    *checkpoints: KeptCheckpoint,
    snapshot: Literal["read", "missing", "torn"] = "read",
    best: tuple[KeptCheckpoint, ...] = (),
) -> KeptCheckpoints:
    """Return what is in a run's folder; the newest checkpoint comes first, as in a listing."""
    return KeptCheckpoints(
        run="runs/first", verified=True, snapshot=snapshot, checkpoints=list(checkpoints), best_copies=list(best)
    )


def uncommitted(step: int, corruption: str | None = None) -> KeptCheckpoint:
    return kept(step, committed=False, corruption=corruption)


@dataclass(frozen=True)
class Case:
    """A state, what the workers found beside it, and the repair; an error if there is none."""

    state: KeptCheckpoints
    repair: Repair | None
    corrupt: tuple[int, ...] = ()
    """Steps of the checkpoints that the workers found corrupt."""


SHORT = "rank-0.pt has 5 bytes, expected 1,000"
CUT = "Ray's list of committed checkpoints was cut short; rewritten with the valid checkpoints of steps: "
GONE = f"Ray's list of committed checkpoints listed missing checkpoints ({name(30)}); rewritten with the valid "
RESTORED = "no other checkpoint is valid: restored the best one, of step 10"
C10, C20, C30 = ((name(step), step) for step in (10, 20, 30))

CASES = {
    "a run that wrote no checkpoint yet": Case(found(snapshot="missing"), Repair()),
    "all is well": Case(found(kept(20), kept(10)), Repair()),
    "an upload that never ended": Case(found(uncommitted(30), kept(20), kept(10)), Repair()),
    "an upload that never ended, cut short": Case(found(uncommitted(30, SHORT), kept(20)), Repair()),
    "killed in the first upload": Case(found(uncommitted(10), snapshot="missing"), Repair()),
    "the newest is corrupt": Case(
        found(kept(20, corruption=SHORT), kept(10)), Repair(move_corrupt={name(20): SHORT}, commit=(C10,))
    ),
    "an older one is corrupt": Case(
        found(kept(20), kept(10, corruption=SHORT)), Repair(move_corrupt={name(10): SHORT}, commit=(C20,))
    ),
    "the newest is corrupt, and an upload never ended": Case(
        found(uncommitted(30), kept(20, corruption=SHORT), kept(10)),
        Repair(move_corrupt={name(20): SHORT}, commit=(C10,)),
    ),
    "workers found a wrong hash": Case(
        found(kept(20), kept(10)), Repair(move_corrupt={name(20): "a hash"}, commit=(C10,)), corrupt=(20,)
    ),
    "what workers found is gone by now": Case(found(kept(10)), Repair(), corrupt=(20,)),
    "no checkpoint is valid": Case(found(kept(20), kept(10, corruption=SHORT)), None, corrupt=(20,)),
    "no checkpoint is valid but the best": Case(
        found(kept(20, corruption=SHORT), best=(kept(10),)),
        Repair(move_corrupt={name(20): SHORT}, restore_best=name(10), commit=(C10,), reason=RESTORED),
    ),
    "the best is not needed": Case(
        found(kept(30, corruption=SHORT), kept(20), best=(kept(10),)),
        Repair(move_corrupt={name(30): SHORT}, commit=(C20,)),
    ),
    "no checkpoint is valid, the best neither": Case(
        found(kept(20, corruption=SHORT), best=(kept(10, corruption=SHORT),)), None
    ),
    "the best is what the workers found corrupt": Case(found(kept(20), best=(kept(20),)), None, corrupt=(20,)),
    "the snapshot is cut short": Case(
        found(uncommitted(30), uncommitted(20), snapshot="torn"), Repair(commit=(C20, C30), reason=f"{CUT}30, 20")
    ),
    "the snapshot is cut short, and an upload never ended": Case(
        found(uncommitted(30, SHORT), uncommitted(20), snapshot="torn"), Repair(commit=(C20,), reason=f"{CUT}20")
    ),
    "the snapshot is cut short before any checkpoint": Case(
        found(snapshot="torn"), Repair(commit=(), reason=f"{CUT}none")
    ),
    "the snapshot is cut short, and only the best is valid": Case(
        found(uncommitted(20, SHORT), snapshot="torn", best=(kept(10),)),
        Repair(restore_best=name(10), commit=(C10,), reason=RESTORED),
    ),
    "the snapshot lists a checkpoint that is gone": Case(
        found(kept(30, is_gone=True), uncommitted(20), kept(10)),
        Repair(commit=(C10, C20), reason=f"{GONE}checkpoints of steps: 20, 10"),
    ),
    "the snapshot lists a checkpoint that is gone and one that is corrupt": Case(
        found(kept(30, is_gone=True), kept(20, corruption=SHORT), kept(10)),
        Repair(move_corrupt={name(20): SHORT}, commit=(C10,), reason=f"{GONE}checkpoints of steps: 10"),
    ),
    "the snapshot lists nothing but what is gone": Case(
        found(kept(30, is_gone=True)), Repair(commit=(), reason=f"{GONE}checkpoints of steps: none")
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_each_state_has_its_repair(case: Case) -> None:
    corrupt = {name(step): "a hash" for step in case.corrupt}
    if case.repair is not None:
        assert plan_repair(case.state, corrupt) == case.repair
        return
    with pytest.raises(CheckpointError, match=r"no checkpoint .* is valid: .*remove runs/first/checkpoints"):
        plan_repair(case.state, corrupt)


@pytest.mark.parametrize(
    ("state", "repair"),
    [(case.state, case.repair) for case in CASES.values() if case.repair is not None],
    ids=[title for title, case in CASES.items() if case.repair is not None],
)
def test_after_its_repair_a_state_needs_no_other(state: KeptCheckpoints, repair: Repair) -> None:
    assert plan_repair(after(state, repair), {}) == Repair()


def after(state: KeptCheckpoints, repair: Repair) -> KeptCheckpoints:
    """Return the state that a repair leaves."""
    if repair.commit is None:
        return state
    listed = {checkpoint for checkpoint, _ in repair.commit}
    there = {one.name: one for one in state.checkpoints if one.written_at is not None}
    there |= {one.name: one for one in state.best_copies if one.name == repair.restore_best}
    return found(
        *(
            kept(one.manifest.step, committed=one.name in listed, corruption=one.corruption)
            for one in sorted(there.values(), key=lambda one: one.name, reverse=True)
            if one.manifest is not None and one.name not in repair.move_corrupt
        ),
        best=tuple(state.best_copies),
    )
