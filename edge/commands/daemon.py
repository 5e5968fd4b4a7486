"""`insitu run`, `insitu status` and `insitu version`: the daemon as a whole."""

import contextlib
import logging
import shutil
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from edge.commands.invocation import AsJson, settings_of
from edge.commands.model import active_models
from edge.exit_codes import CommandError, ExitCode
from edge.output import write_json, write_pairs, write_text
from edge.version import VERSION

if TYPE_CHECKING:
    from edge.options import Settings

log = logging.getLogger(__name__)

GIB: Final = 1 << 30


class Role(StrEnum):
    """The values of `--role`; `edge.presence.ROLES` as an option wants them."""

    RECEIVE = "receive"
    WORK = "work"
    DELIVER = "deliver"
    API = "api"


def add_to(app: typer.Typer) -> None:
    """Add the verbs of this module to `app`."""
    app.command()(run)
    app.command()(status)
    app.command()(version)


def run(
    context: typer.Context,
    role: Annotated[
        list[Role] | None,
        typer.Option(metavar="ROLE", help="receive, work, deliver or api: this alone; may be given again."),
    ] = None,
) -> None:
    """Run the daemon: all roles, or those that are named.

    It runs until SIGTERM or Ctrl-C, finishes or puts back what it has begun, and ends. One
    line on standard output says when all has started; the log goes to standard error.
    """
    from edge.config import warnings
    from edge.daemon import run as run_daemon
    from edge.failures import verdict_of
    from edge.logs import configure
    from edge.presence import ROLES

    settings = settings_of(context)
    configure(settings.log)
    for line in warnings(settings):
        log.warning("configuration: %s", line)
    roles = tuple(dict.fromkeys(each.value for each in role)) if role else ROLES
    try:
        run_daemon(settings, roles, _ready)
    except Exception as error:
        if not verdict_of(error).expected:  # nobody can run this again with INSITU_DEBUG=1
            log.exception("the daemon ended by a defect")
        raise


def status(context: typer.Context, as_json: AsJson = False) -> None:
    """Show what runs, what waits, and what serves.

    The exit status is 6 when a role does not run; what is known is printed all the same.
    """
    from edge.presence import ROLES, running

    settings = settings_of(context)
    found = running(settings.directories.runtime)
    studies = _studies(settings)
    models = active_models(settings)
    free = _free_bytes(settings.directories.state)
    commitments = _commitments(settings)
    if as_json:
        write_json(
            {
                "version": VERSION,
                "node": {
                    "ae_title": settings.node.ae_title,
                    "host": settings.node.host,
                    "port": settings.node.port,
                },
                "roles": {role: {"runs": role in found, "pid": found.get(role)} for role in ROLES},
                "studies": studies,
                "models": models,
                "commitments": commitments,
                "disk": {"free_bytes": free, "refuses_below_bytes": settings.limits.min_free_disk_bytes},
            }
        )
    else:
        counts = [f"{count} {state}" for state, count in (studies or {}).items() if count]
        write_pairs(
            [
                ("node", f"{settings.node.ae_title} at {settings.node.host}:{settings.node.port}"),
                *[
                    (role, f"runs, process {found[role]}" if role in found else "does not run")
                    for role in ROLES
                ],
                ("studies", ", ".join(counts) or "none"),
                ("models", ", ".join(f"{m['name']} {m['version']}" for m in models) or "none is active"),
                (
                    "commitments",
                    ", ".join(f"{count} {state}" for state, count in commitments.items() if count) or "none",
                ),
                ("disk", _disk(free, settings.limits.min_free_disk_bytes)),
            ]
        )
    missing = [role for role in ROLES if role not in found]
    if missing:
        what = (
            "the daemon does not run" if len(missing) == len(ROLES) else f"not running: {', '.join(missing)}"
        )
        raise CommandError(ExitCode.NOT_RUNNING, what, "start it: insitu run, or systemctl start insitu")


def version(as_json: AsJson = False) -> None:
    """Print the version of the software."""
    if as_json:
        write_json({"version": VERSION})
    else:
        write_pairs([("insitu", VERSION)])


def _ready(line: str) -> None:
    """All has started: said on standard output too, for whoever waits for it."""
    log.info("%s", line)
    write_text(line)
    sys.stdout.flush()


def _studies(settings: "Settings") -> dict[str, int] | None:
    path = settings.directories.state / "journal.db"
    if not path.exists():
        return None
    from edge.journal import Journal
    from edge.journal_view import waiting

    with contextlib.closing(Journal.open(path, readonly=True)) as journal:
        return waiting(journal)


def _commitments(settings: "Settings") -> dict[str, int]:
    from edge.commitment_spool import CommitmentSpool
    from edge.places import Places

    return CommitmentSpool(Places(settings.directories).commitments).states()


def _free_bytes(directory: Path) -> int | None:
    for place in (directory, *directory.parents):
        if place.is_dir():
            return shutil.disk_usage(place).free
    return None


def _disk(free: int | None, watermark: int) -> str:
    if free is None:
        return "unknown"
    text = f"{free / GIB:.1f} GiB free; instances are refused below {watermark / GIB:.1f} GiB"
    return text if free >= watermark else f"{text}: REFUSING NOW"
