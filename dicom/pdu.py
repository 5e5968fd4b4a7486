"""Protocol data units as bytes: what arrives is cut into PDUs and fragments, what leaves is built.

Owns the framing of PS3.8 §9.3 and nothing else: what is inside an A-ASSOCIATE-RQ is
`dicom.negotiation`, which PDU may come when is `dicom.association`, what a message
means is `dicom.dimse`. No IO: `PduReader` lends the caller space to receive into and
hands back what is in it. A length that a peer announces never decides what is
allocated: a PDU that may be long (P-DATA-TF) is not gathered but handed on piece by
piece, as it comes, without a copy; all others are refused at their header when they
announce more than they may have.
"""

from dataclasses import dataclass
from enum import Enum, IntEnum
from mmap import mmap
from struct import Struct
from typing import Final

from dicom.errors import ProtocolError

HEADER_BYTES: Final = 6  # PDU-type, reserved, PDU-length (PS3.8 §9.3.1)
_PDV_HEADER_BYTES: Final = 6  # item length, presentation context ID, message control header
_HEADER: Final = Struct(">BxI")
_PDV_HEADER: Final = Struct(">IBB")
_P_DATA_HEADERS: Final = Struct(">BxIIBB")
_IS_COMMAND: Final = 0x01  # message control header, PS3.8 §E.2
_IS_LAST: Final = 0x02
_FIXED_LENGTH: Final = 4  # A-RELEASE-RQ, A-RELEASE-RP, A-ABORT and A-ASSOCIATE-RJ (PS3.8 §9.3)


class PduType(IntEnum):
    """The seven PDUs of PS3.8 §9.3."""

    A_ASSOCIATE_RQ = 0x01
    A_ASSOCIATE_AC = 0x02
    A_ASSOCIATE_RJ = 0x03
    P_DATA_TF = 0x04
    A_RELEASE_RQ = 0x05
    A_RELEASE_RP = 0x06
    A_ABORT = 0x07


class AbortSource(IntEnum):
    """Who aborts (PS3.8 Table 9-26)."""

    SERVICE_USER = 0
    SERVICE_PROVIDER = 2


class AbortReason(IntEnum):
    """Why the service-provider aborts (PS3.8 Table 9-26)."""

    NOT_SPECIFIED = 0
    UNRECOGNIZED_PDU = 1
    UNEXPECTED_PDU = 2
    UNRECOGNIZED_PDU_PARAMETER = 4
    UNEXPECTED_PDU_PARAMETER = 5
    INVALID_PDU_PARAMETER_VALUE = 6


class Rejection(Enum):
    """Why an association is rejected: (result, source, reason) of PS3.8 Table 9-21."""

    NO_REASON_GIVEN = (1, 1, 1)
    APPLICATION_CONTEXT_NAME_NOT_SUPPORTED = (1, 1, 2)
    CALLING_AE_TITLE_NOT_RECOGNIZED = (1, 1, 3)
    CALLED_AE_TITLE_NOT_RECOGNIZED = (1, 1, 7)
    PROTOCOL_VERSION_NOT_SUPPORTED = (1, 2, 2)
    TEMPORARY_CONGESTION = (2, 3, 1)
    LOCAL_LIMIT_EXCEEDED = (2, 3, 2)


class PduError(ProtocolError):
    """Bytes that are not a PDU of PS3.8, with the reason that an A-ABORT gives for it."""

    def __init__(self, reason: AbortReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Pdu:
    """A whole PDU other than P-DATA-TF; `body` is what follows its header."""

    type: PduType
    body: bytes


@dataclass(slots=True)
class Fragment:
    """A piece of a presentation data value, as far as it has arrived.

    `data` is a view of the receive buffer and is valid until the next `PduReader.space`.
    `is_last` is set on the piece with which the last fragment of a command or of a data
    set ends (PS3.8 §E.2), not on the pieces before it.
    """

    context_id: int
    is_command: bool
    is_last: bool
    data: memoryview


class PduReader:
    """Cuts a stream of bytes into PDUs and fragments.

    The caller asks for `space()`, receives into it, says how much by `received(n)`, and
    takes what there is from `next()` until that is None. After a `PduError` the stream
    has no more meaning: `next()` must not be called again.
    """

    def __init__(self, max_associate_pdu_bytes: int, buffer_bytes: int = 4096) -> None:
        self._max_associate_pdu_bytes = max_associate_pdu_bytes
        self._max_p_data_bytes = 0
        self._view = memoryview(bytearray(buffer_bytes))
        self._start = 0
        self._end = 0
        self._type: PduType | None = None  # of the PDU whose body is being gathered
        self._body = bytearray()
        self._body_left = 0
        self._pdu_left = 0  # of a P-DATA-TF, after the presentation data values begun so far
        self._in_pdv = False
        self._pdv_left = 0
        self._context_id = 0
        self._control = 0

    def establish(self, max_p_data_bytes: int, buffer_bytes: int) -> None:
        """Read with a large buffer from now on, P-DATA-TF of at most `max_p_data_bytes` (0: any).

        The buffer is memory that the kernel gives page by page as it is written to, so that
        an association that sends little costs little. What was received already is kept.
        """
        self._max_p_data_bytes = max_p_data_bytes
        kept = bytes(self._view[self._start : self._end])
        self._view = memoryview(mmap(-1, max(buffer_bytes, len(kept) + HEADER_BYTES)))
        self._view[: len(kept)] = kept
        self._start, self._end = 0, len(kept)

    def space(self) -> memoryview:
        """Where the next bytes may be received. Fragments handed out before are void now.

        Call it only after `next()` gave None: then at most a header's beginning is kept.
        """
        kept = self._end - self._start
        if kept and self._start:
            self._view[:kept] = self._view[self._start : self._end]
        self._start, self._end = 0, kept
        return self._view[kept:]

    def received(self, n: int) -> None:
        """Say that the first `n` bytes of the last `space()` have been filled."""
        self._end += n

    def drop(self) -> None:
        """Forget all that was received: after a `PduError`, to have the space for reading on."""
        self._start = self._end = 0

    def next(self) -> Pdu | Fragment | None:
        """The next whole PDU or piece of a data value, or None when more must be received.

        Raises:
            PduError: an unrecognized PDU type, or a length that the PDU may not have.
        """
        while True:
            if self._in_pdv:
                return self._fragment()
            if self._pdu_left:
                if not self._begin_pdv():
                    return None
            elif self._type is not None:
                return self._pdu()
            elif not self._begin_pdu():
                return None

    def _fragment(self) -> Fragment | None:
        take = min(self._pdv_left, self._end - self._start)
        if take == 0 and self._pdv_left:
            return None
        data = self._view[self._start : self._start + take]
        self._start += take
        self._pdv_left -= take
        self._in_pdv = self._pdv_left > 0
        control = self._control
        return Fragment(
            self._context_id,
            control & _IS_COMMAND != 0,
            control & _IS_LAST != 0 and not self._in_pdv,
            data,
        )

    def _begin_pdv(self) -> bool:
        if self._pdu_left < _PDV_HEADER_BYTES:
            raise PduError(
                AbortReason.INVALID_PDU_PARAMETER_VALUE,
                f"P-DATA-TF: {self._pdu_left} bytes are left in it, must be 0 or at least a data value's 6",
            )
        if self._end - self._start < _PDV_HEADER_BYTES:
            return False
        length, self._context_id, self._control = _PDV_HEADER.unpack_from(self._view, self._start)
        if not 2 <= length <= self._pdu_left - 4:
            raise PduError(
                AbortReason.INVALID_PDU_PARAMETER_VALUE,
                f"P-DATA-TF: item length of a data value is {length}, must be 2 to {self._pdu_left - 4}",
            )
        self._start += _PDV_HEADER_BYTES
        self._pdu_left -= 4 + length
        self._pdv_left = length - 2
        self._in_pdv = True
        return True

    def _begin_pdu(self) -> bool:
        if self._end - self._start < HEADER_BYTES:
            return False
        number, length = _HEADER.unpack_from(self._view, self._start)
        self._start += HEADER_BYTES
        if number == PduType.P_DATA_TF:
            if not _PDV_HEADER_BYTES <= length <= (self._max_p_data_bytes or length):
                raise PduError(
                    AbortReason.INVALID_PDU_PARAMETER_VALUE,
                    f"P-DATA-TF: PDU-length is {length}, must be 6 to {self._max_p_data_bytes or 'any'}",
                )
            self._pdu_left = length
            return True
        try:
            self._type = PduType(number)
        except ValueError:
            raise PduError(
                AbortReason.UNRECOGNIZED_PDU, f"PDU-type is 0x{number:02X}, must be 0x01 to 0x07"
            ) from None
        negotiates = self._type in (PduType.A_ASSOCIATE_RQ, PduType.A_ASSOCIATE_AC)
        allowed = self._max_associate_pdu_bytes if negotiates else _FIXED_LENGTH
        if length > allowed or (length < allowed and not negotiates):
            raise PduError(
                AbortReason.INVALID_PDU_PARAMETER_VALUE,
                f"{self._type.name}: length is {length}, must be {allowed}{' or less' if negotiates else ''}",
            )
        self._body_left = length
        return True

    def _pdu(self) -> Pdu | None:
        take = min(self._body_left, self._end - self._start)
        self._body += self._view[self._start : self._start + take]
        self._start += take
        self._body_left -= take
        if self._body_left or self._type is None:
            return None
        pdu = Pdu(self._type, bytes(self._body))
        self._type = None
        self._body = bytearray()
        return pdu


def release_rp() -> bytes:
    """A-RELEASE-RP (PS3.8 §9.3.7)."""
    return _HEADER.pack(PduType.A_RELEASE_RP, _FIXED_LENGTH) + bytes(_FIXED_LENGTH)


def abort(source: AbortSource, reason: AbortReason) -> bytes:
    """A-ABORT (PS3.8 §9.3.8); the reason is not significant when the service-user aborts."""
    return _HEADER.pack(PduType.A_ABORT, _FIXED_LENGTH) + bytes((0, 0, source, reason))


def reject(rejection: Rejection) -> bytes:
    """A-ASSOCIATE-RJ (PS3.8 §9.3.4)."""
    return _HEADER.pack(PduType.A_ASSOCIATE_RJ, _FIXED_LENGTH) + bytes((0, *rejection.value))


def associate_ac(body: bytes) -> bytes:
    """A-ASSOCIATE-AC around `body` (PS3.8 §9.3.3)."""
    return _HEADER.pack(PduType.A_ASSOCIATE_AC, len(body)) + body


def p_data(context_id: int, data: bytes, *, is_command: bool, max_length_bytes: int) -> bytes:
    """`data` as P-DATA-TF PDUs, one fragment in each (PS3.8 §9.3.5, Annex E).

    Args:
        context_id: the presentation context it is sent on.
        data: a whole command set, or a whole data set.
        is_command: which of both it is.
        max_length_bytes: what the peer can receive (its Maximum Length; 0: any). It counts
            what follows the PDU's header (PS3.8 §D.1).
    """
    room = max(max_length_bytes - _PDV_HEADER_BYTES, 2) // 2 * 2 if max_length_bytes else len(data)
    pdus = bytearray()
    for begin in range(0, max(len(data), 1), max(room, 1)):
        part = data[begin : begin + room]
        is_last = begin + room >= len(data)
        control = (_IS_COMMAND if is_command else 0) | (_IS_LAST if is_last else 0)
        length = len(part) + 2
        pdus += _P_DATA_HEADERS.pack(PduType.P_DATA_TF, length + 4, length, context_id, control)
        pdus += part
    return bytes(pdus)
