"""The command line: the Typer app, its commands in the order of its help, and how a command ends."""

from __future__ import annotations

import os
import sys
import warnings
from typing import Annotated, Any

import typer

import headwater
from headwater.allocator import keep_freed_memory
from headwater.cli.evaluate import evaluate
from headwater.cli.explain import explain
from headwater.cli.explain_text import explain_text
from headwater.cli.export import export
from headwater.cli.interruption import WORK, InterruptedWork, handled
from headwater.cli.lists import experiments, methods, models
from headwater.cli.report import report
from headwater.cli.reproduce import reproduce
from headwater.cli.serve import serve
from headwater.cli.terminal import complain
from headwater.cli.train import train
from headwater.errors import ConservationWarning, HeadwaterError

app = typer.Typer(
    name="headwater",
    help="Which pixels a prediction rests on, in values that sum to its probability.",
    epilog="--debug, anywhere: show the traceback of an error.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (explain, explain_text, serve, export, evaluate, report, reproduce, train, models, methods, experiments):
    app.command()(command)


def main() -> None:
    """Run the command line; an error of Headwater's own is one line and status 1."""
    debug = "--debug" in sys.argv
    arguments = [a for a in sys.argv[1:] if a != "--debug"]
    for stream in ("stdout", "stderr"):
        _make_writable(stream)
    keep_freed_memory()
    warnings.simplefilter("ignore", ConservationWarning)  # every command says it in its own words
    try:
        with handled():
            app(arguments, standalone_mode=True)
    except HeadwaterError as error:
        if debug:
            raise
        complain(str(error))
        sys.exit(1)
    except OSError as error:
        if debug:
            raise
        complain(f"the output cannot be written: {error.strerror or error}")
        sys.exit(1)
    except InterruptedWork as interruption:
        print(f"headwater: {WORK}", file=sys.stderr)
        sys.exit(interruption.status)
    finally:
        _flush(sys.stdout)


def _make_writable(name: str) -> None:
    """Replace a closed stream by one that discards, and let an open one replace characters that it cannot encode."""
    stream = getattr(sys, name)
    if stream is None:
        setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115, PTH123 - for the life of the process
    elif hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="replace" if name == "stdout" else "backslashreplace")


def _flush(stream: Any) -> None:
    """Flush now, where an error can be caught, not while Python exits: the reader of a pipe may have gone."""
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"headwater {headwater.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None: ...


if __name__ == "__main__":
    main()
