"""The GPU kit: measures Pairwright on one GPU in at most eight minutes, on a machine without a network.

    python3 benchmarks/gpu_kit/run.py --wheels .whl --output $OUT        # on the machine with the GPU
    python benchmarks/gpu_kit/run.py --tiny --output FOLDER              # on a CPU, to see that every part runs

Installs those of the carried wheels whose packages the machine lacks into a folder of its own, then runs the parts in
order of worth. Writes ``summary.md``, ``results.jsonl`` and ``log.txt`` (docs/gpu.md says what each figure means).
"""

import argparse
import os
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

from conductor import Conductor, Part

KIT = Path(__file__).resolve().parent
REPOSITORY = KIT.parents[1]
PARTS = (
    Part("a", "tests/gpu", KIT / "part_tests.py", 65),
    Part("b", "loss and gradient, shared against padded", KIT / "part_equality.py", 60),
    Part("c", "attention kernels", KIT / "part_attention.py", 80),
    Part("d", "optimizer steps by layout", KIT / "part_steps.py", 105),
    Part("e", "TRL's RewardTrainer on the same groups", KIT / "part_trl.py", 55),
    Part("f", "peak memory", KIT / "part_memory.py", 30),
    Part("g", "DeepSpeed ZeRO and offload, one rank", KIT / "part_deepspeed.py", 45),
    Part("h", "scoring completions of one prompt", KIT / "part_scoring.py", 30),
)
"""470 seconds together; the rest of the eight minutes is for the wheels."""


def install(wheels: Path, site: Path) -> list[str]:
    """Install the wheels whose packages this Python lacks into a folder; return their names."""
    lacking = [wheel for wheel in sorted(wheels.glob("*.whl")) if not _is_installed(wheel.name.split("-")[0])]
    if lacking:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
        subprocess.run([*pip, "--no-cache-dir", "--target", str(site), *map(str, lacking)], check=True)
    return [wheel.name for wheel in lacking]


def _is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def environment(site: Path) -> dict[str, str]:
    """Return the environment of the parts: the repository's own code on the path, and no network asked for."""
    paths = [site, REPOSITORY / "platform", REPOSITORY / "benchmarks", KIT, REPOSITORY / "tests/support/oracles"]
    own = {
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    return {**os.environ, **own}


def main() -> int:
    parser = argparse.ArgumentParser(description="Pairwright on one GPU, in at most eight minutes.")
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    parser.add_argument("--wheels", type=Path, default=REPOSITORY / ".whl", help="folder that prepare.py filled")
    parser.add_argument("--parts", default="".join(part.letter for part in PARTS), help="letters, such as abc")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, as on a CPU")
    parser.add_argument("--minutes", type=float, default=8.0, help="of all parts together")
    options = parser.parse_args()
    chosen = [part for part in PARTS if part.letter in options.parts]
    with tempfile.TemporaryDirectory(prefix="gpu-kit-site-") as site:
        print("installed:", ", ".join(install(options.wheels, Path(site))) or "nothing")
        arguments = ["--tiny"] if options.tiny else []
        conductor = Conductor(
            chosen,
            options.output,
            arguments=arguments,
            environment=environment(Path(site)),
            slowness=options.minutes / 8,
        )
        is_whole = conductor.run()
    print((options.output / "summary.md").read_text())
    return 0 if is_whole else 1


if __name__ == "__main__":
    sys.exit(main())
