"""DIMSE messages: fragments put together to commands and data sets, and handed to a service. No IO.

Owns the message exchange of PS3.7 §6.3 and PS3.8 Annex E for the side that performs
operations: one message after another (asynchronous operations window 1), a command first
and then its data set, on one presentation context. A data set is never gathered here: its
pieces go on to the operation as they come, a whole receive buffer at a time.

What a peer sends that is no message ends the association (`MessageError`); a message that
asks for what no service does is answered (PS3.7 §C.5, 0x0211).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

from dicom.command import Command, CommandField, Status, decode, encode, response
from dicom.errors import ProtocolError
from dicom.negotiation import Offer, PresentationContext
from dicom.pdu import AbortReason, Fragment, PduError, p_data
from dicom.postponed import Postponed
from dicom.store_handler import AssociationInfo

MAX_POSTPONED: Final = 64
"""Requests of ours that wait on one association, to be made or to be answered; more are dropped, and
whoever made them has to find another way. A modality asks for one commitment after another."""
MAX_COMMAND_BYTES: Final = 64 * 1024
"""A C-STORE request has about 200 bytes; the longest lists that PS3.7 allows in others stay below this."""


class MessageError(ProtocolError):
    """Fragments or a command that make no message of PS3.7."""


@dataclass(frozen=True, slots=True)
class Message:
    """A message to send: a command, and its data set if it has one."""

    command: Command
    data_set: bytes | None = None


class Operation(Protocol):
    """One request being performed: its data set is written, then it is completed or discarded."""

    def write(self, parts: Sequence[memoryview]) -> None:
        """Take the next bytes of the data set; the views are void when this returns."""
        ...

    def complete(self) -> "Sequence[Message | Postponed]":
        """The message is whole: perform it. The messages returned are sent, in order.

        A `Postponed` among them is a request of ours that follows when another thread has it.
        """
        ...

    def discard(self) -> None:
        """The message will not be completed."""
        ...


Begin = Callable[[AssociationInfo, PresentationContext, Command], Operation]
"""Begins an operation. Raises `MessageError` for a command that its service cannot even answer."""


@dataclass(frozen=True, slots=True)
class Service:
    """One service we are SCP of: what it accepts in negotiation, and which commands it performs.

    Attributes:
        name: for the log.
        offer: the transfer syntaxes it accepts for an abstract syntax; None: not its own.
        operations: by (0000,0100) Command Field. A response has an entry here when the service
            sends requests of its own, such as N-EVENT-REPORT.
    """

    name: str
    offer: Offer
    operations: Mapping[int, Begin]


def service_of(services: Sequence[Service], abstract_syntax_uid: str) -> Service | None:
    """The first of `services` that supports the abstract syntax."""
    return next((service for service in services if service.offer(abstract_syntax_uid) is not None), None)


class DimseProvider:
    """The messages of one association."""

    def __init__(
        self,
        association: AssociationInfo,
        contexts: Mapping[int, PresentationContext],
        services: Sequence[Service],
        *,
        max_length_bytes: int,
        max_objects: int,
    ) -> None:
        self._association = association
        self._contexts = {
            context.id: (context, service)
            for context in contexts.values()
            if (service := service_of(services, context.abstract_syntax_uid)) is not None
        }
        self._max_length_bytes = max_length_bytes
        self._max_objects = max_objects
        self._objects = 0
        self._context_id = 0  # of the message being received
        self._command = bytearray()
        self._operation: Operation | None = None
        self._parts: list[memoryview] = []
        self._postponed: list[Postponed] = []  # not sent
        self._asked: dict[int, Postponed] = {}  # sent and not answered, by Message ID
        self._message_id = 0

    @property
    def postponed(self) -> Sequence[Postponed]:
        """Requests of ours that may still follow."""
        return self._postponed

    def due(self, now: float) -> bytes:
        """Those of `postponed` that are there to be sent at `now` (monotonic), as P-DATA-TF PDUs."""
        pdus = b""
        for postponed in list(self._postponed):
            message = postponed.take() if postponed.not_before <= now else None
            if message is None:
                continue
            self._postponed.remove(postponed)
            self._message_id = self._message_id % 0xFFFF + 1
            self._asked[self._message_id] = postponed
            command = replace(message.command, message_id=self._message_id)
            pdus += self._encode(Message(command, message.data_set), postponed.context_id)
        return pdus

    @property
    def in_message(self) -> bool:
        """Whether a message has begun and is not complete."""
        return self._operation is not None or len(self._command) > 0

    def fragment(self, fragment: Fragment) -> bytes:
        """Take a piece of a message; what is returned is to be sent (P-DATA-TF PDUs, or nothing).

        Raises:
            PduError: its presentation context was not accepted.
            MessageError: it does not continue the message that has begun, or the command is not
                one that can be answered.
            CommandError: the command set is malformed.
        """
        if self._operation is None:
            return self._command_fragment(fragment)
        if fragment.is_command or fragment.context_id != self._context_id:
            kind = "command" if fragment.is_command else "data set"
            raise MessageError(
                f"context {fragment.context_id}: a {kind} fragment, "
                f"must be of the data set begun on context {self._context_id}"
            )
        if fragment.data:
            self._parts.append(fragment.data)
        return self._complete() if fragment.is_last else b""

    def flush(self) -> None:
        """Hand on the pieces taken so far; called before their buffer is received into again."""
        if self._parts and self._operation is not None:
            parts, self._parts = self._parts, []
            self._operation.write(parts)

    def discard(self) -> None:
        """The association is over: drop the message that has begun, if any."""
        self._parts.clear()
        self._command.clear()
        operation, self._operation = self._operation, None
        unsettled = [*self._postponed, *self._asked.values()]
        self._postponed.clear()
        self._asked.clear()
        try:
            if operation is not None:
                operation.discard()
        finally:
            for postponed in unsettled:
                postponed.settle(None)

    def _command_fragment(self, fragment: Fragment) -> bytes:
        accepted = self._contexts.get(fragment.context_id)
        if accepted is None:
            raise PduError(
                AbortReason.INVALID_PDU_PARAMETER_VALUE,
                f"presentation context ID is {fragment.context_id}, must be one that was accepted",
            )
        if not fragment.is_command:
            raise MessageError(f"context {fragment.context_id}: a data set fragment, must be a command's")
        if self._command and fragment.context_id != self._context_id:
            raise MessageError(
                f"context {fragment.context_id}: a command fragment, must be on context {self._context_id}"
            )
        if len(self._command) + len(fragment.data) > MAX_COMMAND_BYTES:
            raise MessageError(f"command set: longer than {MAX_COMMAND_BYTES} bytes")
        self._context_id = fragment.context_id
        self._command += fragment.data
        if not fragment.is_last:
            return b""
        command = decode(bytes(self._command))
        self._command.clear()
        context, service = accepted
        if command.field == CommandField.C_CANCEL_RQ and not command.has_data_set:
            return b""  # nothing is outstanding that could be cancelled, and a cancel is not answered
        if command.field == CommandField.C_STORE_RQ:
            self._objects += 1
            if self._objects > self._max_objects:
                raise MessageError(f"C-STORE: more than {self._max_objects} on one association")
        begin = service.operations.get(command.field)
        asked = self._asked.pop(command.message_id_being_responded_to or 0, None)
        if asked is not None:
            if not command.is_response:
                raise MessageError(f"{service.name}: command 0x{command.field:04X} answers a message")
            self._operation = _Answered(asked, command)
        elif begin is not None:
            self._operation = begin(self._association, context, command)
        elif command.is_response or command.message_id is None:
            raise MessageError(
                f"{service.name}: command 0x{command.field:04X} answers nothing, or has no Message ID"
            )
        else:
            self._operation = _Unrecognized(command)
        return b"" if command.has_data_set else self._complete()

    def _complete(self) -> bytes:
        self.flush()
        operation = self._operation
        if operation is None:
            raise RuntimeError("a message is completed that has not begun")
        results = operation.complete()
        self._operation = None
        messages: list[Message] = []
        for result in results:
            if isinstance(result, Message):
                messages.append(result)
            elif len(self._postponed) + len(self._asked) < MAX_POSTPONED:
                self._postponed.append(result)
            else:
                result.settle(None)
        return b"".join(self._encode(message, self._context_id) for message in messages)

    def _encode(self, message: Message, context_id: int) -> bytes:
        limit = self._max_length_bytes
        pdus = p_data(context_id, encode(message.command), is_command=True, max_length_bytes=limit)
        if message.data_set is not None:
            pdus += p_data(context_id, message.data_set, is_command=False, max_length_bytes=limit)
        return pdus


class _Answered:
    """The response to a request of ours; what data set it may have is dropped."""

    def __init__(self, asked: Postponed, response: Command) -> None:
        self._asked = asked
        self._status = response.status

    def write(self, parts: Sequence[memoryview]) -> None:
        pass

    def complete(self) -> Sequence[Message]:
        self._asked.settle(self._status)
        return []

    def discard(self) -> None:
        self._asked.settle(None)


class _Unrecognized:
    """A request that no service performs: its data set is dropped, and it is answered."""

    def __init__(self, request: Command) -> None:
        self._request = request

    def write(self, parts: Sequence[memoryview]) -> None:
        pass

    def complete(self) -> Sequence[Message]:
        return [Message(response(self._request, Status.UNRECOGNIZED_OPERATION))]

    def discard(self) -> None:
        pass
