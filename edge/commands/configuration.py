"""`insitu config check|show|example`: the configuration, before and while it is used."""

import os
from typing import Annotated

import typer

from edge.commands.invocation import AsJson, config_of, settings_of, utc_now
from edge.exit_codes import ExitCode
from edge.output import message, write_json, write_text


def add_to(app: typer.Typer) -> None:
    """Add the verbs of this module to `app`."""
    group = typer.Typer(help="Check and show the configuration.", no_args_is_help=True)
    group.command()(check)
    group.command()(show)
    group.command()(example)
    app.add_typer(group, name="config")


def check(context: typer.Context, as_json: AsJson = False) -> None:
    """Name every problem of the configuration."""
    from edge import tls
    from edge.config import ConfigError, find, load, warnings

    try:
        file = find(config_of(context), os.environ)
        settings = load(config_of(context), os.environ)
        if found := tls.problems(settings, utc_now()):
            raise ConfigError([f"{file}: {line}" for line in found])
    except ConfigError as error:
        if not as_json:
            raise
        write_json({"ok": False, "file": None, "problems": list(error.problems), "warnings": []})
        raise typer.Exit(ExitCode.CONFIGURATION) from error
    said = (*warnings(settings), *tls.warnings(settings, utc_now()))
    if as_json:
        where = None if file is None else str(file)
        write_json({"ok": True, "file": where, "problems": [], "warnings": list(said)})
        return
    for line in said:
        message(f"warning: {line}")
    write_text(f"{file}: no problem" if file else "no configuration file: the defaults are used")


def show(
    context: typer.Context,
    effective: Annotated[
        bool,
        typer.Option("--effective", help="All options that are in effect, defaults included."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Print the options that differ from the defaults."""
    from edge.config import changed
    from edge.config import effective as all_options
    from edge.reference import to_toml

    settings = settings_of(context)
    data = all_options(settings) if effective else changed(settings)
    if as_json:
        write_json(data)
    else:
        write_text(to_toml(data) or "# every option has its default")


def example() -> None:
    """Print a file of all options, each explained."""
    from edge.reference import example_toml

    write_text(example_toml())
