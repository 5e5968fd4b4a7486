"""The arrival log: how `receive` tells `work` what arrived, without touching the journal.

Owns files `<directory>/<number>.log` of JSON lines, written by one process (any number of
its threads) and read by another. They are not fsynced: the instance files are the truth,
and what a power cut takes from here `work` finds again with `InstanceStore.scan`. What is
written reaches the reader even when the writer is killed.

A writer begins a new file at each start, so a line that a crash cut off is never continued;
a file's number is at least the Unix time of its making, so that no number comes twice even
when a power cut takes the newest files. A reader passes over lines that are no entries, and
counts them. The lines hold no patient's name or number, but UIDs: mode 0640.
"""

import errno
import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from edge.arrival_entry import (
    MAX_NAMED_INSTANCES,
    Arrival,
    AssociationEnded,
    CommitmentAsked,
    Entry,
    from_line,
    to_line,
)

__all__ = [
    "MAX_NAMED_INSTANCES",
    "Arrival",
    "ArrivalReader",
    "ArrivalWriter",
    "AssociationEnded",
    "CommitmentAsked",
    "Entry",
    "Position",
]

log = logging.getLogger(__name__)

ROTATE_BYTES: Final = 16 * 1024 * 1024
"""A file's length at which the next one begins: some 20,000 arrivals, read again in a second."""
READ_BYTES: Final = 1024 * 1024
"""What is read at once; no line is longer, for `dicom.walk` keeps no value of more than 1 KiB."""


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """Where a reader is: a file's number, and a byte in it. `str` and `parse` are inverse."""

    file: int = 0
    offset: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.offset}"

    @classmethod
    def parse(cls, text: str | None) -> "Position":
        """The position that `str` gave; None is the beginning.

        Raises:
            ValueError: `text` is no position.
        """
        if text is None:
            return cls()
        file, separator, offset = text.partition(":")
        if not (separator and file.isdecimal() and offset.isdecimal() and len(text) <= 40):
            raise ValueError(f"position in the arrival log: {text[:40]!r}, must be FILE:OFFSET")
        return cls(int(file), int(offset))


class ArrivalWriter:
    """Appends entries; thread-safe. One process at a time may have one on a directory."""

    def __init__(
        self,
        directory: Path,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        rotate_bytes: int = ROTATE_BYTES,
    ) -> None:
        self._directory = directory
        self._clock = clock
        self._rotate_bytes = rotate_bytes
        self._lock = threading.Lock()
        self._handle = -1
        self._length = 0
        self._pending: list[bytes] = []
        self._is_torn = False
        self._open_next()
        self.run: Final = self.number
        """This writer's first file: what makes association numbers unique across restarts."""

    def append(self, entry: Entry) -> bool:
        """Write one entry; False if the disk refused it.

        What could not be written is kept and goes before the next entry: an instance that is
        stored is announced late rather than never.
        """
        line = to_line(entry)
        with self._lock:
            self._pending.append(line)
            return self._write_pending()

    def flush(self) -> bool:
        """Write what could not be written before; False if it still cannot."""
        with self._lock:
            return not self._pending or self._write_pending()

    def close(self) -> None:
        """Close the file. What the disk never took, `work` finds by `InstanceStore.scan`."""
        with self._lock:
            if self._pending:
                self._write_pending()
            if self._handle >= 0:
                os.close(self._handle)
                self._handle = -1

    def _write_pending(self) -> bool:
        try:
            if self._handle < 0:
                raise OSError(errno.EBADF, "the arrival log is closed")
            if self._length >= self._rotate_bytes:
                self._open_next()
            while self._pending:
                # A torn line is ended first: the reader passes over it.
                data = (b"\n" if self._is_torn else b"") + self._pending[0]
                written = os.write(self._handle, data)
                self._length += written
                self._is_torn = written < len(data)
                if self._is_torn:
                    raise OSError(errno.ENOSPC, "only a part of a line was written")
                del self._pending[0]
        except OSError as error:
            log.error("arrival log: %s; %d entries wait", error, len(self._pending))
            return False
        return True

    def _open_next(self) -> None:
        newest = max(_numbers(self._directory), default=0)
        number = max(newest + 1, int(self._clock().timestamp()))
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        handle = os.open(_file(self._directory, number), flags, 0o640)
        if self._handle >= 0:
            os.close(self._handle)
        self._handle, self._length, self._is_torn, self.number = handle, 0, False, number


class ArrivalReader:
    """Reads entries; holds no position of its own, so that it can be kept with what was done."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.garbage_lines = 0
        """Lines passed over since this reader was made."""

    def read(self, position: Position, limit: int) -> tuple[list[Entry], Position]:
        """The next entries, at most `limit`, and the position behind them.

        A line without its end is left for later, unless a newer file says that its writer is
        gone. No entries means that there are none yet.

        Raises:
            OSError: a file cannot be read.
        """
        entries: list[Entry] = []
        while len(entries) < limit:
            # The files are listed before the last one is read: what is appended to it after
            # that is either seen by this read, or it still is the newest file.
            numbers = sorted(number for number in _numbers(self._directory) if number >= position.file)
            if not numbers:
                break
            if numbers[0] > position.file:
                position = Position(numbers[0])
            is_newest = len(numbers) == 1
            data = self._data(position)
            position = self._take(data, position, limit - len(entries), entries)
            if len(data) == READ_BYTES or len(entries) >= limit:
                continue
            if is_newest:
                break
            if not data.endswith(b"\n") and data:
                self._pass_over("is cut off", position)
            position = Position(numbers[1])
        return entries, position

    def drop_before(self, position: Position) -> int:
        """Remove the files before the one that `position` is in; how many."""
        numbers = [number for number in _numbers(self._directory) if number < position.file]
        for number in numbers:
            _file(self._directory, number).unlink(missing_ok=True)
        return len(numbers)

    def _data(self, position: Position) -> bytes:
        try:
            handle = os.open(_file(self._directory, position.file), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:  # dropped between the listing and now
            return b""
        try:
            return os.pread(handle, READ_BYTES, position.offset)
        finally:
            os.close(handle)

    def _take(self, data: bytes, position: Position, limit: int, entries: list[Entry]) -> Position:
        begin = 0
        taken = 0
        while taken < limit and (end := data.find(b"\n", begin)) >= 0:
            try:
                entries.append(from_line(data[begin:end]))
                taken += 1
            except ValueError:
                self._pass_over("is no entry", Position(position.file, position.offset + begin))
            begin = end + 1
        if begin == 0 and len(data) == READ_BYTES:
            self._pass_over(f"has no end within {READ_BYTES} bytes", position)
            begin = READ_BYTES
        return Position(position.file, position.offset + begin)

    def _pass_over(self, why: str, position: Position) -> None:
        self.garbage_lines += 1
        log.warning("arrival log %s: the line %s", position, why)


def _numbers(directory: Path) -> list[int]:
    stems = (file.stem for file in directory.iterdir() if file.suffix == ".log")
    return [int(stem) for stem in stems if stem.isdecimal() and stem.isascii()]


def _file(directory: Path, number: int) -> Path:
    return directory / f"{number}.log"
