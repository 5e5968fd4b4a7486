"""C-STORE and C-ECHO as SCU, to one destination, on an association that is kept open.

Owns what is proposed (just the contexts that the files at hand need), when a kept association is
used again, and what each status means. Files are sent as they are, never transcoded. It does not
decide when to try again (`edge.deliver`) and keeps no thread: the owner closes what is idle.

Clauses: PS3.4 Annex B (Storage), PS3.4 Annex A (Verification), PS3.7 §9.1.1.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from dicom.errors import HeaderError, PeerError
from dicom.part10 import open_instance
from dicom.proposal import MAX_CONTEXTS, Syntax
from dicom.requestor import (
    IMPLICIT_VR_LITTLE_ENDIAN,
    VERIFICATION,
    Association,
    Destination,
    Timeouts,
)
from dicom.uid import is_valid

__all__ = ["Destination", "FileMeta", "Receipt", "Sender", "Timeouts", "read_file_meta"]

SUCCESS: Final = 0x0000
CONTEXT_NOT_ACCEPTED: Final = 0x0122
"""Our own use of "SOP Class not supported" (PS3.7 §C.5.6): the peer never saw the object."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """What the destination said of one object."""

    sop_instance_uid: str
    status: int
    reason: str = ""
    """In words, when the status is not success."""

    @property
    def ok(self) -> bool:
        """The destination has the object: success, or a warning."""
        return self.status == SUCCESS or self.warning

    @property
    def warning(self) -> bool:
        """Stored, but not quite as sent (PS3.7 §C.4, PS3.4 Table B.2-1)."""
        return self.status in {0x0001, 0x0107, 0x0116} or 0xB000 <= self.status <= 0xBFFF

    @property
    def duplicate(self) -> bool:
        """The destination has an object of this UID already, this one or another (PS3.7 §C.5.2)."""
        return self.status == 0x0111

    @property
    def failure(self) -> bool:
        """The destination does not have the object."""
        return not self.ok


@dataclass(frozen=True, slots=True)
class FileMeta:
    """What the file meta information says (PS3.10 §7.1), and where the data set is."""

    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    data_set_offset: int
    data_set_bytes: int

    @property
    def syntax(self) -> Syntax:
        """The presentation context that the object needs."""
        return self.sop_class_uid, self.transfer_syntax_uid


class Sender:
    """Sends to one destination; not safe to use from two threads at once. `close` it, or use `with`."""

    def __init__(
        self, destination: Destination, calling_ae_title: str, timeouts: Timeouts | None = None
    ) -> None:
        self.destination = destination
        self._calling_ae_title = calling_ae_title
        self._timeouts = timeouts or Timeouts()
        self._association: Association | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    @property
    def connected(self) -> bool:
        """Whether an association is open, as far as we know."""
        return self._association is not None and self._association.open

    def send(self, files: Sequence[Path]) -> list[Receipt]:
        """Send all of `files` over one association; see `send_each`."""
        return list(self.send_each(files))

    def send_each(self, files: Sequence[Path]) -> Iterator[Receipt]:
        """Send `files` in order over one association, and say of each what the destination answered.

        An object for which the destination accepts no presentation context, or which it answers with a
        failure, is a receipt with `failure`, and the next one is sent. A kept association that turns out
        to be dead before anything was answered is replaced by a new one, once. More than 128 different
        (SOP class, transfer syntax) pairs take more than one association.

        Raises:
            HeaderError: a file is not a DICOM file; nothing has been sent.
            PeerError: no association, or it broke; the receipts so far hold.
            OSError: a file cannot be read.
        """
        metas = [read_file_meta(path) for path in files]
        for first, last in _batches([meta.syntax for meta in metas]):
            batch = list(zip(files[first:last], metas[first:last], strict=True))
            association, kept = self._associated([meta.syntax for _, meta in batch])
            for number, (path, meta) in enumerate(batch):
                try:
                    receipt = _store(association, path, meta)
                except PeerError:
                    if not kept or number > 0:
                        raise
                    association, kept = self._associated([meta.syntax for _, meta in batch])
                    receipt = _store(association, path, meta)
                yield receipt

    def echo(self) -> None:
        """C-ECHO on the kept association, or on a new one.

        Raises:
            PeerError: refused, not answered, or not answered with success.
        """
        syntax = VERIFICATION, IMPLICIT_VR_LITTLE_ENDIAN
        association, kept = self._associated([syntax])
        try:
            association.echo()
        except PeerError:
            if not kept:
                raise
            self._associated([syntax])[0].echo()

    def close(self) -> None:
        """Release the association, if there is one."""
        if self._association is not None:
            self._association.release()
            self._association = None

    def abort(self) -> None:
        """Abort the association, if there is one: for a stop that cannot wait."""
        if self._association is not None:
            self._association.abort()
            self._association = None

    def _associated(self, needed: Sequence[Syntax]) -> tuple[Association, bool]:
        """An association on which all of `needed` were proposed, and whether it is a kept one."""
        wanted = list(dict.fromkeys(needed))
        current = self._association
        if current is not None:
            if current.is_quiet() and set(wanted) <= set(current.syntaxes):
                return current, True
            # What was good for the last study will be wanted again after this one.
            both = list(dict.fromkeys([*wanted, *current.syntaxes]))
            wanted = both if len(both) <= MAX_CONTEXTS else wanted
            self.close()
        self._association = Association(self.destination, self._calling_ae_title, wanted, self._timeouts)
        return self._association, False


def read_file_meta(path: Path) -> FileMeta:
    """What must be known of a DICOM file to send it.

    Raises:
        HeaderError: it is not a DICOM file, or its meta information names no SOP class or instance.
        OSError: the file cannot be read.
    """
    try:
        found = open_instance(path)
    except HeaderError as error:
        raise HeaderError(f"{path.name}: {error}") from error
    sop_class_uid = found.meta.media_storage_sop_class_uid
    sop_instance_uid = found.meta.media_storage_sop_instance_uid
    for tag, uid in (("(0002,0002)", sop_class_uid), ("(0002,0003)", sop_instance_uid)):
        if not is_valid(uid):
            raise HeaderError(
                f"{path.name}: {tag} Media Storage SOP Class or Instance UID is {uid!r}, not a UID"
            )
    return FileMeta(
        sop_class_uid,
        sop_instance_uid,
        found.meta.transfer_syntax_uid,
        found.meta.dataset_offset,
        found.dataset_bytes,
    )


def _store(association: Association, path: Path, meta: FileMeta) -> Receipt:
    refused = association.refused.get(meta.syntax)
    if refused is not None:
        reason = (
            f"no presentation context for SOP class {meta.sop_class_uid}"
            f" in transfer syntax {meta.transfer_syntax_uid}: {refused}"
        )
        return Receipt(meta.sop_instance_uid, CONTEXT_NOT_ACCEPTED, reason)
    with path.open("rb", buffering=0) as file:
        file.seek(meta.data_set_offset)
        status = association.store(meta.syntax, meta.sop_instance_uid, file, meta.data_set_bytes)
    return Receipt(meta.sop_instance_uid, status, "" if status == SUCCESS else _meaning(status))


def _meaning(status: int) -> str:
    """A C-STORE status in words (PS3.4 Table B.2-1, PS3.7 Annex C)."""
    known = {
        0x0110: "processing failure",
        0x0111: "duplicate SOP instance",
        0x0117: "invalid SOP instance",
        0x0122: "SOP class not supported",
        0x0124: "not authorized",
        0x0210: "duplicate invocation",
        0x0211: "unrecognized operation",
        0x0212: "mistyped argument",
        0xB000: "coercion of data elements",
        0xB006: "elements discarded",
        0xB007: "data set does not match SOP class",
    }
    ranges = {0xA7: "out of resources", 0xA9: "data set does not match SOP class", 0xC: "cannot understand"}
    words = known.get(status) or ranges.get(status >> 8) or ranges.get(status >> 12) or "unknown status"
    return f"status 0x{status:04X}: {words}"


def _batches(syntaxes: Sequence[Syntax]) -> Iterator[tuple[int, int]]:
    """Runs of objects that need no more than 128 contexts: (first, after the last)."""
    start, seen = 0, set[Syntax]()
    for index, syntax in enumerate(syntaxes):
        if syntax not in seen and len(seen) == MAX_CONTEXTS:
            yield start, index
            start, seen = index, set()
        seen.add(syntax)
    if syntaxes:
        yield start, len(syntaxes)
