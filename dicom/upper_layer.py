"""One association, from its acceptance to the close of its connection, in a thread of its own.

Owns the IO of an association: receives, has `dicom.pdu` cut it, asks the table of
`dicom.association` what each event means, and does it (states Sta3 to Sta13 of PS3.8 §9.2).
Who may associate was decided before; what messages mean is `dicom.dimse`.

Time runs against the peer while we wait for it, and not while the handler works. What is
late is interrupted by the acceptor (`dicom.receive`).

Diagnostics: associations and their ends at INFO with AE titles and address, what a peer
does wrong at WARNING, SOP Instance UIDs never. Security: everything read is the peer's.
"""

import logging
from collections.abc import Callable, Collection, Sequence
from enum import StrEnum
from threading import Thread
from time import monotonic, sleep
from typing import Final

from dicom import negotiation, pdu
from dicom.acceptor_settings import AcceptorSettings
from dicom.acceptor_stats import Counters
from dicom.association import EVENT_OF, Action, Event, State
from dicom.dimse import DimseProvider, Service, service_of
from dicom.errors import ProtocolError
from dicom.pdu import AbortReason, AbortSource, Fragment, PduError
from dicom.reception import Proposed
from dicom.store_handler import AssociationInfo, End, StoreHandler
from dicom.transport import Transport

_LOG: Final = logging.getLogger(__name__)
# A peer that floods us with small messages or fragments keeps the interpreter busy without ever making
# us wait, and all other threads then wait for their every turn. After so many of them it is made to wait
# itself. A sender of images, whose fragments are large but for two of each, hardly ever gets there.
_SMALL_BYTES: Final = 4096
_SMALL_ONES_OF_A_TURN: Final = 16
_PAUSE_S: Final = 50e-6  # long enough for a waiting thread to be woken


class Interrupt(StrEnum):
    """Why the acceptor interrupts an association."""

    TIMED_OUT = "timed out"
    STOPPED = "stopped"  # honoured between two messages, so that what has begun is finished


class Association:
    """An association that is accepted. `transport` and `interrupt` are for the acceptor's threads.

    Args:
        proposed: the connection and the proposal; it is taken over.
        info: the association as the handler knows it.
        settings: the limits.
        handler: is told when it has ended.
        services: what it may be used for.
        counters: what happens is counted there.
        on_ended: called once when it is no association any more; the connection may still be open.
        on_closed: called when the connection is closed and the thread ends.
    """

    def __init__(
        self,
        proposed: Proposed,
        info: AssociationInfo,
        settings: AcceptorSettings,
        handler: StoreHandler,
        services: Sequence[Service],
        counters: Counters,
        on_ended: Callable[["Association"], None],
        on_closed: Callable[["Association"], None],
    ) -> None:
        self.info: Final = info
        self.transport = Transport(proposed.socket)
        self.thread = Thread(target=self._run, name=f"association-{info.number}", daemon=True)
        self._interrupted: Interrupt | None = None
        self._settings = settings
        self._handler = handler
        self._counters = counters
        self._on_ended = on_ended
        self._on_closed = on_closed
        self._machine = proposed.machine
        self._reader = proposed.reader
        self._proposal = proposed.proposal
        self._services = services
        self._provider: DimseProvider | None = None  # while the association is established
        self._abort_reason = AbortReason.UNEXPECTED_PDU
        self._abort_cause = "unexpected PDU"
        self._answer = b""  # to be sent by the next action that sends
        self._until = 0.0  # monotonic: by when the peer must have sent something, while we wait for it
        self._since_until = 0  # bytes received since `_until` was set
        self._in_message = False
        self._is_readable = True  # False: the stream has lost its meaning, what comes is dropped
        self._small_ones = 0  # fragments since it last gave way

    def interrupt(self, why: Interrupt) -> None:
        """Make the thread stop waiting for the peer and end the association. From any thread."""
        self._interrupted = why
        if why is Interrupt.STOPPED and self._in_message:
            return  # seen when the message is complete
        self.transport.stop_waiting()

    # --- the thread ---

    def _run(self) -> None:
        try:
            self._accept()
            while self._machine.state is not State.STA1:
                self._step()
        except Exception:  # noqa: BLE001 (a thread has no caller)
            # our bug; the other associations go on, and this one leaves nothing half done
            _LOG.exception("%s: failed", self._name)
        finally:
            try:
                self._finish(End.ABORTED)
            except Exception:  # noqa: BLE001 (a thread has no caller)
                _LOG.exception("%s: the handler failed at its end", self._name)
            self.transport.close()
            self._on_closed(self)

    @property
    def _name(self) -> str:
        return f"association {self.info.number} from {self.info.address}"

    def _accept(self) -> None:
        info, settings = self.info, self._settings
        self._on(Event.A_ASSOCIATE_RQ)
        agreement = negotiation.agree(self._proposal, self._offer, settings.max_pdu_length_bytes)
        self._provider = DimseProvider(
            info,
            agreement.contexts,
            self._services,
            max_length_bytes=self._proposal.max_length_bytes,
            max_objects=settings.max_objects_per_association,
        )
        self._counters.association_accepted()
        _LOG.info(
            "%s: %s as %s accepted, %d of %d contexts",
            self._name,
            info.calling_ae_title,
            info.called_ae_title,
            len(agreement.contexts),
            len(agreement.results),
        )
        self._reader.establish(settings.max_pdu_length_bytes, settings.buffer_bytes)
        self._answer = agreement.pdu
        self._on(Event.ACCEPT)
        self._wait_at_most(self._settings.idle_timeout_s)

    def _offer(self, abstract_syntax_uid: str) -> Collection[str] | None:
        service = service_of(self._services, abstract_syntax_uid)
        return None if service is None else service.offer(abstract_syntax_uid)

    def _step(self) -> None:
        try:
            item = self._reader.next() if self._is_readable else None
        except PduError as error:
            self._invalid(error)
            return
        if item is None:
            self._receive()
        elif isinstance(item, Fragment):
            action = self._machine.on(Event.P_DATA_TF)
            if len(item.data) < _SMALL_BYTES:
                self._give_way()
            if action is Action.DT_2:
                self._fragment(item)
            else:
                self._do(action)
        else:
            self._on(EVENT_OF[item.type])

    def _give_way(self) -> None:
        self._small_ones += 1
        if self._small_ones == _SMALL_ONES_OF_A_TURN:
            self._small_ones = 0
            sleep(_PAUSE_S)

    def _receive(self) -> None:
        """Hand on what has come, then wait for more."""
        if not self._flush():
            return
        in_message = self._provider is not None and self._provider.in_message
        if in_message and not self._in_message:
            self._wait_at_most(self._settings.stall_timeout_s)
        self._in_message = in_message
        if self._interrupted is not None and not (in_message and self._interrupted is Interrupt.STOPPED):
            self._end_early(self._interrupted)
            return
        provider = self._provider
        if provider and provider.postponed and not in_message and not self._peer_before_us(provider):
            return
        n = self.transport.receive(self._reader.space(), self._until)
        if n == 0:
            if self._interrupted is not None and self._machine.state is not State.STA13:
                self._end_early(self._interrupted)
            else:
                self._on(Event.TRANSPORT_CLOSED)
            return
        if not self._is_readable:
            return  # dropped
        self._reader.received(n)
        self._since_until += n
        if self._since_until >= self._settings.stall_bytes and self._provider is not None:
            self._wait_at_most(
                self._settings.stall_timeout_s if in_message else self._settings.idle_timeout_s
            )

    def _peer_before_us(self, provider: DimseProvider) -> bool:
        """Wait for the peer, and for what a service may have for it. False: look again."""
        now = monotonic()
        self._answer = provider.due(now)
        if self._answer:
            self._on(Event.P_DATA_REQUEST)
            return False
        waited = [each.fileno() for each in provider.postponed if each.not_before <= now]
        graces = [each.not_before - now for each in provider.postponed if each.not_before > now]
        return self.transport.wait(waited, min(graces, default=None), self._until)

    def _end_early(self, why: Interrupt) -> None:
        if self._machine.state is State.STA6:
            _LOG.warning("%s: %s, aborted", self._name, why)
            self._abort(why, End.TIMED_OUT if why is Interrupt.TIMED_OUT else End.ABORTED)
            self._interrupted = None  # the close that follows has a deadline of its own
        else:
            self._on(Event.ARTIM_EXPIRED)

    def _invalid(self, error: PduError) -> None:
        _LOG.warning("%s: %s", self._name, error)
        self._is_readable = False
        self._reader.drop()
        self._abort_reason = error.reason
        self._abort_cause = "invalid PDU"
        self._on(Event.INVALID_PDU)

    def _abort(self, cause: str, how: End) -> None:
        self._abort_cause = cause
        self._finish(how)
        self._on(Event.ABORT_REQUEST)

    # --- data transfer ---

    def _fragment(self, fragment: Fragment) -> None:
        if not self._provide(lambda provider: self._take(provider, fragment)):
            return
        if self._provider is not None and not self._provider.in_message:
            self._in_message = False
            self._wait_at_most(self._settings.idle_timeout_s)
            if self._interrupted is not None:
                self._end_early(self._interrupted)

    def _take(self, provider: DimseProvider, fragment: Fragment) -> None:
        self._answer = provider.fragment(fragment)

    def _flush(self) -> bool:
        """Hand the pieces of a data set on; False when the association ended over it."""
        if self._provider is None:
            return True
        before = monotonic()
        if not self._provide(DimseProvider.flush):
            return False
        self._until += monotonic() - before  # our own slowness is not the peer's
        return True

    def _provide(self, work: Callable[[DimseProvider], None]) -> bool:
        """Let the services work. False: the association ended over it."""
        provider = self._provider
        if provider is None:
            raise RuntimeError(f"{self._name}: data in {self._machine.state}")
        try:
            work(provider)
        except PduError as error:
            self._invalid(error)
        except ProtocolError as error:
            _LOG.warning("%s: %s; aborted", self._name, error)
            self._abort("invalid message", End.ABORTED)
        except Exception:  # noqa: BLE001 (the handler is not ours)
            # Whatever went wrong in the handler, the peer must not take the instance for kept: no
            # response is sent, and the abort says so.
            _LOG.exception("%s: the handler failed; aborted", self._name)
            self._abort("handler failed", End.ABORTED)
        else:
            if self._answer:
                self._on(Event.P_DATA_REQUEST)
            return True
        return False

    # --- what the table says ---

    def _on(self, event: Event) -> None:
        self._do(self._machine.on(event))

    def _do(self, action: Action) -> None:
        """PS3.8 Tables 9-6 to 9-9, of those actions that these states lead to.

        ARTIM is the deadline of the transport; "close" is done where the thread ends.
        """
        match action:
            case Action.DT_1 | Action.AR_7 | Action.AE_7:
                answer, self._answer = self._answer, b""
                self._send(answer)
            case Action.AR_2:
                self._on(Event.RELEASE_RESPONSE)
            case Action.AR_4:
                self._send_last(pdu.release_rp())
                self._finish(End.RELEASED)
            case Action.AA_1:
                self._counters.abort_sent(self._abort_cause)
                self._send_last(pdu.abort(AbortSource.SERVICE_USER, AbortReason.NOT_SPECIFIED))
            case Action.AA_8:
                self._counters.abort_sent(self._abort_cause)
                self._send_last(pdu.abort(AbortSource.SERVICE_PROVIDER, self._abort_reason))
                self._finish(End.ABORTED)
            case Action.AA_7:
                self._send(pdu.abort(AbortSource.SERVICE_PROVIDER, AbortReason.UNEXPECTED_PDU))
            case Action.AA_3:
                self._finish(End.ABORTED)
            case Action.AA_4:
                self._finish(End.LOST)
            case Action.AE_6 | Action.AA_2 | Action.AA_6 | Action.AR_5:
                pass
            case _:
                raise RuntimeError(f"{self._name}: {action} on an association")

    def _send_last(self, data: bytes) -> None:
        """Send what ends the association; the peer has `closing_timeout_s` to close."""
        self._send(data)
        self._wait_at_most(self._settings.closing_timeout_s)

    def _send(self, data: bytes) -> None:
        self.transport.send(data, self._settings.write_timeout_s)

    def _wait_at_most(self, timeout_s: float) -> None:
        self._until = monotonic() + timeout_s
        self._since_until = 0

    def _finish(self, how: End) -> None:
        """The association is over: once."""
        provider, self._provider = self._provider, None
        if provider is None:
            return
        try:
            provider.discard()
        finally:
            self._on_ended(self)
            self._counters.association_ended(how)
            _LOG.info("%s: %s", self._name, how)
            self._handler.ended(self.info, how)
