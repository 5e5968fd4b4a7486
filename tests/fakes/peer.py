"""A peer that speaks in bytes: it can say what no well-behaved node would."""

import socket
import struct
from collections.abc import Sequence
from types import TracebackType

from dicom import command, pdu
from dicom.command import Command, CommandField

VERIFICATION = "1.2.840.10008.1.1"
CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
DEADLINE_S = 30.0

RELEASE_RQ = bytes.fromhex("05000000000400000000")
RELEASE_RP = bytes.fromhex("06000000000400000000")
USUAL_CONTEXTS = ((1, VERIFICATION, (IMPLICIT,)), (3, CT_IMAGE_STORAGE, (EXPLICIT, IMPLICIT)))


def item(number: int, value: bytes) -> bytes:
    return struct.pack(">BxH", number, len(value)) + value


def presentation_context(context_id: int, abstract_syntax: str, transfer_syntaxes: Sequence[str]) -> bytes:
    syntaxes = b"".join(item(0x40, uid.encode()) for uid in transfer_syntaxes)
    return item(0x20, bytes((context_id, 0, 0, 0)) + item(0x30, abstract_syntax.encode()) + syntaxes)


def associate_rq(
    *,
    called: bytes = b"INSITU",
    calling: bytes = b"PEER",
    version: int = 1,
    application_context: bytes = b"1.2.840.10008.3.1.1.1",
    contexts: Sequence[tuple[int, str, Sequence[str]]] = USUAL_CONTEXTS,
    max_length: int = 16384,
    user_items: bytes = b"",
    items: bytes | None = None,
) -> bytes:
    """An A-ASSOCIATE-RQ; `items` replaces all variable items."""
    if items is None:
        items = item(0x10, application_context)
        items += b"".join(presentation_context(*context) for context in contexts)
        user = item(0x51, struct.pack(">I", max_length)) + item(0x52, b"1.2.3.4") + user_items
        items += item(0x50, user)
    body = struct.pack(">H2x16s16s32x", version, called.ljust(16), calling.ljust(16)) + items
    return struct.pack(">BxI", 1, len(body)) + body


def echo_rq(context_id: int = 1, message_id: int = 1) -> bytes:
    return command_pdu(
        Command(field=CommandField.C_ECHO_RQ, message_id=message_id, affected_sop_class_uid=VERIFICATION),
        context_id,
    )


def store_rq(
    *,
    sop_class: str = CT_IMAGE_STORAGE,
    instance: str = "1.2.3.4.5",
    message_id: int = 1,
    context_id: int = 3,
) -> bytes:
    request = Command(
        field=CommandField.C_STORE_RQ,
        has_data_set=True,
        message_id=message_id,
        priority=0,
        affected_sop_class_uid=sop_class,
        affected_sop_instance_uid=instance,
    )
    return command_pdu(request, context_id)


def command_pdu(request: Command, context_id: int) -> bytes:
    return pdu.p_data(context_id, command.encode(request), is_command=True, max_length_bytes=0)


def data_pdu(data: bytes, context_id: int = 3, max_length: int = 0) -> bytes:
    return pdu.p_data(context_id, data, is_command=False, max_length_bytes=max_length)


def fragment(context_id: int, control: int, data: bytes) -> bytes:
    """A P-DATA-TF with one data value and the message control header as given."""
    value = struct.pack(">IBB", len(data) + 2, context_id, control) + data
    return struct.pack(">BxI", 4, len(value)) + value


class RawPeer:
    """A connection that sends bytes and reads whole PDUs, with a deadline."""

    def __init__(self, address: tuple[str, int], source: str = "127.0.0.1") -> None:
        self.socket = socket.create_connection(address, DEADLINE_S, source_address=(source, 0))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> "RawPeer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def read(self) -> tuple[int, bytes]:
        """The next PDU: its type and what follows its header; (0, b"") at the end of the stream."""
        header = self._exactly(6)
        if not header:
            return 0, b""
        number, length = struct.unpack(">BxI", header)
        return number, self._exactly(length)

    def ask(self, data: bytes) -> tuple[int, bytes]:
        self.send(data)
        return self.read()

    def associate(self, **proposal: object) -> bytes:
        """Propose an association; the body of the A-ASSOCIATE-AC."""
        number, body = self.ask(associate_rq(**proposal))  # type: ignore[arg-type]
        assert number == 0x02, (number, body)
        return body

    def response(self) -> Command:
        """The next message, which must be a command in one PDU."""
        number, body = self.read()
        assert number == 0x04, (number, body)
        return command.decode(body[6:])

    def is_closed(self) -> bool:
        """Wait for the end of the stream; False when bytes come instead."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionError:
            return True

    def _exactly(self, n: int) -> bytes:
        data = b""
        while len(data) < n:
            try:
                part = self.socket.recv(n - len(data))
            except ConnectionError:
                part = b""
            if not part:
                assert not data, f"the stream ended in a PDU: {data!r}"
                return b""
            data += part
        return data
