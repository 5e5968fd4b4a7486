"""C-FIND and C-MOVE against a peer that answers as told, also what no peer should."""

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from dicom.errors import PeerError
from dicom.query import MAX_STUDIES, StudyQuery, find_studies, move_study
from dicom.requestor import Destination, Timeouts

SOON = Timeouts(connect_s=5, associate_s=5, response_s=2, release_s=1)
Answers = list[tuple[int, bytes | None, dict[int, int]]]
"""Status, identifier, and counts of sub-operations, of each response."""


class Scripted:
    """An SCP that accepts one association and answers one request with `answers`."""

    def __init__(self, answers: Answers, *, accept: bool = True, hang_after: int | None = None) -> None:
        self.answers, self.accept, self.hang_after = answers, accept, hang_after
        self.identifier = b""
        self.command: dict[int, bytes] = {}
        self.error: Exception | None = None
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.destination = Destination("archive", "ARCHIVE", "127.0.0.1", self._listener.getsockname()[1])
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Scripted":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        self._thread.join(10)
        assert not self._thread.is_alive()
        assert self.error is None, self.error

    def _run(self) -> None:
        try:
            connection, _ = self._listener.accept()
            with connection:
                connection.settimeout(10)
                self._serve(connection)
        except (OSError, EOFError):
            return
        except Exception as error:  # noqa: BLE001 - told to the test
            self.error = error

    def _serve(self, connection: socket.socket) -> None:
        _, body = _pdu(connection)
        items = _item(0x10, b"1.2.840.10008.3.1.1.1")
        result = bytes([1, 0, 0 if self.accept else 3, 0])
        items += _item(0x21, result + _item(0x40, b"1.2.840.10008.1.2"))
        items += _item(0x50, _item(0x51, struct.pack(">I", 16384)) + _item(0x52, b"1.2.3"))
        connection.sendall(_framed(2, body[:68] + items))
        kind, body = _pdu(connection)
        if kind == 5:
            connection.sendall(_framed(6, bytes(4)))
            return
        self.command = dict(_elements(body[6:]))
        _, body = _pdu(connection)
        self.identifier = body[6:]
        field = struct.unpack("<H", self.command[0x0100])[0] | 0x8000
        for number, (status, identifier, counts) in enumerate(self.answers):
            if number == self.hang_after:
                connection.recv(1)
                return
            elements = _element(0x0100, struct.pack("<H", field)) + _element(0x0120, self.command[0x0110])
            kind_of_set = 0x0101 if identifier is None else 0x0001
            elements += _element(0x0800, struct.pack("<H", kind_of_set))
            elements += _element(0x0900, struct.pack("<H", status))
            for element, count in counts.items():
                elements += _element(element, struct.pack("<H", count))
            connection.sendall(_p_data(elements, 3))
            if identifier is not None:
                connection.sendall(_p_data(identifier, 2))
        kind, _ = _pdu(connection)
        if kind == 5:
            connection.sendall(_framed(6, bytes(4)))


def _pdu(connection: socket.socket) -> tuple[int, bytes]:
    head = _exactly(connection, 6)
    return head[0], _exactly(connection, struct.unpack(">I", head[2:])[0])


def _exactly(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = connection.recv(size - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data


def _framed(kind: int, body: bytes) -> bytes:
    return struct.pack(">BxI", kind, len(body)) + body


def _item(kind: int, data: bytes) -> bytes:
    return struct.pack(">BxH", kind, len(data)) + data


def _element(element: int, value: bytes) -> bytes:
    return struct.pack("<HHI", 0, element, len(value)) + value


def _p_data(data: bytes, control: int) -> bytes:
    return _framed(4, struct.pack(">IBB", len(data) + 2, 1, control) + data)


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(data):
        _, element, length = struct.unpack_from("<HHI", data, at)
        yield element, data[at + 8 : at + 8 + length]
        at += 8 + length


def entry(*values: tuple[int, str]) -> bytes:
    """An identifier in implicit VR little endian."""
    data = b""
    for tag, text in values:
        raw = text.encode() + b" " * (len(text) % 2)
        data += struct.pack("<HHI", tag >> 16, tag & 0xFFFF, len(raw)) + raw
    return data


STUDY = entry(
    (0x00080020, "20260301"),
    (0x00080061, "MR\\SR"),
    (0x00100020, "P1"),
    (0x0020000D, "1.2.3"),
    (0x00201208, "12"),
)


def test_studies_are_asked_for_with_the_keys_and_read_with_what_they_say() -> None:
    with Scripted([(0xFF00, STUDY, {}), (0, None, {})]) as peer:
        [found] = find_studies(peer.destination, "INSITU", StudyQuery(patient_id="P1", modality="MR"), SOON)
    assert (found.study_instance_uid, found.study_date, found.instances) == ("1.2.3", "20260301", 12)
    assert found.modalities == ("MR", "SR")
    keys = dict(_identifier(peer.identifier))
    assert keys[0x00080052] == b"STUDY "
    assert keys[0x00100020] == b"P1"
    assert keys[0x00080061] == b"MR"
    assert keys[0x0020000D] == b""
    assert list(keys) == sorted(keys)


def _identifier(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(data):
        group, element, length = struct.unpack_from("<HHI", data, at)
        yield group << 16 | element, data[at + 8 : at + 8 + length]
        at += 8 + length


def test_a_move_names_study_and_destination_and_counts_what_came() -> None:
    pending = {0x1020: 2, 0x1021: 1, 0x1022: 0, 0x1023: 0}
    final = {0x1021: 3, 0x1022: 1, 0x1023: 0}
    with Scripted([(0xFF00, None, pending), (0xB000, b"", final)]) as peer:
        moved = move_study(peer.destination, "INSITU", "1.2.3", "INSITU", SOON)
    assert (moved.completed, moved.failed, moved.warning) == (3, 1, 0)
    assert peer.command[0x0600] == b"INSITU"
    assert dict(_identifier(peer.identifier)) == {0x00080052: b"STUDY ", 0x0020000D: b"1.2.3\0"}


Call = Callable[[Destination], object]


def find(destination: Destination) -> object:
    return find_studies(destination, "INSITU", StudyQuery(patient_id="P1"), SOON)


def move(destination: Destination) -> object:
    return move_study(destination, "INSITU", "1.2.3", "INSITU", SOON)


@pytest.mark.parametrize(
    ("call", "answers", "said"),
    [
        (find, [(0xA700, None, {})], "status 0xA700"),
        (find, [(0xFF00, None, {}), (0, None, {})], "has no Study Instance UID"),
        (find, [(0xFF00, entry((0x0020000D, "1.2.x")), {})], "has no Study Instance UID"),
        (find, [(0xFF00, STUDY[:-3], {})], "cannot be read"),
        (find, [(0xFF00, entry((0x00081030, "x" * 70_000)), {})], "must be 6 to 65536"),
        (find, [(0xFF00, STUDY, {})] * (MAX_STUDIES + 1), "more than 500 studies"),
        (move, [(0xA801, None, {})], "does not know the move destination"),
        (move, [(0xC000, None, {})], "status 0xC000"),
    ],
)
def test_what_a_peer_must_not_answer_is_an_error_of_its_own_without_patient_data(
    call: Call, answers: Answers, said: str
) -> None:
    with Scripted(answers) as peer, pytest.raises(PeerError, match=said) as caught:
        call(peer.destination)
    assert "P1" not in str(caught.value)


def test_a_peer_that_says_no_more_or_does_not_accept_ends_in_time() -> None:
    with (
        Scripted([(0xFF00, STUDY, {}), (0, None, {})], hang_after=1) as peer,
        pytest.raises(PeerError, match="no answer"),
    ):
        find(peer.destination)
    with Scripted([], accept=False) as peer, pytest.raises(PeerError, match="does not accept SOP class"):
        find(peer.destination)


@contextmanager
def _nobody() -> Iterator[Destination]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    yield Destination("nobody", "NOBODY", "127.0.0.1", port)


def test_queries_without_a_key_or_with_what_cannot_be_sent_are_our_own_mistake() -> None:
    with _nobody() as nobody:
        for query in (StudyQuery(), StudyQuery(patient_id="x" * 65), StudyQuery(patient_id="a\nb")):
            with pytest.raises(ValueError, match="key"):
                find_studies(nobody, "INSITU", query, SOON)
        with pytest.raises(ValueError, match="UID"):
            move_study(nobody, "INSITU", "x", "INSITU", SOON)
        with pytest.raises(PeerError, match="no connection"):
            find(nobody)
