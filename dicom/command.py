"""Command sets of DIMSE messages, as bytes and as `Command`.

Owns the encoding of PS3.7 §6.3.1: Implicit VR Little Endian, group 0000, elements in
ascending order, each once. Knows the elements of C-ECHO, C-STORE, C-FIND, C-MOVE, N-ACTION and
N-EVENT-REPORT (PS3.7 §9.3.1 to 9.3.5, 10.3.1, 10.3.4, Annex E) and passes over others, which
a later edition or another service may bring. What a command asks for is `dicom.dimse`.
"""

from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from typing import Final

from dicom.errors import ProtocolError

NO_DATA_SET: Final = 0x0101  # (0000,0800) Command Data Set Type; any other value: a data set follows
_DATA_SET: Final = 0x0001
RESPONSE: Final = 0x8000  # the bit of (0000,0100) Command Field that tells a response from a request

_ELEMENT: Final = Struct("<HHI")
_US: Final = Struct("<H")
_UL: Final = Struct("<I")
_MAX_TEXT: Final = 64  # characters of a UI, and of an LO such as (0000,0902) Error Comment


class CommandField(IntEnum):
    """(0000,0100) Command Field (PS3.7 §E.1), of the messages this package exchanges."""

    C_STORE_RQ = 0x0001
    C_STORE_RSP = 0x8001
    C_FIND_RQ = 0x0020
    C_FIND_RSP = 0x8020
    C_MOVE_RQ = 0x0021
    C_MOVE_RSP = 0x8021
    C_ECHO_RQ = 0x0030
    C_ECHO_RSP = 0x8030
    N_EVENT_REPORT_RQ = 0x0100
    N_EVENT_REPORT_RSP = 0x8100
    N_ACTION_RQ = 0x0130
    N_ACTION_RSP = 0x8130
    C_CANCEL_RQ = 0x0FFF


class Status(IntEnum):
    """(0000,0900) Status (PS3.7 Annex C, PS3.4 Table B.2-1), of those this package answers itself."""

    SUCCESS = 0x0000
    INVALID_SOP_INSTANCE = 0x0117
    SOP_CLASS_NOT_SUPPORTED = 0x0122
    UNRECOGNIZED_OPERATION = 0x0211
    CANNOT_UNDERSTAND = 0xC000


class CommandError(ProtocolError):
    """A command set is not what PS3.7 §6.3.1 and Annex E say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One command set; an element that is absent is None.

    `has_data_set` is (0000,0800) Command Data Set Type. A field number that is not a
    `CommandField` is kept as it is, so that it can be answered.
    """

    field: int
    has_data_set: bool = False
    message_id: int | None = None
    message_id_being_responded_to: int | None = None
    affected_sop_class_uid: str | None = None
    requested_sop_class_uid: str | None = None
    affected_sop_instance_uid: str | None = None
    requested_sop_instance_uid: str | None = None
    move_destination: str | None = None
    priority: int | None = None
    status: int | None = None
    error_comment: str | None = None
    event_type_id: int | None = None
    action_type_id: int | None = None
    completed_suboperations: int | None = None
    failed_suboperations: int | None = None
    warning_suboperations: int | None = None
    move_originator_ae_title: str | None = None
    move_originator_message_id: int | None = None

    @property
    def is_response(self) -> bool:
        """Whether it answers a request of ours."""
        return self.field & RESPONSE != 0


# element number in group 0000 → the field of `Command`, and whether it is a US (else text)
_ELEMENTS: Final[tuple[tuple[int, str, bool], ...]] = (
    (0x0002, "affected_sop_class_uid", False),
    (0x0003, "requested_sop_class_uid", False),
    (0x0100, "field", True),
    (0x0110, "message_id", True),
    (0x0120, "message_id_being_responded_to", True),
    (0x0600, "move_destination", False),
    (0x0700, "priority", True),
    (0x0800, "has_data_set", True),
    (0x0900, "status", True),
    (0x0902, "error_comment", False),
    (0x1000, "affected_sop_instance_uid", False),
    (0x1001, "requested_sop_instance_uid", False),
    (0x1002, "event_type_id", True),
    (0x1008, "action_type_id", True),
    (0x1021, "completed_suboperations", True),
    (0x1022, "failed_suboperations", True),
    (0x1023, "warning_suboperations", True),
    (0x1030, "move_originator_ae_title", False),
    (0x1031, "move_originator_message_id", True),
)
_BY_NUMBER: Final = {number: (name, is_us) for number, name, is_us in _ELEMENTS}
_PADDED_WITH_NULL: Final = frozenset(
    {0x0002, 0x0003, 0x1000, 0x1001}
)  # UI; the others are padded with spaces


def decode(data: bytes) -> Command:
    """Read a command set.

    (0000,0000) Command Group Length is not believed: where a command ends is said by its
    last fragment, and some senders write it wrong.

    Raises:
        CommandError: not group 0000; not in ascending order, so also: an element twice; a
            length beyond the end; a value that is not of its VR; no Command Field or Command
            Data Set Type.
    """
    found: dict[str, int | str] = {}
    offset, previous, end = 0, -1, len(data)
    while offset < end:
        if end - offset < _ELEMENT.size:
            raise CommandError(
                f"command set: {end - offset} bytes are left at its end, must be 0 or an element"
            )
        group, number, length = _ELEMENT.unpack_from(data, offset)
        offset += _ELEMENT.size
        if group != 0 or number <= previous:
            raise CommandError(
                f"command set: element ({group:04X},{number:04X}) follows (0000,{max(previous, 0):04X}), "
                "must be of group 0000, in ascending order, each once"
            )
        if length > end - offset:
            raise CommandError(
                f"command set: (0000,{number:04X}) has length {length}, must be at most {end - offset}"
            )
        known = _BY_NUMBER.get(number)
        if known is not None and length:  # an element without a value is as good as absent
            name, is_us = known
            value = data[offset : offset + length]
            found[name] = _number(number, value) if is_us else _text(number, value)
        offset += length
        previous = number
    data_set_type = found.pop("has_data_set", None)
    if "field" not in found or data_set_type is None:
        raise CommandError(
            "command set: (0000,0100) Command Field or (0000,0800) Command Data Set Type is missing"
        )
    # mypy cannot follow names to fields; `_ELEMENTS` and the tests hold them together
    return Command(has_data_set=data_set_type != NO_DATA_SET, **found)  # type: ignore[arg-type]


def encode(command: Command) -> bytes:
    """Write a command set, (0000,0000) Command Group Length first.

    Raises:
        ValueError: a number that is no US, or text that is not ASCII of at most 64 characters.
    """
    elements = bytearray()
    for number, name, is_us in _ELEMENTS:
        value = getattr(command, name)
        if value is None:
            continue
        if name == "has_data_set":
            encoded = _US.pack(_DATA_SET if value else NO_DATA_SET)
        elif is_us:
            if not 0 <= value <= 0xFFFF:
                raise ValueError(f"command set: {name} is {value}, must be 0 to 65535")
            encoded = _US.pack(value)
        else:
            if not value.isascii() or len(value) > _MAX_TEXT:
                raise ValueError(
                    f"command set: {name} has {len(value)} characters, must be ASCII, at most 64"
                )
            encoded = value.encode("ascii")
            if len(encoded) % 2:
                encoded += b"\0" if number in _PADDED_WITH_NULL else b" "
        elements += _ELEMENT.pack(0, number, len(encoded))
        elements += encoded
    return _ELEMENT.pack(0, 0, 4) + _UL.pack(len(elements)) + bytes(elements)


def response(request: Command, status: int, *, error_comment: str | None = None) -> Command:
    """The response to `request`, naming what it named, as PS3.7 §9.3 and §10.3 let responses do.

    Raises:
        ValueError: it is not a request, or has no Message ID to be answered by.
    """
    if request.is_response or request.message_id is None:
        raise ValueError(f"command 0x{request.field:04X}: must be a request with a Message ID to be answered")
    return Command(
        field=request.field | RESPONSE,
        message_id_being_responded_to=request.message_id,
        affected_sop_class_uid=request.affected_sop_class_uid or request.requested_sop_class_uid,
        affected_sop_instance_uid=request.affected_sop_instance_uid or request.requested_sop_instance_uid,
        event_type_id=request.event_type_id,
        action_type_id=request.action_type_id,
        status=status,
        error_comment=error_comment,
    )


def _number(number: int, value: bytes) -> int:
    if len(value) != _US.size:
        raise CommandError(f"command set: (0000,{number:04X}) has length {len(value)}, must be 2 (US)")
    return int.from_bytes(value, "little")


def _text(number: int, value: bytes) -> str:
    text = value.rstrip(b"\0 ").lstrip(b" ").decode("latin-1")
    if len(text) > _MAX_TEXT or not (text.isascii() and text.isprintable()):
        raise CommandError(
            f"command set: (0000,{number:04X}) has {len(value)} bytes, must be printable ASCII, at most 64"
        )
    return text
