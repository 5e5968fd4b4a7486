"""Which roles run: a lock file for each role, held while its process lives.

The kernel gives the lock back when the process ends, however it ends, so a stale file
never says that a dead role runs.
"""

import fcntl
import os
from pathlib import Path
from typing import Final

ROLES: Final = ("receive", "work", "deliver", "api")


class AlreadyRunningError(Exception):
    """Another process has this role on the same directories."""


class PortError(Exception):
    """A port of the configuration cannot be listened on."""


class Presence:
    """Holds the lock of one role until `leave`, or until the process ends."""

    def __init__(self, runtime: Path, role: str) -> None:
        """Take the lock.

        Raises:
            AlreadyRunningError: another process holds it.
        """
        path = runtime / f"{role}.lock"
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o660)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._handle, 32, 0).decode(errors="replace").strip()
            os.close(self._handle)
            raise AlreadyRunningError(
                f"role {role} already runs as process {holder} on {runtime}: stop it first, "
                "or give this one directories of its own"
            ) from None
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, f"{os.getpid()}\n".encode(), 0)

    def leave(self) -> None:
        """Give the lock back."""
        os.close(self._handle)


def running(runtime: Path) -> dict[str, int]:
    """Role to process id, for the roles that run now."""
    found = {}
    for role in ROLES:
        try:
            handle = os.open(runtime / f"{role}.lock", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            text = os.pread(handle, 32, 0).decode(errors="replace").strip()
            found[role] = int(text) if text.isdigit() else 0
        finally:
            os.close(handle)
    return found
