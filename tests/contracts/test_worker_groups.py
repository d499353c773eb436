"""The groups of pytest-xdist's workers, and what makes our own scheduler needed."""

from pathlib import Path

import pytest

from worker_groups import ROOT, group_of, rank_of

pytest_plugins = ["pytester"]


def test_modules_that_start_ray_are_one_group_and_come_first() -> None:
    files = [str(path.relative_to(ROOT)) for path in sorted(Path(__file__).parents[1].rglob("test_*.py"))]
    ray = {file for file in files if group_of(file) == "ray"}
    names = {Path(file).stem.removeprefix("test_") for file in ray}
    assert names >= {"jobs", "training", "truth", "score_command"}
    assert not names & {"vacuum", "ingest", "loss"}
    assert set(sorted(files, key=rank_of)[: len(ray)]) == ray
    assert rank_of("tests/cluster/test_jobs.py::test") < rank_of("tests/cluster/test_training.py::test")


def test_each_other_module_is_a_group_of_its_own() -> None:
    assert group_of("tests/data/table/test_vacuum.py::test_x[a::b]") == "tests/data/table/test_vacuum.py"


def test_xdists_own_marks_are_still_without_effect(pytester: pytest.Pytester) -> None:
    """Where this fails, `--dist loadgroup` and marks can take the place of worker_groups.py."""
    pytester.makepyfile("import pytest\n@pytest.mark.xdist_group('one')\ndef test_it(): pass\n")
    shown = pytester.runpytest_subprocess("-n1", "--dist=loadgroup", "-v").stdout.str()
    assert "1 passed" in shown
    assert "test_it@one" not in shown
