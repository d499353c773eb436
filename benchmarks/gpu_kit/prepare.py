"""Fills .whl/ with wheels of what the GPU machine lacks, and prints the command that runs the kit there.

    .venv/bin/python benchmarks/gpu_kit/prepare.py

Needs the package index. Versions are those of constraints.txt, wheels those of the machine's Python and processor;
DeepSpeed is built here, without kernels. Arrow is not carried: its wheel alone takes 52 MiB. Where the machine lacks it
too, parts e and g and the offload test of part a fail and all else runs: the compute core needs none.
"""

import re
import subprocess
import sys
from pathlib import Path

KIT = Path(__file__).resolve().parent
REPOSITORY = KIT.parents[1]
CORE = ("msgspec", "pydantic", "pydantic_core", "annotated-types", "typing-inspection")
"""Of the compute core."""
DEEPSPEED = ("deepspeed", "hjson")
TRL = ("trl", "datasets", "dill", "multiprocess")
TESTS = ("obstore",)
"""Of tests/gpu/test_offload_on_gpu.py, whose tokens lie in a table."""
LIMIT_MIB = 64
"""Of the wheels and the working tree together, where the machine is reached by a tool with such a limit."""
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "manylinux1_x86_64")
TARGET = ("--python-version", "3.12", "--implementation", "cp", *(f"--platform={name}" for name in PLATFORMS))
COMMAND = "python3 benchmarks/gpu_kit/run.py --wheels .whl --output $OUT"


def pins() -> dict[str, str]:
    """Return the pinned version of every package, by its name as constraints.txt spells it."""
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    return {match[1]: match[2] for line in lines if (match := re.match(r"([\w.-]+)==([^\s;]+)", line))}


def download(wheels: Path) -> None:
    """Download or build every wheel."""
    pip, versions = [sys.executable, "-m", "pip", "--disable-pip-version-check"], pins()
    for name in (*CORE, *DEEPSPEED, *TRL, *TESTS):
        wanted = f"{name}=={versions[name]}"
        if name == "deepspeed":
            how = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(wheels)]
        else:
            how = ["download", "--no-deps", "--only-binary=:all:", *TARGET, "--dest", str(wheels)]
        subprocess.run([*pip, *how, "--quiet", wanted], check=True)
        print(wanted, flush=True)


def tree_bytes() -> int:
    """Return the size of the working tree as git sees it: tracked files, and new ones that it does not ignore."""
    listed = ["git", "-C", str(REPOSITORY), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, check=True, capture_output=True).stdout.split(b"\0")
    paths = [REPOSITORY / name.decode() for name in names if name]
    return sum(path.stat().st_size for path in paths if path.is_file())


def main() -> None:
    wheels = REPOSITORY / ".whl"
    wheels.mkdir(exist_ok=True)
    for old in wheels.glob("*.whl"):
        old.unlink()
    download(wheels)
    in_wheels, in_tree = sum(file.stat().st_size for file in wheels.iterdir()), tree_bytes()
    mib = (in_wheels + in_tree) / 2**20
    print(f"wheels {in_wheels / 2**20:.1f} MiB, working tree {in_tree / 2**20:.1f} MiB: {mib:.1f} of {LIMIT_MIB} MiB")
    if mib > LIMIT_MIB:
        sys.exit("too large to be carried: move files out of the working tree")
    print(f"carry .whl, and run there, with 10 minutes allowed:\n\n    {COMMAND}")


if __name__ == "__main__":
    main()
