"""The verbs as a group: ``--help`` lists them in sections, and a wrong command line gets one line with the remedy."""

from typing import Any

import typer
from typer.core import TyperGroup

from pairwright.cli.options import PANELS, RETIRED_FLAGS
from pairwright.terminal import escaped

UsageError: Any = typer.BadParameter.__bases__[0]  # typer hands on no more of click


class VerbGroup(TyperGroup):
    """A group of commands that lists them in sections, in the order of ``PANELS``."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write a section for each panel; a verb without a panel stands in the last one."""
        limit = formatter.width - 6 - max(map(len, self.commands))
        for panel in (*PANELS, None):
            verbs = [verb for verb in self.commands.items() if _panel(verb[1]) == panel]
            if verbs:
                with formatter.section(panel or "Other"):
                    formatter.write_dl([(name, verb.get_short_help_str(limit)) for name, verb in verbs])


def _panel(verb: Any) -> str | None:
    return verb.rich_help_panel if verb.rich_help_panel in PANELS else None


def usage_message(error: Any, first: str) -> str:
    """Return what is wrong with a command line, and what to do, as one line.

    Args:
        error: what typer raised.
        first: the first argument: the verb, where typer's error does not know it.
    """
    path = (
        f"pairwright {first}"
        if error.ctx is None and first.replace("-", "").isalpha() and first[:1] != "-"
        else "pairwright"
    )
    if error.ctx is not None:
        path = _verb_path(error.ctx)
    said = escaped(" ".join(_said(error).replace("Value error, ", "").split())).rstrip(".")
    return f"error: {path}: " + "; ".join([said, *_advice(error), f"see `{path} --help`"])


def _verb_path(ctx: Any) -> str:
    return "pairwright" if ctx.parent is None else f"pairwright {ctx.info_name}"


def _said(error: Any) -> str:
    """Return the fact alone, without what typer advises."""
    if _is(error, "NoSuchOption"):
        return f"no such flag {error.option_name}"
    said = error.format_message()
    if said.startswith("No such command"):
        return f"no such verb {said.split(maxsplit=3)[3].partition(' Did you mean')[0]}"
    return f"{said[:1].lower()}{said[1:]}"


def _advice(error: Any) -> list[str]:
    known = {} if error.ctx is None else {name: param for param in error.ctx.command.params for name in param.opts}
    if _is(error, "NoSuchOption"):
        renamed = RETIRED_FLAGS.get(error.option_name)
        if renamed in known:
            return [f"it is {renamed} now"]
        return [f"did you mean {error.possibilities[0]}?"] if error.possibilities else []
    if _is(error, "MissingParameter"):
        named = [] if error.param is None else error.param.opts
    elif "unexpected extra argument" in error.message:
        named = [*known]
    elif found := error.message.partition("Did you mean ")[2]:
        return [f"did you mean {found.replace(chr(39), '')}"]
    else:
        return []
    return [text for flag, text in _MEANING.items() if flag in named]


def _is(error: Any, kind: str) -> bool:
    return type(error).__name__ == kind  # typer hands on none of these classes


_MEANING = {
    "--output": "what a verb writes is named by --output URL",
    "--config": "the configuration is given as --config FILE",
}
