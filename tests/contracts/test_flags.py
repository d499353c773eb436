"""One rule for flags: the same thing has the same flag on every verb, and help lists each verb in a section."""

from typing import Any

import pytest
import typer

from pairwright.cli.main import app
from pairwright.cli.options import PANELS, RETIRED_FLAGS

VERBS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
WRITES = {
    *("ingest", "expand", "report", "export-pairs", "synthesize", "schemas"),
    *("train", "sweep", "evaluate", "compare", "score", "export", "new-model", "validate"),
}
"""Verbs whose result goes to a place that the command line names; the others print, or work in the table they name."""
REPLACES = {"report", "sweep", "evaluate", "compare", "score", "schemas", "init", "validate", "normalize", "run"}
"""Verbs that can write over what an earlier command of theirs wrote; others add a version, or replace nothing."""
CONFIGURED = {"ingest", "validate", "expand", "score", "train", "sweep"}
CHANGES = {"ingest", "forget", "compact", "restore", "vacuum", "train", "sweep", "serve", "run"}
"""Verbs that change something that is there, or take long, and can say beforehand what they would do."""


def flags(verb: str) -> dict[str, Any]:
    return {name: one for one in VERBS[verb].params for name in one.opts if name.startswith("-")}


def having(flag: str) -> set[str]:
    return {verb for verb in VERBS if flag in flags(verb)}


def test_what_a_verb_writes_is_named_by_output() -> None:
    assert having("--output") == WRITES


def test_what_a_verb_can_write_over_is_refused_without_overwrite() -> None:
    assert having("--overwrite") == REPLACES


def test_a_configuration_is_a_file_with_keys_set_on_top() -> None:
    assert having("--config") == CONFIGURED
    assert having("--set") == CONFIGURED | {"run"}  # whose one argument is its configuration


def test_every_verb_can_be_submitted_to_a_cluster() -> None:
    for flag in ("--address", "--submission-id", "--no-wait"):
        assert having(flag) == set(VERBS)


def test_what_changes_something_can_be_previewed() -> None:
    assert having("--dry-run") == CHANGES


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_prints_json_and_stands_in_a_section_of_the_help(verb: str) -> None:
    assert "--json" in flags(verb)
    assert VERBS[verb].rich_help_panel in PANELS


@pytest.mark.parametrize("verb", VERBS)
def test_no_verb_has_a_retired_flag_or_an_argument_that_is_an_output(verb: str) -> None:
    assert not RETIRED_FLAGS.keys() & flags(verb).keys()
    arguments = {one.name for one in VERBS[verb].params if one.param_type_name == "argument"}
    assert not arguments & {"output", "into", "directory", "config"}


@pytest.mark.parametrize("verb", VERBS)
def test_every_flag_has_a_meaning(verb: str) -> None:
    assert [name for name, one in flags(verb).items() if not one.help] == []
