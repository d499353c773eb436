"""The console script ``pairwright``: its verbs, and how errors end a command.

An error that a user can fix ends as one message and exit status 1, without a traceback; an unexpected error keeps its
traceback. Exit status 2 means that the command line was wrong, 130 that Ctrl-C was pressed, and 143 that SIGTERM
stopped a training run.
"""

import sys
from traceback import format_exception
from typing import Annotated

import typer

from pairwright import __version__
from pairwright.addresses import STORAGE_SCHEMES, credentials_advice, secret_in, without_credentials
from pairwright.cli import config_verbs, data_verbs, run_verbs, serving_verbs, table_verbs, trust_verbs
from pairwright.cli.verb_group import UsageError, Verb, VerbGroup, usage_message
from pairwright.errors import ConfigError, PairwrightError, StoppedError
from pairwright.terminal import escaped, indented, say

app = typer.Typer(
    name="pairwright",
    help="Train reward models from ranked annotations, on a laptop or on a Ray cluster.",
    cls=VerbGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(data_verbs.app)
app.add_typer(config_verbs.app)
app.add_typer(table_verbs.app)
app.add_typer(run_verbs.app)
app.add_typer(trust_verbs.app)
app.add_typer(serving_verbs.app)
for _verbs in app.registered_groups:
    assert _verbs.typer_instance is not None
    for _command in _verbs.typer_instance.registered_commands:
        _command.cls = Verb

_STORAGE = tuple(f"{scheme}://" for scheme in (*STORAGE_SCHEMES, "http", "https"))
INTERRUPTED = 130
TERMINATED = 143


def _print_version(requested: bool) -> None:  # noqa: FBT001 - click calls it by position
    if requested:
        say(f"pairwright {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Train reward models from ranked annotations, on a laptop or on a Ray cluster."""


def main() -> None:
    """Run a verb, and turn errors, Ctrl-C and SIGTERM into a message and an exit status."""
    try:
        _refuse_credentials(sys.argv[1:])
        status = app(standalone_mode=False) or 0
    except UsageError as error:
        if sys.argv[1:]:
            say(usage_message(error, sys.argv[1]), to=sys.stderr)
        else:
            error.show()  # the help
        status = error.exit_code
    except typer.Abort:
        say("aborted: something asked for input, and there is none", to=sys.stderr)
        status = 1
    except StoppedError as stop:
        say(str(stop), to=sys.stderr)
        status = TERMINATED
    except Exception as error:
        say(indented(_explained(error)), to=sys.stderr)
        status = 1
    if status == INTERRUPTED:
        say("interrupted: nothing half done counts; the same command can be run again", to=sys.stderr)
    sys.exit(status)


def _refuse_credentials(arguments: list[str]) -> None:
    """Refuse an argument that is an address with credentials, before anything is read.

    Raises:
        ConfigError: if there is one.
    """
    takes_databases = arguments[:1] in (["ingest"], ["validate"])  # database addresses name users
    for argument in arguments:
        address = argument.partition("=")[2] if argument.startswith("--") else argument
        if takes_databases and not address.startswith(_STORAGE):
            continue
        if found := secret_in(address):
            raise ConfigError(credentials_advice(address, found))


def _explained(error: Exception) -> str:
    """Return the text of an error that ends a command: its message, or a traceback if it is unexpected."""
    if isinstance(error, PairwrightError):
        return f"error: {error}"
    if isinstance(error, OSError) and error.filename is not None:
        return f"error: {escaped(str(error.filename))}: {error.strerror}"
    from obstore.exceptions import BaseError

    if isinstance(error, BaseError):
        from pairwright.data.storage.object_store import store_failure

        return f"error: {escaped(store_failure(error))}"
    return without_credentials("".join(format_exception(error)))
