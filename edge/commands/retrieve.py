"""`insitu query` and `insitu pull`: what an archive has, and fetching a study; `insitu web token`."""

import secrets
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from edge.commands.invocation import AsJson, settings_of
from edge.commands.network import destination_of
from edge.exit_codes import CommandError, ExitCode
from edge.output import write_json, write_pairs, write_table

if TYPE_CHECKING:
    from dicom.web_client import WebClient

MAX_TOKEN_BYTES: Final = 4096
"""Of a token file; a token has some 43 characters, a JSON Web Token up to 2,000."""

TokenFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="A file with the bearer token, for a URL; - is standard input."),
]
Where = Annotated[
    str, typer.Argument(metavar="PEER|HOST:PORT:AET|URL", help="A [[peer]], an address, or a DICOMweb root.")
]


def add_to(app: typer.Typer) -> None:
    """Add the verbs of this module to `app`."""
    app.command()(query)
    app.command()(pull)
    web = typer.Typer(no_args_is_help=True, help="The clients of DICOMweb.")
    web.command()(token)
    web.callback()(_web)
    app.add_typer(web, name="web")


def query(
    context: typer.Context,
    where: Where,
    study: Annotated[str, typer.Option(metavar="UID", help="Study Instance UID.")] = "",
    patient_id: Annotated[str, typer.Option(metavar="ID", help="Patient ID; * and ? are wildcards.")] = "",
    accession: Annotated[str, typer.Option(metavar="NUMBER", help="Accession Number.")] = "",
    modality: Annotated[str, typer.Option(metavar="CS", help="A modality in the study: MR.")] = "",
    date: Annotated[
        str, typer.Option(metavar="DATE", help="Study Date: 20260301 or 20260301-20260331.")
    ] = "",
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Ask an archive which studies it has (C-FIND, or QIDO-RS where a URL is given).

    Of the patient nothing is shown.
    """
    from dicom.query import StudyQuery, find_studies

    settings = settings_of(context)
    asked = StudyQuery(
        study_instance_uid=study,
        patient_id=patient_id,
        accession_number=accession,
        modality=modality,
        study_date=date,
    )
    try:
        if _is_url(where):
            found = _client(where, token_file).find_studies(asked)
        else:
            found = find_studies(destination_of(where, settings), settings.node.ae_title, asked)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    if as_json:
        write_json(
            {
                "studies": [
                    {
                        "study_instance_uid": each.study_instance_uid,
                        "study_date": each.study_date,
                        "modalities": list(each.modalities),
                        "instances": each.instances,
                    }
                    for each in found
                ]
            }
        )
        return
    write_table(
        ("study", "date", "modalities", "instances"),
        [
            (each.study_instance_uid, each.study_date, " ".join(each.modalities), str(each.instances or ""))
            for each in found
        ],
    )


def pull(
    context: typer.Context,
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="STUDY_UID from PEER|HOST:PORT:AET|URL",
            help="The study; then the word `from`; then where it is.",
        ),
    ],
    token_file: TokenFile = None,
    as_json: AsJson = False,
) -> None:
    """Fetch a study from an archive (C-MOVE to this node, or WADO-RS where a URL is given).

    The daemon must run: the study comes in through its DICOM port, as every other does. For
    C-MOVE the archive must know this node's AE title and address.
    """
    from edge.presence import running
    from edge.pull import pull_by_move, pull_by_web

    if len(words) != 3 or words[1] != "from":
        raise typer.BadParameter("say which study, the word `from`, and where: 1.2.3 from PACS")
    settings = settings_of(context)
    uid, _, where = words
    if "receive" not in running(settings.directories.runtime):
        raise CommandError(
            ExitCode.NOT_RUNNING, "the daemon does not run: nothing would take the study in", "insitu run"
        )
    begun = time.monotonic()
    try:
        if _is_url(where):
            pulled = pull_by_web(_client(where, token_file), settings, uid)
        else:
            pulled = pull_by_move(destination_of(where, settings), settings, uid)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    seconds = time.monotonic() - begun
    if as_json:
        write_json({"instances": pulled.instances, "failed": pulled.failed, "seconds": round(seconds, 3)})
    else:
        write_pairs(
            [("fetched", f"{pulled.instances} instances, {seconds:.1f} s"), ("failed", pulled.failed)]
        )
    if pulled.failed:
        raise CommandError(ExitCode.FAILED, f"{pulled.failed} instances did not come")
    if not pulled.instances:
        raise CommandError(
            ExitCode.NOT_FOUND, "the archive has no such study", "insitu query shows what it has"
        )


def token(as_json: AsJson = False) -> None:
    """Make a bearer token for a [[web_client]], and print it with what the configuration holds of it.

    The token is shown once and kept nowhere.
    """
    import hashlib

    made = secrets.token_urlsafe(32)
    digest = hashlib.sha256(made.encode()).hexdigest()
    if as_json:
        write_json({"token": made, "token_sha256": digest})
    else:
        write_pairs([("token, for the client", made), ("token_sha256, for [[web_client]]", digest)])


def _web() -> None:
    """The clients of DICOMweb."""


def _is_url(where: str) -> bool:
    return where.startswith(("http://", "https://"))


def _client(url: str, token_file: Path | None) -> "WebClient":
    from dicom.web_client import WebClient, WebNode

    bearer = ""
    if token_file is not None:
        if str(token_file) == "-":
            bearer = sys.stdin.read(MAX_TOKEN_BYTES).strip()
        else:
            with token_file.open() as file:
                bearer = file.read(MAX_TOKEN_BYTES).strip()
    return WebClient(WebNode(url, bearer))
