"""Names for instances that are durable before the instances come.

Owns `incoming/`: the files that instances are received into, and their removal. To survive a
power cut a new file needs its bytes and its name on disk: two waits for the disk. Names need
not wait for bytes: so empty files are made ahead, with one fsync of the directory for many, and
an instance then costs one wait, the fsync of its file. From there it has its lasting name in the
study's directory at once; that name is made durable later, for many at a time, and only then the
slot's is removed. Until then a power cut may take the lasting name, and the slot's is still
there (`InstanceStore.recover`). This relies on nothing but POSIX: of a file fsync brings the
bytes, of a directory the names.

`keep` does both for many instances while these wait for the network and the disk; who has no
thread for it loses time and nothing else.
"""

import itertools
import logging
import os
import threading
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final

from model_store.durable import sync_directory

log = logging.getLogger(__name__)

MAX_SLOTS: Final = 64
"""Free ones, and as many that wait to be settled: two more waits for the disk in 64 instances."""
MAX_NAMED: Final = 4 * MAX_SLOTS
"""Files with two names: at a restart all of them are read."""
_FIRST_SLOTS: Final = 4  # then twice as many each time: who receives little makes few
_FLAGS: Final = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC


class Slots:
    """The files of one process in `directory`. Thread-safe.

    Args:
        directory: `incoming/`; on the file system of the studies.
        run: what begins their names; no other process has it.
        sync_names: makes the names in the directories of these studies durable; is passed their
            study keys.
        ring: called when `keep` is due.
        durable: without, nothing waits for the disk.
    """

    def __init__(
        self,
        directory: Path,
        run: str,
        sync_names: Callable[[Collection[str]], None],
        ring: Callable[[], None],
        *,
        durable: bool,
    ) -> None:
        self._directory = directory
        self._run = run
        self._sync_names = sync_names
        self._ring = ring
        self._durable = durable
        self._counter = itertools.count()
        self._making = threading.Lock()  # by one thread at a time; the others then find some
        self._free: list[str] = []
        self._naming = threading.Lock()
        self._named: list[tuple[str, str]] = []  # slots whose files have a lasting name, and its study key
        self._batch = _FIRST_SLOTS
        self._few = 0  # of the free ones: then it is time to make more

    def take(self) -> tuple[str, int]:
        """The path of an empty file whose name is durable, and the file, open for reading and writing.

        Raises:
            OSError: it cannot be made.
        """
        while True:
            try:
                path = self._free.pop()
            except IndexError:
                self._make()
                continue
            if len(self._free) == self._few:
                self._ring()
            return path, os.open(path, _FLAGS)

    def named(self, slot: str, study_key: str) -> None:
        """Say that a slot's file is durable and has its lasting name in the directory of a study."""
        with self._naming:
            self._named.append((slot, study_key))
            waiting = len(self._named)
        if waiting == MAX_SLOTS:
            self._ring()
        elif waiting >= MAX_NAMED:
            self.settle()

    def keep(self) -> None:
        """Make slots where they get few, and settle what was named.

        Raises:
            OSError: no slot can be made.
        """
        if self._batch > _FIRST_SLOTS and len(self._free) <= self._few:  # they are used
            self._make()
        self.settle()

    def settle(self) -> None:
        """Make the lasting names durable, and remove the names that they replace.

        What the disk refuses is logged and tried again: it costs nobody an instance.
        """
        with self._naming:
            named, self._named = self._named, []
        if not named:
            return
        try:
            if self._durable:
                self._sync_names({study_key for _, study_key in named})
            for slot, _ in named:
                Path(slot).unlink(missing_ok=True)
        except OSError as error:
            log.error("%d received instances keep a second name for now: %s", len(named), error)
            with self._naming:
                self._named += named

    def _make(self) -> None:
        with self._making:
            if len(self._free) > self._few:
                return  # another thread did
            made: list[str] = []
            try:
                for _ in range(self._batch):
                    path = f"{self._directory}/{self._run}-{next(self._counter)}"
                    os.close(os.open(path, _FLAGS | os.O_CREAT | os.O_EXCL, 0o640))
                    made.append(path)
                if self._durable:
                    sync_directory(self._directory)
            except OSError:
                for path in made:
                    Path(path).unlink(missing_ok=True)
                raise
            self._free[:0] = made
            self._few = len(made) // 2
            self._batch = min(2 * self._batch, MAX_SLOTS)
