"""A request of ours to the peer of an association, made by a thread that is not the association's.

Owns the handing over, and what becomes of it: a service that has answered a peer's request may
have something to say later on the same association (N-EVENT-REPORT, PS3.4 §J.3.3), if that is
still open then. The thread of the association waits for the peer and for this at once; it is the
only one that ever touches the connection.
"""

import os
from collections.abc import Callable
from threading import Lock
from time import monotonic
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from dicom.dimse import Message

Settled = Callable[[int | None], None]
"""Called once, in the association's thread: the status that the peer answered, or None: it did not."""

GRACE_S: Final = 0.2
"""A peer that waits for no report releases the association as soon as it is answered: a report that
crosses the release would be an unexpected PDU for some. It has this long to do so."""


class Postponed:
    """One request that may follow on an association; `give` is for any thread."""

    def __init__(self, context_id: int) -> None:
        """`context_id`: the presentation context that it will be sent on."""
        self.context_id = context_id
        self.not_before = monotonic() + GRACE_S
        self._lock = Lock()
        self._ready = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._message: Message | None = None
        self._settled: Settled | None = None
        self._is_over = False

    def give(self, message: "Message", settled: Settled) -> bool:
        """Have `message` sent. False: the association is over, nothing is sent and `settled` not called."""
        with self._lock:
            if self._is_over:
                return False
            self._message, self._settled = message, settled
            os.eventfd_write(self._ready, 1)
            return True

    # --- for the thread of the association ---

    def fileno(self) -> int:
        """Can be read from when there is something to `take`."""
        return self._ready

    def take(self) -> "Message | None":
        """What was given, if anything was."""
        with self._lock:
            return self._message

    def settle(self, status: int | None) -> None:
        """It was answered with `status`; or it never will be: None."""
        with self._lock:
            if self._is_over:
                return
            self._is_over = True
            settled = self._settled
            os.close(self._ready)
        if settled is not None:
            settled(status)
