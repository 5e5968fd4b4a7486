"""`insitu study list|show|retry|release`: what became of each study.

Shows no patient: a study is known by its key and its Study Instance UID.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Final, Literal, get_args

import typer

from edge.commands.invocation import AsJson, local_time, operator, require_owner, settings_of, utc_now
from edge.exit_codes import CommandError, ExitCode
from edge.output import message, write_json, write_pairs, write_table, write_text

if TYPE_CHECKING:
    from edge.journal import Journal
    from edge.journal_view import StudyDetail
    from edge.options import Settings

KEY_SHOWN: Final = 12
"""Digits of a study key in tables; among 10,000 studies two share them once in 5 million cases."""

StudyName = Annotated[
    str, typer.Argument(metavar="STUDY", help="The study's key, its beginning, or its Study Instance UID.")
]
State = Literal["open", "working", "delivered", "declined", "held", "deleted"]


def add_to(app: typer.Typer) -> None:
    """Add the verbs of this module to `app`."""
    group = typer.Typer(help="See what became of each study; try again.", no_args_is_help=True)
    group.command("list")(list_studies)
    group.command()(show)
    group.command()(retry)
    group.command()(release)
    app.add_typer(group, name="study")


def list_studies(
    context: typer.Context,
    state: Annotated[
        State | None, typer.Option(metavar="STATE", help=f"Only these: {', '.join(get_args(State))}.")
    ] = None,
    limit: Annotated[
        int, typer.Option(metavar="N", min=1, max=10_000, help="At most so many (1 to 10,000).")
    ] = 50,
    as_json: AsJson = False,
) -> None:
    """List the studies, the last received first.

    No patient is named: a study is known by its key and the end of its UID.
    """
    from edge.journal_view import studies

    with _journal(settings_of(context), readonly=True) as journal:
        rows = studies(journal, limit, state)
    if as_json:
        write_json({"studies": [asdict(row) for row in rows]})
        return
    if not rows:
        message("no study" if state is None else f"no study is {state}")
        return
    write_table(
        ["study", "state", "modality", "images", "received", "from", "reason"],
        [
            [
                row.study_key[:KEY_SHOWN],
                row.state,
                " ".join(row.modalities),
                row.instances,
                local_time(row.last_received),
                row.calling_ae_title,
                row.reason,
            ]
            for row in rows
        ],
    )


def show(context: typer.Context, study: StudyName, as_json: AsJson = False) -> None:
    """Show all that is known of one study.

    What each model made of it and why, where the results are and went, and its history.
    """
    with _journal(settings_of(context), readonly=True) as journal:
        detail = _find(journal, study)
    if as_json:
        write_json(asdict(detail))
    else:
        _write_detail(detail)


def retry(context: typer.Context, study: StudyName, as_json: AsJson = False) -> None:
    """Try a study again now.

    What is held goes back to the stage that held it; what waits for its next attempt is due now.
    """
    _put_back(context, study, as_json, waiting_too=True)


def release(context: typer.Context, study: StudyName, as_json: AsJson = False) -> None:
    """Put back what is held of a study.

    It goes to the stage that held it, once the cause has been mended; what waits, waits on.
    """
    _put_back(context, study, as_json, waiting_too=False)


def _put_back(context: typer.Context, name: str, as_json: bool, *, waiting_too: bool) -> None:
    from edge import bell
    from edge.presence import ROLES, running

    settings = settings_of(context)
    require_owner(settings.directories.state)
    with _journal(settings, readonly=False) as journal:
        key = _find(journal, name).study.study_key
        count = journal.release(key, operator(), utc_now(), waiting_too=waiting_too)
    for role in ROLES:
        bell.ring(settings.directories.runtime, role)
    runs = "work" in running(settings.directories.runtime)
    if as_json:
        write_json({"study_key": key, "items": count, "daemon_runs": runs})
        return
    write_text(f"study {key[:KEY_SHOWN]}: {count} {'item' if count == 1 else 'items'} put back")
    if count == 0:
        message(
            "nothing of it is held" + (" or waits" if waiting_too else "; to hurry what waits: study retry")
        )
    elif not runs:
        message("the daemon does not run: it is done when it starts (insitu run)")


@contextlib.contextmanager
def _journal(settings: "Settings", *, readonly: bool) -> Iterator["Journal"]:
    from edge.journal import Journal

    path = settings.directories.state / "journal.db"
    if not path.exists():
        raise CommandError(
            ExitCode.NOT_FOUND,
            f"{path}: there is no journal yet, so there are no studies",
            "the daemon makes it when it first starts: insitu run",
        )
    with contextlib.closing(Journal.open(path, readonly=readonly)) as journal:
        yield journal


def _find(journal: "Journal", name: str) -> "StudyDetail":
    from edge.journal_view import study

    try:
        detail = study(journal, name)
    except LookupError as error:
        raise CommandError(ExitCode.NOT_FOUND, str(error)) from error
    if detail is None:
        raise CommandError(ExitCode.NOT_FOUND, f"no study {name!r}", "list the studies: insitu study list")
    return detail


def _write_detail(detail: "StudyDetail") -> None:
    row = detail.study
    closed = f", closed {local_time(row.closed)} by {row.closed_by}" if row.closed_by else ""
    write_pairs(
        [
            ("study", row.study_key),
            ("Study Instance UID", row.study_instance_uid),
            ("state", f"{row.state} (revision {row.revision}{closed})"),
            ("images", f"{row.instances} in {row.series} series, {' '.join(row.modalities)}"),
            ("received", f"{local_time(row.first_received)} to {local_time(row.last_received)}"),
            ("from", row.calling_ae_title),
            ("reason", row.reason or "-"),
        ]
    )
    if detail.decisions:
        write_text("")
        write_table(
            ["model", "runs", "series UID ends", "reason"],
            [
                [d.model, "yes" if d.accepted else "no", d.series_instance_uid[-10:], d.reason]
                for d in detail.decisions
            ],
            "Why a model runs or does not",
        )
    items = [item for item in detail.items if item.model]
    if items:
        write_text("")
        write_table(
            ["item", "model", "stage", "attempt", "next attempt", "reason"],
            [
                [
                    item.item_key[:KEY_SHOWN],
                    item.model,
                    item.stage,
                    item.attempt,
                    local_time(item.next_attempt) if item.stage in {"infer", "produce"} else "",
                    f"superseded by {item.superseded_by[:KEY_SHOWN]}" if item.superseded_by else item.reason,
                ]
                for item in items
            ],
            "Work",
        )
    results = [[item.model, r.kind, r.sop_instance_uid, r.file] for item in items for r in item.results]
    if results:
        write_text("")
        write_table(["model", "kind", "SOP Instance UID", "file below results/"], results, "Results")
    deliveries = [
        [
            item.model,
            d.destination,
            d.state,
            d.attempt,
            "" if d.state != "waiting" else local_time(d.next_attempt),
            d.reason,
        ]
        for item in items
        for d in item.deliveries
    ]
    if deliveries:
        write_text("")
        write_table(
            ["model", "destination", "state", "attempt", "next attempt", "reason"], deliveries, "Deliveries"
        )
    if detail.events:
        write_text("")
        write_table(
            ["when", "what", "detail"],
            [[local_time(event.at), event.what, event.detail] for event in detail.events],
            "History",
        )
