"""The acceptor: a DICOM node that associations are proposed to.

Owns who is let in and how many at once, the thread of each association, and the thread that
interrupts what has taken too long. Connections without an association are `dicom.reception`,
an association is `dicom.upper_layer`; where instances go is the `StoreHandler` it is given.
Implements the acceptor of PS3.8, and is SCP of Verification (PS3.4 Annex A), Storage (PS3.4
Annex B) and the services it is given.

Security: reception is open to anything on the hospital's network; a thread and a receive
buffer are given only to a peer that the handler admits.
"""

import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from threading import Condition, Thread
from time import monotonic
from typing import Final

from dicom.acceptor_settings import AcceptorSettings
from dicom.acceptor_stats import AcceptorStats, Counters
from dicom.dimse import Service
from dicom.errors import StoreRefusedError
from dicom.pdu import Rejection
from dicom.reception import Proposed, Reception
from dicom.services import storage, verification
from dicom.store_handler import AssociationInfo, End, Incoming, StoreHandler, StoreRequest
from dicom.upper_layer import Association, Interrupt

__all__ = [
    "Acceptor",
    "AcceptorSettings",
    "AcceptorStats",
    "AssociationInfo",
    "End",
    "Incoming",
    "Rejection",
    "StoreHandler",
    "StoreRefusedError",
    "StoreRequest",
]

_LOG: Final = logging.getLogger(__name__)
_LAST_JOIN_S: Final = 1.0  # for threads whose connections have been cut


class Acceptor:
    """A DICOM node that associations are proposed to.

    Args:
        settings: where it listens, and its limits.
        handler: admits peers and keeps instances; called from many threads.
        services: what it performs besides Verification and Storage.
        clock: tells when an association started (aware, UTC).
    """

    def __init__(
        self,
        settings: AcceptorSettings,
        handler: StoreHandler,
        *,
        services: Sequence[Service] = (),
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._settings = settings
        self._handler = handler
        self._clock = clock
        self._counters = Counters()
        self._services = (
            verification(),
            *services,
            storage(
                handler,
                accept_unknown=settings.accept_unknown_storage,
                max_object_bytes=settings.max_object_bytes,
                on_answered=self._counters.instance_answered,
            ),
        )
        self._reception: Reception | None = None
        self._watch: Thread | None = None
        self._changed = Condition()  # guards what follows; notified when a connection has closed
        self._is_stopping = False
        self._associations: dict[int, Association] = {}
        self._closing: dict[int, Association] = {}  # ended, but their connections are still open
        self._ended: list[Thread] = []  # threads of closed connections, to be joined

    @property
    def address(self) -> tuple[str, int]:
        """The host and port it is bound to.

        Raises:
            RuntimeError: it does not listen.
        """
        if self._reception is None:
            raise RuntimeError("acceptor: not started, or stopped")
        return self._reception.address

    @property
    def tls_address(self) -> tuple[str, int] | None:
        """The host and port for TLS, where that has a port of its own."""
        return None if self._reception is None else self._reception.tls_address

    def start(self) -> None:
        """Listen. On return a peer can connect.

        Raises:
            RuntimeError: it was started before; make a new one.
            OSError: the address cannot be bound.
        """
        if self._watch is not None:
            raise RuntimeError("acceptor: was started before, must be a new one")
        self._reception = Reception(self._settings, self._decide, self._counters)
        self._watch = Thread(target=self._interrupt_late_ones, name="acceptor-deadlines", daemon=True)
        self._watch.start()
        _LOG.info("listening as %s on %s:%d", self._settings.ae_title, *self.address)

    def stop(self, timeout_s: float) -> int:
        """Stop: refuse new associations, finish the messages that have begun, abort.

        Returns:
            How many connections were cut off in a message after `timeout_s`; each is logged.
        """
        deadline = monotonic() + timeout_s
        with self._changed:
            self._is_stopping = True
        reception, self._reception = self._reception, None
        if reception is not None:
            reception.stop()
        with self._changed:
            for association in self._open():
                association.interrupt(Interrupt.STOPPED)
            self._changed.wait_for(lambda: not self._open(), max(deadline - monotonic(), 0))
            cut = self._open()
            for association in cut:
                _LOG.warning("association %d: cut off by the stop", association.info.number)
                association.transport.cut()
            self._changed.wait_for(lambda: not self._open(), _LAST_JOIN_S)
            self._changed.notify_all()  # to the thread that interrupts
            hung = [association.thread for association in self._open()]
        self._join_ended()
        for thread in hung if self._watch is None else [self._watch, *hung]:
            thread.join(_LAST_JOIN_S)
        return len(cut)

    def stats(self) -> AcceptorStats:
        """What has been counted since the start."""
        reception = self._reception
        with self._changed:
            associations, closing = len(self._associations), len(self._closing)
        pending = closing + (0 if reception is None else reception.pending)
        return self._counters.snapshot(connections_pending=pending, associations_open=associations)

    # --- reception asks, in its thread ---

    def _decide(self, proposed: Proposed) -> Rejection | None:
        proposal = proposed.proposal
        rejection = self._handler.admit(
            proposal.calling_ae_title,
            proposal.called_ae_title,
            proposed.address,
            proposed.certificate_sha256,
        )
        if rejection is not None:
            return rejection
        self._join_ended()
        info = AssociationInfo(
            number=proposed.number,
            calling_ae_title=proposal.calling_ae_title,
            called_ae_title=proposal.called_ae_title,
            address=proposed.address,
            port=proposed.port,
            started=self._clock(),
        )
        with self._changed:
            return self._limit(info) or self._begin(proposed, info)

    def _limit(self, info: AssociationInfo) -> Rejection | None:
        if self._is_stopping:
            return Rejection.TEMPORARY_CONGESTION
        if len(self._closing) >= self._settings.max_associations:
            return Rejection.TEMPORARY_CONGESTION
        peer = (info.calling_ae_title, info.address)
        peers = [(a.info.calling_ae_title, a.info.address) for a in self._associations.values()]
        if len(peers) >= self._settings.max_associations:
            return Rejection.LOCAL_LIMIT_EXCEEDED
        if peers.count(peer) >= self._settings.max_associations_per_peer:
            return Rejection.LOCAL_LIMIT_EXCEEDED
        return None

    def _begin(self, proposed: Proposed, info: AssociationInfo) -> Rejection | None:
        association = Association(
            proposed,
            info,
            self._settings,
            self._handler,
            self._services,
            self._counters,
            on_ended=self._association_ended,
            on_closed=self._association_closed,
        )
        self._associations[info.number] = association
        try:
            association.thread.start()
        except RuntimeError as error:  # the system has no thread for it
            _LOG.error("association %d from %s: %s", info.number, info.address, error)
            del self._associations[info.number]
            return Rejection.TEMPORARY_CONGESTION
        return None

    # --- associations say, in their threads ---

    def _association_ended(self, association: Association) -> None:
        with self._changed:
            if self._associations.pop(association.info.number, None) is not None:
                self._closing[association.info.number] = association

    def _association_closed(self, association: Association) -> None:
        with self._changed:
            self._associations.pop(association.info.number, None)
            self._closing.pop(association.info.number, None)
            self._ended.append(association.thread)
            self._changed.notify_all()

    # --- all of them ---

    def _open(self) -> list[Association]:
        return [*self._associations.values(), *self._closing.values()]

    def _join_ended(self) -> None:
        with self._changed:
            ended, self._ended = self._ended, []
        for thread in ended:
            thread.join()

    def _interrupt_late_ones(self) -> None:
        settings = self._settings
        # often enough that a limit is kept within a quarter of itself, and never more than a second late
        period_s = min(
            1.0,
            settings.closing_timeout_s / 4,
            settings.idle_timeout_s / 4,
            settings.stall_timeout_s / 4,
            settings.write_timeout_s / 4,
        )
        with self._changed:
            while not self._is_stopping or self._open():
                now = monotonic()
                for association in self._open():
                    if association.transport.deadline < now:
                        association.interrupt(Interrupt.TIMED_OUT)
                self._changed.wait(period_s)
