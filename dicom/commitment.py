"""The data sets of Storage Commitment: what a peer asks for, and what it is told. No IO.

Owns reading the Action Information of an N-ACTION (PS3.4 Table J.3-1) and writing the Event
Information of an N-EVENT-REPORT (PS3.4 Table J.3-2), in implicit and explicit VR little endian.
What is kept, and so may be committed to, is not known here.

Security: the request is a peer's. It is read by a loop that goes forward at each step; UIDs are
digits and dots, at most 64; the number of instances is bounded by the caller.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from typing import Final

from dicom.errors import ProtocolError

STORAGE_COMMITMENT_PUSH_MODEL: Final = "1.2.840.10008.1.20.1"
WELL_KNOWN_INSTANCE: Final = "1.2.840.10008.1.20.1.1"
IMPLICIT_VR_LITTLE_ENDIAN: Final = "1.2.840.10008.1.2"
TRANSFER_SYNTAXES: Final = ("1.2.840.10008.1.2.1", IMPLICIT_VR_LITTLE_ENDIAN)
REQUEST_ACTION: Final = 1  # Action Type ID of "Request Storage Commitment" (PS3.4 §J.3.2)
ALL_COMMITTED: Final = 1  # Event Type IDs (PS3.4 §J.3.3)
SOME_FAILED: Final = 2

MAX_BYTES_PER_REFERENCE: Final = 512
"""An item with two UIDs of 64 bytes has 164; some senders add a study's UID and a file-set's."""
MAX_OTHER_BYTES: Final = 64 * 1024
"""Of an Action Information besides its references."""

_TRANSACTION_UID: Final = 0x00081195
_FAILED_SOP_SEQUENCE: Final = 0x00081198
_REFERENCED_SOP_SEQUENCE: Final = 0x00081199
_REFERENCED_SOP_CLASS_UID: Final = 0x00081150
_REFERENCED_SOP_INSTANCE_UID: Final = 0x00081155
_FAILURE_REASON: Final = 0x00081197
_ITEM: Final = 0xFFFEE000
_ITEM_END: Final = 0xFFFEE00D
_SEQUENCE_END: Final = 0xFFFEE0DD
_UNDEFINED: Final = 0xFFFFFFFF
_LONG_VRS: Final = frozenset(
    (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
)
_HEAD: Final = Struct("<HHI")  # group, element, 32-bit length: implicit VR, and items
_EXPLICIT: Final = Struct("<HH2sH")
_LONG: Final = Struct("<I")
_UID_CHARACTERS: Final = re.compile(rb"[0-9.]{1,64}")


class FailureReason(IntEnum):
    """(0008,1197) Failure Reason (PS3.3 §C.14.1.1)."""

    PROCESSING_FAILURE = 0x0110
    NO_SUCH_OBJECT_INSTANCE = 0x0112
    CLASS_INSTANCE_CONFLICT = 0x0119
    DUPLICATE_TRANSACTION_UID = 0x0131


class CommitmentError(ProtocolError):
    """A request for storage commitment that is refused; `status` is that of the N-ACTION response."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"storage commitment: {reason}")
        self.status = status


INVALID_ARGUMENT: Final = 0x0115  # PS3.7 §C.5
RESOURCE_LIMITATION: Final = 0x0213


@dataclass(frozen=True, slots=True)
class Reference:
    """One instance as a peer names it. The UIDs are digits and dots and need not be valid UIDs."""

    sop_class_uid: str
    sop_instance_uid: str


@dataclass(frozen=True, slots=True)
class CommitmentRequest:
    """What a peer asks us to commit to; each instance once."""

    transaction_uid: str
    references: tuple[Reference, ...]


@dataclass(frozen=True, slots=True)
class CommitmentReport:
    """What we say of a request: every instance of it is in one of the two."""

    transaction_uid: str
    committed: tuple[Reference, ...]
    failed: tuple[tuple[Reference, int], ...]
    """Each with its Failure Reason."""

    @property
    def event_type_id(self) -> int:
        """Which of the two events it is (PS3.4 §J.3.3)."""
        return SOME_FAILED if self.failed else ALL_COMMITTED


def read_request(data: bytes, transfer_syntax_uid: str, max_references: int) -> CommitmentRequest:
    """Read the Action Information of a request.

    Raises:
        CommitmentError: it cannot be read; has no Transaction UID or no instance; a UID has other
            characters than digits and dots, or more than 64; more than `max_references`.
    """
    implicit = transfer_syntax_uid == IMPLICIT_VR_LITTLE_ENDIAN
    transaction_uid = ""
    references: dict[Reference, None] | None = None
    for tag, start, end in _elements(data, 0, len(data), implicit=implicit):
        if tag == _TRANSACTION_UID:
            if transaction_uid:
                raise _invalid("(0008,1195) Transaction UID twice, must be once")
            transaction_uid = _uid(data[start:end], "(0008,1195) Transaction UID")
        elif tag == _REFERENCED_SOP_SEQUENCE:
            if references is not None:
                raise _invalid("(0008,1199) Referenced SOP Sequence twice, must be once")
            references = {}
            for begin, stop in _items(data, start, end, implicit=implicit):
                references[_reference(data, begin, stop, implicit=implicit)] = None
                if len(references) > max_references:
                    raise CommitmentError(
                        RESOURCE_LIMITATION, f"more than {max_references} instances in one request"
                    )
    if not transaction_uid or not references:
        raise _invalid("(0008,1195) Transaction UID or every item of (0008,1199) is missing")
    return CommitmentRequest(transaction_uid, tuple(references))


def write_report(report: CommitmentReport, transfer_syntax_uid: str) -> bytes:
    """The Event Information of a report."""
    implicit = transfer_syntax_uid == IMPLICIT_VR_LITTLE_ENDIAN

    def named(reference: Reference, *more: bytes) -> bytes:
        return b"".join(
            [
                _element(_REFERENCED_SOP_CLASS_UID, b"UI", _padded(reference.sop_class_uid), implicit),
                _element(_REFERENCED_SOP_INSTANCE_UID, b"UI", _padded(reference.sop_instance_uid), implicit),
                *more,
            ]
        )

    def failed(reference: Reference, reason: int) -> bytes:
        return named(reference, _element(_FAILURE_REASON, b"US", reason.to_bytes(2, "little"), implicit))

    parts = [_element(_TRANSACTION_UID, b"UI", _padded(report.transaction_uid), implicit)]
    if report.failed:
        items = [failed(reference, reason) for reference, reason in report.failed]
        parts.append(_element(_FAILED_SOP_SEQUENCE, b"SQ", _in_items(items), implicit))
    if report.committed:
        items = [named(reference) for reference in report.committed]
        parts.append(_element(_REFERENCED_SOP_SEQUENCE, b"SQ", _in_items(items), implicit))
    return b"".join(parts)


def _reference(data: bytes, start: int, end: int, *, implicit: bool) -> Reference:
    found: dict[int, str] = {}
    for tag, begin, stop in _elements(data, start, end, implicit=implicit):
        if tag in (_REFERENCED_SOP_CLASS_UID, _REFERENCED_SOP_INSTANCE_UID):
            if tag in found:
                raise _invalid("an item of (0008,1199) names two instances, must be one")
            found[tag] = _uid(data[begin:stop], "a UID in (0008,1199)")
    if len(found) != 2:
        raise _invalid("an item of (0008,1199) lacks (0008,1150) or (0008,1155)")
    return Reference(found[_REFERENCED_SOP_CLASS_UID], found[_REFERENCED_SOP_INSTANCE_UID])


def _elements(data: bytes, at: int, end: int, *, implicit: bool) -> Iterator[tuple[int, int, int]]:
    """The elements of a data set or an item: tag, and where the value begins and ends."""
    while at < end:
        tag, start, length = _head(data, at, end, implicit=implicit)
        if tag >> 16 == 0xFFFE:
            raise _invalid("a delimiter where an element must be")
        if length == _UNDEFINED:
            stop, at = _closed(data, start, end, implicit=implicit)
        else:
            stop = at = start + length
        yield tag, start, stop


def _items(data: bytes, at: int, end: int, *, implicit: bool) -> Iterator[tuple[int, int]]:
    while at < end:
        tag, start, length = _head(data, at, end, implicit=implicit)
        if tag != _ITEM:
            raise _invalid("something other than an item in (0008,1199)")
        if length == _UNDEFINED:
            stop, at = _item_closed(data, start, end, implicit=implicit)
        else:
            stop = at = start + length
        yield start, stop


def _item_closed(data: bytes, at: int, end: int, *, implicit: bool) -> tuple[int, int]:
    """Where an item of undefined length ends, and what follows it begins."""
    while at < end:
        tag, start, length = _head(data, at, end, implicit=implicit)
        if tag == _ITEM_END:
            return at, start
        at = _closed(data, start, end, implicit=implicit)[1] if length == _UNDEFINED else start + length
    raise _invalid("an item is not closed")


def _closed(data: bytes, at: int, end: int, *, implicit: bool) -> tuple[int, int]:
    """Where a sequence of undefined length ends, and what follows it begins; whatever is in it."""
    in_item = [False]  # of each sequence that is open
    while at < end:
        begin = at
        tag, at, length = _head(data, at, end, implicit=implicit)
        if tag == _SEQUENCE_END and not in_item[-1]:
            in_item.pop()
            if not in_item:
                return begin, at
        elif tag == _ITEM_END and in_item[-1]:
            in_item[-1] = False
        elif tag == _ITEM and not in_item[-1]:
            if length == _UNDEFINED:
                in_item[-1] = True
            else:
                at += length
        elif tag >> 16 == 0xFFFE or not in_item[-1]:
            raise _invalid("items and delimiters that do not fit together")
        elif length == _UNDEFINED:
            in_item.append(False)
        else:
            at += length
    raise _invalid("a sequence is not closed")


def _head(data: bytes, at: int, end: int, *, implicit: bool) -> tuple[int, int, int]:
    """Tag, where the value begins, and its length, which fits or is undefined."""
    if end - at < _HEAD.size:
        raise _invalid("it is cut short")
    group, element, length = _HEAD.unpack_from(data, at)
    start = at + _HEAD.size
    if not implicit and group != 0xFFFE:
        _, _, vr, length = _EXPLICIT.unpack_from(data, at)
        if vr in _LONG_VRS:
            if end - start < _LONG.size:
                raise _invalid("it is cut short")
            (length,) = _LONG.unpack_from(data, start)
            start += _LONG.size
            if length == _UNDEFINED and vr != b"SQ":
                raise _invalid("a value other than a sequence has undefined length")
    if length != _UNDEFINED and length > end - start:
        raise _invalid("a value goes beyond the end")
    return group << 16 | element, start, length


def _uid(value: bytes, what: str) -> str:
    text = value.rstrip(b"\0 ")
    if not _UID_CHARACTERS.fullmatch(text):
        raise _invalid(f"{what} is not 1 to 64 digits and dots")
    return text.decode("ascii")


def _element(tag: int, vr: bytes, value: bytes, implicit: bool) -> bytes:
    group, element = tag >> 16, tag & 0xFFFF
    if implicit:
        return _HEAD.pack(group, element, len(value)) + value
    if vr in _LONG_VRS:
        return _EXPLICIT.pack(group, element, vr, 0) + _LONG.pack(len(value)) + value
    return _EXPLICIT.pack(group, element, vr, len(value)) + value


def _in_items(contents: Sequence[bytes]) -> bytes:
    return b"".join(_HEAD.pack(0xFFFE, 0xE000, len(content)) + content for content in contents)


def _padded(uid: str) -> bytes:
    raw = uid.encode("ascii")
    return raw + b"\0" * (len(raw) % 2)


def _invalid(problem: str) -> CommitmentError:
    return CommitmentError(INVALID_ARGUMENT, problem)
