"""The Storage Commitment Push Model, as SCP (PS3.4 Annex J).

Owns the N-ACTION with which a peer asks (PS3.7 §10.1.4) and the N-EVENT-REPORT that answers it
on the same association, where that stays open. What is kept, and the report on an association of
our own, are the `CommitmentHandler`'s.
"""

from collections.abc import Sequence
from types import MappingProxyType
from typing import Final, Protocol

from dicom.command import Command, CommandField, Status, response
from dicom.commitment import (
    INVALID_ARGUMENT,
    MAX_BYTES_PER_REFERENCE,
    MAX_OTHER_BYTES,
    REQUEST_ACTION,
    RESOURCE_LIMITATION,
    STORAGE_COMMITMENT_PUSH_MODEL,
    TRANSFER_SYNTAXES,
    WELL_KNOWN_INSTANCE,
    CommitmentError,
    CommitmentReport,
    CommitmentRequest,
    read_request,
    write_report,
)
from dicom.dimse import Message, MessageError, Operation, Service
from dicom.negotiation import PresentationContext
from dicom.postponed import Postponed, Settled
from dicom.store_handler import AssociationInfo

NO_SUCH_SOP_INSTANCE: Final = 0x0112  # PS3.7 §10.1.4.1.10
NO_SUCH_ACTION: Final = 0x0123


class Reply:
    """The way back to who asked: the association it asked on."""

    def __init__(self, context: PresentationContext) -> None:
        self._transfer_syntax_uid = context.transfer_syntax_uid
        self.postponed: Final = Postponed(context.id)

    def give(self, report: CommitmentReport, settled: Settled) -> bool:
        """Have `report` sent on the association; from any thread.

        Returns:
            False: the association is over; `settled` is not called. Else it is called once, in another
            thread, with the status that the peer answered, or with None when it did not.
        """
        return self.postponed.give(
            Message(event_report(report), write_report(report, self._transfer_syntax_uid)), settled
        )


class CommitmentHandler(Protocol):
    """Who takes requests for storage commitment; called in the threads of associations."""

    def asked(self, association: AssociationInfo, request: CommitmentRequest, reply: Reply) -> None:
        """A peer asks. On return the request is durable: it will be reported on, here or later.

        Raises:
            CommitmentError: it is not taken; its status is answered.
        """
        ...


def storage_commitment(handler: CommitmentHandler, max_references: int) -> Service:
    """The service; one request may name `max_references` instances."""

    def begin(association: AssociationInfo, context: PresentationContext, command: Command) -> Operation:
        return _Action(handler, association, context, command, max_references)

    return Service(
        name="Storage Commitment",
        offer=lambda uid: TRANSFER_SYNTAXES if uid == STORAGE_COMMITMENT_PUSH_MODEL else None,
        operations=MappingProxyType({CommandField.N_ACTION_RQ: begin}),
    )


def event_report(report: CommitmentReport) -> Command:
    """The N-EVENT-REPORT-RQ of `report`, without a Message ID (PS3.7 §10.3.1)."""
    return Command(
        field=CommandField.N_EVENT_REPORT_RQ,
        has_data_set=True,
        message_id=0,
        affected_sop_class_uid=STORAGE_COMMITMENT_PUSH_MODEL,
        affected_sop_instance_uid=WELL_KNOWN_INSTANCE,
        event_type_id=report.event_type_id,
    )


class _Action:
    """One N-ACTION. Its data set is gathered up to what the most references need."""

    def __init__(
        self,
        handler: CommitmentHandler,
        association: AssociationInfo,
        context: PresentationContext,
        command: Command,
        max_references: int,
    ) -> None:
        if command.message_id is None:
            raise MessageError("N-ACTION-RQ: has no Message ID (PS3.7 §10.3.4.1)")
        self._handler = handler
        self._association = association
        self._context = context
        self._command = command
        self._max_references = max_references
        self._max_bytes = MAX_OTHER_BYTES + MAX_BYTES_PER_REFERENCE * max_references
        self._data = bytearray()
        self._length = 0

    def write(self, parts: Sequence[memoryview]) -> None:
        self._length += sum(map(len, parts))
        if self._length > 2 * self._max_bytes:
            raise MessageError(
                f"N-ACTION-RQ: a data set without end, must be at most {self._max_bytes} bytes"
            )
        if self._length > self._max_bytes:
            self._data.clear()
            return
        for part in parts:
            self._data += part

    def complete(self) -> Sequence[Message | Postponed]:
        reply = None
        try:
            self._check()
            request = read_request(bytes(self._data), self._context.transfer_syntax_uid, self._max_references)
            reply = Reply(self._context)
            self._handler.asked(self._association, request, reply)
        except CommitmentError as error:
            if reply is not None:
                reply.postponed.settle(None)
            return [Message(response(self._command, error.status))]
        except BaseException:
            if reply is not None:
                reply.postponed.settle(None)
            raise
        return [Message(response(self._command, Status.SUCCESS)), reply.postponed]

    def discard(self) -> None:
        self._data.clear()

    def _check(self) -> None:
        command = self._command
        if command.requested_sop_class_uid != self._context.abstract_syntax_uid:
            raise CommitmentError(Status.SOP_CLASS_NOT_SUPPORTED, "of another SOP class than its context's")
        if command.requested_sop_instance_uid != WELL_KNOWN_INSTANCE:
            raise CommitmentError(NO_SUCH_SOP_INSTANCE, "of another SOP instance than the well-known one")
        if command.action_type_id != REQUEST_ACTION:
            raise CommitmentError(NO_SUCH_ACTION, "the Action Type ID is not 1")
        if not command.has_data_set:
            raise CommitmentError(INVALID_ARGUMENT, "no Action Information")
        if self._length > self._max_bytes:
            raise CommitmentError(
                RESOURCE_LIMITATION, f"more than {self._max_bytes} bytes of Action Information"
            )
