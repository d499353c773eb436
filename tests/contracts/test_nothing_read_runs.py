"""Every call in the tree that reads what others wrote says that nothing in it may run."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILES = sorted(path for room in ("platform", "jobs", "benchmarks", "tests") for path in (ROOT / room).rglob("*.py"))
# What these unpickle, they wrote themselves a moment ago.
READS_ITS_OWN = {
    "platform/pairwright/cluster/models/actor_pool.py",
    "tests/support/ranks/hostile_files.py",
    "tests/training/test_hostile_checkpoints.py",
    "tests/support/ranks/zero_ranks.py",
    "tests/support/ranks/zero_runs.py",
    "tests/cli/test_terminal.py",
    "tests/data/table/test_store.py",
    "tests/data/tokens/test_token_table.py",
    "tests/model/test_metrics.py",
}
READS_WEIGHTS_ALONE = {"PeftModel.from_pretrained"}
"""Takes no such argument: an adapter is a configuration and safetensors."""


def calls() -> Iterator[tuple[str, str, dict[str, ast.expr]]]:
    """Yield where each call of the tree stands, what is called, and its keyword arguments."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                place = f"{path.relative_to(ROOT)}:{node.lineno}"
                yield place, ast.unparse(node.func), {one.arg: one.value for one in node.keywords if one.arg}


def is_false(value: ast.expr | None) -> bool:
    return isinstance(value, ast.Constant) and value.value is False


def test_no_model_tokenizer_or_data_set_may_bring_code() -> None:
    reads = [
        (place, called, keywords)
        for place, called, keywords in calls()
        if called.endswith((".from_pretrained", "load_dataset", ".from_config")) and called not in READS_WEIGHTS_ALONE
    ]
    assert len(reads) > 30, "the calls are found"
    without = [
        f"{place} {called}" for place, called, keywords in reads if not is_false(keywords.get("trust_remote_code"))
    ]
    assert not without, "give trust_remote_code=False:\n" + "\n".join(without)


def test_nothing_is_unpickled_but_by_who_wrote_it() -> None:
    unsafe = []
    for place, called, keywords in calls():
        if place.partition(":")[0] in READS_ITS_OWN:
            continue
        weights_only = keywords.get("weights_only")
        is_safe_load = isinstance(weights_only, ast.Constant) and weights_only.value is True
        if called.endswith("torch.load") and not is_safe_load:
            unsafe.append(f"{place} {called} without weights_only=True")
        if (
            called in ("np.load", "numpy.load")
            and "allow_pickle" in keywords
            and not is_false(keywords["allow_pickle"])
        ):
            unsafe.append(f"{place} {called} with allow_pickle")
        if called.rpartition(".")[0] in ("pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal") and (
            called.endswith((".load", ".loads", ".open", ".Unpickler"))
        ):
            unsafe.append(f"{place} {called}")
    assert not unsafe, "\n".join(unsafe)
