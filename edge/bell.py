"""A bell between roles: "look again", without content.

The journal and the arrival log carry what is to be done; the bell only ends a wait
early, so a ring that is lost costs a delay (`Wake.wait`'s timeout), never work.

Security: datagram sockets of mode 0660 in the runtime directory; a datagram's
content is never read.
"""

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path


class Wake:
    """Wakes every thread of this process that waits, when anything may have changed."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._count = 0

    @property
    def count(self) -> int:
        """Rings so far; take it before looking for work, and give it to `wait`."""
        with self._changed:
            return self._count

    def ring(self) -> None:
        """End every wait."""
        with self._changed:
            self._count += 1
            self._changed.notify_all()

    def wait(self, seen: int, timeout_s: float) -> None:
        """Return when there was a ring after `seen`, or after `timeout_s`."""
        with self._changed:
            self._changed.wait_for(lambda: self._count != seen, timeout_s)


class Bell:
    """This process's own bell: passes rings of other processes on to `wake`."""

    def __init__(self, directory: Path, role: str, wake: Wake) -> None:
        self._wake = wake
        self._stop = threading.Event()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._path = directory / f"{role}.bell"
        self._path.unlink(missing_ok=True)
        with _address(directory, role) as address:
            self._socket.bind(address)
        self._path.chmod(0o660)
        self._thread = threading.Thread(target=self._listen, name=f"bell-{role}", daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while not self._stop.is_set():
            if self._socket.recv(1):  # nothing: `close` ended the wait
                self._wake.ring()

    def close(self) -> None:
        """Stop listening; the socket's file goes away."""
        self._stop.set()
        self._path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(1.0)
        self._socket.close()


def ring(directory: Path, role: str) -> None:
    """Ring the bell of `role`; a role that is not running is not an error."""
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as ours,
        contextlib.suppress(OSError),
        _address(directory, role) as address,
    ):
        ours.setblocking(False)
        ours.sendto(b"!", address)


@contextlib.contextmanager
def _address(directory: Path, role: str) -> Iterator[str]:
    # A socket's path holds at most 107 bytes; through the directory's descriptor any depth fits.
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{handle}/{role}.bell"
    finally:
        os.close(handle)
