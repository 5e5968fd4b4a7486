"""Storage Commitment (PS3.4 Annex J): takes requests, looks whether we keep what they name, reports.

Owns the request from its N-ACTION until a report has been taken on the same association, or is left
to `deliver` (`edge.commitment_lane`), which alone calls out. A request is durable before it is
answered; one that a crash cut off is looked after at the next start. Reading again is done in one
thread of its own: it keeps neither the port nor an association waiting.

*Diagnostics*: one line for each request and its outcome; no UID of an instance.
*Security*: the requests are a peer's: how many instances one may name, and how many may wait, are
limits. What is not kept is never promised: see `edge.commitment_check`.
"""

import logging
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from dicom.commitment import (
    RESOURCE_LIMITATION,
    CommitmentError,
    CommitmentReport,
    CommitmentRequest,
    FailureReason,
)
from dicom.commitment_service import Reply
from dicom.store_handler import AssociationInfo
from edge.arrivals import MAX_NAMED_INSTANCES, ArrivalWriter, CommitmentAsked
from edge.commitment_check import check
from edge.commitment_spool import Asked, CommitmentSpool
from edge.failures import PROCESSING_FAILURE
from edge.incoming import DiskError, key_of

log = logging.getLogger(__name__)

RETRY_S: Final = 5.0
"""After our own disk failed in looking: it may be readable again."""


@dataclass(frozen=True, slots=True)
class _Unreported:
    """The peer did not take the report on its association."""

    asked: Asked
    report: CommitmentReport


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A request that is to be looked after."""

    asked: Asked
    reply: Reply | None


class Commitments(threading.Thread):
    """Takes requests and looks after them; a `dicom.commitment_service.CommitmentHandler`."""

    def __init__(
        self,
        spool: CommitmentSpool,
        instances: Path,
        arrivals: ArrivalWriter,
        *,
        max_waiting: int,
        check_room: Callable[[], None],
        ring_work: Callable[[], None],
        ring_deliver: Callable[[], None],
        clock: Callable[[], datetime],
    ) -> None:
        """Does not run yet.

        Args:
            spool: where requests are kept.
            instances: the root of the instance store.
            arrivals: where is said what peers asked for: it tells that their studies are whole.
            max_waiting: requests without a report; more are refused (0x0213).
            check_room: raises `DiskError` when the disk has no room for more.
            ring_work: called after each entry in `arrivals`.
            ring_deliver: called when a report is left to `deliver`.
            clock: aware, UTC.
        """
        super().__init__(name="commitments", daemon=True)
        self._spool = spool
        self._instances = instances
        self._arrivals = arrivals
        self._max_waiting = max_waiting
        self._check_room = check_room
        self._ring_work = ring_work
        self._ring_deliver = ring_deliver
        self._clock = clock
        self._queue: queue.SimpleQueue[_Wanted | _Unreported | Asked | None] = queue.SimpleQueue()
        self._stopping = threading.Event()

    def asked(self, association: AssociationInfo, request: CommitmentRequest, reply: Reply) -> None:
        """Take a request; see `CommitmentHandler`.

        Raises:
            CommitmentError: too many wait, or our disk does not take it.
        """
        caller = association.calling_ae_title.strip(" ")
        asked = Asked(caller, request, is_duplicate=False, at=self._clock())
        try:
            self._check_room()
            if self._spool.count() >= self._max_waiting:
                raise CommitmentError(
                    RESOURCE_LIMITATION, f"{self._max_waiting} requests wait for their report already"
                )
            if self._spool.is_in_use(asked):
                asked = Asked(caller, request, is_duplicate=True, at=asked.at)
            self._spool.ask(asked)
        except DiskError as error:
            raise CommitmentError(RESOURCE_LIMITATION, str(error)) from error
        except OSError as error:
            raise CommitmentError(
                PROCESSING_FAILURE, f"our disk does not take it: {error.strerror}"
            ) from error
        log.info("association %d: %s asks for the commitment of %d instances",
                 association.number, caller, len(request.references))  # fmt: skip
        if not asked.is_duplicate:
            self._announce(association, caller, request, asked.at)
        self._queue.put(_Wanted(asked, reply))

    def run(self) -> None:
        """Look after what an earlier process left, then after what is asked, until `stop`."""
        for asked in self._spool.asked():
            self._queue.put(_Wanted(asked, None))
        while (work := self._queue.get()) is not None and not self._stopping.is_set():
            try:
                self._do(work)
            except OSError as error:
                log.error("storage commitment: our disk fails, trying again: %s", error)
                self._stopping.wait(RETRY_S)
                self._queue.put(work)
            except Exception:
                log.exception("a request for storage commitment failed; it is taken up at the next start")

    def stop(self) -> None:
        """Look after nothing more; what is left is taken up at the next start."""
        self._stopping.set()
        self._queue.put(None)

    def _do(self, work: _Wanted | _Unreported | Asked) -> None:
        if isinstance(work, _Wanted):
            self._look(work)
        elif isinstance(work, _Unreported):
            self._spool.hand_over(work.asked, work.report)
            self._ring_deliver()
        else:
            self._spool.settle(work)

    def _look(self, wanted: _Wanted) -> None:
        asked = wanted.asked
        if asked.is_duplicate:
            reason = FailureReason.DUPLICATE_TRANSACTION_UID
            failed = tuple((each, int(reason)) for each in asked.request.references)
            report = CommitmentReport(asked.request.transaction_uid, (), failed)
        else:
            report = check(self._instances, asked.request)
        log.info(
            "storage commitment for %s: %d instances are kept, %d are not",
            asked.calling_ae_title,
            len(report.committed),
            len(report.failed),
        )

        def settled(status: int | None) -> None:
            if status == 0:
                self._queue.put(asked)
                return
            if status is not None:
                log.warning("%s answered its report with 0x%04X", asked.calling_ae_title, status)
            self._queue.put(_Unreported(asked, report))

        if wanted.reply is None or not wanted.reply.give(report, settled):
            self._do(_Unreported(asked, report))

    def _announce(
        self, association: AssociationInfo, caller: str, request: CommitmentRequest, at: datetime
    ) -> None:
        keys = tuple(key_of(each.sop_instance_uid) for each in request.references)
        for begin in range(0, len(keys), MAX_NAMED_INSTANCES):
            self._arrivals.append(
                CommitmentAsked(
                    association=f"{self._arrivals.run}-{association.number}",
                    calling_ae_title=caller,
                    instance_keys=keys[begin : begin + MAX_NAMED_INSTANCES],
                    at=at,
                )
            )
        self._ring_work()
