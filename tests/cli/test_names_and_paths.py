"""Names and paths in ten scripts, with blanks, quotes, brackets, percent signs and newlines: every verb works there.

Each verb is given such folders and files, and annotators of such names. A verb may refuse a name in one line; which
ones do, and for which names, is listed here (``REFUSED``), and everything else has to work.
"""

import glob
import json
from pathlib import Path
from typing import Any

import pytest

import run_folders
from exported_models import export_small_model
from hostile_text import run
from pairwright.terminal import escaped

SCRIPTS = {
    "Latin": "Müller São Łódź ǅ",
    "Greek": "Αθήνα ᾼδης",
    "Cyrillic": "Москва Ёлка",
    "Arabic": "العربية",
    "Hebrew": "עברית",
    "Devanagari": "हिन्दी क्षत्रिय",
    "Chinese": "北京 𠮷",
    "Japanese": "東京 カナ がぎ",
    "Korean": "서울 한국",
    "emoji": "🚀 👩\u200d🔬 🇪🇺",
}
MARKS = {
    "blanks": "  a  b ",
    "quotes": 'it\'s "so" `here`',
    "brackets": "[a] {b} (c) <d>",
    "percent": "100% %41 %2F %",
    "newline": "one\ntwo",
    "wildcards": "all* or?",
    "shell": "$HOME; a & b | c \\ d",
    "address": "a#b@c:d=e+f,g",
    "other forms": "e\u0301 \uff46\uff55",
}
NAMES = SCRIPTS | MARKS
REFUSED: dict[tuple[str, str], str] = {}
"""(verb, name) -> words of the line that refuses it."""


def check(verb: str, name: str, *arguments: object, status: int = 0) -> str:
    """Run a verb; it works, or refuses in the one line that is listed. Return what it printed."""
    ended = run(verb, *map(str, arguments))
    if (words := REFUSED.get((verb, name))) is not None:
        assert (ended.status, ended.err.count("\n")) == (1, 1), ended
        assert words in ended.err
        return ""
    assert ended.status == status, ended
    assert "error: " not in ended.err
    return ended.out


def write_rankings(path: Path, name: str) -> Path:
    """Write a file of rankings whose annotators, prompts, subsets and models have a name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for i in range(12):
        completions = [{"text": f"{name} {i}", "model": name}, {"text": f"No {name}", "model": "other"}]
        record: dict[str, Any] = {"id": f"{name} {i}", "prompt": f"{name} {i}?", "completions": completions}
        annotator = name if i % 3 else "somebody"
        lines.append(record | {"ranks": [1, 2], "annotator": annotator, "subset": name, "metadata": {name: name}})
    path.write_text("".join(json.dumps(line, ensure_ascii=i % 2 == 0) + "\n" for i, line in enumerate(lines)))
    return path


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_verbs_of_data_and_tables_work_under_a_name(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    source = write_rankings(folder / f"{name}.jsonl", name)
    table, pairs = folder / name, folder / f"pairs {name}"
    check("validate", name, source)
    check("ingest", name, source, "--output", table, "--dry-run")
    ingested = json.loads(check("ingest", name, source, "--output", table, "--json"))
    assert ingested["totals"]["annotations"] == 12
    check(
        "validate",
        name,
        f"{glob.escape(str(folder))}/*.jsonl",
        "--against",
        table,
        "--staging-url",
        folder / f"staging {name}",
    )
    assert json.loads(check("inspect", name, table, "--json"))["totals"]["annotations"] == 12
    check("inspect", name, table)
    check("expand", name, table, "--output", pairs, "--set", "validation_fraction=0.3")
    check("report", name, pairs, "--output", folder / f"{name}.html")
    check("export-pairs", name, pairs, "--output", folder / f"{name}.parquet")
    check("export-pairs", name, pairs, "--output", folder / f"{name} flat.jsonl", "--plain")
    check("compact", name, table)
    check("forget", name, table, "--annotator", name, "--exact", "--dry-run")
    forgotten = json.loads(check("forget", name, table, "--annotator", name, "--json"))
    assert forgotten["num_annotations"] == 8
    check("versions", name, table)
    check("diff", name, table, 1, 2)
    check("vacuum", name, table, "--retention", 0, "--keep-versions", 1)
    assert (folder / f"{name}.html").is_file()


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_verbs_that_make_things_work_under_a_name(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    check("synthesize", name, "--output", folder / f"{name}.jsonl", "--num-groups", 3)
    check("schemas", name, "--output", folder / "schemas")
    texts = folder / f"{name}.jsonl"
    check("new-model", name, "--output", folder / f"model {name}", "--texts", texts, "--vocab-size", 300)
    assert (folder / f"model {name}" / "config.json").is_file()
    config = folder / f"{name}.toml"
    config.write_text(f"max_completions = 9\nfields.prompt = {json.dumps(name)}\nfields.ignore = ['x']\n")
    layout = run("ingest", str(texts), "--output", str(folder / "t"), "--config", str(config))
    assert "Traceback" not in layout.err
    root = folder / f"run {name}"
    root.mkdir()
    run_folders.claim(root)
    run_folders.add(root, 8, {})
    run_folders.commit(root, 8)
    check("checkpoints", name, root)


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_mistake_under_a_name_is_one_line(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    missing = str(tmp_path / name / "missing")
    for command in (
        ["ingest", missing, "--output", f"{missing}/t"],
        ["expand", missing, "--output", f"{missing}/p"],
        ["inspect", missing],
        ["report", missing, "--output", f"{missing}.html"],
        ["train", "--config", missing],
        ["evaluate", missing, "--pairs", missing],
        ["score", missing, missing, "--output", f"{missing}/o"],
        ["checkpoints", missing],
        ["export", missing, "--output", f"{missing}/m"],
        ["new-model", "--output", f"{missing}/m", "--texts", missing],
        ["formats", name],
        [name],
    ):
        ended = run(*command)
        assert ended.status in (1, 2), ended
        assert ended.err.startswith("error: "), ended
        assert ended.err.count("\n") == 1, ended.err


@pytest.mark.parametrize("name", [*NAMES.values(), "8", "true", "a\x7fb\x1b", "\udce9"], ids=ascii)
def test_the_output_of_a_run_is_the_one_that_was_named(name: str, tmp_path: Path) -> None:
    """A run in its own starting model is refused with its path, before anything is done."""
    (tmp_path / "model").mkdir()
    (tmp_path / "t.toml").write_text(f"model.path = {json.dumps(str(tmp_path / 'model'))}\ndata.pairs = 'p'\n")
    ended = run("train", "--config", str(tmp_path / "t.toml"), "--output", str(tmp_path / "model" / name))
    assert ended.status == 1
    assert f"output {escaped(str(tmp_path / 'model' / name))} and model.path" in ended.err


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_verbs_of_models_work_under_a_name(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    source = write_rankings(folder / f"{name}.jsonl", name)
    model = export_small_model(folder / f"exported {name}", max_length=512)
    check("ingest", name, source, "--output", folder / "t")
    check("expand", name, folder / "t", "--output", folder / "p", "--set", "validation_fraction=0.3")
    check("evaluate", name, model, "--pairs", folder / "p", "--output", folder / f"{name}.json")
    check("score", name, model, source, "--output", folder / f"rewards {name}")
    config = folder / f"{name}.toml"
    config.write_text(
        f"model.path = {json.dumps(str(model.parent / 'base'))}\ndata.pairs = {json.dumps(str(folder / 'p'))}\n"
        "workers.num_workers = 1\nbatches.groups_per_step = 4\ntraining.max_steps = 1\ntokens.max_length = 256\n"
        "batches.micro_batch_tokens = 1024\n"
    )
    root = folder / f"run {name}"
    check("train", name, "--config", config, "--output", root, "--dry-run")
    check("train", name, "--config", config, "--output", root)
    check("checkpoints", name, root)
    check("export", name, root, "--output", folder / f"exported again {name}")
