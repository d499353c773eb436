"""What `pairwright checkpoints` says of a run's folder: whole, damaged, unfinished, or with a torn list of Ray's."""

import json
from pathlib import Path

import pytest
from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import _CheckpointManagerState

from pairwright.cli import app
from pairwright.cluster.checkpoints import format_checkpoints, kept_checkpoints
from pairwright.cluster.mending import Mended, Swept, mend, sweep
from pairwright.cluster.run_folder import RunFolder, RunIdentity
from pairwright.errors import CheckpointError, StoreError
from pairwright.training.checkpoint import TAG, CheckpointManifest, write_manifests

STEPS = (10, 20, 30)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of two ranks: steps 10 and 20 are committed, 30 was being uploaded when the driver died."""
    root = tmp_path / "run"
    RunFolder(str(root)).claim(
        RunIdentity(digest="d", config={}, pairs_url="p", pairs_version=1, tokens_digest="t", model_digest="m")
    )
    for step in STEPS:
        folder = root / "checkpoints" / name(step)
        (folder / TAG).mkdir(parents=True)
        for rank in range(2):
            (folder / TAG / f"rank-{rank}.pt").write_bytes(bytes([rank]) * 1000)
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
            write_manifests(folder, manifest, rank=rank)
    commit(root, *STEPS[:2])
    return root


def name(step: int) -> str:
    return f"step-{step:08d}-abc"


def commit(root: Path, *steps: int) -> None:
    results = [{"version": 0, "checkpoint_dir_name": name(step), "metrics": {}} for step in steps]
    snapshot = {"ray_version": "2.60.0", "checkpoint_results": results}
    (root / "checkpoints" / "checkpoint_manager_snapshot.json").write_text(json.dumps(snapshot))


def status(run: Path, *flags: str) -> int:
    with pytest.raises(SystemExit) as ended:
        app(["checkpoints", str(run), *flags])
    return int(ended.value.code or 0)


def test_what_ray_names_is_committed_and_the_newest_of_these_comes_next(run: Path) -> None:
    found = kept_checkpoints(str(run), verify=True)
    assert [(kept.name, kept.committed, kept.damage) for kept in found.checkpoints] == [
        (name(30), False, None),
        (name(20), True, None),
        (name(10), True, None),
    ]
    assert found.next_start is not None
    assert found.next_start.name == name(20)
    assert "goes on from step 20" in format_checkpoints(found)
    assert status(run, "--verify") == 0


def test_a_flipped_byte_is_found_by_verification_alone_and_a_short_file_at_once(run: Path) -> None:
    file = run / "checkpoints" / name(20) / TAG / "rank-1.pt"
    file.write_bytes(b"\xff" + file.read_bytes()[1:])
    assert status(run) == 0
    assert status(run, "--verify") == 1
    found = kept_checkpoints(str(run), verify=True)
    assert found.checkpoints[1].damage == "state/rank-1.pt is not what was written (SHA-256)"
    file.write_bytes(file.read_bytes()[:-1])
    assert (
        kept_checkpoints(str(run), verify=False).checkpoints[1].damage
        == "state/rank-1.pt has 999 bytes, expected 1,000"
    )
    assert status(run) == 1


def test_the_next_start_goes_on_from_the_newest_that_is_whole(run: Path) -> None:
    for step, expected in (
        (20, "goes on from step 10"),
        (10, "no committed checkpoint is whole: the next start refuses"),
    ):
        (run / "checkpoints" / name(step) / TAG / "rank-0.pt").unlink()
        assert expected in format_checkpoints(kept_checkpoints(str(run), verify=False))
    (run / "checkpoints" / "checkpoint_manager_snapshot.json").write_text('{"checkpoint_res')
    said = format_checkpoints(kept_checkpoints(str(run), verify=False))
    assert "goes on from step 30" in said, "a list written anew has what was not committed too"


def test_missing_parts_are_named(run: Path) -> None:
    (run / "checkpoints" / name(10) / TAG / "rank-0.pt").unlink()
    (run / "checkpoints" / name(20) / "files-00001.json").unlink()
    (run / "checkpoints" / name(30) / "checkpoint.json").write_text("{")
    damage = {kept.name: kept.damage for kept in kept_checkpoints(str(run), verify=False).checkpoints}
    assert damage[name(10)] == "state/rank-0.pt is missing"
    assert damage[name(20)] == "files-00001.json is missing"
    assert (damage[name(30)] or "").startswith("checkpoint.json cannot be read")
    commit(run, 10, 99)
    assert {kept.name: kept.damage for kept in kept_checkpoints(str(run), verify=False).checkpoints}[name(99)]


def test_a_torn_list_and_a_run_without_checkpoints_are_said(run: Path, tmp_path: Path) -> None:
    (run / "checkpoints" / "checkpoint_manager_snapshot.json").write_text('{"checkpoint_res')
    assert "checkpoint_manager_snapshot.json) is torn" in format_checkpoints(kept_checkpoints(str(run), verify=False))
    fresh = tmp_path / "fresh"
    RunFolder(str(fresh)).claim(
        RunIdentity(digest="d", config={}, pairs_url="p", pairs_version=1, tokens_digest="t", model_digest="m")
    )
    assert format_checkpoints(kept_checkpoints(str(fresh), verify=False)).endswith("no checkpoints yet")


@pytest.mark.parametrize("content", ['{"checkpoint_res', None], ids=["torn", "names what is gone"])
def test_a_list_that_ray_would_refuse_is_written_anew_from_what_is_whole(run: Path, content: str | None) -> None:
    snapshot = run / "checkpoints" / "checkpoint_manager_snapshot.json"
    if content is None:
        commit(run, 10, 99)
    else:
        snapshot.write_text(content)
    damaged = run / "checkpoints" / name(20) / TAG / "rank-1.pt"
    damaged.write_bytes(b"\xff" + damaged.read_bytes()[1:])
    said = mend(RunFolder(str(run))).list_written_anew
    assert said is not None
    assert said.endswith("those that are whole: 30, 10")
    state = _CheckpointManagerState.model_validate_json(snapshot.read_text())
    assert [result.checkpoint_dir_name for result in state.checkpoint_results] == [name(10), name(30)]
    assert state.latest_checkpoint_result == state.checkpoint_results[-1]
    assert mend(RunFolder(str(run))) == Mended(set_aside={}, list_written_anew=None)


def listed(run: Path) -> list[str]:
    """Return what Ray itself reads in its list, and that its newest entry is where it would start."""
    content = (run / "checkpoints" / "checkpoint_manager_snapshot.json").read_text()
    state = _CheckpointManagerState.model_validate_json(content)
    assert state.latest_checkpoint_result == state.checkpoint_results[-1]
    return [result.checkpoint_dir_name for result in state.checkpoint_results]


def test_a_damaged_checkpoint_leaves_rays_list_and_is_kept_for_its_reader(run: Path) -> None:
    (run / "checkpoints" / name(20) / TAG / "rank-0.pt").write_bytes(b"short")
    assert mend(RunFolder(str(run))).set_aside == {name(20): "state/rank-0.pt has 5 bytes, expected 1,000"}
    assert listed(run) == [name(10)]
    assert (run / "checkpoints-damaged" / name(20) / TAG / "rank-0.pt").read_bytes() == b"short"
    assert not (run / "checkpoints" / name(20)).exists()
    assert mend(RunFolder(str(run))).set_aside == {}


def test_what_only_the_workers_can_see_is_set_aside_at_their_word(run: Path) -> None:
    assert mend(RunFolder(str(run)), damaged={name(20): "a hash"}).set_aside == {name(20): "a hash"}
    assert listed(run) == [name(10)]


def test_the_last_checkpoint_is_refused_in_its_place_not_set_aside(run: Path) -> None:
    (run / "checkpoints" / name(10) / "files-00001.json").unlink()
    before = sorted(run.rglob("*"))
    with pytest.raises(
        CheckpointError, match=r"no checkpoint .* is whole.*a hash.*files-00001\.json is missing.*remove"
    ):
        mend(RunFolder(str(run)), damaged={name(20): "a hash"})
    assert sorted(run.rglob("*")) == before


def test_leftovers_of_uploads_that_never_ended_are_removed_and_what_is_committed_stays(run: Path) -> None:
    folder = RunFolder(str(run))
    assert sweep(folder, older_than_seconds=600) == Swept(num_folders=0, bytes=0), "it may still be written"
    left = sum(file.stat().st_size for file in (run / "checkpoints" / name(30)).rglob("*") if file.is_file())
    assert sweep(folder, older_than_seconds=0) == Swept(num_folders=1, bytes=left)
    assert sorted(path.name for path in (run / "checkpoints").iterdir() if path.is_dir()) == [name(10), name(20)]
    assert status(run, "--verify") == 0


def test_nothing_is_removed_where_the_list_cannot_be_read(run: Path) -> None:
    snapshot = run / "checkpoints" / "checkpoint_manager_snapshot.json"
    for break_it in (lambda: snapshot.write_text('{"checkpoint_res'), snapshot.unlink, lambda: commit(run, 10, 99)):
        break_it()
        assert sweep(RunFolder(str(run)), older_than_seconds=0).num_folders == 0


def test_a_folder_that_is_no_run_is_refused_and_not_made(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"no run here \(run\.json is missing\)"):
        kept_checkpoints(str(tmp_path / "nothing"), verify=False)
    assert not (tmp_path / "nothing").exists()
