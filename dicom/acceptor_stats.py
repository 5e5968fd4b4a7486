"""What an acceptor has counted since it started."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from threading import Lock
from types import MappingProxyType

from dicom.command import Status
from dicom.pdu import Rejection
from dicom.store_handler import End


@dataclass(frozen=True, slots=True)
class AcceptorStats:
    """Counts at one moment. A mapping holds what has happened at least once.

    Attributes:
        connections_pending: open connections without an association.
        associations_open: established now.
        connections_accepted: TCP connections since the start.
        connections_evicted: closed because too many were pending.
        connections_refused: closed unread because their address opened too many in a second.
        handshakes_failed: TLS handshakes.
        associations_accepted: established since the start.
        associations_rejected: by reason (PS3.8 §9.3.4).
        associations_ended: by how.
        aborts_sent: A-ABORTs of ours, by cause.
        instances: C-STORE requests answered with success or a warning.
        instances_refused: C-STORE requests answered with a failure, by status.
        bytes: of the data sets of both.
    """

    connections_pending: int
    associations_open: int
    connections_accepted: int
    connections_evicted: int
    connections_refused: int
    handshakes_failed: int
    associations_accepted: int
    associations_rejected: Mapping[Rejection, int]
    associations_ended: Mapping[End, int]
    aborts_sent: Mapping[str, int]
    instances: int
    instances_refused: Mapping[int, int]
    bytes: int


class Counters:
    """Counts that several threads add to."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._events: Counter[str] = Counter()
        self._rejected: Counter[Rejection] = Counter()
        self._ended: Counter[End] = Counter()
        self._aborts: Counter[str] = Counter()
        self._refused: Counter[int] = Counter()
        self._instances = 0
        self._bytes = 0

    def connection_accepted(self) -> None:
        """A TCP connection."""
        self._count("accepted")

    def connection_evicted(self) -> None:
        """A pending connection was closed to make room."""
        self._count("evicted")

    def connection_refused(self) -> None:
        """A connection was closed unread: its address opens too many."""
        self._count("refused")

    def handshake_failed(self) -> None:
        """A TLS handshake that did not succeed."""
        self._count("handshake")

    def association_accepted(self) -> None:
        """An association was established."""
        self._count("associations")

    def association_rejected(self, rejection: Rejection) -> None:
        """An A-ASSOCIATE-RJ was sent."""
        with self._lock:
            self._rejected[rejection] += 1

    def association_ended(self, how: End) -> None:
        """An established association is over."""
        with self._lock:
            self._ended[how] += 1

    def abort_sent(self, cause: str) -> None:
        """An A-ABORT was sent; `cause` is one of a few fixed words."""
        with self._lock:
            self._aborts[cause] += 1

    def instance_answered(self, status: int, data_set_bytes: int) -> None:
        """A C-STORE was answered; success and warnings (0xBxxx) count as kept (PS3.7 §C.2)."""
        with self._lock:
            self._bytes += data_set_bytes
            if status == Status.SUCCESS or status >> 12 == 0xB:
                self._instances += 1
            else:
                self._refused[status] += 1

    def snapshot(self, *, connections_pending: int, associations_open: int) -> AcceptorStats:
        """All counts at one moment."""
        with self._lock:
            return AcceptorStats(
                connections_pending=connections_pending,
                associations_open=associations_open,
                connections_accepted=self._events["accepted"],
                connections_evicted=self._events["evicted"],
                connections_refused=self._events["refused"],
                handshakes_failed=self._events["handshake"],
                associations_accepted=self._events["associations"],
                associations_rejected=MappingProxyType(dict(self._rejected)),
                associations_ended=MappingProxyType(dict(self._ended)),
                aborts_sent=MappingProxyType(dict(self._aborts)),
                instances=self._instances,
                instances_refused=MappingProxyType(dict(self._refused)),
                bytes=self._bytes,
            )

    def _count(self, event: str) -> None:
        with self._lock:
            self._events[event] += 1
