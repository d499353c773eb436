"""Writes the lock files beside it: every version of constraints.txt with the SHA-256 of each file that the index has of it.

`make lock` runs it after a change of constraints.txt or of the dependencies in pyproject.toml. uv resolves both for every
Linux and macOS machine and every Python from 3.11 on, and fails where constraints.txt pins a version that does not fit.

| file | holds | used with |
|---|---|---|
| build.txt | pip and setuptools | `-r`, first: older pips do not check what a constraint file's hashes say |
| plain.txt | what a plain install takes | `-r` |
| dev.txt | what tests, comparisons and sources take besides | `-r` |
| cuda.txt | what torch's CUDA builds take, and its CPU builds do not | `-c`: installed where torch asks for it |
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOCKS = ROOT / "locks"
BUILD = ("pip", "setuptools")
OTHER_BUILDS = {
    # CPython 3.11, x86_64, CPU: torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl. PyPI has the CUDA build only.
    "torch==2.13.0": ["6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b"],
}
"""Files of a version that are not on PyPI and may be installed all the same."""


def main() -> None:
    """Write the four files."""
    versions = pinned(ROOT / "constraints.txt")
    if gone := [pin for pin in OTHER_BUILDS if pin not in versions.values()]:
        sys.exit(f"locks/lock.py: {', '.join(gone)} is not in constraints.txt; put in the new version's files, or none")
    plain = _resolved("pyproject.toml")
    everything = _resolved("pyproject.toml", "--extra", "dev")
    build = _resolved("-", text="\n".join(versions[name] for name in BUILD))
    if strange := versions.keys() - everything.keys() - set(BUILD):
        sys.exit(f"locks/lock.py: nothing needs {', '.join(sorted(strange))}; remove it from constraints.txt")
    unpinned = everything.keys() - versions.keys()
    _write("build.txt", build)
    _write("plain.txt", {name: block for name, block in plain.items() if name in versions})
    _write("dev.txt", {name: block for name, block in everything.items() if name in versions and name not in plain})
    _write("cuda.txt", {name: everything[name] for name in sorted(unpinned)})


def pinned(file: Path) -> dict[str, str]:
    """Return the normalised name of every package that a requirements file pins, and its ``name==version``."""
    found = re.findall(r"^[\w.-]+==[^\s;\\]+", file.read_text(), re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", pin.partition("==")[0]).lower(): pin for pin in found}


def _resolved(source: str, *options: str, text: str | None = None) -> dict[str, str]:
    """Return each package that ``source`` takes, with the lines that pin it and its files."""
    command = ["uv", "pip", "compile", source, "--constraints", "constraints.txt", "--universal", "--python-version"]
    output = ["--generate-hashes", "--no-header", "--no-annotate", "--no-emit-index-url", "--quiet"]
    ended = subprocess.run(
        [*command, "3.11", *output, *options], cwd=ROOT, input=text, stdout=subprocess.PIPE, text=True
    )
    if ended.returncode:
        sys.exit(ended.returncode)  # uv has said why
    everywhere = " ; sys_platform == 'darwin' or sys_platform == 'linux'"  # tool.uv.environments in pyproject.toml
    blocks = re.split(r"\n(?=\S)", ended.stdout.strip().replace(everywhere, ""))
    return {block.partition("==")[0]: block for block in blocks}


def _write(name: str, packages: dict[str, str]) -> None:
    lines = ["# Written by `make lock` from constraints.txt; locks/lock.py says what it is for."]
    for block in packages.values():
        extra = [digest for pin, digests in OTHER_BUILDS.items() if block.startswith(f"{pin} ") for digest in digests]
        lines.append(block + "".join(f" \\\n    --hash=sha256:{digest}" for digest in extra))
    (LOCKS / name).write_text("\n".join(lines) + "\n")
    print(f"{name}: {len(packages)} packages")


if __name__ == "__main__":
    main()
