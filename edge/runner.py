"""Lanes: the threads that claim work items and hand them to a stage.

Owns the loop, the count of attempts, and what becomes of an item whose stage raised
(`edge.failures` decides, this module only obeys). Knows nothing of what a stage does.
"""

import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol

from edge.bell import Wake
from edge.failures import verdict_of
from edge.journal import Journal
from edge.records import Item
from edge.study import MAX_ATTEMPTS, NEXT_STAGE, Outcome, Stage

log = logging.getLogger(__name__)

LOOK_AGAIN_S: Final = 1.0
"""A ring may be lost and a time may come: look at least this often. One indexed SELECT a second."""
RETRY_S: Final = 2.0
"""Wait before a second attempt; doubled for each further one."""
ROOM_S: Final = 10.0
"""Between two attempts of what waits for room on the disk: it is tried until somebody makes room."""
MAX_CRASHES: Final = 5
"""Attempts that ended with the process (a crash, a power cut) before the item is held as the cause."""

Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """The time of day, aware, UTC."""
    return datetime.now(UTC)


class StageWork(Protocol):
    """One stage: works off one claimed item and moves it on in the journal, or raises."""

    def handle(self, item: Item) -> None:
        """Work off `item`."""


class Lane(threading.Thread):
    """One thread that works off the items of one stage, one after the other."""

    def __init__(
        self,
        stage: Stage,
        work: StageWork,
        journal: Journal,
        wake: Wake,
        busy: "Busy",
        clock: Clock = utc_now,
    ) -> None:
        super().__init__(name=f"lane-{stage}", daemon=True)
        self._stage = stage
        self._work = work
        self._journal = journal
        self._wake = wake
        self._busy = busy
        self._clock = clock
        self._stopping = threading.Event()

    def run(self) -> None:
        """Work until `stop`."""
        while not self._stopping.is_set():
            seen = self._wake.count
            try:
                idle = not self.step()
            except Exception:
                log.exception("lane %s: cannot use the journal, trying again", self._stage)
                idle = True
            if idle:
                self._wake.wait(seen, LOOK_AGAIN_S)

    def step(self) -> bool:
        """Work off one item if one is due; whether there was one."""
        with self._busy.claim(self._journal, self._stage, self._clock()) as item:
            if item is None:
                return False
            if item.attempt > MAX_CRASHES:
                reason = f"{MAX_CRASHES} attempts at {item.stage} did not end: the process died in each"
                self._settle(item, Outcome.HOLD, reason)
            else:
                self._attempt(item, MAX_ATTEMPTS[item.stage])
        self._wake.ring()
        return True

    def _attempt(self, item: Item, limit: int) -> None:
        try:
            self._work.handle(item)
        except Exception as error:
            verdict = verdict_of(error)
            outcome = verdict.outcome
            last = outcome is Outcome.RETRY and item.attempt >= limit and not verdict.waits
            if last or (item.stage, outcome) not in NEXT_STAGE:
                outcome = Outcome.HOLD
            log.log(
                logging.WARNING if verdict.expected else logging.ERROR,
                "study %s, %s, attempt %d: %s (%s)",
                item.study_key[:12],
                item.stage,
                item.attempt,
                error,
                outcome,
                exc_info=not verdict.expected,
            )
            wait = timedelta(seconds=ROOM_S if verdict.waits else RETRY_S * 2 ** (item.attempt - 1))
            reason = f"{error}; {verdict.next_step}"
            self._settle(item, outcome, reason, wait, counted=not verdict.waits)

    def _settle(
        self,
        item: Item,
        outcome: Outcome,
        reason: str,
        wait: timedelta = timedelta(),
        *,
        counted: bool = True,
    ) -> None:
        """Say in the journal what became of an item, however long the journal cannot be written.

        Given up, the item would stay claimed, and be taken up by nobody before the next start.
        """
        while True:
            now = self._clock()
            try:
                self._journal.advance(item, outcome, now, reason, now + wait, counted=counted)
            except (sqlite3.Error, OSError):
                log.exception("lane %s: the journal cannot be written, trying again", self._stage)
                if self._stopping.wait(LOOK_AGAIN_S):
                    return  # put back at the next start
            else:
                return

    def stop(self) -> None:
        """Begin no further item; `join` waits for the one in hand."""
        self._stopping.set()
        self._wake.ring()


class Busy:
    """Models whose worker is running an item: one call at a time each, so others' items go first."""

    def __init__(self) -> None:
        self._models: set[str] = set()
        self._lock = threading.Lock()

    def claim(self, journal: Journal, stage: Stage, now: datetime) -> "_Claim":
        """Claim the oldest due item of `stage` whose model is free, for the length of a `with`."""
        with self._lock:
            item = journal.claim((stage,), now, tuple(self._models) if stage is Stage.INFER else ())
            model = item.model_digest if item is not None and stage is Stage.INFER else ""
            if model:
                self._models.add(model)
        return _Claim(self, item, model)

    def free(self, model: str) -> None:
        """The worker of `model` is free again."""
        with self._lock:
            self._models.discard(model)


class _Claim:
    def __init__(self, busy: Busy, item: Item | None, model: str) -> None:
        self._busy, self._item, self._model = busy, item, model

    def __enter__(self) -> Item | None:
        return self._item

    def __exit__(self, *_: object) -> None:
        self._busy.free(self._model)


def join_all(threads: Sequence[threading.Thread], timeout_s: float) -> list[str]:
    """Wait for threads that were told to stop, together `timeout_s`; the names of those that go on."""
    until = time.monotonic() + timeout_s
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    return [thread.name for thread in threads if thread.is_alive()]
