"""Every verb that writes, in every kind of place: what happens, and that nothing of others is touched.

A sandbox holds the place and, beside it, what links lead to. After each command every foreign file has its digest, and
is where it was. `pytest -s` prints the matrix (docs/ownership.md).
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import boto3
import obstore
import pytest

from exported_models import export_small_model
from pairwright.cli import main as cli
from pairwright.data.storage.object_store import open_store
from pairwright.errors import PairwrightError
from training_runs import make_model, make_pairs, run_config, write_config

PLACES = ("empty", "ours", "other of ours", "foreign", "mixed", "link to empty", "link to foreign", "inner link")
FOREIGN = (
    "data/raw/precious.csv",
    "data/mine.arrow",
    "refused/mine.jsonl",
    "landing/page.html",
    "versions/notes.json",
    "scores/mine.parquet",
    "model/pytorch_model.bin",
    "model.partial/draft.txt",
    "checkpoints/checkpoint-500/pytorch_model.bin",
    "checkpoints-best/mine/x.bin",
    "notes.md",
)
OLD = 1_000_000_000


@dataclass(frozen=True)
class Verb:
    """A verb: its command line for a place, and the names in it that its own file would have, if it writes a file."""

    name: str
    arguments: Callable[["Inputs", str], list[str]]
    file: str | None = None
    needs_ours: bool = False
    """Whether it works on a table that is there, and so refuses an empty place."""


@dataclass
class Inputs:
    """What the verbs read; made once."""

    folder: Path
    outcomes: dict[tuple[str, str], str] = field(default_factory=dict)

    def at(self, name: str) -> str:
        return str(self.folder / name)


VERBS = (
    Verb("ingest", lambda i, p: ["ingest", i.at("rankings.jsonl"), "--output", p]),
    Verb("expand", lambda i, p: ["expand", i.at("annotations"), "--output", p]),
    Verb("compact", lambda _, p: ["compact", p], needs_ours=True),
    Verb("forget", lambda _, p: ["forget", p, "--annotator", "ann"], needs_ours=True),
    Verb("vacuum", lambda _, p: ["vacuum", p, "--retention", "0", "--keep-versions", "1"], needs_ours=True),
    Verb("validate", lambda i, p: ["validate", i.at("rankings.jsonl"), "--staging-url", p]),
    Verb(
        "export-pairs", lambda i, p: ["export-pairs", i.at("pairs"), "--output", f"{p}/flat.jsonl"], file="flat.jsonl"
    ),
    Verb(
        "synthesize", lambda _, p: ["synthesize", "--output", f"{p}/made.jsonl", "--num-groups", "3"], file="made.jsonl"
    ),
    Verb(
        "new-model", lambda i, p: ["new-model", "--output", p, "--texts", i.at("rankings.jsonl"), "--vocab-size", "300"]
    ),
    Verb("restore", lambda _, p: ["restore", p, "--version", "1"], needs_ours=True),
    Verb(
        "validate --output",
        lambda i, p: ["validate", i.at("rankings.jsonl"), "--output", f"{p}/findings.csv", "--overwrite"],
        file="findings.csv",
    ),
    Verb("schemas", lambda _, p: ["schemas", "--output", p, "--overwrite"], file="pairs.v1.json"),
)
RAY_VERBS = (
    Verb(
        "report",
        lambda i, p: ["report", i.at("annotations"), "--output", f"{p}/page.html", "--overwrite"],
        file="page.html",
    ),
    Verb(
        "evaluate",
        lambda i, p: [
            "evaluate",
            i.at("exported/model"),
            "--pairs",
            i.at("pairs"),
            "--output",
            f"{p}/found.json",
            "--overwrite",
        ],
        file="found.json",
    ),
    Verb("score", lambda i, p: ["score", i.at("exported/model"), i.at("texts.jsonl"), "--output", p, "--overwrite"]),
    Verb("train", lambda i, p: ["train", "--config", i.at("train.toml"), "--set", f"output={p}"]),
    Verb("export", lambda i, p: ["export", i.at("run"), "--output", p]),
)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Inputs]:
    folder = tmp_path_factory.mktemp("inputs")
    record = {"prompt": "Why?", "completions": [{"text": "So."}, {"text": "Because."}], "ranks": [1, 2]}
    lines = [record | {"id": str(i), "prompt": f"Why {i}?", "annotator": "ann" if i % 2 else "bob"} for i in range(40)]
    (folder / "rankings.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "texts.jsonl").write_text('{"id": "1", "prompt": "Why?", "completion": "So."}\n')
    made = Inputs(folder)
    assert run(["ingest", made.at("rankings.jsonl"), "--output", made.at("annotations")]) == "done"
    assert run(["expand", made.at("annotations"), "--output", made.at("pairs")]) == "done"
    yield made
    print(matrix(made.outcomes))


def matrix(outcomes: dict[tuple[str, str], str]) -> str:
    """Return the outcomes as a table in Markdown."""
    places = [place for place in (*PLACES, "bucket") if any(known == place for _, known in outcomes)]
    rows = [f"| verb | {' | '.join(places)} |", f"|---{'|---' * len(places)}|"]
    for verb in dict.fromkeys(name for name, _ in outcomes):
        cells = [outcomes.get((verb, place), "-").partition(":")[0] for place in places]
        rows.append(f"| {verb} | {' | '.join(cells)} |")
    return "\n" + "\n".join(rows)


def run(arguments: list[str]) -> str:
    """Run a command line; return ``done``, or ``refused:`` and the message. Anything else is raised."""
    try:
        status = cli.app(arguments, standalone_mode=False)
    except PairwrightError as error:
        return f"refused: {error}"
    return "done" if not status else f"status {status}"


def write(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(f"precious {path}")
        os.utime(root / path, (OLD, OLD))


def snapshot(root: Path) -> dict[str, str]:
    """Return the digest of each file, and where each link leads, by path."""
    found = {}
    for path in root.rglob("*"):
        name = path.relative_to(root).as_posix()
        if path.is_symlink():
            found[name] = f"link to {path.readlink()}"
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def build(kind: str, verb: Verb, inputs: Inputs, sandbox: Path) -> tuple[Path, dict[str, str]]:
    """Make a place of a kind; return it, and the foreign files of the sandbox."""
    place = sandbox / "place"
    (sandbox / "elsewhere").mkdir()
    if kind == "link to foreign":
        write(sandbox / "elsewhere", *FOREIGN, *([verb.file] if verb.file else []))
        place.symlink_to(sandbox / "elsewhere")
    elif kind == "link to empty":
        place.symlink_to(sandbox / "elsewhere")
    else:
        place.mkdir()
    if kind == "foreign":
        write(place, *FOREIGN, *([verb.file] if verb.file else []))
    if kind in ("ours", "mixed", "inner link"):
        assert run(ours(verb, inputs, str(place))) == "done"
    if kind == "other of ours":
        other = "pairs" if verb.name in ("ingest", "compact", "forget", "vacuum") else "annotations"
        shutil.copytree(inputs.folder / other, place, dirs_exist_ok=True)
        if verb.file:
            shutil.copy(inputs.folder / other / "versions/00000001.json", place / verb.file)
    own = set(snapshot(sandbox)) if kind in ("ours", "mixed", "inner link", "link to empty") else set()
    if kind == "mixed":
        write(place, *FOREIGN, *(["model/MY_NOTES.txt"] if verb.name != "new-model" else []))
    if kind == "inner link":
        write(sandbox / "elsewhere", f"{'0a' * 16}.arrow", f"{'0a' * 6}-00000.parquet", "checkpoint.json", "x.txt")
        for name in ("data/linked", "scores/linked", "landing", "checkpoints/step-00000001-0a1b2c"):
            link(place / name, sandbox / "elsewhere")
        link(place / f"data/{'0a' * 16}.arrow", sandbox / "elsewhere" / f"{'0a' * 16}.arrow")
    foreign = {name: digest for name, digest in snapshot(sandbox).items() if name not in own}
    return place, foreign


def link(path: Path, target: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.symlink_to(target)


def ours(verb: Verb, inputs: Inputs, place: str) -> list[str]:
    """Return the command that makes a place one of the verb's own."""
    if verb.needs_ours:
        return ["ingest", inputs.at("rankings.jsonl"), "--output", place]
    return verb.arguments(inputs, place)


@pytest.mark.parametrize("kind", PLACES)
@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_a_verb_touches_nothing_of_others(verb: Verb, kind: str, inputs: Inputs, tmp_path: Path) -> None:
    check(verb, kind, inputs, tmp_path)


@pytest.fixture(scope="module")
def trained(inputs: Inputs, ray_cluster: None) -> Inputs:
    """Add what the verbs of models need: a run of a few steps, and a model."""
    folder = inputs.folder
    export_small_model(folder / "exported", max_length=512)
    make_model(folder / "model")
    make_pairs(folder / "made", num_groups=24)
    training = {"epochs": 1, "max_steps": 2, "checkpoint_every_steps": 1, "log_every_steps": 1}
    config = run_config(
        folder,
        "run",
        data={"pairs": str(folder / "made")},
        training=training,
        batches={"groups_per_step": 8, "micro_batch_tokens": 1024},
        tokens={"max_length": 128, "cache": str(folder / "tokens")},
        workers={"num_workers": 1},
    )
    write_config(config, folder / "train.toml")
    assert run(["train", "--config", str(folder / "train.toml")]) == "done"
    return inputs


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("kind", PLACES)
@pytest.mark.parametrize("verb", RAY_VERBS, ids=lambda verb: verb.name)
def test_a_verb_of_models_touches_nothing_of_others(verb: Verb, kind: str, trained: Inputs, tmp_path: Path) -> None:
    check(verb, kind, trained, tmp_path)


def check(verb: Verb, kind: str, inputs: Inputs, sandbox: Path) -> None:
    place, foreign = build(kind, verb, inputs, sandbox)
    outcome = run(verb.arguments(inputs, str(place)))
    inputs.outcomes[verb.name, kind] = outcome
    after = snapshot(sandbox)
    assert {name: after.get(name) for name in foreign} == foreign, outcome
    if kind in ("empty", "link to empty"):
        assert outcome.startswith("refused") if verb.needs_ours else outcome == "done", outcome
    elif kind in ("foreign", "link to foreign") and verb.name != "validate":
        assert outcome.startswith("refused"), "a foreign place was taken"
    elif kind == "ours":
        assert outcome == "done" or (verb.name == "export" and "something is here already" in outcome), outcome


# ------------------------------------------------------------------------------------------------ bucket


def test_no_verb_touches_an_object_of_others_in_a_bucket(inputs: Inputs, s3_server: object) -> None:
    """In a process of its own: a Ray that this one may have started knows nothing of the server."""
    support = Path(__file__).parents[1] / "support"
    paths = [str(Path(__file__).parent), *(str(folder) for folder in support.iterdir())]
    script = f"import sys; sys.path[:0] = {paths!r}; import test_destructive_verbs as t; t.check_buckets(sys.argv[1])"
    ended = subprocess.run(
        [sys.executable, "-c", script, str(inputs.folder)], capture_output=True, text=True, check=False, timeout=300
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    inputs.outcomes |= {(verb, "bucket"): outcome for verb, outcome in json.loads(ended.stdout.splitlines()[-1])}


def check_buckets(folder: str) -> None:
    """Run the verbs of tables and files in buckets with foreign objects, and print the outcomes."""
    inputs = Inputs(Path(folder))
    print("\n" + json.dumps([(verb.name, check_bucket(verb, inputs)) for verb in VERBS[:7]]))


def check_bucket(verb: Verb, inputs: Inputs) -> str:
    bucket = f"matrix-{verb.name}"
    client = boto3.client("s3", region_name="us-east-1", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
    client.create_bucket(Bucket=bucket)
    store = open_store(f"s3://{bucket}")
    foreign = {name: name.encode() for name in [*FOREIGN, *([verb.file] if verb.file else [])]}
    for name, content in foreign.items():
        obstore.put(store, name, content)
    outcome = run(verb.arguments(inputs, f"s3://{bucket}"))
    assert outcome.startswith("refused") or verb.name == "validate", outcome
    if not verb.file and verb.name != "validate":  # a table that is ours, in which others have put something
        own = f"s3://{bucket}/own"
        assert run(ours(verb, inputs, own)) == "done"
        for name in FOREIGN:
            foreign[f"own/{name}"] = name.encode()
            obstore.put(store, f"own/{name}", name.encode())
        again = run(verb.arguments(inputs, own))
        assert again == "done", again
    assert {name: bytes(obstore.get(store, name).bytes()) for name in foreign} == foreign
    return outcome
