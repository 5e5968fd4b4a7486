"""`insitu send` and `insitu echo`: this node as an SCU, from the command line."""

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from edge.addressing import check_ae_title, parse_address
from edge.commands.invocation import AsJson, settings_of
from edge.exit_codes import CommandError, ExitCode
from edge.output import message, printable, progress, write_json, write_pairs

if TYPE_CHECKING:
    from dicom.send import Destination, Receipt
    from edge.options import Settings

MEDIA_STORAGE_DIRECTORY: Final = "1.2.840.10008.1.3.10"
SHOWN_AT_MOST: Final = 10
"""Files named one by one for each kind of trouble; the others are counted, and all are in the JSON."""

Calling = Annotated[
    str | None,
    typer.Option(
        metavar="AET", help="The calling AE title; the node's own (node.ae_title) where it is not given."
    ),
]


def add_to(app: typer.Typer) -> None:
    """Add the verbs of this module to `app`."""
    app.command()(send)
    app.command()(echo)


def send(
    context: typer.Context,
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="DIR|FILE... to HOST:PORT:AET|PEER",
            help="What to send; then the word `to`; then where: an address, or the name of a [[peer]].",
        ),
    ],
    calling: Calling = None,
    as_json: AsJson = False,
) -> None:
    """Send DICOM files to a node by C-STORE.

    Directories are searched; files go as they are; what is no DICOM file is left out and
    counted. The exit status is 0 only when every DICOM file that was found is stored.
    """
    from dicom.errors import PeerError
    from dicom.send import Sender

    if len(words) < 3 or words[-2] != "to":
        raise typer.BadParameter("say what to send, the word `to`, and where: scans/ to 10.1.2.3:104:PACS")
    settings = settings_of(context)
    destination = destination_of(words[-1], settings)
    files, skipped = _dicom_files([Path(word) for word in words[:-2]])
    if not files:
        _tell_skipped(skipped)
        raise CommandError(ExitCode.NOT_FOUND, f"no DICOM file in {', '.join(words[:-2])}")
    sender = Sender(destination, _calling(calling, settings))
    receipts: list[Receipt] = []
    broken, begun = "", time.monotonic()
    with progress(f"to {destination.ae_title}", len(files)) as advance:
        try:
            for receipt in sender.send_each(files):
                receipts.append(receipt)
                advance(1)
        except PeerError as error:
            broken = str(error)
            sender.abort()
        else:
            sender.close()
    seconds = time.monotonic() - begun
    failed = [
        (str(file), receipt.reason) for file, receipt in zip(files, receipts, strict=False) if receipt.failure
    ]
    failed += [(str(file), f"not sent: {broken}") for file in files[len(receipts) :]]
    sent = len(files) - len(failed)
    if as_json:
        write_json(
            {
                "destination": str(destination),
                "sent": sent,
                "failed": [{"file": file, "reason": reason} for file, reason in failed],
                "skipped": [{"file": file, "reason": reason} for file, reason in skipped],
                "seconds": round(seconds, 3),
            }
        )
    else:
        write_pairs(
            [("sent", f"{sent} of {len(files)} to {destination}, {seconds:.1f} s"), ("skipped", len(skipped))]
        )
        _tell_skipped(skipped)
        _tell("failed", failed)
    if broken:
        raise CommandError(ExitCode.PEER, broken, f"see whether it answers: insitu echo {words[-1]}")
    if failed:
        raise CommandError(ExitCode.FAILED, f"{len(failed)} of {len(files)} were not stored by {destination}")


def echo(
    context: typer.Context,
    where: Annotated[
        str, typer.Argument(metavar="HOST:PORT:AET|PEER", help="An address, or a [[peer]]'s name.")
    ],
    calling: Calling = None,
    as_json: AsJson = False,
) -> None:
    """Ask a node whether it is there and knows us (C-ECHO)."""
    from dicom.errors import PeerError
    from dicom.send import Sender

    settings = settings_of(context)
    destination = destination_of(where, settings)
    sender = Sender(destination, _calling(calling, settings))
    begun = time.monotonic()
    try:
        sender.echo()
    except PeerError as error:
        if as_json:
            write_json({"destination": str(destination), "ok": False, "reason": str(error)})
        raise
    seconds = time.monotonic() - begun
    sender.close()
    if as_json:
        write_json({"destination": str(destination), "ok": True, "seconds": round(seconds, 4)})
    else:
        write_pairs([(str(destination), f"answered in {seconds * 1000:.0f} ms")])


def destination_of(text: str, settings: "Settings") -> "Destination":
    """The node that `text` names: a [[peer]], or HOST:PORT:AET.

    Raises:
        CommandError: there is no such peer.
        typer.BadParameter: it is no address.
    """
    from dicom.send import Destination
    from edge.calling import destination_of as of_peer

    for peer in settings.peers:
        if peer.name == text:
            return of_peer(peer, settings)
    if ":" not in text:
        names = ", ".join(peer.name for peer in settings.peers) or "none is configured"
        raise CommandError(
            ExitCode.NOT_FOUND, f"{text!r} is no peer ({names})", "name a [[peer]], or give HOST:PORT:AET"
        )
    try:
        address = parse_address(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    return Destination(address.ae_title, address.ae_title, address.host, address.port)


def _calling(given: str | None, settings: "Settings") -> str:
    if given is None:
        return settings.node.ae_title
    try:
        return check_ae_title(given)
    except ValueError:
        raise typer.BadParameter(
            f"--calling {given!r} is not 1 to 16 ASCII characters, without a backslash"
        ) from None


def _dicom_files(paths: Sequence[Path]) -> tuple[list[Path], list[tuple[str, str]]]:
    """The DICOM files among `paths` and below them, sorted; and what is none, with the reason."""
    from dicom.errors import InstanceError
    from dicom.send import read_file_meta

    files, skipped = [], []
    for path in _walk(paths):
        try:
            meta = read_file_meta(path)
        except (InstanceError, OSError) as error:
            skipped.append((str(path), str(error.strerror if isinstance(error, OSError) else error)))
            continue
        if meta.sop_class_uid == MEDIA_STORAGE_DIRECTORY:
            skipped.append((str(path), "a DICOMDIR: an index of files, not an instance"))
        else:
            files.append(path)
    return files, skipped


def _walk(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            for directory, names, files in os.walk(path):
                names.sort()
                # a pipe or a device would be waited for without end
                yield from (
                    Path(directory, name) for name in sorted(files) if Path(directory, name).is_file()
                )
        elif path.is_file():
            yield path
        else:
            raise CommandError(ExitCode.NOT_FOUND, f"{path}: no such file or directory")


def _tell_skipped(skipped: Sequence[tuple[str, str]]) -> None:
    _tell("skipped", skipped)


def _tell(kind: str, files: Sequence[tuple[str, str]]) -> None:
    for file, reason in files[:SHOWN_AT_MOST]:
        message(f"{kind}: {printable(file)}: {printable(reason)}")
    if len(files) > SHOWN_AT_MOST:
        message(f"{kind}: {len(files) - SHOWN_AT_MOST} more; --json names all of them")
