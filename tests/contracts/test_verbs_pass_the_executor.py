"""Whoever calls a table operation from above `data/` says which executor works.

The operations have a default, this process alone, so that a test or a notebook needs no cluster. A verb that left it at
that would work on one core of a cluster of hundreds, and no result would show it.
"""

import ast
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "platform"
FILES = sorted(path for room in ("cli", "cluster") for path in (PACKAGE / "pairwright" / room).rglob("*.py"))


def imported(tree: ast.Module) -> dict[str, str]:
    """Return what each name of a file, imported anywhere in it, stands for: ``run`` -> ``pairwright....compact``."""
    return {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pairwright.")
        for alias in node.names
    }


def parameters_of(name: str) -> list[str]:
    module, _, attribute = name.rpartition(".")
    found = getattr(importlib.import_module(module), attribute, None)
    return list(inspect.signature(found).parameters) if inspect.isfunction(found) else []


def passes_an_executor(call: ast.Call, parameters: list[str]) -> bool:
    return "executor" in {*parameters[: len(call.args)], *(word.arg for word in call.keywords)}


def calls_of_operations() -> Iterator[tuple[str, bool]]:
    """Yield each call of a function that takes an executor, with its place, and whether it passes one."""
    for path in FILES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for scope in [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]:
            # A verb imports what it calls inside, often as `run`: names are those of its own function first.
            names = imported(tree) | imported(ast.Module(scope.body, type_ignores=[]))
            for node in ast.walk(scope):
                if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
                    continue
                called = names.get(node.func.id)
                parameters = parameters_of(called) if called is not None else []
                if "executor" in parameters:
                    yield f"{path.relative_to(PACKAGE)}:{node.lineno} {called}", passes_an_executor(node, parameters)


def test_every_verb_that_calls_a_table_operation_passes_an_executor() -> None:
    calls = list(calls_of_operations())
    found = {place.rpartition(".")[2] for place, _ in calls}
    assert found >= {"ingest", "validate", "expand", "compact", "diff", "erase", "ensure_tokens"}
    silent = [place for place, passes in calls if not passes]
    assert not silent, "pass executor=EXECUTOR (cluster/sized_executor.py):\n" + "\n".join(silent)
