"""What `pairwright checkpoints` says of a run's folder, and its repair: valid, corrupt, uncommitted, torn snapshot."""

import re
import shutil
from pathlib import Path

import pytest
from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import _CheckpointManagerState

from pairwright.cli.main import app
from pairwright.errors import CheckpointError, ConfigError, StoreError
from pairwright.events import UncommittedRemoved
from pairwright.runs.best_checkpoint import BestMetric, keep_best
from pairwright.runs.checkpoints import format_checkpoints, kept_checkpoints
from pairwright.runs.repair import RepairReport, remove_uncommitted, repair_snapshot
from pairwright.runs.run_dir import RunFolder
from pairwright.training.checkpoint import TAG
from run_folders import add, claim, commit, name

STEPS = (10, 20, 30)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of two ranks: steps 10 and 20 are committed, 30 was being uploaded when the driver died."""
    root = tmp_path / "run"
    claim(root)
    for step in STEPS:
        add(root, step, {})
    commit(root, *STEPS[:2])
    return root


def status(run: Path, *flags: str) -> int:
    with pytest.raises(SystemExit) as ended:
        app(["checkpoints", str(run), *flags])
    return int(ended.value.code or 0)


def test_what_ray_names_is_committed_and_the_newest_of_these_comes_next(run: Path) -> None:
    found = kept_checkpoints(str(run), verify=True)
    assert [(kept.name, kept.committed, kept.corruption) for kept in found.checkpoints] == [
        (name(30), False, None),
        (name(20), True, None),
        (name(10), True, None),
    ]
    assert found.next_start is not None
    assert found.next_start.name == name(20)
    assert "resumes from step 20" in format_checkpoints(found)
    assert status(run, "--verify") == 0


def test_a_flipped_byte_is_found_by_verification_alone_and_a_short_file_at_once(run: Path) -> None:
    file = run / "checkpoints" / name(20) / TAG / "rank-1.pt"
    file.write_bytes(b"\xff" + file.read_bytes()[1:])
    assert status(run) == 0
    assert status(run, "--verify") == 1
    found = kept_checkpoints(str(run), verify=True)
    assert found.checkpoints[1].corruption == "state/rank-1.pt is not what was written (SHA-256)"
    file.write_bytes(file.read_bytes()[:-1])
    assert (
        kept_checkpoints(str(run), verify=False).checkpoints[1].corruption
        == "state/rank-1.pt has 999 bytes, expected 1,000"
    )
    assert status(run) == 1


def test_the_next_start_resumes_from_the_newest_that_is_valid(run: Path) -> None:
    for step, expected in (
        (20, "resumes from step 10"),
        (10, "no committed checkpoint is valid: the next start fails"),
    ):
        (run / "checkpoints" / name(step) / TAG / "rank-0.pt").unlink()
        assert expected in format_checkpoints(kept_checkpoints(str(run), verify=False))
    (run / "checkpoints" / "checkpoint_manager_snapshot.json").write_text('{"checkpoint_res')
    said = format_checkpoints(kept_checkpoints(str(run), verify=False))
    assert "resumes from step 30" in said, "a new snapshot lists what was not committed too"


def test_missing_parts_are_named(run: Path) -> None:
    (run / "checkpoints" / name(10) / TAG / "rank-0.pt").unlink()
    (run / "checkpoints" / name(20) / "files-00001.json").unlink()
    (run / "checkpoints" / name(30) / "checkpoint.json").write_text("{")
    damage = {kept.name: kept.corruption for kept in kept_checkpoints(str(run), verify=False).checkpoints}
    assert damage[name(10)] == "state/rank-0.pt is missing"
    assert damage[name(20)] == "files-00001.json is missing"
    assert (damage[name(30)] or "").startswith("checkpoint.json cannot be read")
    commit(run, 10, 99)
    assert {kept.name: kept.corruption for kept in kept_checkpoints(str(run), verify=False).checkpoints}[name(99)]


def test_a_torn_list_and_a_run_without_checkpoints_are_said(run: Path, tmp_path: Path) -> None:
    (run / "checkpoints" / "checkpoint_manager_snapshot.json").write_text('{"checkpoint_res')
    assert "checkpoint_manager_snapshot.json) is torn" in format_checkpoints(kept_checkpoints(str(run), verify=False))
    fresh = tmp_path / "fresh"
    claim(fresh)
    assert format_checkpoints(kept_checkpoints(str(fresh), verify=False)).endswith("no checkpoints yet")


@pytest.mark.parametrize("content", ['{"checkpoint_res', None], ids=["torn", "names what is gone"])
def test_a_snapshot_that_ray_would_refuse_is_rewritten_from_what_is_valid(run: Path, content: str | None) -> None:
    snapshot = run / "checkpoints" / "checkpoint_manager_snapshot.json"
    if content is None:
        commit(run, 10, 99)
    else:
        snapshot.write_text(content)
    corrupt = run / "checkpoints" / name(20) / TAG / "rank-1.pt"
    corrupt.write_bytes(b"\xff" + corrupt.read_bytes()[1:])
    said = repair_snapshot(RunFolder(str(run))).snapshot_rewritten
    assert said is not None
    assert said.endswith("the valid checkpoints of steps: 30, 10")
    state = _CheckpointManagerState.model_validate_json(snapshot.read_text())
    assert [result.checkpoint_dir_name for result in state.checkpoint_results] == [name(10), name(30)]
    assert state.latest_checkpoint_result == state.checkpoint_results[-1]
    assert repair_snapshot(RunFolder(str(run))) == RepairReport()


def listed(run: Path) -> list[str]:
    """Return what Ray itself reads in its list, and that its newest entry is where it would start."""
    content = (run / "checkpoints" / "checkpoint_manager_snapshot.json").read_text()
    state = _CheckpointManagerState.model_validate_json(content)
    assert state.latest_checkpoint_result == state.checkpoint_results[-1]
    return [result.checkpoint_dir_name for result in state.checkpoint_results]


def test_a_corrupt_checkpoint_leaves_rays_list_and_is_kept_for_its_reader(run: Path) -> None:
    (run / "checkpoints" / name(20) / TAG / "rank-0.pt").write_bytes(b"short")
    assert repair_snapshot(RunFolder(str(run))).corrupt == {name(20): "state/rank-0.pt has 5 bytes, expected 1,000"}
    assert listed(run) == [name(10)]
    assert (run / "checkpoints-corrupt" / name(20) / TAG / "rank-0.pt").read_bytes() == b"short"
    assert not (run / "checkpoints" / name(20)).exists()
    assert repair_snapshot(RunFolder(str(run))).corrupt == {}


def test_what_only_the_workers_can_see_is_moved_away_at_their_word(run: Path) -> None:
    assert repair_snapshot(RunFolder(str(run)), corrupt={name(20): "a hash"}).corrupt == {name(20): "a hash"}
    assert listed(run) == [name(10)]


def test_the_last_checkpoint_is_refused_in_its_place_not_moved_away(run: Path) -> None:
    (run / "checkpoints" / name(10) / "files-00001.json").unlink()
    before = sorted(run.rglob("*"))
    with pytest.raises(
        CheckpointError, match=r"no checkpoint .* is valid.*a hash.*files-00001\.json is missing.*remove"
    ):
        repair_snapshot(RunFolder(str(run)), corrupt={name(20): "a hash"})
    assert sorted(run.rglob("*")) == before


def test_uncommitted_checkpoints_are_removed_and_what_is_committed_stays(run: Path) -> None:
    folder = RunFolder(str(run))
    assert remove_uncommitted(folder, older_than_seconds=600) == UncommittedRemoved(num_checkpoints=0, bytes=0), (
        "it may still be written"
    )
    left = sum(file.stat().st_size for file in (run / "checkpoints" / name(30)).rglob("*") if file.is_file())
    assert remove_uncommitted(folder, older_than_seconds=0) == UncommittedRemoved(num_checkpoints=1, bytes=left)
    assert sorted(path.name for path in (run / "checkpoints").iterdir() if path.is_dir()) == [name(10), name(20)]
    assert status(run, "--verify") == 0


def test_nothing_is_removed_where_the_list_cannot_be_read(run: Path) -> None:
    snapshot = run / "checkpoints" / "checkpoint_manager_snapshot.json"
    for break_it in (lambda: snapshot.write_text('{"checkpoint_res'), snapshot.unlink, lambda: commit(run, 10, 99)):
        break_it()
        assert remove_uncommitted(RunFolder(str(run)), older_than_seconds=0).num_checkpoints == 0


def test_a_folder_that_is_no_run_is_refused_and_not_made(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"no run here \(run\.json is missing\)"):
        kept_checkpoints(str(tmp_path / "nothing"), verify=False)
    assert not (tmp_path / "nothing").exists()


def test_a_run_that_an_older_version_finished_is_refused_with_what_to_do(run: Path) -> None:
    (run / "training.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"older version .*remove training\.json and start the same command again"):
        RunFolder(str(run)).summary()
    (run / "training.json").unlink()
    assert RunFolder(str(run)).summary() is None


# --------------------------------------------------------------------------------------------------------- the best


def evaluated(run: Path, **accuracy_of_step: float) -> None:
    """Commit checkpoints of these steps, each with its accuracy, and nothing else."""
    shutil.rmtree(run / "checkpoints")
    steps = {int(key.removeprefix("step")): accuracy for key, accuracy in accuracy_of_step.items()}
    for step, accuracy in steps.items():
        add(run, step, {"accuracy": accuracy, "log_loss": 1 - accuracy})
    commit(run, *steps)


def best_step(run: Path) -> int | None:
    best = kept_checkpoints(str(run), verify=True).best
    assert [path.name for path in (run / "checkpoints-best").glob("*")] == ([] if best is None else [best.name])
    return None if best is None or best.manifest is None or best.corruption else best.manifest.step


@pytest.mark.parametrize("by", ["accuracy", "log_loss"])
def test_the_best_is_kept_until_a_better_one_comes_whatever_ray_removes(run: Path, by: BestMetric) -> None:
    folder = RunFolder(str(run))
    assert keep_best(folder, by) is None, "none was evaluated"
    for kept, expected, step in (
        ({"step10": 0.5, "step20": 0.7}, 20, 20),
        ({"step30": 0.6}, None, 20),
        ({"step40": 0.7}, None, 20),
        ({"step50": 0.8, "step60": 0.75}, 50, 50),
    ):
        evaluated(run, **kept)
        best = keep_best(folder, by)
        assert (best and best.manifest and best.manifest.step) == expected
        assert best_step(run) == step
    said = format_checkpoints(kept_checkpoints(str(run), verify=False))
    assert re.search(rf"step 50 .* best  .*checkpoints-best/{name(50)}  \(log loss 0\.2000  accuracy 0\.800\)", said)


def test_one_that_is_corrupt_or_not_committed_is_never_the_best(run: Path) -> None:
    evaluated(run, step10=0.5, step20=0.6)
    add(run, 30, {"accuracy": 0.9})
    (run / "checkpoints" / name(20) / TAG / "rank-0.pt").write_bytes(b"short")
    keep_best(RunFolder(str(run)), "accuracy")
    assert best_step(run) == 10


def test_what_a_driver_that_was_killed_left_of_a_copy_is_no_best_and_gives_way(run: Path) -> None:
    evaluated(run, step10=0.5)
    (run / "checkpoints-best" / ".0a1b2c3d.partial" / name(98) / TAG).mkdir(parents=True)
    (run / "checkpoints-best" / name(99) / TAG).mkdir(parents=True)
    (run / "checkpoints-best" / name(99) / TAG / "rank-0.pt").write_bytes(b"half")
    keep_best(RunFolder(str(run)), "accuracy")
    assert best_step(run) == 10


def test_half_a_copy_is_completed_and_one_that_was_to_be_dropped_goes(run: Path) -> None:
    evaluated(run, step10=0.5)
    keep_best(RunFolder(str(run)), "accuracy")
    (run / "checkpoints-best" / name(10) / TAG / "rank-0.pt").unlink()
    keep_best(RunFolder(str(run)), "accuracy")
    assert best_step(run) == 10, "under the name that it had"
    shutil.copytree(run / "checkpoints-best" / name(10), run / "checkpoints-best" / name(5))
    evaluated(run, step20=0.6)
    keep_best(RunFolder(str(run)), "accuracy")
    assert best_step(run) == 20


def test_where_no_other_is_valid_the_next_start_resumes_from_the_best(run: Path) -> None:
    evaluated(run, step10=0.7)
    keep_best(RunFolder(str(run)), "accuracy")
    evaluated(run, step20=0.6, step30=0.5)
    for step in (20, 30):
        (run / "checkpoints" / name(step) / TAG / "rank-1.pt").unlink()
    assert "resumes from the best one, step 10" in format_checkpoints(kept_checkpoints(str(run), verify=False))
    report = repair_snapshot(RunFolder(str(run)))
    assert report.snapshot_rewritten == "no other checkpoint is valid: restored the best one, of step 10"
    assert sorted(report.corrupt) == [name(20), name(30)]
    assert listed(run) == [name(10)]
    assert kept_checkpoints(str(run), verify=True).corrupt == [name(20), name(30)]
    assert status(run, "--verify") == 0


def test_a_best_one_that_is_corrupt_too_helps_nobody(run: Path) -> None:
    evaluated(run, step10=0.7)
    keep_best(RunFolder(str(run)), "accuracy")
    # The same bytes on the disk, where that can link files.
    file = run / "checkpoints-best" / name(10) / TAG / "rank-1.pt"
    for copy in (file, run / "checkpoints" / name(10) / TAG / "rank-1.pt"):
        copy.write_bytes(b"\xff" * 1000)
    with pytest.raises(CheckpointError, match="no checkpoint of this run is valid"):
        repair_snapshot(RunFolder(str(run)), corrupt={name(10): "a hash"})
