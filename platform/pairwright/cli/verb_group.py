"""The verbs as a group: ``--help`` lists them in sections, and a wrong command line gets one line with the remedy.

Every verb takes ``--address``: its command line is parsed here, and done on a cluster.
"""

from functools import cache
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from pairwright.cli.options import PANELS, RETIRED_FLAGS
from pairwright.errors import ConfigError
from pairwright.terminal import escaped

UsageError: Any = typer.BadParameter.__bases__[0]  # typer hands on no more of click


_flags = typer.Typer(add_completion=False)


@_flags.command()
def _flags_of_submitting(
    address: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Do this as a job of the Ray cluster with this dashboard: http://HEAD:8265."),
    ] = None,
    submission_id: Annotated[
        str | None, typer.Option(metavar="ID", help="Of the job: the same one follows it, or goes on after a failure.")
    ] = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Submit the job, and do not follow it.")] = False,
) -> None:
    """Hold the flags, which every verb gets."""


@cache
def _params_of_submitting() -> list[Any]:
    return typer.main.get_command(_flags).params


class Verb(TyperCommand):
    """A verb, done by this process, or with ``--address`` by a job of a cluster."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.params += _params_of_submitting()

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the command line, and keep it as it was given."""
        ctx.meta["arguments"] = list(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Do the verb, or submit it."""
        address, submission_id, no_wait = (ctx.params.pop(name) for name in ("address", "submission_id", "no_wait"))
        if address is None:
            if submission_id is not None or no_wait:
                raise ConfigError("--submission-id and --no-wait are for jobs; give --address http://HEAD:8265 too")
            return super().invoke(ctx)
        from pairwright.cluster.job_request import check_address, job_request

        check_address(address, submission_id)
        request = job_request(str(ctx.info_name), ctx.meta["arguments"], ctx.params, folder=Path.cwd())
        from pairwright.cluster.job_client import INTERRUPTED_STATUS, submit

        status = submit(request, address=address, submission_id=submission_id, wait=not no_wait)
        if status == INTERRUPTED_STATUS:
            raise SystemExit(status)  # what goes on was said
        raise typer.Exit(status)


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
