"""Calls that delete or move stand where data/storage/ownership.py decides, or work on files that the process made."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "platform" / "pairwright"
DELETING = {"rmtree", "unlink", "rmdir", "removedirs", "rename", "renames", "move"}
ON_OBSTORE_OR_OS = {"delete", "delete_async", "rename", "rename_async", "remove", "replace"}
REASONS = {
    "data/storage/ownership.py": "decides",
    "data/storage/outputs.py": "temporary copies of its own, and directories found to be ours the moment before",
    "data/storage/durable_writes.py": "the staged name of a file that it just made",
    "runs/folder_transfer.py": "a checkpoint's folder moved or renamed within its run, by names of ours",
    "cluster/train/checkpoint_upload.py": "this user's own temporary folders, locked; copies of what was just stored",
    "data/ingest/dry_run.py": "a temporary folder that it made",
    "training/checkpoint.py": "the staged copy of a checkpoint that could not be written",
    "training/universal_checkpoint.py": "this user's own temporary folders, locked",
    "evaluation/load_exported.py": "downloads in this user's own cache",
    "data/storage/local_cache.py": "this user's own cache, private, locked",
    "data/storage/cache_limit.py": "tokens and models in this user's own cache, private, locked, in use by no process",
}


def deleting_calls(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        owner = node.func.value.id if isinstance(node.func.value, ast.Name) else ""
        is_deleting = node.func.attr in DELETING or (
            node.func.attr in ON_OBSTORE_OR_OS and owner in ("obstore", "os", "shutil")
        )
        if is_deleting:
            found.append(f"{path.relative_to(PACKAGE).as_posix()}:{node.lineno}: {owner}.{node.func.attr}")
    return found


def test_deleting_stands_only_where_it_is_decided() -> None:
    calls = [call for path in sorted(PACKAGE.rglob("*.py")) for call in deleting_calls(path)]
    stray = [call for call in calls if call.partition(":")[0] not in REASONS]
    assert not stray, "ask data/storage/ownership.py, or say here why not: " + "; ".join(stray)
    unused = REASONS.keys() - {call.partition(":")[0] for call in calls}
    assert not unused, f"these delete nothing any more: {sorted(unused)}"
