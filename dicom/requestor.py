"""One association that we asked for: PDUs out and in, C-ECHO, C-STORE, C-FIND and C-MOVE as SCU.

Owns the socket and the bytes on it: A-ASSOCIATE, P-DATA, A-RELEASE, A-ABORT as the requestor
sees them (PS3.8 §9.2, §9.3) and the DIMSE-C requests (PS3.7 §9.1.1, §9.1.2, §9.1.4, §9.1.5). It does not
decide what to propose or whether to try again (`dicom.send`), and builds no `Dataset`.

Objects go from the file to the socket in pieces: memory does not grow with their size.
"""

import contextlib
import io
import os
import select
import socket
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ssl import SSLCertVerificationError, SSLContext, SSLError, SSLSocket, SSLWantReadError
from typing import BinaryIO, Final

from dicom.command import RESPONSE, Command, CommandError, CommandField, decode, encode
from dicom.errors import PeerError
from dicom.pdu import (
    AbortReason,
    AbortSource,
    Fragment,
    Pdu,
    PduError,
    PduReader,
    PduType,
    abort,
    p_data,
    release_rp,
)
from dicom.proposal import Syntax, associate_request, parse_accept, refusal

VERIFICATION: Final = "1.2.840.10008.1.1"
IMPLICIT_VR_LITTLE_ENDIAN: Final = "1.2.840.10008.1.2"
PENDING: Final = frozenset({0xFF00, 0xFF01})
"""Statuses of C-FIND and C-MOVE after which more responses come (PS3.4 §C.4.1.1.4, §C.4.2.1.5)."""
_MAX_INCOMING_BYTES: Final = 65536  # an A-ASSOCIATE-AC with 128 contexts is below 5 KiB
_MAX_OUTGOING_PDU_BYTES: Final = 1 << 20  # larger gains nothing; bounds memory when the peer has no limit
_LEAST_PEER_PDU_BYTES: Final = 64  # smaller is nonsense: the overhead of a PDU is 12 bytes
_READ_BYTES: Final = 1 << 20  # of the file, in one system call; two of these are all the memory used
_BUFFERS_PER_SEND: Final = 1024  # IOV_MAX of Linux
_PDV_OVERHEAD_BYTES: Final = 6  # of a PDU's length: item length, context ID, message control header
_P_DATA: Final = struct.Struct(">BxIIBB")
_LAST: Final = 0x02  # message control header of a data set's last fragment (PS3.8 §E.2)
_MEDIUM: Final = 0  # (0000,0700) Priority
_RELEASE_RQ: Final = struct.pack(">BxI4x", PduType.A_RELEASE_RQ, 4)
_SLOWEST_BYTES_PER_S: Final = 50_000.0
"""A peer that takes an object slower than this on the whole (half a megabit) is not taking it."""


@dataclass(frozen=True, slots=True)
class Destination:
    """A DICOM node that we call."""

    name: str
    ae_title: str
    host: str
    port: int
    tls: SSLContext | None = field(default=None, repr=False)
    """With it only TLS is spoken (PS3.15 §B.9)."""
    tls_name: str = ""
    """The name that its certificate must have; empty: `host`."""

    def __str__(self) -> str:
        return f"{self.name} ({self.ae_title} at {self.host}:{self.port})"


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long a peer may take; each wait ends with a `PeerError`."""

    connect_s: float = 10.0
    """To accept the TCP connection: a node on the hospital's network answers in milliseconds."""
    associate_s: float = 30.0
    """To answer A-ASSOCIATE-RQ (the ARTIM timer's usual value)."""
    response_s: float = 60.0
    """To answer a request, and to take the next bytes of an object: archives sync and index."""
    release_s: float = 3.0
    """To answer A-RELEASE-RQ; after that the connection is closed all the same."""


class Association:
    """One established association; not safe to use from two threads at once.

    Any `PeerError` from `echo` or `store` has closed the connection: `open` is then False.
    """

    def __init__(
        self,
        destination: Destination,
        calling_ae_title: str,
        syntaxes: Sequence[Syntax],
        timeouts: Timeouts,
        *,
        as_scp: Sequence[str] = (),
    ) -> None:
        """Connect and negotiate one presentation context for each of `syntaxes`.

        Of the SOP classes `as_scp` we propose to be the SCP, and not the SCU (PS3.7 §D.3.3.4).

        Raises:
            ValueError: none or more than 128 contexts, or an AE title that is not 1 to 16 characters.
            PeerError: no connection, or the association was rejected, aborted or not answered.
        """
        request = associate_request(calling_ae_title, destination.ae_title, syntaxes, as_scp)
        self.destination = destination
        self.syntaxes = tuple(syntaxes)
        self.accepted: Mapping[Syntax, int] = {}
        """Presentation context ID of each accepted syntax."""
        self.refused: Mapping[Syntax, str] = {}
        """Why each of the others was not accepted, in words."""
        self.open = True
        self._timeouts = timeouts
        self._message_id = 0
        self._reader = PduReader(_MAX_INCOMING_BYTES)
        self._early: Pdu | Fragment | None = None
        self._socket = _connect(destination, timeouts.connect_s)
        with self._closing_on_error():
            self._send(request, time.monotonic() + timeouts.associate_s)
            answered = self._receive(time.monotonic() + timeouts.associate_s)
            if not isinstance(answered, Pdu) or answered.type is not PduType.A_ASSOCIATE_AC:
                raise self._error(refusal(answered if isinstance(answered, Pdu) else None))
            answer = parse_accept(answered.body)
            self._reader.establish(_MAX_INCOMING_BYTES, _MAX_INCOMING_BYTES)
            self.accepted, self.refused = answer.sort_out(self.syntaxes)
            limit = answer.max_pdu_bytes or _MAX_OUTGOING_PDU_BYTES
            if limit < _LEAST_PEER_PDU_BYTES:
                raise self._error(
                    f"its maximum PDU length is {limit}, at least {_LEAST_PEER_PDU_BYTES} is needed"
                )
            room = min(limit, _MAX_OUTGOING_PDU_BYTES) - _PDV_OVERHEAD_BYTES
            self._fragment_bytes = room // 2 * 2

    def is_quiet(self) -> bool:
        """Whether it can still be used: nothing has come that we did not ask for, such as a release."""
        if not self.open:
            return False
        if self._early is None:
            with contextlib.suppress(PduError):
                self._early = self._reader.next()  # it came in one piece with the last answer
        if isinstance(self._socket, SSLSocket):
            return self._early is None and self._is_tls_quiet(self._socket)
        poll = select.poll()  # not select(): it fails beyond 1,024 descriptors
        poll.register(self._socket, select.POLLIN)
        return self._early is None and not poll.poll(0)

    def _is_tls_quiet(self, connection: SSLSocket) -> bool:
        """The same behind TLS, whose own records (session tickets) are no message."""
        connection.setblocking(False)
        try:
            count = connection.recv_into(self._reader.space())
        except SSLWantReadError:
            return True
        except OSError:
            return False
        self._reader.received(count)
        return False

    def report_event(self, syntax: Syntax, event: Command, data_set: bytes) -> int:
        """N-EVENT-REPORT (PS3.7 §10.1.1): `event` without its Message ID; the status that the peer answered.

        Raises:
            KeyError: the peer did not accept `syntax` (see `accepted`).
            PeerError: the peer went away or did not answer.
        """
        context = self.accepted[syntax]
        with self._closing_on_error():
            self._message_id = self._message_id % 0xFFFF + 1
            deadline = time.monotonic() + self._timeouts.response_s + len(data_set) / _SLOWEST_BYTES_PER_S
            self._send_command(context, encode(replace(event, message_id=self._message_id)), deadline)
            self._send_data_set(context, io.BytesIO(data_set), len(data_set), deadline)
            return self._response(CommandField.N_EVENT_REPORT_RSP)

    def echo(self) -> None:
        """C-ECHO (PS3.7 §9.1.5).

        Raises:
            PeerError: not accepted, not answered, or answered with another status than success.
        """
        context = self.accepted.get((VERIFICATION, IMPLICIT_VR_LITTLE_ENDIAN))
        if context is None:
            raise self._error("it does not accept the Verification SOP Class")
        with self._closing_on_error():
            command = self._request(CommandField.C_ECHO_RQ, VERIFICATION)
            deadline = time.monotonic() + self._timeouts.response_s
            self._send_command(context, command, deadline)
            status = self._response(CommandField.C_ECHO_RSP)
        if status != 0:
            raise self._error(f"C-ECHO was answered with status 0x{status:04X}")

    def store(self, syntax: Syntax, sop_instance_uid: str, file: BinaryIO, size_bytes: int) -> int:
        """C-STORE (PS3.7 §9.1.1): send `size_bytes` of `file`, from where it stands, as they are.

        Returns:
            The status that the peer answered (PS3.7 §9.1.1.1.9).

        Raises:
            KeyError: the peer did not accept `syntax` (see `accepted`).
            PeerError: the peer went away, stopped reading or did not answer.
            OSError: the file ended early or cannot be read; the association is aborted.
        """
        context = self.accepted[syntax]
        with self._closing_on_error():
            command = self._request(CommandField.C_STORE_RQ, syntax[0], sop_instance_uid)
            deadline = time.monotonic() + self._timeouts.response_s + size_bytes / _SLOWEST_BYTES_PER_S
            self._send_command(context, command, deadline)
            self._send_data_set(context, file, size_bytes, deadline)
            return self._response(CommandField.C_STORE_RSP)

    def inquire(
        self, syntax: Syntax, field: CommandField, identifier: bytes, move_destination: str | None = None
    ) -> Iterator[tuple[Command, bytes]]:
        """C-FIND (PS3.7 §9.1.2) or C-MOVE (§9.1.4): its responses, each with its identifier.

        The last one is not pending. Who stops before it must `abort` the association.

        Raises:
            KeyError: the peer did not accept `syntax` (see `accepted`).
            PeerError: the peer went away, did not answer in time, or its response cannot be read.
        """
        context = self.accepted[syntax]
        with self._closing_on_error():
            command = self._request(field, syntax[0], move_destination=move_destination, has_data_set=True)
            deadline = time.monotonic() + self._timeouts.response_s
            self._send_command(context, command, deadline)
            limit = self._fragment_bytes + _PDV_OVERHEAD_BYTES
            self._send(p_data(context, identifier, is_command=False, max_length_bytes=limit), deadline)
        is_pending = True
        while is_pending:
            with self._closing_on_error():
                answer = self._answer(CommandField(field | RESPONSE))
                found = self._data_set() if answer.has_data_set else b""
            is_pending = answer.status in PENDING
            yield answer, found

    def release(self) -> None:
        """A-RELEASE (PS3.8 §7.2), then close; a peer that does not answer is closed all the same."""
        if not self.open:
            return
        deadline = time.monotonic() + self._timeouts.release_s
        with contextlib.suppress(PeerError, OSError):
            if self.is_quiet():
                self._send(_RELEASE_RQ, deadline)
            answered = self._receive(deadline)
            if isinstance(answered, Pdu) and answered.type is PduType.A_RELEASE_RQ:
                self._send(release_rp(), deadline)  # the peer was first, or both at once (PS3.8 §9.2, Sta9)
        self._close()

    def abort(self) -> None:
        """A-ABORT (PS3.8 §7.3), and close."""
        if self.open:
            with contextlib.suppress(OSError):
                self._socket.setblocking(False)
                self._socket.send(abort(AbortSource.SERVICE_USER, AbortReason.NOT_SPECIFIED))
            self._close()

    def _send_data_set(self, context: int, file: BinaryIO, size_bytes: int, deadline: float) -> None:
        left = size_bytes
        while left or not size_bytes:
            data = file.read(min(_READ_BYTES, left))
            if not data and size_bytes:
                raise OSError(f"the file ended {left} bytes early")
            left -= len(data)
            buffers = list(_data_fragments(context, data, self._fragment_bytes, is_last=not left))
            for start in range(0, len(buffers), _BUFFERS_PER_SEND):
                self._send_buffers(buffers[start : start + _BUFFERS_PER_SEND], deadline)
            if not left:
                return

    def _request(
        self,
        field: CommandField,
        sop_class_uid: str,
        sop_instance_uid: str | None = None,
        *,
        move_destination: str | None = None,
        has_data_set: bool = False,
    ) -> bytes:
        self._message_id = self._message_id % 0xFFFF + 1
        has_data_set = has_data_set or field is CommandField.C_STORE_RQ
        return encode(
            Command(
                field=field,
                message_id=self._message_id,
                affected_sop_class_uid=sop_class_uid,
                affected_sop_instance_uid=sop_instance_uid,
                move_destination=move_destination,
                priority=_MEDIUM if has_data_set else None,
                has_data_set=has_data_set,
            )
        )

    def _response(self, field: CommandField) -> int:
        """The status of the response to the last request, which has no data set."""
        status = self._answer(field).status
        assert status is not None
        return status

    def _data_set(self) -> bytes:
        """The data set that follows a response."""
        return self._message(is_command=False)

    def _message(self, *, is_command: bool) -> bytes:
        """A whole command set or data set."""
        deadline = time.monotonic() + self._timeouts.response_s
        found = bytearray()
        while True:
            part = self._receive(deadline)
            if isinstance(part, Pdu):
                raise self._error(refusal(part))
            if part.is_command is not is_command:
                raise self._error(
                    "its response carries a data set" if is_command else "a data set is missing"
                )
            found += part.data
            if len(found) > _MAX_INCOMING_BYTES:
                raise self._error(f"its response is longer than {_MAX_INCOMING_BYTES} bytes")
            if part.is_last:
                return bytes(found)

    def _answer(self, field: CommandField) -> Command:
        """The response to the last request; its status is there."""
        command = self._message(is_command=True)
        try:
            answer = decode(command)
        except CommandError as error:
            raise self._error(f"its response cannot be read: {error}") from error
        if answer.field != field or answer.message_id_being_responded_to != self._message_id:
            raise self._error(
                f"it answered message {answer.message_id_being_responded_to} "
                f"with command 0x{answer.field:04X},"
                f" must be message {self._message_id} and command 0x{field:04X}"
            )
        if answer.status is None:
            raise self._error("its response has no status")
        return answer

    def _receive(self, deadline: float) -> Pdu | Fragment:
        """The next whole PDU, or the next piece of a data value, from the peer."""
        if self._early is not None:
            early, self._early = self._early, None
            return early
        while True:
            try:
                part = self._reader.next()
            except PduError as error:
                raise self._error(f"it sent what is not a PDU: {error}") from error
            if part is not None:
                return part
            space = self._reader.space()
            left = deadline - time.monotonic()
            if left <= 0:
                raise self._error("no answer within the time limit")
            self._socket.settimeout(left)
            try:
                count = self._socket.recv_into(space)
            except TimeoutError as error:
                raise self._error("no answer within the time limit") from error
            except OSError as error:
                raise self._error(f"the connection broke: {os_reason(error)}") from error
            if not count:
                raise self._error("it closed the connection")
            self._reader.received(count)

    def _send_command(self, context: int, command: bytes, deadline: float) -> None:
        limit = self._fragment_bytes + _PDV_OVERHEAD_BYTES
        self._send(p_data(context, command, is_command=True, max_length_bytes=limit), deadline)

    def _send(self, data: bytes, deadline: float) -> None:
        self._send_buffers([data], deadline)

    def _send_buffers(self, buffers: Sequence[bytes | memoryview], deadline: float) -> None:
        """Send all of `buffers`; a peer that takes nothing for `response_s`, or is too slow, has failed."""
        waiting = [memoryview(buffer) for buffer in buffers]
        while waiting:
            left = min(deadline - time.monotonic(), self._timeouts.response_s)
            if left <= 0:
                raise self._error("it takes the data too slowly")
            self._socket.settimeout(left)
            try:
                if isinstance(self._socket, SSLSocket):  # it has no sendmsg; a record holds 16 KiB
                    if len(waiting) > 1:
                        waiting = [memoryview(b"".join(waiting))]
                    sent = self._socket.send(waiting[0])
                else:
                    sent = self._socket.sendmsg(waiting)
            except TimeoutError as error:
                raise self._error("it stopped taking data") from error
            except OSError as error:
                raise self._error(f"the connection broke: {os_reason(error)}") from error
            while waiting and sent >= len(waiting[0]):
                sent -= len(waiting.pop(0))
            if sent:
                waiting[0] = waiting[0][sent:]

    @contextlib.contextmanager
    def _closing_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.abort()
            raise

    def _close(self) -> None:
        self.open = False
        self._socket.close()

    def _error(self, what: str) -> PeerError:
        return PeerError(f"destination {self.destination}: {what}")


def os_reason(error: OSError) -> str:
    """What the operating system says, without paths or addresses."""
    return (error.strerror or os.strerror(error.errno or 0)) if error.errno else type(error).__name__


def _connect(destination: Destination, timeout_s: float) -> socket.socket:
    try:
        connection = socket.create_connection((destination.host, destination.port), timeout_s)
    except OSError as error:
        raise PeerError(f"destination {destination}: no connection: {os_reason(error)}") from error
    # A small C-STORE would otherwise wait 40 ms for the peer's delayed acknowledgement.
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if destination.tls is None:
        return connection
    try:  # the timeout of the connection holds for each step of the handshake
        name = destination.tls_name or destination.host
        return destination.tls.wrap_socket(connection, server_hostname=name)
    except (SSLError, OSError, ValueError) as error:
        connection.close()
        said = error.verify_message if isinstance(error, SSLCertVerificationError) else _tls_reason(error)
        raise PeerError(f"destination {destination}: TLS handshake failed: {said}") from error


def _tls_reason(error: Exception) -> str:
    if isinstance(error, SSLError):
        return (error.reason or "no reason given").lower().replace("_", " ")
    return os_reason(error) if isinstance(error, OSError) else str(error)


def _data_fragments(
    context: int, data: bytes, fragment_bytes: int, *, is_last: bool
) -> Iterator[bytes | memoryview]:
    """A piece of a data set as P-DATA-TF PDUs (PS3.8 §9.3.5): header and fragment in turn, not copied."""
    view = memoryview(data)
    for start in range(0, max(len(view), 1), fragment_bytes):
        piece = view[start : start + fragment_bytes]
        control = _LAST if is_last and start + fragment_bytes >= len(view) else 0
        yield _P_DATA.pack(PduType.P_DATA_TF, len(piece) + 6, len(piece) + 2, context, control)
        yield piece
