"""A local Ray can be reached from this machine and by this user only; what a training opens: test_training.py."""

import os
from pathlib import Path

import pytest
import ray

from pairwright.cluster import local_ray
from pairwright.errors import StoreError


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_nobody_else_reaches_the_sockets_logs_and_token_of_a_local_ray() -> None:
    logs = Path(local_ray.logs_folder())
    assert logs.is_dir()
    assert ray.util.get_node_ip_address() == "127.0.0.1"
    private = logs.parents[2]
    assert private.name == f"ray-{os.getuid()}"
    assert private.stat().st_mode & 0o777 == 0o700
    assert (Path.home() / ".ray" / "auth_token").stat().st_mode & 0o077 == 0


def test_the_token_is_never_readable_for_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    token = tmp_path / ".ray" / "auth_token"
    local_ray.guard_token()
    assert token.stat().st_mode & 0o777 == 0o600
    assert token.read_text() == ""  # Ray writes into it, and its mode stays
    token.chmod(0o644)
    local_ray.guard_token()
    assert token.stat().st_mode & 0o777 == 0o600


def test_a_link_to_a_token_elsewhere_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    shared = tmp_path / "shared_token"
    shared.write_text("0" * 64)
    shared.chmod(0o640)
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").symlink_to(shared)
    local_ray.guard_token()
    assert shared.stat().st_mode & 0o777 == 0o640


def test_a_folder_of_rays_that_somebody_else_made_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    (tmp_path / f"ray-{os.getuid()}").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(StoreError, match="is a link"):
        local_ray.start_local_ray()


def test_rays_own_folder_has_an_ascii_path() -> None:
    assert local_ray.ray_parent("/scratch/ann") == Path("/scratch/ann")
    assert local_ray.ray_parent("/home/josé/tmp") == Path("/tmp")
