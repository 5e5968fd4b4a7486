"""`insitu commitment list|retry`: reports of storage commitment that their peers have not taken yet."""

from typing import TYPE_CHECKING

import typer

from edge.commands.invocation import AsJson, local_time, require_owner, settings_of
from edge.output import write_json, write_pairs, write_table

if TYPE_CHECKING:
    from edge.commitment_spool import CommitmentSpool
    from edge.options import Settings


def add_to(app: typer.Typer) -> None:
    """Add the verbs of this module to `app`."""
    group = typer.Typer(help="See reports of storage commitment; bring them again.", no_args_is_help=True)
    group.command("list")(list_reports)
    group.command()(retry)
    app.add_typer(group, name="commitment")


def list_reports(context: typer.Context, as_json: AsJson = False) -> None:
    """List the reports that wait, with why they do; no instance is named."""
    reports = _spool(settings_of(context)).reports()
    rows = [
        {
            "calling_ae_title": report.calling_ae_title,
            "transaction_uid": report.content.transaction_uid,
            "committed": len(report.content.committed),
            "failed": len(report.content.failed),
            "asked": report.asked.isoformat(),
            "attempt": report.attempt,
            "state": "parked" if report.is_parked else "waiting",
            "reason": report.reason,
        }
        for report in reports
    ]
    if as_json:
        write_json({"reports": rows})
        return
    write_table(
        ("peer", "asked", "committed", "failed", "state", "attempt", "reason"),
        [
            (
                report.calling_ae_title,
                local_time(report.asked.isoformat()),
                str(len(report.content.committed)),
                str(len(report.content.failed)),
                "parked" if report.is_parked else "waiting",
                str(report.attempt),
                report.reason,
            )
            for report in reports
        ],
    )


def retry(context: typer.Context, as_json: AsJson = False) -> None:
    """Bring every parked report again."""
    from edge.bell import ring

    settings = settings_of(context)
    require_owner(settings.directories.state)
    count = _spool(settings).revive()
    if count:
        ring(settings.directories.runtime, "deliver")
    if as_json:
        write_json({"retried": count})
    else:
        write_pairs([("retried", count)])


def _spool(settings: "Settings") -> "CommitmentSpool":
    from edge.commitment_spool import CommitmentSpool
    from edge.places import Places

    return CommitmentSpool(Places(settings.directories).commitments)
