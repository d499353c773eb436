"""Writes the lock files: each version of constraints.txt with the SHA-256 of every file that the index has of it.

`make lock` runs it after a change of constraints.txt or of the dependencies in pyproject.toml. uv resolves both for any
Linux or macOS machine and Python from 3.11 on, and fails where constraints.txt pins a version that does not fit.

| file | holds | used with |
|---|---|---|
| build.txt | pip and setuptools | `-r`, first: older pips do not check the hashes of a constraints file |
| torch-cpu.txt | the CPU build of torch, which PyPI does not have | `-r`, where pip can find it |
| plain.txt | what a plain install takes | `-r` |
| dev.txt | what tests, comparisons and sources take besides | `-r` |
| cuda.txt | what PyPI's torch takes for CUDA | `-c`: installed only where torch asks for it |
| gcp.txt | what Ray's autoscaler takes besides on Google Cloud | `-r`, by deploy/gcp.yaml alone |
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOCKS = ROOT / "locks"
BUILD = ("pip", "setuptools")
GCP = "google-api-python-client==2.202.0"
CPU_TORCH = {"2.13.0": ["6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b"]}
"""SHA-256 of torch's CPU builds: of CPython 3.11 on x86_64. Others can be added, a new version's have to be."""


def main() -> None:
    """Write the six files."""
    versions = pinned(ROOT / "constraints.txt")
    torch = versions["torch"]
    if torch not in CPU_TORCH:
        sys.exit(f"locks/lock.py: no hash of torch {torch}+cpu; put those of its CPU builds into CPU_TORCH, or none")
    plain = _resolved("pyproject.toml")
    everything = _resolved("pyproject.toml", "--extra", "dev")
    build = _resolved("-", text="\n".join(f"{name}=={versions[name]}" for name in BUILD))
    if strange := versions.keys() - everything.keys() - set(BUILD):
        sys.exit(f"locks/lock.py: nothing needs {', '.join(sorted(strange))}; remove it from constraints.txt")
    unpinned = everything.keys() - versions.keys()
    _write("build.txt", build)
    _write("torch-cpu.txt", {"torch": _pin(f"torch=={torch}+cpu", CPU_TORCH[torch])} if CPU_TORCH[torch] else {})
    _write("plain.txt", {name: block for name, block in plain.items() if name in versions})
    _write("dev.txt", {name: block for name, block in everything.items() if name in versions and name not in plain})
    on_gcp = _resolved("-", text=GCP)
    _write("gcp.txt", {name: block for name, block in on_gcp.items() if name not in versions})
    _write("cuda.txt", {name: everything[name] for name in sorted(unpinned)})


def pinned(file: Path) -> dict[str, str]:
    """Return the name of every package that a requirements file pins, as the index writes it, and its version."""
    found = re.findall(r"^([\w.-]+)==([^\s;\\]+)", file.read_text(), re.MULTILINE)
    return {normal(name): version for name, version in found}


def normal(name: str) -> str:
    """Return a package's name as the index writes it."""
    return re.sub(r"[-_.]+", "-", name).lower()


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


def _pin(version: str, digests: list[str]) -> str:
    return " \\\n    ".join([version, *(f"--hash=sha256:{digest}" for digest in digests)])


def _write(name: str, packages: dict[str, str]) -> None:
    head = "# Written by `make lock` from constraints.txt; locks/lock.py says what it is for."
    (LOCKS / name).write_text("\n".join([head, *packages.values()]) + "\n")
    print(f"{name}: {len(packages)} packages")


if __name__ == "__main__":
    main()
