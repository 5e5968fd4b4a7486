"""The receivers of `scripts/bench intake`: processes, each started anew in an empty directory.

Owns how each is started, what it costs (CPU and memory of its process tree), and its end. All
get TCP_NODELAY=1: dcmtk and what is built on it otherwise wait 40 ms for each answer.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from scripts.benchmarks.intake_sender import CALLING_AE_TITLE, Association, SenderError
from tests.fakes.pacs import ORTHANC, STORESCP, free_port

_START_LIMIT_S: Final = 60.0
_STOP_LIMIT_S: Final = 30.0
_ATTEMPTS: Final = 3  # the port that was free may be taken when the receiver comes to it
_TICKS: Final = os.sysconf("SC_CLK_TCK")
AE_TITLE: Final = "RECEIVER"

Command = Callable[[Path, int], Sequence[str]]
"""Makes what a receiver needs in a directory, and gives the command that starts it on a port."""


@dataclass(frozen=True)
class Kind:
    """One way to receive. `needs` is the program without which it is left out."""

    name: str
    command: Command
    needs: Path = Path(sys.executable)


def _insitu(*, durable: bool) -> Command:
    def command(directory: Path, port: int) -> Sequence[str]:
        configuration = directory / "insitu.toml"
        configuration.write_text(
            f'[node]\nae_title = "{AE_TITLE}"\nhost = "127.0.0.1"\nport = {port}\n'
            f'[directories]\nstate = "{directory}/state"\ncache = "{directory}/cache"\n'
            f'runtime = "{directory}/run"\n[limits]\nmin_free_disk_bytes = 1048576\n'
            f"max_associations_per_peer = 64\n"
            f'[receive]\ndurable = {str(durable).lower()}\n[log]\nlevel = "warning"\n'
            f'[[peer]]\nname = "bench"\nae_title = "{CALLING_AE_TITLE}"\nhost = "127.0.0.1"\nport = 104\n'
        )
        begin = [sys.executable, "-I", "-m", "edge", "--config", str(configuration)]
        return [*begin, "run", "--role", "receive"]

    return command


def _storescp(*options: str) -> Command:
    def command(directory: Path, port: int) -> Sequence[str]:
        received = directory / "received"
        received.mkdir()
        return [str(STORESCP), *options, "-aet", AE_TITLE, "-od", str(received), str(port)]

    return command


def _orthanc(directory: Path, port: int) -> Sequence[str]:
    configuration = directory / "orthanc.json"
    settings = {
        "StorageDirectory": str(directory / "storage"),
        "IndexDirectory": str(directory / "index"),
        "DicomAet": AE_TITLE,
        "DicomPort": port,
        "HttpPort": free_port(),
        "AuthenticationEnabled": False,
        "DicomAlwaysAllowStore": True,
        "Plugins": [],
    }
    configuration.write_text(json.dumps(settings))
    return [str(ORTHANC), str(configuration)]


def _pynetdicom(directory: Path, port: int) -> Sequence[str]:
    received = directory / "received"
    received.mkdir()
    begin = [sys.executable, "-I", "-m", "pynetdicom", "storescp", "-q", "-aet", AE_TITLE]
    return [*begin, "-od", str(received), str(port)]


DURABLE: Final = Kind("insitu durable", _insitu(durable=True))
NOT_DURABLE: Final = Kind("insitu not durable", _insitu(durable=False))
DCMTK: Final = Kind("dcmtk", _storescp(), STORESCP)
DCMTK_FORK: Final = Kind("dcmtk --fork", _storescp("--fork"), STORESCP)
DCMTK_BEST: Final = Kind(
    "dcmtk, best settings", _storescp("--max-pdu", "131072", "--bit-preserving", "-dhl"), STORESCP
)
ORTHANC_DEFAULT: Final = Kind("orthanc", _orthanc, ORTHANC)
PYNETDICOM: Final = Kind("pynetdicom", _pynetdicom)


@dataclass(frozen=True)
class Cost:
    """What a receiver's process tree has spent up to now."""

    cpu_s: float
    rss_bytes: int
    """The most that was resident at one time: of its largest process."""


class Receiver:
    """One receiver, for the length of a `with`."""

    def __init__(self, kind: Kind, directory: Path, *, keep_files: bool = False) -> None:
        """`keep_files`: whoever made `directory` removes it.

        Files that were just deleted make the next ones slow to create (ext4 without a journal looks
        at every inode that was freed in the last minutes): that must not fall on the next receiver.
        """
        self._keep_files = keep_files
        self._kind = kind
        self._directory = directory
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Start it, and return when it has accepted an association.

        Raises:
            RuntimeError: it did not within a minute.
        """
        for attempt in range(_ATTEMPTS):
            try:
                self._start()
            except RuntimeError:
                shutil.rmtree(self._directory, ignore_errors=True)
                if attempt == _ATTEMPTS - 1:
                    raise
            else:
                break
        return self

    def _start(self) -> None:
        self._directory.mkdir(parents=True)
        self.port = free_port()
        log = self._directory / "log"
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                self._kind.command(self._directory, self.port),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env={**os.environ, "TCP_NODELAY": "1", "ORT_DISABLE_TELEMETRY": "1"},
            )
        deadline = time.monotonic() + _START_LIMIT_S
        while not self._accepts():
            if self._process.poll() is not None or time.monotonic() > deadline:
                said = log.read_text(errors="replace")[-2000:]
                self.__exit__(None, None, None)
                raise RuntimeError(f"{self._kind.name} did not start: {said}")
            time.sleep(0.05)  # another program: there is nothing else to wait for

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(_STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(_STOP_LIMIT_S)
        self._process = None
        if not self._keep_files:
            shutil.rmtree(self._directory, ignore_errors=True)

    def cost(self) -> Cost:
        """What it has spent since its start; ended and waited-for children included."""
        if self._process is None:
            raise RuntimeError(f"{self._kind.name}: not started")
        cpu_s, rss_bytes = 0.0, 0
        for pid in _tree(self._process.pid):
            try:
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                status = Path(f"/proc/{pid}/status").read_text()
            except OSError:  # ended meanwhile
                continue
            cpu_s += sum(map(int, fields[11:15])) / _TICKS  # utime, stime, and of children that ended
            peak = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
            rss_bytes = max(rss_bytes, int(peak[0]) * 1024 if peak else 0)
        return Cost(cpu_s, rss_bytes)

    def _accepts(self) -> bool:
        try:
            Association(self.port, AE_TITLE).release()
        except (OSError, SenderError):
            return False
        return True


def _tree(pid: int) -> list[int]:
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = task.read_text().split()
        except OSError:
            continue
        for child in children:
            found += _tree(int(child))
    return found
