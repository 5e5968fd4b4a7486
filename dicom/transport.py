"""A TCP connection, with or without TLS, whose waiting another thread can end.

Owns the socket of one association and its deadline. The socket blocks and no call has a
timeout of its own: that costs a system call each time, and a TLS read with one cannot be
resumed. Instead `deadline` says by when the peer must have done something, and whoever
watches (the acceptor) calls `stop_waiting` when it has passed.
"""

import contextlib
import math
import select
import socket
import ssl
from collections.abc import Sequence
from time import monotonic
from typing import Final

# A peer that vanished without a word is noticed after 60 + 3 * 10 s, not after the kernel's two hours.
_KEEPALIVE: Final = ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3))


class Transport:
    """A connection. `deadline` is monotonic seconds; infinite while no time runs against the peer."""

    def __init__(self, opened: socket.socket) -> None:
        """Take over `opened`.

        Raises:
            OSError: the peer is gone already.
        """
        opened.setblocking(True)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # a response must not wait for an ACK
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVE:
            opened.setsockopt(socket.IPPROTO_TCP, option, value)
        self.deadline = math.inf
        self._socket = opened
        self._sending = False

    def receive(self, space: memoryview, until: float) -> int:
        """Wait until the peer has sent something, at most to `until`; 0 when nothing more comes."""
        self.deadline = until
        try:
            return self._socket.recv_into(space)
        except OSError:  # reset, given up by keepalive, a TLS record that is none: it is over all the same
            return 0
        finally:
            self.deadline = math.inf

    def wait(self, others: Sequence[int], timeout_s: float | None, until: float) -> bool:
        """Wait until the peer has sent something or is gone, at most to `until`: True.

        False: one of the descriptors `others` can be read from, or `timeout_s` has passed.
        """
        if isinstance(self._socket, ssl.SSLSocket) and self._socket.pending():
            return True  # deciphered already: no descriptor tells
        poll = select.poll()  # not select(): it fails beyond 1,024 descriptors
        for descriptor in (self._socket.fileno(), *others):
            poll.register(descriptor, select.POLLIN)
        self.deadline = until
        try:
            ready = poll.poll(None if timeout_s is None else max(timeout_s * 1000, 0))
        finally:
            self.deadline = math.inf
        return any(descriptor == self._socket.fileno() for descriptor, _ in ready)

    def send(self, data: bytes, timeout_s: float) -> None:
        """Send all of `data`. When that is not possible the connection is cut: `receive` will say so."""
        self._sending = True
        self.deadline = monotonic() + timeout_s
        try:
            self._socket.sendall(data)
        except OSError:  # the peer is gone, or reads nothing
            self.cut()
        finally:
            self.deadline = math.inf
            self._sending = False

    def stop_waiting(self) -> None:
        """Let `receive` return 0 when all that has come is read. From any thread.

        The thread may still send, an A-ABORT for example; but if it hangs in sending, that ends too.
        """
        self._shut(socket.SHUT_RDWR if self._sending else socket.SHUT_RD)

    def cut(self) -> None:
        """End whatever the thread does with the connection. From any thread."""
        self._shut(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close it."""
        self._socket.close()

    def _shut(self, how: int) -> None:
        with contextlib.suppress(OSError):  # it is closed already
            # not SSLSocket.shutdown: after it the thread would go on in clear text
            socket.socket.shutdown(self._socket, how)
