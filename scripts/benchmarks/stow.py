"""STOW-RS of 400 CT images, 20 a request: Insitu against Orthanc's DICOMweb plugin, side by side.

Each receiver is a process of its own; the sender has its requests ready and does nothing but send. The
receivers take turns, so that a busy machine is unfair to none; medians. Orthanc's `tuned` has its
TCP_NODELAY, more HTTP threads, and no MD5.
"""

import argparse
import json
import os
import platform
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian
from rich.console import Console
from rich.table import Table

from dicom.uid import derive
from edge.web_auth import token_hash
from tests.fakes.orthanc_web import PLUGIN, OrthancWeb
from tests.fakes.pacs import free_port
from tests.flow.appliance import Appliance

BOUNDARY: Final = "5f1e3c0d9b7a4e6f8a2c4b6d8e0f1a3c"
TOKEN: Final = "for-this-run-only"
ROWS: Final = 512
GOAL_TIMES_ORTHANC: Final = 3.0


@dataclass
class Receiver:
    """One process that listens for STOW-RS."""

    name: str
    port: int
    path: str
    process_id: int


@dataclass(frozen=True)
class Run:
    """One transfer of all images."""

    mb_per_s: float
    cpu_s_per_gb: float
    rss_mb: float


def main() -> None:
    """Run, and print a table or JSON."""
    parser = argparse.ArgumentParser(prog="scripts/bench stow", description=__doc__)
    parser.add_argument("--images", type=int, default=400, help="images a run (default 400)")
    parser.add_argument("--per-request", type=int, default=20, help="images a request (default 20)")
    parser.add_argument("--runs", type=int, default=5, help="runs that count (default 5)")
    parser.add_argument("--json", action="store_true", help="JSON instead of a table")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        receivers = [stack.enter_context(start) for start in starts(Path(scratch))]
        found: dict[str, list[Run]] = {receiver.name: [] for receiver in receivers}
        for number in range(arguments.runs + 1):  # the first one is the warm-up
            for receiver in receivers:
                requests = list(bodies(f"{receiver.name} {number}", arguments.images, arguments.per_request))
                run = transfer(receiver, requests)
                if number:
                    found[receiver.name].append(run)
    rows: list[dict[str, Any]] = [
        {
            "name": name,
            "mb_per_s": round(statistics.median(run.mb_per_s for run in runs), 1),
            "cpu_s_per_gb": round(statistics.median(run.cpu_s_per_gb for run in runs), 2),
            "rss_mb": round(max(run.rss_mb for run in runs), 1),
        }
        for name, runs in found.items()
    ]
    speeds = {row["name"]: row["mb_per_s"] for row in rows}
    durable = speeds["insitu durable"]
    result = {
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        "load": round(os.getloadavg()[0], 1),
        "images": arguments.images,
        "per_request": arguments.per_request,
        "runs": arguments.runs,
        "receivers": rows,
        "times_orthanc": round(durable / speeds["orthanc"], 2) if PLUGIN.is_file() else None,
        "times_orthanc_tuned": round(durable / speeds["orthanc tuned"], 2) if PLUGIN.is_file() else None,
        "goal_times_orthanc": GOAL_TIMES_ORTHANC,
    }
    if arguments.json:
        json.dump(result, sys.stdout, indent=2)
        sys.stdout.write("\n")
        return
    table = Table(title=f"STOW-RS, {arguments.images} CT images, {arguments.per_request} a request, medians")
    for column in ("name", "mb_per_s", "cpu_s_per_gb", "rss_mb"):
        table.add_column(column, justify="left" if column == "name" else "right")
    for row in rows:
        table.add_row(*(str(row[column]) for column in ("name", "mb_per_s", "cpu_s_per_gb", "rss_mb")))
    Console().print(table)
    Console().print(f"durable / orthanc: {result['times_orthanc']} (goal {GOAL_TIMES_ORTHANC})")


def starts(scratch: Path) -> Iterator[AbstractContextManager[Receiver]]:
    """The receivers, to be entered."""
    yield insitu(scratch / "durable", "insitu durable", durable=True)
    yield insitu(scratch / "not-durable", "insitu not durable", durable=False)
    if PLUGIN.is_file():
        yield orthanc(scratch / "orthanc", "orthanc", {})
        tuned = {
            "StoreMD5ForAttachments": False,
            "HttpThreadsCount": 8,
            "TcpNoDelay": True,
            "KeepAlive": True,
        }
        yield orthanc(scratch / "orthanc-tuned", "orthanc tuned", tuned)


class _ReceiveOnly(Appliance):
    """The appliance without the roles that work on what arrived: Orthanc does not, either."""

    def command(self) -> list[str]:
        return [*super().command(), "--role", "receive"]


@contextmanager
def insitu(directory: Path, name: str, *, durable: bool) -> Iterator[Receiver]:
    """The role `receive` as a process."""
    port = free_port()
    options = (
        f"[receive]\ndurable = {str(durable).lower()}\n[web]\nhost = '127.0.0.1'\nstore_port = {port}\n"
        f"[[web_client]]\nname = 'bench'\ntoken_sha256 = '{token_hash(TOKEN)}'\n"
    )
    with _ReceiveOnly(directory, models=(), options=options) as box:
        assert box.process is not None
        yield Receiver(name, port, "/studies", box.process.pid)


@contextmanager
def orthanc(directory: Path, name: str, options: Mapping[str, object]) -> Iterator[Receiver]:
    """Orthanc with its plugin as a process."""
    with OrthancWeb(directory, options) as peer:
        assert peer.process is not None
        yield Receiver(name, peer.http_port, "/dicom-web/studies", peer.process.pid)


def bodies(study: str, images: int, per_request: int) -> Iterator[bytes]:
    """Requests, ready to be sent but for their heads; one study, its UIDs new in each run."""
    template, uid, study_uid = ct_image()
    for begin in range(0, images, per_request):
        body = bytearray()
        for number in range(begin, min(begin + per_request, images)):
            body += f"\r\n--{BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode()
            body += template.replace(uid, fitting(uid, study, str(number))).replace(
                study_uid, fitting(study_uid, study)
            )
        body += f"\r\n--{BOUNDARY}--\r\n".encode()
        yield bytes(body)


def fitting(uid: bytes, *parts: str) -> bytes:
    """A derived UID as long as `uid`."""
    return derive(*parts).encode()[: len(uid)].ljust(len(uid), b"1")


def ct_image() -> tuple[bytes, bytes, bytes]:
    """A CT image of 512 KB as a file, its SOP Instance UID and its Study Instance UID."""
    ds = Dataset()
    ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    ds.SOPInstanceUID, ds.StudyInstanceUID = "2.25." + "1" * 39, "2.25." + "2" * 39
    ds.SeriesInstanceUID = ds.FrameOfReferenceUID = "2.25." + "3" * 39
    ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = "Bench^Mark", "B1", "", "O"
    ds.StudyDate, ds.StudyTime, ds.StudyID, ds.AccessionNumber = "20260301", "120000", "1", "A1"
    ds.Modality, ds.SeriesNumber, ds.InstanceNumber = "CT", 1, 1
    ds.ImagePositionPatient, ds.ImageOrientationPatient = [0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    ds.PixelSpacing, ds.SliceThickness = [0.5, 0.5], 1.0
    ds.Rows = ds.Columns = ROWS
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.RescaleIntercept, ds.RescaleSlope = -1024, 1
    ds.PixelData = np.random.default_rng(0).integers(0, 4096, (ROWS, ROWS), np.uint16).tobytes()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = BytesIO()
    ds.save_as(file, enforce_file_format=True)
    return file.getvalue(), str(ds.SOPInstanceUID).encode(), str(ds.StudyInstanceUID).encode()


def transfer(receiver: Receiver, requests: list[bytes]) -> Run:
    """Send all `requests` on one connection; each must be answered with 200."""
    size = sum(map(len, requests))
    before = cpu_s(receiver.process_id)
    with socket.create_connection(("127.0.0.1", receiver.port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        begun = time.perf_counter()
        for body in requests:
            head = (
                f"POST {receiver.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: application/dicom+json\r\n"
                f"Authorization: Bearer {TOKEN}\r\nContent-Length: {len(body)}\r\n"
                f'Content-Type: multipart/related; type="application/dicom"; boundary={BOUNDARY}\r\n\r\n'
            )
            connection.sendall(head.encode())
            connection.sendall(body)
            expect_200(connection, receiver.name)
        seconds = time.perf_counter() - begun
    used = cpu_s(receiver.process_id) - before
    return Run(size / seconds / 1e6, used / (size / 1e9), rss_mb(receiver.process_id))


def expect_200(connection: socket.socket, name: str) -> None:
    """Read one response; its body is not looked at."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(65536)
        if not piece:
            raise SystemExit(f"bench: {name} closed the connection")
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    if not head.split(b" ", 2)[1] == b"200":
        raise SystemExit(f"bench: {name} answered {head[:200]!r}")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    left = int(lengths[0].split(b":")[1]) - len(body)
    while left > 0:
        left -= len(connection.recv(left))


def cpu_s(process_id: int) -> float:
    """Processor seconds of a process, its threads included."""
    fields = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss_mb(process_id: int) -> float:
    """Its resident memory at most, in MB."""
    for line in Path(f"/proc/{process_id}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise LookupError(process_id)


if __name__ == "__main__":
    main()
