"""The command line: one file per command, each with `register(app)`.

This file and the modules it imports at the top cost milliseconds: torch, Polars, pydantic and
the like are imported inside the command functions, so that `normbench --help` answers at once.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence

import typer

import normbench
from normbench.cli import (
    capabilities,
    coverage,
    import_benchmark,
    methods,
    results,
    run,
    site,
    suite,
)

COMMANDS = (run, results, import_benchmark, methods, capabilities, coverage, suite, site)
"""In the order that `--help` lists them."""

USER_ERROR = 2
"""Exit code for a mistake of the user's: bad input, a path that cannot be used, a full disk."""

INTERRUPTED = 130
"""Exit code after Ctrl-C (128 + SIGINT)."""

WORKER_ERROR = ("normbench.engine.pool", "WorkerError")
"""Module and name of the error of a worker that cannot start; importing it would import torch."""

_PATH_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENAMETOOLONG})
_PATH_ERRORS = (PermissionError, FileNotFoundError, NotADirectoryError, IsADirectoryError)

app = typer.Typer(
    name="normbench",
    help="Measure and compare normalization methods for neural networks.",
    no_args_is_help=True,
    rich_markup_mode=None,  # importing rich would double the time `--help` takes
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"normbench {normbench.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version."
    ),
) -> None:
    """Measure and compare normalization methods for neural networks."""


for _command in COMMANDS:
    _command.register(app)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit.

    A mistake of the user's ends as one `Error: …` on stderr and exit code 2, Ctrl-C as 130. A
    fault of ours keeps its traceback.

    Args:
        arguments: what follows the program's name; `sys.argv[1:]` by default.
    """
    try:
        app(args=arguments, prog_name="normbench")
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except Exception as error:
        sentence = users_mistake(error)
        if sentence is None:
            raise
        typer.echo(f"Error: {sentence}", err=True)
        sys.exit(USER_ERROR)


def users_mistake(error: BaseException) -> str | None:
    """What to tell the user if `error` is a mistake of theirs; None if it is a fault of ours.

    Our errors for users are the subclasses of ValueError that this package defines (CellError,
    RegistryError, SuiteError ...), recognised by where they are defined, so that their modules
    need not be imported. A bare ValueError is not one: it may come from a bug. Nor is a worker
    process that cannot start a bug: its output says what is missing on this machine.
    """
    if isinstance(error, ValueError):
        homes = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
        return str(error) if "normbench" in homes else None
    if any((c.__module__, c.__name__) == WORKER_ERROR for c in type(error).__mro__):
        first, *said = str(error).rstrip().splitlines()
        return " ".join([first, *said[-1:]]).rstrip()
    if isinstance(error, OSError) and error.filename is not None:
        if isinstance(error, _PATH_ERRORS) or error.errno in _PATH_ERRNOS:
            return f"{os.fsdecode(error.filename)}: {error.strerror}"
    elif isinstance(error, OSError) and error.errno in _PATH_ERRNOS:  # a write knows no path
        return str(error.strerror)
    return None
