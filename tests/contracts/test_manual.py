"""The manual says what the code does: its commands, configurations, tables, records, messages, links and programs."""

import json
import re
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import typer
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from exported_models import export_small_model
from pairwright import config
from pairwright.cli.main import app
from pairwright.config import ExpandConfig, IngestConfig, PipelineConfig, Section, TrainConfig, load_config
from pairwright.data.ingest.adapters import configured_format, native, parser_for
from pairwright.data.ingest.parse import parse_lines
from pairwright.data.pairs.flat_export import export_pairs
from pairwright.data.synthetic import write_rankings
from pairwright.evaluation.load_exported import load_exported, open_exported
from pairwright.evaluation.requests import parse_requests
from pairwright.records import SCORES_SCHEMA
from training_runs import make_pairs

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")] + sorted(
    (ROOT / "docs").glob("*.md")
)
VERBS = typer.main.get_command(app).commands  # type: ignore[attr-defined]

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_TABLE = re.compile(r"<!-- configuration: (\w+) -->\n((?:\|.*\n)*)")

# One record a row of the table of reasons in docs/data.md, in its order; the last row needs a second record.
REFUSED = [
    b'{"id": "1", "prompt": "?", "completions": [{"text": "a"}], "ranks": [1]}',
    b'{"id": "1", "prompt": "?", "completions": [{"text": "a"}, {"text": "b"}], "ranks": [1, 2], "annotator": "%s"}'
    % (b"x" * 1001),
    b'{"id": "1", "prompt": "?", "completions": [{"text": "a"}, {"text": "b"}], "ranks": [0, 1]}',
    b'{"id": "1", "prompt": "?", "completions": [{"text": "a"}, {"text": "b"}], "ranks": [1, 2, 3]}',
    b'{"id": "1", "prompt": "?", "completions": [{"text": "a"}, {"text": " "}], "ranks": [1, 2]}',
    b'{"id": "b5", "prompt": "Five?", "completions": [{"text": "Yes."}, {"text": "No."}], "scores": [1.0, NaN]}',
    b'{"id": "1", "prompt": "?", "completions": [{"text": "a"}, {"text": "b"}]}',
    b'{"id": "1", "prompt": "?", "completions": [{"text": "a"}, {"text": "b"}], "ranks": [1, "2"]}',
    b'{"id": "1", "prompt": "?", "completions": [{"text": "a"}, {"text": "b"}], "ranks": [1, 2], "rating": 5}',
    b'{"id": "1", "prompt": "?", "completions": [{"text": "a"}, {"text": "b"}], "order": ["0"]}',
    b'{"id": "1", "prompt": "?", "completions": [{"text": "a',
    b'{"id": "u1", "prompt": "caf\xe9"}',
    b'{"id": "1", "prompt": "?", "completions": [{"text": "a"}, {"text": "b"}], "ranks": [2, 1], '
    b'"created_at": "yesterday"}',
    b'{"id": "1", "prompt": "?", "completions": [{"text": "a"}, {"text": "b"}, {"text": "c"}], "ranks": [1, 2, 3], '
    b'"grade": "better"}',
]


def blocks(page: Path, *languages: str) -> list[str]:
    return [body for language, body in _BLOCK.findall(page.read_text(encoding="utf-8")) if language in languages]


def every_block(*languages: str) -> list[Any]:
    return [
        pytest.param(block, id=f"{page.name}-{index}", marks=[pytest.mark.slow] if ".train(" in block else [])
        for page in PAGES
        for index, block in enumerate(blocks(page, *languages))
    ]


# ----------------------------------------------------------------------------------------------- commands


def commands() -> list[Any]:
    """Return every whole command of ours in the shell blocks, as (verb, arguments)."""
    found = {}
    for page in PAGES:
        for block in blocks(page, "sh", "console"):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line.removeprefix("$ "), comments=True)
                if words[:1] == ["pairwright"]:
                    found[f"{page.name}: {shlex.join(words)}"] = (words[1], words[2:])
                elif "python" in words and words[words.index("python") + 1].startswith("jobs/"):
                    script, verb, *arguments = words[words.index("python") + 1 :]
                    assert script == "jobs/run.py", script
                    found[f"{page.name}: {script} {verb} {shlex.join(arguments)}"] = (verb, arguments)
    return [pytest.param(verb, arguments, id=name) for name, (verb, arguments) in found.items()]


@pytest.mark.parametrize(("verb", "arguments"), commands())
def test_a_command_of_the_manual_is_one_that_the_command_line_takes(verb: str, arguments: list[str]) -> None:
    VERBS[verb].make_context(verb, list(arguments))
    for argument in arguments:
        if argument.startswith("jobs/"):
            assert (ROOT / argument).is_file(), argument


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_verbs_and_flags_named_in_the_text_exist(page: Path) -> None:
    for verb, rest in re.findall(r"`pairwright ([a-z][\w-]*)([^`]*)`", page.read_text(encoding="utf-8")):
        assert verb in VERBS, verb
        known = {name for parameter in VERBS[verb].params for name in parameter.opts}
        for flag in re.findall(r"--[\w-]+", rest):
            assert flag in known | {"--help"}, f"pairwright {verb} {flag}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_make_targets_named_in_the_text_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = re.findall(r"`make ([a-z][\w-]*)", text) + re.findall(r"^make ([a-z][\w-]*)", text, re.MULTILINE)
    assert set(named) <= targets


def test_every_verb_is_in_the_manual() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    missing = [verb for verb in VERBS if f"pairwright {verb}" not in text and verb != "schemas"]
    assert not missing


# ------------------------------------------------------------------------------------------ configuration


@pytest.mark.parametrize("block", every_block("toml"))
def test_a_configuration_of_the_manual_loads(block: str, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(block)
    if "\noutput" in block and "[expand]" in block:
        load_config(PipelineConfig, str(path))
    elif "[fields]" in block or "[connectors" in block:
        loaded = load_config(IngestConfig, str(path))
        parser_for(configured_format(loaded) or "native", loaded)
    else:
        load_config(TrainConfig if "[model]" in block else ExpandConfig, str(path))


def configuration_rows(kind: type[Section]) -> list[str]:
    """Return the table of a section's keys as the manual holds it; sections within it have tables of their own."""
    rows = ["| key | default | allowed | what |", "|---|---|---|---|"]
    for name, schema in kind.model_json_schema()["properties"].items():
        if "$ref" in json.dumps(schema):
            continue
        meaning = schema["description"].replace("``", "`")
        rows.append(f"| `{name}` | {_default(schema)} | {_allowed(schema)} | {meaning} |")
    return rows


def _default(schema: Mapping[str, Any]) -> str:
    if "default" not in schema:
        return "required"
    if schema["default"] is None:
        return "not set"
    return f"`{re.sub('e-0', 'e-', json.dumps(schema['default']))}`"


def _allowed(schema: Mapping[str, Any]) -> str:
    if "anyOf" in schema:
        return _allowed(next(option for option in schema["anyOf"] if option["type"] != "null"))
    if "enum" in schema:
        return ", ".join(f"`{json.dumps(value)}`" for value in schema["enum"])
    limits = {
        "minimum": "at least",
        "exclusiveMinimum": "above",
        "maximum": "at most",
        "exclusiveMaximum": "below",
    }
    given = [f"{words} {schema[key]:g}" for key, words in limits.items() if key in schema]
    kinds = {
        "integer": "integer",
        "number": "number",
        "string": "text",
        "boolean": "`true`, `false`",
        "array": "list of text" if schema.get("items", {}).get("type") == "string" else "list of numbers",
        "object": "table of text",
    }
    return f"{kinds[schema['type']]} {' and '.join(given)}".strip()


def test_configuration_tables_say_every_key_with_its_default_and_its_meaning() -> None:
    shown: set[str] = set()
    for page in PAGES:
        for name, table in _TABLE.findall(page.read_text(encoding="utf-8")):
            expected = configuration_rows(getattr(config, name))
            assert table.splitlines() == expected, f"{page.name}, {name}; expected\n" + "\n".join(expected)
            shown.add(name)
    # Every section with keys of its own has a table somewhere.
    sections = {kind.__name__ for kind in Section.__subclasses__() if kind.__module__.startswith(f"{config.__name__}.")}
    assert shown == sections - {"PipelineConfig"}


# ---------------------------------------------------------------------------------- records and messages


def test_native_examples_are_annotations() -> None:
    for page in (ROOT / "README.md", ROOT / "docs" / "data.md"):
        for block in blocks(page, "json"):
            lines = "\n".join(line for line in block.splitlines() if '"completions"' in line and "reason" not in line)
            accepted, refused = parse_lines(lines.encode(), 1, page.name, native, IngestConfig())
            assert not refused, refused
            assert len(accepted) == len(lines.splitlines())


def test_scoring_examples_are_requests() -> None:
    block = next(block for block in blocks(ROOT / "docs" / "evaluation.md", "json") if "q1" in block)
    requests, refused = parse_requests(block.encode(), 1, "evaluation.md")
    assert not refused, refused
    assert len(requests) == len(block.splitlines())


@pytest.mark.parametrize("block", every_block("json"))
def test_json_is_json(block: str) -> None:
    for document in [block] if block.startswith("{\n") else block.splitlines():
        json.loads(document)


def test_reasons_of_refusal_are_those_that_the_code_gives() -> None:
    _, _, table = (
        (ROOT / "docs" / "data.md").read_text(encoding="utf-8").partition("| in the record | reason |\n|---|---|\n")
    )
    shown = [row.split(" | ")[1].removesuffix(" |") for row in table.partition("\n\n")[0].splitlines()]
    _, refused = parse_lines(b"\n".join(REFUSED), 1, "bad.jsonl", native, IngestConfig())
    assert shown[:-2] == [rejection.reason for rejection in refused]
    assert all(reason.startswith("duplicate ") for reason in shown[-2:])


def messages() -> list[str]:
    text = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8").partition("## Set-up")[0]
    return re.findall(r"^\| `(.*?)` \|", text, re.MULTILINE)


@pytest.fixture(scope="module")
def code_words() -> list[str]:
    """Return the words of all source files in a row, a field of an f-string as ``*``."""
    source = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "platform").rglob("*.py")))
    one_literal = re.sub(r'"\s*\n\s*f?"', "", source)
    words = re.sub(r"\{[^{}]*\}", "*", one_literal).split()
    return [re.sub(r"^.*f?\"(?=.)|\"\W*$", "", word) for word in words]


@pytest.mark.parametrize("message", messages())
def test_a_message_that_the_manual_explains_is_one_that_the_code_says(message: str, code_words: list[str]) -> None:
    """Three words in a row of it stand in the code, one of them perhaps as a field."""
    words = message.split()
    runs = [words[start : start + 3] for start in range(max(1, len(words) - 2))]
    assert any(_says(code_words[i : i + len(run)], run) for run in runs for i in range(len(code_words))), message


def _says(code: list[str], run: list[str]) -> bool:
    if sum(word == found for word, found in zip(code, run, strict=False)) < len(run) - 1:
        return False
    return all("*" in word or word == found for word, found in zip(code, run, strict=False))


# ------------------------------------------------------------------------------------- links and wording


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives a page's headings."""
    text = _BLOCK.sub("", page.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_resolve(page: Path) -> None:
    for target in _LINK.findall(page.read_text(encoding="utf-8")):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        linked = page.parent / name if name else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_nothing_is_left_to_fill_in(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    found = re.findall(r"[\u2013\u2014]|\b(?:TODO|TBD|FIXME|XXX|coming soon|lorem ipsum)\b", text)
    assert not found


def test_the_readme_names_every_page_and_every_top_level_folder() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(f"(docs/{page.name})" in text for page in PAGES if page.parent.name == "docs")
    folders = [
        path.name
        for path in ROOT.iterdir()
        if (path / "__init__.py").exists() or path.name in {"jobs", "schemas", "tests"}
    ]
    assert all(f"`{name}/`" in text for name in folders)


# ----------------------------------------------------------------------------------------------- programs


@pytest.fixture(scope="module")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that holds what the manual's programs read, made small."""
    folder = tmp_path_factory.mktemp("manual")
    model = export_small_model(folder)
    (folder / "demo" / "run").mkdir(parents=True)
    model.rename(folder / "demo" / "run" / "model")
    assert open_exported(str(folder / "demo" / "run" / "model"))
    (folder / "base").rename(folder / "demo" / "model")
    _make_foreign_models(folder / "demo")
    make_pairs(folder / "demo" / "pairs", num_groups=4)
    write_rankings(folder / "rankings.jsonl", 60, seed=0)
    shutil.copytree(folder / "demo" / "model", folder / "model")
    shutil.copytree(folder / "demo" / "run" / "model", folder / "runs" / "first" / "model")
    parquet = str(folder / "demo" / "pairs.parquet")
    export_pairs(str(folder / "demo" / "pairs"), parquet, version=None, split=None, layout="parquet")
    (folder / "demo" / "rewards" / "scores").mkdir(parents=True)
    rows = [{"id": "a", "completion_id": "0", "reward": 0.5, "num_tokens": 3}]
    pq.write_table(pa.Table.from_pylist(rows, SCORES_SCHEMA), folder / "demo" / "rewards" / "scores" / "1.parquet")
    return folder


def _make_foreign_models(demo: Path) -> None:
    """Write a model with its head under another name, and an adapter of ``model``."""
    shutil.copytree(demo / "model", demo / "elsewhere")
    file = demo / "elsewhere" / "model.safetensors"
    save_file(load_file(file) | {"value_head.weight": torch.ones(1, 32)}, file, metadata={"format": "pt"})
    base = AutoModelForSequenceClassification.from_pretrained(demo / "model", num_labels=1, trust_remote_code=False)
    adapter = LoraConfig(r=2, target_modules=["q_proj"], task_type="SEQ_CLS")
    get_peft_model(base, adapter).save_pretrained(str(demo / "adapter"))
    AutoTokenizer.from_pretrained(demo / "model", trust_remote_code=False).save_pretrained(demo / "adapter")


@pytest.mark.parametrize("block", every_block("python"))
def test_a_program_of_the_manual_runs(
    block: str, demo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "datasets" in block:
        datasets = pytest.importorskip("datasets")
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    monkeypatch.chdir(demo_folder)
    exec(compile(block, "manual", "exec"), {})


@pytest.mark.parametrize("name", ["elsewhere", "merged"])
def test_a_model_from_elsewhere_is_a_reward_model_once_the_manuals_program_has_run(
    name: str, demo_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(demo_folder)
    shutil.rmtree("demo/elsewhere")
    shutil.rmtree("demo/adapter")
    _make_foreign_models(demo_folder / "demo")
    (block,) = [block for block in blocks(ROOT / "docs" / "evaluation.md", "python") if f"demo/{name}" in block]
    exec(compile(block, "manual", "exec"), {})
    rules = blocks(ROOT / "docs" / "evaluation.md", "json")[-1]
    (demo_folder / "demo" / name / "pairwright.json").write_text(rules)
    assert load_exported(open_exported(f"demo/{name}"), torch.device("cpu"))
