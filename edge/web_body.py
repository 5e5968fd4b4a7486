"""The body of a request on its way from the event loop to a thread: bounded, and never whole in memory.

The event loop receives while the thread writes and syncs. When the thread falls behind, the loop stops
reading, and TCP slows the sender down.
"""

import asyncio
import threading
from typing import Final

MAX_WAITING_BYTES: Final = 4 * 1024 * 1024
"""What may wait for the thread: some tens of milliseconds of a disk, so that neither side idles."""


class BodyCutError(Exception):
    """The sender went away, or said nothing for too long, before the body was whole."""


class BodyPipe:
    """One body. The event loop calls `put` and then `close` or `cut`; a thread calls `take`."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._changed = threading.Condition()
        self._chunks: list[bytes] = []
        self._waiting_bytes = 0
        self._room: asyncio.Future[None] | None = None
        self._is_closed = False
        self._is_cut = False
        self._is_refused = False

    async def put(self, chunk: bytes) -> bool:
        """Pass a chunk on, when there is room for it; False: the thread wants no more."""
        with self._changed:
            if self._is_refused:
                return False
            self._chunks.append(chunk)
            self._waiting_bytes += len(chunk)
            self._changed.notify()
            if self._waiting_bytes < MAX_WAITING_BYTES:
                return True
            room = self._room = self._loop.create_future()
        await room
        return True

    def close(self) -> None:
        """The body is whole."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()

    def cut(self) -> None:
        """The body will not become whole."""
        with self._changed:
            self._is_cut = True
            self._changed.notify()

    def take(self) -> list[bytes]:
        """Wait for the next chunks; none at the end.

        Raises:
            BodyCutError: it is cut, and what came of it has been taken.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._chunks or self._is_closed or self._is_cut)
            if self._is_cut and not self._chunks:
                raise BodyCutError
            chunks, self._chunks, self._waiting_bytes = self._chunks, [], 0
            self._make_room()
        return chunks

    def refuse(self) -> None:
        """Take no more of it: what waits is dropped, and what comes is not kept."""
        with self._changed:
            self._is_refused = True
            self._chunks, self._waiting_bytes = [], 0
            self._make_room()

    def _make_room(self) -> None:
        room, self._room = self._room, None
        if room is not None:
            self._loop.call_soon_threadsafe(_done, room)


def _done(room: asyncio.Future[None]) -> None:
    if not room.done():
        room.set_result(None)
