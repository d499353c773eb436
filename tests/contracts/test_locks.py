"""What is installed is pinned, hashed, and under a licence that the manual names."""

import re
import tomllib
from pathlib import Path

import pytest

import licenses
from lock import BUILD, LOCKS, pinned

ROOT = Path(__file__).parents[2]
FILES = ("build.txt", "torch-cpu.txt", "plain.txt", "dev.txt", "cuda.txt", "gcp.txt")


def test_the_locks_hold_the_versions_of_the_constraints_each_package_once() -> None:
    plain, dev = pinned(LOCKS / "plain.txt"), pinned(LOCKS / "dev.txt")
    assert not plain.keys() & dev.keys()
    assert plain | dev | pinned(LOCKS / "build.txt") == pinned(ROOT / "constraints.txt")
    assert pinned(LOCKS / "torch-cpu.txt") == {"torch": f"{plain['torch']}+cpu"}
    for besides in ("cuda.txt", "gcp.txt"):
        assert not pinned(LOCKS / besides).keys() & (plain | dev).keys()


def test_a_build_takes_the_pinned_setuptools() -> None:
    build = pinned(LOCKS / "build.txt")
    assert build.keys() == set(BUILD)
    system = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]
    assert system["requires"] == [f"setuptools=={build['setuptools']}"]


@pytest.mark.parametrize("name", FILES)
def test_every_package_of_a_lock_has_hashes_and_no_address(name: str) -> None:
    text = (LOCKS / name).read_text()
    packages = [block for block in re.split(r"\n(?=\S)", text) if not block.startswith("#")]
    assert len(packages) == len(pinned(LOCKS / name))
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}", package) for package in packages)
    assert "://" not in text


def test_make_installs_nothing_without_a_hash_but_the_project_itself() -> None:
    lines = [line for line in (ROOT / "Makefile").read_text().splitlines() if line.startswith("\t$(INSTALL)")]
    assert len(lines) == 4
    assert all("$(LOCKED)" in line for line in lines[:-1])
    assert lines[-1].removesuffix(" $(SHOWN)").endswith("--no-deps --no-build-isolation --editable .")
    assert "LOCKED := --require-hashes " in (ROOT / "Makefile").read_text()


def test_the_page_of_licences_is_that_of_the_locked_packages() -> None:
    assert licenses.PAGE.read_text() == licenses.written_page(), "run `make licenses`"


@pytest.mark.parametrize(
    ("licence", "may"),
    [
        ("MIT", True),
        ("MPL-2.0 AND MIT", True),
        ("GPL-3.0-or-later", False),
        ("AGPL-3.0-only", False),
        ("LGPL-3.0-only", False),
        ("GNU General Public License v3 (GPLv3)", False),
        ("unknown", False),
    ],
)
def test_a_plain_install_takes_no_gpl_and_nothing_without_a_licence(licence: str, *, may: bool) -> None:
    assert licenses.may_be_plain(licence) == may
