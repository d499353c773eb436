"""Folders at names that anybody can guess are used only if they are this user's alone."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from pairwright.cluster.train.checkpoint_upload import LocalCheckpointDir
from pairwright.data.storage.local_cache import cache_folder
from pairwright.data.storage.object_store import own_folder
from pairwright.errors import StoreError
from pairwright.training.universal_checkpoint import _cache_folder

USERS: list[Callable[[], object]] = [
    LocalCheckpointDir,
    _cache_folder,
    lambda: cache_folder("models"),
    lambda: cache_folder("tokens"),
]


@pytest.fixture(params=range(len(USERS)), ids=["staging", "conversion", "models", "tokens"])
def use(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Callable, Path]:
    """Return who makes a folder, and the folder, below a TMPDIR and a home of its own."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    uid = os.getuid()
    places = [f"pairwright-staging-{uid}", f"pairwright-universal-{uid}"]
    places += [f".cache/pairwright/{name}" for name in ("models", "tokens")]
    return USERS[request.param], tmp_path / places[request.param]


def test_a_folder_is_made_for_this_user_alone_and_taken_again(use: tuple[Callable, Path]) -> None:
    make, place = use
    before = os.umask(0)
    try:
        make()
    finally:
        os.umask(before)
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    assert stat.S_IMODE(place.parent.stat().st_mode) == 0o700 or place.parent.name != "pairwright"
    make()


def test_a_link_is_refused_and_what_it_leads_to_left_alone(use: tuple[Callable, Path], tmp_path: Path) -> None:
    make, place = use
    (tmp_path / "theirs").mkdir()
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(tmp_path / "theirs")
    with pytest.raises(StoreError, match=f"{place}: is a link"):
        make()
    assert list((tmp_path / "theirs").iterdir()) == []


def test_a_folder_that_others_may_write_to_is_refused_with_all_that_is_in_it(use: tuple[Callable, Path]) -> None:
    make, place = use
    place.mkdir(parents=True)
    (place / "planted").mkdir()
    for mode in (0o777, 0o770, 0o702):
        place.chmod(mode)
        with pytest.raises(StoreError, match=rf"others may write to it \(mode {mode:o}\).*chmod 700"):
            make()
    assert (place / "planted").is_dir()
    place.chmod(0o755)
    make()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_another_user_is_refused(use: tuple[Callable, Path]) -> None:
    make, place = use
    place.mkdir(parents=True, mode=0o700)
    os.chown(place, 12345, 12345)
    with pytest.raises(StoreError, match="belongs to user 12345, and this process is user 0"):
        make()


def test_a_file_or_a_pipe_in_its_place_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    for name in ("file", "pipe", "missing/folder"):
        with pytest.raises(StoreError, match=f"{name}: is no folder that can be used"):
            own_folder(tmp_path / name)
