"""What `pip install pairwright` brings: a wheel with every file that the package reads, usable by itself."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "platform" / "pairwright"
PYTHONS = os.environ.get("PAIRWRIGHT_PYTHONS", sys.executable).split(os.pathsep)
"""Python programs that the slow test installs into; on those other than 3.11 PyPI's torch brings 6 GB."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy, so that the repository gets no build folder."""
    copy, into = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT / "platform", copy / "platform", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(into)]
    subprocess.run([*build, str(copy)], check=True, capture_output=True, text=True)
    (found,) = into.glob("pairwright-*.whl")
    return found


def test_the_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as opened:
        inside = {name for name in opened.namelist() if name.startswith("pairwright/")}
    tree = {
        f"pairwright/{path.relative_to(PACKAGE)}"
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert inside == tree


def test_recipes_and_formats_are_read_from_the_wheel(wheel: Path, tmp_path: Path) -> None:
    """From the archive itself, with the repository out of reach."""
    code = "import sys; sys.path.insert(0, sys.argv.pop(1)); from pairwright.cli.main import main; main()"
    for verb in (["init", "my.toml", "--recipe", "one_gpu"], ["formats"]):
        ran = subprocess.run(
            [sys.executable, "-c", code, str(_unpacked(wheel, tmp_path)), *verb],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
    assert "[optimizer]" in (tmp_path / "my.toml").read_text(encoding="utf-8")


def _unpacked(wheel: Path, folder: Path) -> Path:
    with zipfile.ZipFile(wheel) as opened:
        opened.extractall(folder / "unpacked")
    return folder / "unpacked"


@pytest.mark.slow
@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.timeout(3600)
def test_a_fresh_environment_walks_the_road_from_a_sheet_to_rewards(wheel: Path, python: str, tmp_path: Path) -> None:
    """Installed with pip's defaults into an empty environment, in a folder outside of the repository."""
    subprocess.run([python, "-m", "venv", str(tmp_path / "env")], check=True)
    bin_folder = tmp_path / "env" / "bin"

    def run(*command: str) -> str:
        environment = {"PATH": f"{bin_folder}:/usr/bin:/bin", "HOME": str(tmp_path), "LANG": "C.UTF-8"}
        ran = subprocess.run(
            [str(bin_folder / command[0]), *command[1:]],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, f"{command}\n{ran.stdout[-3000:]}\n{ran.stderr[-3000:]}"
        return ran.stdout

    run("pip", "install", "--quiet", "torch==2.13.0", str(wheel))
    run("pairwright", "synthesize", "--output", "answers.csv", "--num-groups", "200")
    (tmp_path / "fields.toml").write_text(
        '[fields]\nprompt = "prompt"\nsides = ["answer_a", "answer_b"]\nwinner = "preference"\n'
        'words = { A = "answer_a", B = "answer_b", tie = "tie" }\nannotator = "annotator"\n',
        encoding="utf-8",
    )
    run("pairwright", "ingest", "answers.csv", "--output", "annotations", "--config", "fields.toml")
    run("pairwright", "report", "annotations", "--output", "annotations.html")
    run("pairwright", "expand", "annotations", "--output", "pairs", "--set", "validation_fraction=0.2")
    run("pairwright", "synthesize", "--output", "texts.jsonl", "--num-groups", "200")
    run("pairwright", "new-model", "--output", "encoder", "--texts", "texts.jsonl", "--architecture", "bert")
    run("pairwright", "init", "train.toml", "--recipe", "small_encoder")
    settings = ["--set", "model.path=encoder", "--set", "output=run", "--set", "training.max_steps=4"]
    run("pairwright", "train", "--config", "train.toml", *settings)
    assert "accuracy" in run("python", "-m", "pairwright", "evaluate", "run/model", "--pairs", "pairs")
    code = "import pairwright; print(pairwright.RewardModel.load('run/model').rewards('a', ['b', 'c']).shape)"
    assert run("python", "-c", code) == "(2,)\n"
