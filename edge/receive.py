"""receive: takes instances from the hospital's network, and answers success when they are durable.

Owns who may associate, the answer to each C-STORE request (PS3.4 §B.2.3, PS3.7 §9.1.1.1.9),
and the announcement of what was stored. Parsing the network is `dicom.receive`, the durable
steps are `edge.incoming`; what an error is answered with is `edge.failures`. Nothing is
decoded here and no journal is written.

*Diagnostics*: logs each refused association and instance with its reason, and stops
taking instances (0xA700) while the arrival log cannot be written.
*Security*: anyone on the network can connect. A peer is known by its calling AE title and,
where the configuration says so, by its address and its TLS certificate; names and paths are made
of none of them.
"""

import hmac
import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from time import monotonic
from types import MappingProxyType
from typing import Final

from dicom.commitment_service import CommitmentHandler, storage_commitment
from dicom.errors import DicomError
from dicom.receive import (
    Acceptor,
    AcceptorSettings,
    AcceptorStats,
    AssociationInfo,
    End,
    Incoming,
    Rejection,
    StoreRefusedError,
    StoreRequest,
)
from edge.addressing import is_own
from edge.arrivals import Arrival, ArrivalWriter, AssociationEnded
from edge.failures import OUT_OF_RESOURCES, verdict_of
from edge.instances import (
    Fate,
    IncomingInstance,
    InstanceStore,
    InstanceStoreError,
    Named,
    no_checkpoint,
)
from edge.intake_stats import IntakeStats
from edge.options import Settings
from edge.tls import server_context

log = logging.getLogger(__name__)

SUCCESS: Final = 0x0000
RING_S: Final = 0.02
"""`work` is rung for so often at most, and at the end of each association: a ring costs 0.1 ms."""
DUPLICATE_SOP_INSTANCE: Final = 0x0111
"""PS3.7 Annex C: the one failure that says that the name is taken. Success or a warning would let the
sender believe that we hold what it sent; "out of resources" would let it try again without end."""


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Receiver:
    """The stage with its port: `ReceiveStage` behind an acceptor, as the settings say."""

    def __init__(
        self,
        settings: Settings,
        instances: InstanceStore,
        arrivals: ArrivalWriter,
        ring: Callable[[], None],
        clock: Callable[[], datetime] = _utc_now,
        commitments: CommitmentHandler | None = None,
        stats: IntakeStats | None = None,
    ) -> None:
        """Does not listen yet; `instances` has been recovered.

        Args:
            settings: who may associate, where, and at what cost.
            instances: where instances go.
            arrivals: where they are announced.
            ring: called after announcements.
            clock: aware, UTC.
            commitments: takes requests for storage commitment; None: that service is not offered.
            stats: counts what becomes of instances.

        Raises:
            OSError: a file of TLS cannot be read, or is no certificate or key.
        """
        limits, tls = settings.limits, settings.tls
        services = []
        if commitments is not None:
            services.append(storage_commitment(commitments, limits.max_commitment_references))
        stage = ReceiveStage(
            instances,
            arrivals,
            ae_title=settings.node.ae_title,
            callers=_callers(settings),
            certificates={
                peer.ae_title: peer.certificate_sha256 for peer in settings.peers if peer.certificate_sha256
            },
            ring=ring,
            clock=clock,
            stats=stats,
        )
        self._acceptor = Acceptor(
            AcceptorSettings(
                ae_title=settings.node.ae_title,
                host=settings.node.host,
                port=settings.node.port if tls.plain or not tls.port else tls.port,
                max_associations=limits.max_associations,
                max_associations_per_peer=limits.max_associations_per_peer,
                max_pdu_length_bytes=limits.max_pdu_length_bytes,
                max_associate_pdu_bytes=limits.max_associate_pdu_bytes,
                max_object_bytes=limits.max_object_bytes,
                max_objects_per_association=limits.max_objects_per_association,
                artim_timeout_s=limits.artim_timeout_s,
                idle_timeout_s=limits.idle_timeout_s,
                max_pending_connections=limits.max_pending_connections,
                max_connections_per_address_per_s=limits.max_connections_per_address_per_s,
                max_presentation_contexts=limits.max_presentation_contexts,
                stall_timeout_s=limits.stall_timeout_s,
                stall_bytes=limits.stall_bytes,
                closing_timeout_s=limits.closing_timeout_s,
                write_timeout_s=limits.write_timeout_s,
                accept_unknown_storage=settings.receive.accept_unknown_storage,
                ssl_context=server_context(tls) if tls.port else None,
                tls_port=tls.port if tls.port and tls.plain else None,
            ),
            stage,
            services=services,
            clock=clock,
        )

    @property
    def address(self) -> tuple[str, int]:
        """The host and port that it listens on."""
        return self._acceptor.address

    @property
    def tls_address(self) -> tuple[str, int] | None:
        """The host and port for TLS, where that has a port of its own."""
        return self._acceptor.tls_address

    def stats(self) -> AcceptorStats:
        """What the acceptor has counted."""
        return self._acceptor.stats()

    def start(self) -> None:
        """Listen.

        Raises:
            OSError: the port cannot be had.
        """
        self._acceptor.start()

    def stop(self, timeout_s: float) -> int:
        """Refuse new work, finish what has begun; how many associations were cut off at the deadline."""
        return self._acceptor.stop(timeout_s)


class ReceiveStage:
    """Admits peers, keeps their instances, announces them. Thread-safe; a `dicom.receive.StoreHandler`."""

    def __init__(
        self,
        instances: InstanceStore,
        arrivals: ArrivalWriter,
        *,
        ae_title: str,
        callers: Mapping[str, Callable[[str], bool]],
        ring: Callable[[], None],
        clock: Callable[[], datetime] = _utc_now,
        checkpoint: Callable[[str], None] = no_checkpoint,
        certificates: Mapping[str, str] = MappingProxyType({}),
        stats: IntakeStats | None = None,
    ) -> None:
        """Keeps the arguments.

        Args:
            instances: where instances go.
            arrivals: where they are announced.
            ae_title: ours; associations for another are rejected.
            callers: calling AE titles that may send, each with what says from which addresses.
            ring: called after each announcement.
            clock: aware, UTC.
            checkpoint: called at "logged", after an announcement; the durable steps before it are
                the instance store's.
            certificates: of those callers that must show one, by AE title, the SHA-256 of it.
            stats: counts what becomes of instances.
        """
        self._instances = instances
        self._arrivals = arrivals
        self._ae_title = ae_title
        self._callers = dict(callers)
        self._ring = ring
        self._clock = clock
        self._checkpoint = checkpoint
        self._certificates = dict(certificates)
        self._stats = stats or IntakeStats()
        self._rung = 0.0  # monotonic; that two threads may ring at once harms nobody
        self._announced: set[int] = set()  # open associations that brought something

    def admit(
        self,
        calling_ae_title: str,
        called_ae_title: str,
        address: str,
        certificate_sha256: str | None,
    ) -> Rejection | None:
        """None, or why this peer may not associate (PS3.8 §9.3.4)."""
        if called_ae_title.strip(" ") != self._ae_title:
            log.warning("association from %s rejected: it calls another AE title", address)
            return Rejection.CALLED_AE_TITLE_NOT_RECOGNIZED
        may_call_from = self._callers.get(calling_ae_title.strip(" "))
        if may_call_from is None:
            log.warning("association from %s rejected: its AE title is not that of a peer", address)
            return Rejection.CALLING_AE_TITLE_NOT_RECOGNIZED
        if not may_call_from(address):
            log.warning("association from %s rejected: not an address of %s", address, calling_ae_title)
            return Rejection.CALLING_AE_TITLE_NOT_RECOGNIZED  # the same: a stranger learns no AE title
        expected = self._certificates.get(calling_ae_title.strip(" "))
        if expected and not hmac.compare_digest(expected, certificate_sha256 or ""):
            what = "another TLS certificate" if certificate_sha256 else "no TLS certificate"
            log.warning("association from %s rejected: %s shows %s", address, calling_ae_title, what)
            return Rejection.CALLING_AE_TITLE_NOT_RECOGNIZED
        return None

    def begin(self, request: StoreRequest) -> Incoming:
        """Take the instance that a C-STORE request announces.

        Raises:
            StoreRefusedError: it cannot be taken now.
        """
        if not self._arrivals.flush():
            raise StoreRefusedError(OUT_OF_RESOURCES, "the arrival log cannot be written")
        named = Named(
            sop_class_uid=request.sop_class_uid,
            sop_instance_uid=request.sop_instance_uid,
            transfer_syntax_uid=request.transfer_syntax_uid,
            calling_ae_title=request.association.calling_ae_title.strip(" "),
            study_instance_uid=request.study_instance_uid,
        )
        try:
            incoming = self._instances.begin(named)
        except InstanceStoreError as error:
            raise _refused(request.association, error) from error
        return _StageIncoming(self, request.association, incoming)

    def ended(self, association: AssociationInfo, how: End) -> None:
        """Say that nothing more comes on an association, where it brought something."""
        if association.number in self._announced:
            self._announced.discard(association.number)
            self._arrivals.append(
                AssociationEnded(
                    association=self._name(association),
                    calling_ae_title=association.calling_ae_title,
                    how=str(how),
                    at=self._clock(),
                )
            )
            self._ring()

    def commit(self, association: AssociationInfo, incoming: IncomingInstance) -> int:
        """Make an instance durable, announce it, and give the status to answer. For its `Incoming`.

        Raises:
            StoreRefusedError: it is not kept, or not as what it claims to be.
        """
        begun = monotonic()
        try:
            committed = incoming.commit()
        except (InstanceStoreError, DicomError) as error:
            raise _refused(association, error) from error
        self._stats.committed(committed.fate, monotonic() - begun)
        if committed.fate is Fate.CONFLICT:
            raise StoreRefusedError(
                DUPLICATE_SOP_INSTANCE,
                f"instance {committed.instance_key}: another one of its name is stored",
            )
        # A duplicate too: it may be the second sending of what a crash kept from being announced.
        self._announced.add(association.number)
        self._arrivals.append(
            Arrival(
                study_key=committed.study_key,
                instance_key=committed.instance_key,
                size_bytes=committed.size_bytes,
                checksum=committed.checksum,
                header=committed.header,
                calling_ae_title=association.calling_ae_title,
                association=self._name(association),
                received=self._clock(),
            )
        )
        self._checkpoint("logged")
        now = monotonic()
        if now >= self._rung + RING_S:
            self._rung = now
            self._ring()
        return SUCCESS

    def _name(self, association: AssociationInfo) -> str:
        return f"{self._arrivals.run}-{association.number}"


class _StageIncoming:
    """One instance on its way into the store; a `dicom.receive.Incoming`."""

    def __init__(self, stage: ReceiveStage, association: AssociationInfo, incoming: IncomingInstance) -> None:
        self._stage = stage
        self._association = association
        self._incoming = incoming

    def write(self, parts: Sequence[memoryview]) -> None:
        try:
            self._incoming.write(parts)
        except InstanceStoreError as error:
            raise _refused(self._association, error) from error

    def commit(self) -> int:
        return self._stage.commit(self._association, self._incoming)

    def discard(self) -> None:
        self._incoming.discard()


def _callers(settings: Settings) -> dict[str, Callable[[str], bool]]:
    """Who may send, and from where: the peers, and this box itself, for what `insitu pull` fetched."""
    callers = {settings.node.ae_title: lambda address: is_own(address, settings.node.host)}
    return callers | {peer.ae_title: peer.may_call_from for peer in settings.peers if peer.may_send}


def _refused(association: AssociationInfo, error: InstanceStoreError | DicomError) -> StoreRefusedError:
    status = verdict_of(error).dimse_status
    log.warning("association %d: instance refused with 0x%04X: %s", association.number, status, error)
    return StoreRefusedError(status, str(error))
