"""A disk that remembers every write and every flush, so that the power can be cut at any moment of the past.

    ext4  →  loop device  →  one file, served over FUSE by this program  →  memory, and a log

Run as a program (`recorded_disk.py IMAGE FILE LOG FLUSH_S`) it mounts itself on FILE, serves the bytes of
IMAGE there, and appends to LOG what the block layer asks: writes with their data, and flushes.
`RecordedDisk` starts it and mounts the ext4 on it; `History` gives the bytes that a disk with a
volatile write cache holds after a power cut: all that a flush covered, and of what was written
since then any part. The page cache never counts: what did not reach the disk is not in the log.

The FUSE messages are those of the kernel's include/uapi/linux/fuse.h, protocol 7.31; one file and
no directory needs a dozen of them.
"""

import ctypes
import errno
import mmap
import os
import random
import shutil
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

MAX_WRITE: Final = 1 << 20
SECTOR: Final = 4096
"""What a disk writes whole or not at all."""
WRITE, FLUSH = 1, 2
_RECORD: Final = struct.Struct("<BQQI")  # kind, time (monotonic, ns), offset, length of the data that follows

_GETATTR, _SETATTR, _OPEN, _READ, _WRITE = 3, 4, 14, 15, 16
_RELEASE, _FSYNC, _FLUSH, _INIT, _DESTROY = 18, 20, 25, 26, 38
_WITHOUT_ANSWER = frozenset({2, 36, 42})  # FORGET, INTERRUPT, BATCH_FORGET
_DIRECT_IO: Final = 1  # FOPEN_DIRECT_IO: no page cache between the loop device and us
_BIG_WRITES, _MAX_PAGES = 1 << 5, 1 << 22


def serve(image: Path, file: Path, log: Path, flush_s: float) -> None:
    """Serve until `file` is unmounted; a flush takes `flush_s`."""
    data = bytearray(image.read_bytes())
    fuse = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={fuse},rootmode={stat.S_IFREG | 0o600:o},user_id=0,group_id=0"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"recorded", os.fsencode(file), b"fuse", 0, options.encode()):
        raise OSError(ctypes.get_errno(), "mount of FUSE")
    print("ready", flush=True)
    with log.open("wb", buffering=0) as recorded:
        while True:
            try:
                message = os.read(fuse, MAX_WRITE + 8192)
            except OSError as error:
                if error.errno == errno.ENODEV:  # unmounted
                    return
                if error.errno in {errno.ENOENT, errno.EINTR}:  # the request was taken back
                    continue
                raise
            _, opcode, unique = struct.unpack_from("<IIQ", message)
            if opcode in _WITHOUT_ANSWER:
                continue
            if opcode == _FSYNC and flush_s:
                time.sleep(flush_s)  # this is the disk
            code, answer = _answer(opcode, memoryview(message)[40:], data, recorded.fileno())
            os.write(fuse, struct.pack("<IiQ", 16 + len(answer), -code, unique) + answer)


def _answer(opcode: int, body: memoryview, data: bytearray, log: int) -> tuple[int, bytes]:
    if opcode == _INIT:
        flags = _BIG_WRITES | _MAX_PAGES
        limits = struct.pack("<IIIIHHIIHH", 7, 31, 0, flags, 16, 12, MAX_WRITE, 1, MAX_WRITE // 4096, 0)
        return 0, limits.ljust(64, b"\0")
    if opcode in {_GETATTR, _SETATTR}:
        times = struct.pack("<QQQIII", 0, 0, 0, 0, 0, 0)
        owner = struct.pack("<IIIIIII", stat.S_IFREG | 0o600, 1, 0, 0, 0, 4096, 0)
        return 0, struct.pack("<QII", 3600, 0, 0) + struct.pack("<QQQ", 1, len(data), 0) + times + owner
    if opcode == _OPEN:
        return 0, struct.pack("<QII", 0, _DIRECT_IO, 0)
    if opcode == _READ:
        _, offset, size = struct.unpack_from("<QQI", body)
        return 0, bytes(data[offset : offset + size])
    if opcode == _WRITE:
        _, offset, size = struct.unpack_from("<QQI", body)
        written = body[40 : 40 + size]
        data[offset : offset + size] = written
        os.writev(log, [_RECORD.pack(WRITE, time.monotonic_ns(), offset, size), written])
        return 0, struct.pack("<II", size, 0)
    if opcode == _FSYNC:
        os.write(log, _RECORD.pack(FLUSH, time.monotonic_ns(), 0, 0))
        return 0, b""
    if opcode in {_FLUSH, _RELEASE, _DESTROY}:
        return 0, b""
    return errno.ENOSYS, b""


@dataclass
class RecordedDisk:
    """An ext4 file system on a recorded disk; mounted at `mountpoint` for the length of a `with`."""

    directory: Path
    size_mib: int = 48
    flush_s: float = 0
    """What a flush takes."""
    history: "History" = field(init=False)

    def __post_init__(self) -> None:
        self.directory.mkdir(parents=True)
        self.mountpoint = self.directory / "mounted"
        self.mountpoint.mkdir()
        self.image = self.directory / "image"

    @contextmanager
    def mounted(self) -> Iterator[Path]:
        """Make the file system and record; `history` is there afterwards."""
        make_ext4(self.image, self.size_mib)
        file, log = self.directory / "disk", self.directory / "log"
        file.touch()
        command = [sys.executable, "-I", __file__, str(self.image), str(file), str(log), str(self.flush_s)]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert server.stdout is not None
        try:
            assert server.stdout.readline() == "ready\n"
            try:
                with mounted(file, self.mountpoint):
                    yield self.mountpoint
            finally:
                _unmount(file)
        finally:
            server.stdout.close()
            try:
                server.wait(10)
            finally:
                server.kill()
        self.history = History(self.image, log)

    @contextmanager
    def after_power_cut(self, time_ns: int, seed: int | None = None) -> Iterator[Path]:
        """Mount what the disk held after a power cut at that time, at the same place; see `History`."""
        cut = self.directory / "cut"
        self.history.write(cut, time_ns, seed)
        with mounted(cut, self.mountpoint) as mountpoint:
            yield mountpoint


class History:
    """What a disk was asked, in order; times are monotonic, in ns."""

    def __init__(self, image: Path, log: Path) -> None:
        self._image = image
        self._log = log
        self._records: list[
            tuple[int, int, int, int, int]
        ] = []  # kind, time, offset, length, place in the log
        with log.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
            at = 0
            while at < len(data):
                kind, when, offset, length = _RECORD.unpack_from(data, at)
                self._records.append((kind, when, offset, length, at + _RECORD.size))
                at += _RECORD.size + length

    @property
    def flushes(self) -> list[int]:
        """The times of all flushes."""
        return [when for kind, when, *_ in self._records if kind == FLUSH]

    def write(self, path: Path, time_ns: int, seed: int | None) -> None:
        """Write the disk's bytes after a power cut to `path`.

        Args:
            path: a new image.
            time_ns: of the power cut.
            seed: chooses which sectors of what no flush covered are kept; None: none of them.
        """
        shutil.copyfile(self._image, path)
        past = [record for record in self._records if record[1] <= time_ns]
        flushed = max((number for number, record in enumerate(past) if record[0] == FLUSH), default=-1)
        chance = random.Random(seed)
        with self._log.open("rb") as log, path.open("r+b") as image:
            for number, (kind, _, offset, length, place) in enumerate(past):
                if kind != WRITE or (number > flushed and seed is None):
                    continue
                log.seek(place)
                data = log.read(length)
                for begin in range(0, length, SECTOR) if number > flushed else (0,):
                    end = begin + SECTOR if number > flushed else length
                    if number < flushed or chance.random() < 0.5:
                        image.seek(offset + begin)
                        image.write(data[begin:end])


def make_ext4(image: Path, size_mib: int, *options: str) -> None:
    """A new ext4 file system in the file `image`, as Debian makes it."""
    with image.open("wb") as file:
        file.truncate(size_mib << 20)
    run("mkfs.ext4", "-q", "-F", "-E", "nodiscard,lazy_itable_init=0", *options, str(image))


@contextmanager
def mounted(image: Path, mountpoint: Path, options: str = "") -> Iterator[Path]:
    """Mount an ext4 image for the length of a `with`, which replays its journal."""
    device = run("losetup", "--find", "--show", str(image)).strip()
    try:
        run("mount", "-t", "ext4", "-o", options or "defaults", device, str(mountpoint))
        try:
            yield mountpoint
        finally:
            _unmount(mountpoint)
    finally:
        run("losetup", "--detach", device)


def _unmount(mountpoint: Path) -> None:
    try:
        run("umount", str(mountpoint))
    except AssertionError:  # a failing test left a process: nothing of us stays behind all the same
        run("umount", "--lazy", str(mountpoint))
        raise


def why_no_disks() -> str:
    """Why no loop device can be mounted here; empty when it can."""
    if os.geteuid() != 0:
        return "mounting needs root"
    missing = [name for name in ("mkfs.ext4", "losetup", "mount", "umount") if _found(name) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    missing = [path for path in ("/dev/loop-control", "/dev/fuse") if not Path(path).exists()]
    return f"this machine has no {', '.join(missing)}" if missing else ""


def run(*command: str, allowed: int = 0) -> str:
    """Run a system program, which ends with 0 or `allowed`; what it said."""
    program = _found(command[0]) or command[0]
    done = subprocess.run([program, *command[1:]], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode in {0, allowed}, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


def _found(name: str) -> str | None:
    return shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin")


if __name__ == "__main__":
    serve(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), float(sys.argv[4]))
