"""The command line `insitu`: its verbs put together, and every error turned into one clear end.

Owns the global options, the exit status of each error, and what is said of it: never a
traceback for what can be expected (`INSITU_DEBUG=1` shows it all the same). The verbs are
in `edge.commands`.
"""

import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from edge.commands import commitment, configuration, daemon, demo, model, network, retrieve, study
from edge.commands.ending import explained
from edge.commands.invocation import Invocation
from edge.exit_codes import ExitCode, table
from edge.output import message
from edge.version import VERSION

_EPILOG = f"""\b
Exit status:
{table()}

\b
Environment:
  INSITU_CONFIG  the configuration file, where --config is not given
  INSITU_DEBUG   1: show the traceback of an error
  NO_COLOR       1: no colour
"""


def run(arguments: Sequence[str]) -> int:
    """Run one command line; the exit status."""
    try:
        try:
            build()(args=config_first(arguments), prog_name="insitu")
        finally:
            sys.stdout.flush()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else ExitCode.OK
    except Exception as error:  # noqa: BLE001 - the last place: whatever it is, it ends in words and a status
        return _tell(error)
    return ExitCode.OK


def build() -> typer.Typer:
    """The application with all its verbs."""
    app = typer.Typer(
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(epilog=_EPILOG)(_global)
    for family in (daemon, demo, network, retrieve, study, model, commitment, configuration):
        family.add_to(app)
    return app


def config_first(arguments: Sequence[str]) -> list[str]:
    """`arguments` with `--config FILE` moved to the front: people write it anywhere.

    What follows `--` is left as it is.
    """
    words = list(arguments)
    end = words.index("--") if "--" in words else len(words)
    for index, word in enumerate(words[:end]):
        count = 2 if word == "--config" else 1 if word.startswith("--config=") else 0
        if count and index + count <= end:
            return words[index : index + count] + words[:index] + words[index + count :]
    return words


def _print_version(asked: bool) -> None:
    if asked:
        sys.stdout.write(f"insitu {VERSION}\n")
        raise typer.Exit


def _global(
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The configuration file; else $INSITU_CONFIG, /etc/insitu/insitu.toml, the defaults.",
        ),
    ] = None,
    version: Annotated[  # noqa: ARG001 - its callback has ended the call
        bool,
        typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version),
    ] = False,
) -> None:
    """Insitu runs AI models on DICOM studies inside the hospital.

    Studies come in by C-STORE, the models run here, and the results go back to the PACS.
    Not a medical device: results are not for diagnosis.
    """
    context.obj = Invocation(config)


def _tell(error: Exception) -> int:
    """Say what is wrong and what to do next; the exit status."""
    if os.environ.get("INSITU_DEBUG") == "1":
        sys.stderr.write("".join(traceback.format_exception(error)))
    if isinstance(error, BrokenPipeError):  # the reader of our output, `head` for one, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.FAILED
    ended = explained(error)
    for line in ended.message.split("\n"):
        message(f"insitu: {line}")
    if ended.hint:
        message(f"        {ended.hint}")
    return ended.code
