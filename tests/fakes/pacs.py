"""Destinations for tests: dcmtk's storescp and Orthanc as processes, and a PACS that misbehaves on order.

`ScriptedPacs` shares no code with `dicom`: it reads the wire by itself, so that both sides of a
mistake cannot agree.
"""

import json
import os
import random
import select
import signal
import socket
import struct
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import pytest

from dicom.requestor import Destination

STORESCP: Final = Path("/usr/bin/storescp")  # the venv holds pynetdicom's program of the same name
ORTHANC: Final = Path("/usr/sbin/Orthanc")

needs_dcmtk = pytest.mark.skipif(
    not STORESCP.is_file(), reason="dcmtk is not installed (apt-get install dcmtk)"
)
needs_orthanc = pytest.mark.skipif(
    not ORTHANC.is_file(), reason="Orthanc is not installed (apt-get install orthanc)"
)

START_LIMIT_S: Final = 30.0


def free_port() -> int:
    """A TCP port that was free a moment ago, below those that the kernel gives to clients.

    A port of the kernel's own choice may become the source of somebody's connection before the peer
    binds it; and a probe of such a port can connect to itself.
    """
    for port in random.SystemRandom().sample(range(20_000, 30_000), 100):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError("no free port between 20000 and 30000")


class _Peer:
    """A process that listens; stopped, and if need be killed, at the end of the `with` block."""

    def __init__(self, name: str, ae_title: str, command: list[str], log: Path, port: int) -> None:
        self.destination = Destination(name, ae_title, "127.0.0.1", port)
        self._command = command
        self._log = log
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start it, and return when it accepts connections."""
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=_environment()
            )
        deadline = time.monotonic() + START_LIMIT_S
        while not _listens(self.destination.port):
            try:
                code = self.process.wait(0.02)
            except subprocess.TimeoutExpired:
                code = None
            if code is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"{self._command[0]} did not start: {self._log.read_text()[-2000:]}")

    def stop(self) -> None:
        """Stop it; nothing is left behind."""
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(10)
            self.process = None


class StoreScp(_Peer):
    """dcmtk's storescp: one file an object, named by its SOP Instance UID."""

    def __init__(
        self, directory: Path, *options: str, ae_title: str = "DCMTK", port: int | None = None
    ) -> None:
        self.received = directory / "received"
        self.received.mkdir(parents=True, exist_ok=True)
        port = port or free_port()
        command = [str(STORESCP), "--aetitle", ae_title, "--output-directory", str(self.received)]
        command += ["--accept-all" if not options else "", *options, "--bit-preserving", str(port)]
        super().__init__(
            "dcmtk", ae_title, [part for part in command if part], directory / "storescp.log", port
        )

    def files(self) -> list[Path]:
        """What has been stored."""
        return sorted(self.received.iterdir())


class Orthanc(_Peer):
    """Orthanc with its own storage; asked by its REST interface."""

    def __init__(self, directory: Path, modalities: Mapping[str, tuple[str, int]] | None = None) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.http_port = free_port()
        port = free_port()
        configuration = {
            "Name": "test",
            "StorageDirectory": str(directory / "storage"),
            "IndexDirectory": str(directory / "index"),
            "DicomAet": "ORTHANC",
            "DicomPort": port,
            "DicomServerEnabled": True,
            "HttpPort": self.http_port,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "DicomAlwaysAllowEcho": True,
            "DicomAlwaysAllowStore": True,
            "UnknownSopClassAccepted": True,
            "Plugins": [],
            "DicomModalities": {
                name: [ae_title, "127.0.0.1", at] for name, (ae_title, at) in (modalities or {}).items()
            },
        }
        file = directory / "orthanc.json"
        file.write_text(json.dumps(configuration))
        super().__init__("orthanc", "ORTHANC", [str(ORTHANC), str(file)], directory / "orthanc.log", port)

    def start(self) -> None:
        """Start it, and return when both its ports accept connections."""
        super().start()
        deadline = time.monotonic() + START_LIMIT_S
        assert self.process is not None
        while not _listens(self.http_port):
            assert time.monotonic() < deadline, "Orthanc's REST interface did not start"
            with pytest.raises(subprocess.TimeoutExpired):
                self.process.wait(0.02)

    def get(self, path: str) -> Any:  # noqa: ANN401 - JSON
        """The JSON answer to GET `path`."""
        return json.loads(self.download(path))

    def download(self, path: str) -> bytes:
        """The answer to GET `path`, as bytes."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}{path}", timeout=30) as answer:
            data: bytes = answer.read()
            return data

    def post(self, path: str, body: bytes) -> Any:  # noqa: ANN401 - JSON
        """The JSON answer to POST `path`."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.http_port}{path}", body, method="POST")
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())

    def sop_instance_uids(self, study_instance_uid: str | None = None) -> dict[str, str]:
        """SOP Instance UID to Orthanc's own identifier, of all instances or of one study's."""
        found = {}
        for instance in self.get("/instances"):
            tags = self.get(f"/instances/{instance}/simplified-tags")
            if study_instance_uid in {None, tags["StudyInstanceUID"]}:
                found[tags["SOPInstanceUID"]] = instance
        return found

    def file(self, sop_instance_uid: str) -> bytes:
        """The DICOM file of one instance."""
        return self.download(f"/instances/{self.sop_instance_uids()[sop_instance_uid]}/file")


@dataclass(frozen=True)
class Behaviour:
    """What a `ScriptedPacs` does; the default takes everything."""

    reject: tuple[int, int, int] | None = None
    """Result, source and reason of A-ASSOCIATE-RJ."""
    reject_first: int | None = None
    """Reject only so many associations, then accept."""
    refuse_sop_classes: frozenset[str] = frozenset()
    max_pdu_bytes: int = 16384
    statuses: tuple[int, ...] = ()
    """Of the first objects, in order of arrival over all associations; then success."""
    vanish_after: int | None = None
    """Close the connection instead of answering the n-th object (from 0) of each association."""
    vanish_associations: int = 1 << 30
    """How many associations vanish; the ones after them behave."""
    abort: tuple[int, int] | None = None
    """Answer the first object with A-ABORT: source and reason."""
    silent: bool = False
    """Accept the connection and never say anything."""
    stop_reading_at: int | None = None
    """Read no more data after so many bytes of an object."""
    raw_answer: Callable[[int], bytes] | None = None
    """Answer objects with these bytes (of the message ID)."""
    accept_bytes: bytes | None = None
    """Answer A-ASSOCIATE-RQ with these bytes."""
    release_when_idle: bool = False
    """Ask for release as soon as the first object is answered."""


@dataclass
class Seen:
    """What has come to a `ScriptedPacs`."""

    objects: list[tuple[str, str, bytes]] = field(default_factory=list)
    """(SOP Instance UID, transfer syntax UID, data set)."""
    associations: list[list[tuple[str, str]]] = field(default_factory=list)
    """The (SOP class UID, transfer syntax UID) pairs proposed on each."""
    calling_ae_titles: list[str] = field(default_factory=list)
    largest_pdu_bytes: int = 0
    echoes: int = 0
    released: int = 0


class ScriptedPacs:
    """A DICOM storage SCP that behaves, or misbehaves, as told; one thread for each association."""

    def __init__(self, behaviour: Behaviour | None = None, port: int = 0) -> None:
        self.behaviour = behaviour or Behaviour()
        self.seen = Seen()
        self.ended = threading.Condition()
        """Notified whenever an association has ended."""
        self.release_asked = threading.Event()
        """Set when a release has been asked for (`Behaviour.release_when_idle`)."""
        self.open = 0
        self._listener = socket.create_server(("127.0.0.1", port))
        self.destination = Destination("scripted", "SCRIPTED", "127.0.0.1", self._listener.getsockname()[1])
        self._connections: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, name="scripted-pacs")]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        for connection in self._connections:
            _shut(connection)
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()
        self._listener.close()

    def wait_until_all_ended(self, limit_s: float = 10.0) -> None:
        """Wait until no association is open."""
        with self.ended:
            assert self.ended.wait_for(lambda: self.open == 0, limit_s), "an association is still open"

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._connections.append(connection)
            with self.ended:
                self.open += 1
            thread = threading.Thread(target=self._serve, args=(connection,), name="scripted-association")
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection:
                self._associate(connection)
        except (OSError, EOFError):
            return
        finally:
            with self.ended:
                self.open -= 1
                self.ended.notify_all()

    def _associate(self, connection: socket.socket) -> None:
        behaviour = self.behaviour
        kind, body = _pdu(connection)
        if behaviour.silent:
            connection.recv(1)  # until the other side gives up
            return
        assert kind == 1
        number = len(self.seen.associations)
        proposed = list(_proposed(body))
        self.seen.associations.append([(abstract, transfer) for _, abstract, transfer in proposed])
        self.seen.calling_ae_titles.append(body[20:36].decode().rstrip())
        if behaviour.reject and (behaviour.reject_first is None or number < behaviour.reject_first):
            connection.sendall(struct.pack(">BxIxBBB", 3, 4, *behaviour.reject))
            return
        items = _item(0x10, b"1.2.840.10008.3.1.1.1")
        for identifier, abstract, transfer in proposed:
            result = 3 if abstract in behaviour.refuse_sop_classes else 0
            items += _item(0x21, bytes([identifier, 0, result, 0]) + _item(0x40, transfer.encode()))
        items += _item(0x50, _item(0x51, struct.pack(">I", behaviour.max_pdu_bytes)) + _item(0x52, b"1.2.3"))
        body = body[:68] + items
        connection.sendall(behaviour.accept_bytes or struct.pack(">BxI", 2, len(body)) + body)
        self._messages(connection, {identifier: transfer for identifier, _, transfer in proposed}, number)

    def _messages(self, connection: socket.socket, syntaxes: Mapping[int, str], number: int) -> None:
        behaviour, count, command, data = self.behaviour, 0, b"", bytearray()
        while True:
            kind, body = _pdu(connection)
            self.seen.largest_pdu_bytes = max(self.seen.largest_pdu_bytes, len(body))
            if kind == 5:
                self.seen.released += 1
                connection.sendall(struct.pack(">BxI4x", 6, 4))
                return
            if kind != 4:
                return
            at = 0
            while at < len(body):
                length, context, control = struct.unpack_from(">IBB", body, at)
                piece = body[at + 6 : at + 4 + length]
                at += 4 + length
                if control & 1:
                    command += piece
                else:
                    data += piece
                if behaviour.stop_reading_at is not None and len(data) >= behaviour.stop_reading_at:
                    self.wait_for_stop(connection)
                    return
                fields = dict(_command(command)) if control & 1 and control & 2 else {}
                if fields and struct.unpack("<H", fields[0x0100])[0] == 0x0030:
                    self.seen.echoes += 1
                    connection.sendall(_response(context, 0x8030, fields[0x0110], 0))
                    command = b""
                elif control == 2:
                    fields = dict(_command(command))
                    uid = fields[0x1000].rstrip(b"\0").decode()
                    vanishes = number < behaviour.vanish_associations and count == behaviour.vanish_after
                    if vanishes:
                        return
                    self.seen.objects.append((uid, syntaxes[context], bytes(data)))
                    if behaviour.abort:
                        connection.sendall(struct.pack(">BxIxxBB", 7, 4, *behaviour.abort))
                        return
                    arrived = len(self.seen.objects) - 1
                    status = behaviour.statuses[arrived] if arrived < len(behaviour.statuses) else 0
                    if behaviour.raw_answer:
                        message_id = struct.unpack("<H", fields[0x0110])[0]
                        connection.sendall(behaviour.raw_answer(message_id))
                    else:
                        connection.sendall(_response(context, 0x8001, fields[0x0110], status))
                    if behaviour.release_when_idle:
                        connection.sendall(struct.pack(">BxI4x", 5, 4))
                        self.release_asked.set()
                    count, command, data = count + 1, b"", bytearray()

    @staticmethod
    def wait_for_stop(connection: socket.socket) -> None:
        """Hold the connection without reading, until the peer or the test closes it."""
        poll = select.poll()
        poll.register(connection, 0)  # errors and hang-ups only
        poll.poll(30_000)


def response_pdu(message_id: int, command_field: int = 0x8001, status: int = 0) -> bytes:
    """A well-formed response on context 1, to be spoiled by a test."""
    return _response(1, command_field, struct.pack("<H", message_id), status)


def _response(context: int, command_field: int, message_id: bytes, status: int) -> bytes:
    elements = _element(0x0100, struct.pack("<H", command_field)) + _element(0x0120, message_id)
    elements += _element(0x0800, struct.pack("<H", 0x0101)) + _element(0x0900, struct.pack("<H", status))
    if status:
        elements += _element(0x0901, struct.pack("<HH", 0x0010, 0x0020))
    command = _element(0x0000, struct.pack("<I", len(elements))) + elements
    return struct.pack(">BxIIBB", 4, len(command) + 6, len(command) + 2, context, 3) + command


def _element(element: int, value: bytes) -> bytes:
    return struct.pack("<HHI", 0, element, len(value)) + value


def _command(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(data):
        group, element, length = struct.unpack_from("<HHI", data, at)
        assert group == 0
        yield element, data[at + 8 : at + 8 + length]
        at += 8 + length


def _proposed(body: bytes) -> Iterator[tuple[int, str, str]]:
    for kind, data in _items(body[68:]):
        if kind == 0x20:
            names = dict(_items(data[4:]))
            yield data[0], names[0x30].decode(), names[0x40].decode()


def _items(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(data):
        kind, length = struct.unpack_from(">BxH", data, at)
        yield kind, data[at + 4 : at + 4 + length]
        at += 4 + length


def _item(kind: int, data: bytes) -> bytes:
    return struct.pack(">BxH", kind, len(data)) + data


def _pdu(connection: socket.socket) -> tuple[int, bytes]:
    kind, length = struct.unpack(">BxI", _exactly(connection, 6))
    return kind, _exactly(connection, length)


def _exactly(connection: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = connection.recv(size - len(data))
        if not piece:
            raise EOFError
        data += piece
    return bytes(data)


def _shut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def _environment() -> dict[str, str]:
    # dcmtk leaves Nagle on unless told: every answer would take 40 ms.
    return {**os.environ, "TCP_NODELAY": "1"}
