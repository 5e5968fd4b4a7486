"""receive: takes instances from the hospital's network, and answers success when they are durable.

Owns who may associate, the answer to each C-STORE request (PS3.4 §B.2.3, PS3.7 §9.1.1.1.9),
and the announcement of what was stored. Parsing the network is `dicom.receive`, the durable
steps are `edge.incoming`; what an error is answered with is `edge.failures`. Nothing is
decoded here and no journal is written.

*Diagnostics*: logs each refused association and instance with its reason, and stops
taking instances (0xA700) while the arrival log cannot be written.
*Security*: anyone on the network can connect. A peer is known by its calling AE title and,
where the configuration says so, by its address; names and paths are made of neither.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

from dicom.errors import DicomError
from dicom.receive import (
    Acceptor,
    AcceptorSettings,
    AssociationInfo,
    End,
    Incoming,
    Rejection,
    StoreRefusedError,
    StoreRequest,
)
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
from edge.options import Settings

log = logging.getLogger(__name__)

SUCCESS: Final = 0x0000
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
    ) -> None:
        """Does not listen yet; `instances` has been recovered."""
        limits = settings.limits
        stage = ReceiveStage(
            instances,
            arrivals,
            ae_title=settings.node.ae_title,
            callers={peer.ae_title: peer.may_call_from for peer in settings.peers if peer.may_send},
            ring=ring,
            clock=clock,
        )
        self._acceptor = Acceptor(
            AcceptorSettings(
                ae_title=settings.node.ae_title,
                host=settings.node.host,
                port=settings.node.port,
                max_associations=limits.max_associations,
                max_associations_per_peer=limits.max_associations_per_peer,
                max_pdu_length_bytes=limits.max_pdu_length_bytes,
                max_associate_pdu_bytes=limits.max_associate_pdu_bytes,
                max_object_bytes=limits.max_object_bytes,
                max_objects_per_association=limits.max_objects_per_association,
                artim_timeout_s=limits.artim_timeout_s,
                idle_timeout_s=limits.idle_timeout_s,
                accept_unknown_storage=settings.receive.accept_unknown_storage,
            ),
            stage,
            clock=clock,
        )

    @property
    def address(self) -> tuple[str, int]:
        """The host and port that it listens on."""
        return self._acceptor.address

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
        """
        self._instances = instances
        self._arrivals = arrivals
        self._ae_title = ae_title
        self._callers = dict(callers)
        self._ring = ring
        self._clock = clock
        self._checkpoint = checkpoint
        self._announced: set[int] = set()  # open associations that brought something

    def admit(self, calling_ae_title: str, called_ae_title: str, address: str) -> Rejection | None:
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
        try:
            committed = incoming.commit()
        except (InstanceStoreError, DicomError) as error:
            raise _refused(association, error) from error
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


def _refused(association: AssociationInfo, error: InstanceStoreError | DicomError) -> StoreRefusedError:
    status = verdict_of(error).dimse_status
    log.warning("association %d: instance refused with 0x%04X: %s", association.number, status, error)
    return StoreRefusedError(status, str(error))
