"""Threads that do one thing again and again: when the bell rings, and at least every so often."""

import logging
import threading
from collections.abc import Callable

from edge.bell import Wake

log = logging.getLogger(__name__)


class Ticker(threading.Thread):
    """Calls `work` at once, then after each ring of `wake`, and at the latest after `every_s`.

    `work` returns whether it changed something that other threads wait for. What it raises
    is logged and does not end the thread: the disk may have room again at the next call.
    """

    def __init__(self, name: str, every_s: float, work: Callable[[], bool], wake: Wake) -> None:
        super().__init__(name=name, daemon=True)
        self._every_s = every_s
        self._work = work
        self._wake = wake
        self._stopping = threading.Event()

    def run(self) -> None:
        """Tick until `stop`."""
        while not self._stopping.is_set():
            seen = self._wake.count
            try:
                changed = self._work()
            except Exception:
                log.exception("%s failed, trying again in %g s", self.name, self._every_s)
                changed = False
            if changed:
                self._wake.ring()
                continue
            self._wake.wait(seen, self._every_s)

    def stop(self) -> None:
        """Make no further call; `join` waits for the one in hand."""
        self._stopping.set()
        self._wake.ring()
