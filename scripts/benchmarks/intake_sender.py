"""The sender of `scripts/bench intake`: C-STORE with everything that can be prepared prepared.

It sends made-up images, all with the same pixels and each with UIDs of its own. Nothing is
encoded while time is taken but two headers of an instance, so that the receiver is the limit.
It speaks the protocol by itself and shares with the receiver only the encoding of a command
set and of an A-ASSOCIATE-RQ.
"""

import io
import socket
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from pydicom import dcmread
from pydicom.data import get_testdata_file

from dicom.command import Command, CommandField, encode
from dicom.part10 import read_meta
from dicom.proposal import associate_request, parse_accept
from dicom.services import STORAGE_SOP_CLASSES

CT: Final = "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT_VR_LITTLE_ENDIAN: Final = "1.2.840.10008.1.2.1"
CALLING_AE_TITLE: Final = "BENCH"
_UID: Final = "1.2.826.0.1.3680043.10.5432.{study}.{number}"
_FIRST: Final = 10_000_000  # numbers have as many digits each, and so have the UIDs
_STORE_LIMIT_S: Final = 300.0  # for one answer: 2 GB on a slow disk
_LARGEST_PDU_BYTES: Final = 8 * 1024 * 1024  # where the receiver has no limit
_P_DATA: Final = struct.Struct(">BxIIBB")
_BUFFERS: Final = 1024  # what one sendmsg takes


class SenderError(Exception):
    """A receiver did not do what it should."""


@dataclass(frozen=True)
class Images:
    """Images of one study that differ in SOP Instance UID only."""

    head: bytes
    """The data set up to the value of Pixel Data, with the UIDs of number 0."""
    frame: memoryview
    frames: int
    study: int

    @property
    def size_bytes(self) -> int:
        """Of one data set."""
        return len(self.head) + len(self.frame) * self.frames

    def uid(self, number: int) -> str:
        """SOP Instance UID of an image."""
        return _UID.format(study=self.study, number=_FIRST + number)

    def parts(self, number: int) -> list[memoryview]:
        """The data set of an image."""
        first, own = self.uid(0).encode(), self.uid(number).encode()
        return [memoryview(self.head.replace(first, own)), *[self.frame] * self.frames]


def images(rows: int, frames: int = 1, *, study: int) -> Images:
    """A CT of `rows` by `rows` pixels of 16 bit, with the header of a real one."""
    ds = dcmread(str(get_testdata_file("CT_small.dcm")))
    del ds.PixelData
    if "DataSetTrailingPadding" in ds:
        del ds.DataSetTrailingPadding
    ds.StudyInstanceUID = _UID.format(study=study, number=1)
    ds.SeriesInstanceUID = _UID.format(study=study, number=2)
    ds.SOPInstanceUID = _UID.format(study=study, number=_FIRST)
    ds.Rows = ds.Columns = rows
    if frames > 1:
        ds.NumberOfFrames = frames
    size = rows * rows * 2
    frame = (bytes(range(256)) * (size // 256 + 1))[:size]
    buffer = io.BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    head = buffer.getvalue()[read_meta(buffer.getvalue()).dataset_offset :]
    head += struct.pack("<HH2sxxI", 0x7FE0, 0x0010, b"OW", size * frames)
    return Images(head, memoryview(frame), frames, study)


class Association:
    """One association to a receiver, with one presentation context, or with 128 of them."""

    def __init__(self, port: int, called_ae_title: str, *, contexts: int = 1) -> None:
        classes = [CT, *sorted(STORAGE_SOP_CLASSES - {CT})][:contexts]
        request = associate_request(
            CALLING_AE_TITLE, called_ae_title, [(name, EXPLICIT_VR_LITTLE_ENDIAN) for name in classes]
        )
        self._socket = socket.create_connection(("127.0.0.1", port), _STORE_LIMIT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._received = b""
        self._socket.sendall(request)
        kind, body = self._pdu()
        if kind != 2:
            raise SenderError(f"{called_ae_title}: answered the proposal with PDU {kind}, must be 2")
        answer = parse_accept(body)
        if answer.results.get(1, (1, ""))[0] != 0:
            raise SenderError(f"{called_ae_title}: does not accept CT images")
        self._max_pdu_bytes = answer.max_pdu_bytes or _LARGEST_PDU_BYTES

    def store(self, these: Images, numbers: Sequence[int]) -> None:
        """Send images, one after the answer to the other.

        Raises:
            SenderError: an answer is not success.
            OSError: the connection is gone.
        """
        messages = (list(self._message(CT, these.uid(number), these.parts(number))) for number in numbers)
        for number, buffers in zip(numbers, messages, strict=True):
            for begin in range(0, len(buffers), _BUFFERS):
                self._send(buffers[begin : begin + _BUFFERS])
            kind, body = self._pdu()
            status = _status(body) if kind == 4 else -1
            if status != 0:
                raise SenderError(f"image {number}: PDU {kind}, status 0x{status:04X}, must be 0x0000")

    def release(self) -> None:
        """A-RELEASE, and close."""
        self._socket.sendall(struct.pack(">BxI4x", 5, 4))
        kind, _ = self._pdu()
        self._socket.close()
        if kind != 6:
            raise SenderError(f"answered the release with PDU {kind}, must be 6")

    def _message(self, sop_class: str, uid: str, parts: Sequence[memoryview]) -> Iterator[memoryview]:
        command = encode(
            Command(
                field=CommandField.C_STORE_RQ,
                has_data_set=True,
                message_id=1,
                affected_sop_class_uid=sop_class,
                affected_sop_instance_uid=uid,
                priority=0,
            )
        )
        yield memoryview(_P_DATA.pack(4, len(command) + 6, len(command) + 2, 1, 3) + command)
        room = (self._max_pdu_bytes - 6) // 2 * 2
        total = sum(map(len, parts))
        queue = list(parts)
        for begin in range(0, total, room):
            length = min(room, total - begin)
            last = begin + length == total
            yield memoryview(_P_DATA.pack(4, length + 6, length + 2, 1, 2 if last else 0))
            while length:
                piece = queue[0][:length]
                yield piece
                length -= len(piece)
                queue[0] = queue[0][len(piece) :]
                if not queue[0]:
                    del queue[0]

    def _send(self, buffers: list[memoryview]) -> None:
        while buffers:
            sent = self._socket.sendmsg(buffers)
            while buffers and sent >= len(buffers[0]):
                sent -= len(buffers[0])
                del buffers[0]
            if buffers:
                buffers[0] = buffers[0][sent:]

    def _pdu(self) -> tuple[int, bytes]:
        while len(self._received) < 6 or len(self._received) < 6 + int.from_bytes(self._received[2:6], "big"):
            data = self._socket.recv(65536)
            if not data:
                raise SenderError("the receiver closed the connection")
            self._received += data
        end = 6 + int.from_bytes(self._received[2:6], "big")
        pdu, self._received = self._received[:end], self._received[end:]
        return pdu[0], pdu[6:]


def send(port: int, called_ae_title: str, these: Images, count: int, associations: int = 1) -> float:
    """Send `count` images on so many associations at once; the seconds it took, set-up not counted.

    Raises:
        SenderError: an image was not taken.
    """
    opened = [Association(port, called_ae_title) for _ in range(associations)]
    failures: list[BaseException] = []
    begin = threading.Barrier(associations + 1)

    def run(index: int) -> None:
        begin.wait(60)
        try:
            opened[index].store(these, range(index, count, associations))
        except (OSError, SenderError) as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(associations)]
    for thread in threads:
        thread.start()
    begin.wait(60)
    started = time.perf_counter()
    for thread in threads:
        thread.join()
    took_s = time.perf_counter() - started
    if failures:
        raise SenderError(f"{called_ae_title}: {failures[0]}") from failures[0]
    for each in opened:
        each.release()
    return took_s


def set_up(port: int, called_ae_title: str, contexts: int) -> float:
    """Seconds from connecting to the A-ASSOCIATE-AC."""
    started = time.perf_counter()
    association = Association(port, called_ae_title, contexts=contexts)
    took_s = time.perf_counter() - started
    association.release()
    return took_s


def _status(body: bytes) -> int:
    """(0000,0900) of the response in a P-DATA-TF."""
    at = 6
    while at + 8 <= len(body):
        group, element, length = struct.unpack_from("<HHI", body, at)
        if (group, element) == (0, 0x0900):
            status: int = struct.unpack_from("<H", body, at + 8)[0]
            return status
        at += 8 + length
    return -1
