"""Connections that have no association yet, all of them in one thread.

Owns the listening socket and every connection from its first byte until an association is
accepted on it, or it is rejected, aborted or given up: the states Sta1 and Sta2 of PS3.8
§9.2, and Sta13 for those that got no further. Whoever connects has proved nothing, and costs a socket
and 4 KiB, no thread: nothing here waits for one peer, not even a TLS handshake,
which is made a step at a time as its bytes come. Silent peers and slow ones are therefore
only many; they have a budget of their own, and when it is used up the oldest connection of
the address that has most of them goes, so that a crowd displaces itself and not the next
association of a known peer. An address that connects faster than any sender is closed at
once.

What is decided about a proposal is asked of `decide`, which must not block.

Security: anything on the hospital's network can connect here.
"""

import errno
import hashlib
import logging
import math
import socket
import ssl
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from selectors import EVENT_READ, EVENT_WRITE, DefaultSelector
from threading import Thread
from time import monotonic
from typing import Final

from dicom import negotiation, pdu
from dicom.acceptor_settings import AcceptorSettings
from dicom.acceptor_stats import Counters
from dicom.association import EVENT_OF, Action, Event, State, StateMachine
from dicom.connection_rate import ConnectionRate
from dicom.negotiation import Proposal
from dicom.pdu import AbortReason, AbortSource, Fragment, Pdu, PduError, PduReader, PduType, Rejection

_LOG: Final = logging.getLogger(__name__)
_OUT_OF_RESOURCES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_RECOVERY_S: Final = 0.1  # how long new connections are left waiting when the system has no resources
# Before those accepted earlier are looked at again. To accept costs little, and must outrun a flood: when
# the kernel's backlog is full, the next known peer is made to try again after a whole second.
_ACCEPTED_AT_ONCE: Final = 256
_MOST_WARNINGS_PER_S: Final = 10  # a flood must not fill the log; all of it is counted
_MOST_TO_DRAIN_BYTES: Final = 1024 * 1024  # of what still comes after we ended it: more is a flood
# of PS3.8 §9.3.4: these the service-provider gives (Evt6 with AE-6's second outcome), others its user
_OF_THE_PROVIDER: Final = frozenset({2, 3})


@dataclass(slots=True)
class Proposed:
    """A connection on which an association has been proposed; the one who accepts it takes it over.

    The socket does not block. `reader` may hold what came after the A-ASSOCIATE-RQ.
    """

    number: int
    socket: socket.socket
    address: str
    port: int
    machine: StateMachine
    reader: PduReader
    proposal: Proposal

    @property
    def certificate_sha256(self) -> str | None:
        """SHA-256 of the certificate (DER) that the peer proved to have; None: it has shown none."""
        certificate = self.socket.getpeercert(True) if isinstance(self.socket, ssl.SSLSocket) else None
        return hashlib.sha256(certificate).hexdigest() if certificate else None


@dataclass(frozen=True, slots=True, eq=False)
class _Listener:
    """A listening socket, and the TLS that is spoken on its connections."""

    socket: socket.socket
    context: ssl.SSLContext | None

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.socket.getsockname()[:2]
        return str(host), int(port)


@dataclass(slots=True, eq=False)
class _Pending:
    number: int
    socket: socket.socket
    address: str
    port: int
    machine: StateMachine
    reader: PduReader
    is_secured: bool  # the TLS handshake is made, or there is none
    deadline: float = math.inf  # monotonic: ARTIM
    is_readable: bool = True  # False: the stream has lost its meaning, what comes is dropped
    drained: int = 0


class Reception:
    """Listens, and brings connections as far as a proposal.

    Args:
        settings: where to listen, and the limits.
        decide: takes a proposal that is formally right: accepts it, taking the connection over,
            and returns None; or says why it is rejected. Called in the thread of reception.
        counters: what happens here is counted there.

    Raises:
        OSError: the address cannot be bound.
    """

    def __init__(
        self, settings: AcceptorSettings, decide: Callable[[Proposed], Rejection | None], counters: Counters
    ) -> None:
        self._settings = settings
        self._decide = decide
        self._counters = counters
        plain, secured = settings.port, settings.tls_port
        self._listeners = [self._listen(plain, None if secured is not None else settings.ssl_context)]
        if secured is not None:
            try:
                self._listeners.append(self._listen(secured, settings.ssl_context))
            except OSError:
                self._listeners[0].socket.close()
                raise
        self._wake, self._woken = socket.socketpair()
        self._selector = DefaultSelector()
        self._heed_listeners()
        self._selector.register(self._woken, EVENT_READ)
        self._resume_at = math.inf  # the listener is left alone until then
        self._look_at = math.inf  # no deadline is sooner
        self._rate = ConnectionRate(settings.max_connections_per_address_per_s)
        self._pending: dict[int, _Pending] = {}
        self._next_number = 1
        self._warned = 0  # in the second that began at `_warned_since`
        self._warned_since = 0.0
        self._is_stopping = False
        self._thread = Thread(target=self._run, name="acceptor", daemon=True)
        self._thread.start()

    @property
    def address(self) -> tuple[str, int]:
        """The host and port it is bound to."""
        return self._listeners[0].address

    @property
    def tls_address(self) -> tuple[str, int] | None:
        """The host and port for TLS, where that has a port of its own."""
        return self._listeners[1].address if len(self._listeners) > 1 else None

    @property
    def pending(self) -> int:
        """How many connections have no association."""
        return len(self._pending)

    def stop(self) -> None:
        """Stop listening, and close every connection without an association."""
        self._wake.send(b"\0")
        self._thread.join()
        self._wake.close()

    # --- the thread ---

    def _run(self) -> None:
        try:
            while not self._is_stopping:
                for key, _ in self._selector.select(self._timeout_s()):
                    if isinstance(key.data, _Listener):
                        self._accept(key.data)
                    elif key.fileobj is self._woken:
                        self._is_stopping = True
                    elif isinstance(key.data, _Pending) and key.data.number in self._pending:
                        self._ready(key.data)
                self._expire()
        finally:
            for pending in list(self._pending.values()):
                self._close(pending)
            self._selector.close()
            for listener in self._listeners:
                listener.socket.close()
            self._woken.close()

    def _timeout_s(self) -> float | None:
        return None if self._look_at == math.inf else max(self._look_at - monotonic(), 0)

    def _expire(self) -> None:
        now = monotonic()
        if now < self._look_at:
            return
        for pending in [pending for pending in self._pending.values() if pending.deadline <= now]:
            self._on(pending, Event.ARTIM_EXPIRED)
        if self._resume_at <= now:
            self._resume_at = math.inf
            self._heed_listeners()
        deadlines = (pending.deadline for pending in self._pending.values())
        self._look_at = min(self._resume_at, *deadlines, math.inf)

    def _listen(self, port: int, context: ssl.SSLContext | None) -> "_Listener":
        family = socket.AF_INET6 if ":" in self._settings.host else socket.AF_INET
        listening = socket.create_server(
            (self._settings.host, port), family=family, backlog=self._settings.backlog
        )
        listening.setblocking(False)
        return _Listener(listening, context)

    def _heed_listeners(self) -> None:
        for listener in self._listeners:
            self._selector.register(listener.socket, EVENT_READ, listener)

    def _accept(self, listener: "_Listener") -> None:
        if self._resume_at != math.inf:
            return  # the other listener has just found that the system has no resources
        for _ in range(_ACCEPTED_AT_ONCE):
            try:
                accepted, (address, port, *_) = listener.socket.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno not in _OUT_OF_RESOURCES:
                    continue  # it was reset while it waited
                _LOG.error("no connection can be accepted: %s", error)
                self._evict_one()
                for each in self._listeners:
                    self._selector.unregister(each.socket)
                self._resume_at = monotonic() + _RECOVERY_S
                self._look_at = min(self._look_at, self._resume_at)
                return
            self._counters.connection_accepted()
            if not self._rate.allows(address, monotonic()):
                self._counters.connection_refused()
                accepted.close()
                continue
            if len(self._pending) >= self._settings.max_pending_connections:
                self._evict_one()
            self._begin(accepted, address, port, listener.context)

    def _begin(
        self, accepted: socket.socket, address: str, port: int, context: ssl.SSLContext | None
    ) -> None:
        try:
            accepted.setblocking(False)
            if context is not None:
                accepted = context.wrap_socket(accepted, server_side=True, do_handshake_on_connect=False)
        except OSError:  # it is gone already
            accepted.close()
            return
        pending = _Pending(
            self._next_number,
            accepted,
            address,
            port,
            StateMachine(),
            PduReader(self._settings.max_associate_pdu_bytes),
            is_secured=context is None,
        )
        self._next_number += 1
        self._pending[pending.number] = pending
        self._selector.register(accepted, EVENT_READ, pending)
        self._on(pending, Event.TRANSPORT_INDICATION)
        self._start_artim(pending, self._settings.artim_timeout_s)

    def _evict_one(self) -> None:
        """Close the oldest connection of the address that has most of them."""
        if not self._pending:
            return
        by_address = Counter(pending.address for pending in self._pending.values())
        crowd = max(by_address.values())
        oldest = next(pending for pending in self._pending.values() if by_address[pending.address] == crowd)
        self._counters.connection_evicted()
        self._on(oldest, Event.ARTIM_EXPIRED)

    def _ready(self, pending: _Pending) -> None:
        try:
            if pending.is_secured or self._handshake(pending):
                self._read(pending)
        except Exception:  # noqa: BLE001 (our bug, or the handler's; the other connections go on)
            _LOG.exception("connection %d from %s: failed", pending.number, pending.address)
            self._close(pending)

    def _handshake(self, pending: _Pending) -> bool:
        """A step of it. True when it is made."""
        assert isinstance(pending.socket, ssl.SSLSocket)
        try:
            pending.socket.do_handshake()
        except ssl.SSLWantReadError:
            self._selector.modify(pending.socket, EVENT_READ, pending)
        except ssl.SSLWantWriteError:
            self._selector.modify(pending.socket, EVENT_WRITE, pending)
        except OSError as error:
            self._counters.handshake_failed()
            self._warn(pending, f"TLS handshake failed: {error}")
            self._close(pending)
        else:
            self._selector.modify(pending.socket, EVENT_READ, pending)
            pending.is_secured = True
        return pending.is_secured

    def _read(self, pending: _Pending) -> None:
        more = True
        while more:
            try:
                n = pending.socket.recv_into(pending.reader.space())
            except (BlockingIOError, ssl.SSLWantReadError):
                return
            except OSError:
                n = 0
            if n == 0:
                self._on(pending, Event.TRANSPORT_CLOSED)
                return
            if pending.machine.state is State.STA13:
                pending.drained += n
                if pending.drained > _MOST_TO_DRAIN_BYTES:
                    self._on(pending, Event.ARTIM_EXPIRED)
                    return
            if pending.is_readable:
                pending.reader.received(n)
                self._take(pending)
            # what TLS has deciphered already, no selector tells
            more = (
                isinstance(pending.socket, ssl.SSLSocket)
                and pending.number in self._pending
                and pending.socket.pending() > 0
            )

    def _take(self, pending: _Pending) -> None:
        """What has come: the machine knows what it means."""
        try:
            while pending.number in self._pending and (item := pending.reader.next()) is not None:
                if isinstance(item, Fragment):
                    self._on(pending, Event.P_DATA_TF)
                elif item.type is PduType.A_ASSOCIATE_RQ and pending.machine.state is State.STA2:
                    self._propose(pending, item)
                else:
                    self._on(pending, EVENT_OF[item.type])
        except PduError as error:
            self._warn(pending, str(error))
            pending.is_readable = False
            pending.reader.drop()
            self._on(pending, Event.INVALID_PDU)

    def _propose(self, pending: _Pending, item: Pdu) -> None:
        proposal = negotiation.read(item.body, self._settings.max_presentation_contexts)
        if proposal.application_context_name != negotiation.APPLICATION_CONTEXT_NAME:
            rejection: Rejection | None = Rejection.APPLICATION_CONTEXT_NAME_NOT_SUPPORTED
        elif not proposal.supports_protocol_version_1:
            rejection = Rejection.PROTOCOL_VERSION_NOT_SUPPORTED
        elif proposal.called_ae_title != self._settings.ae_title:
            rejection = Rejection.CALLED_AE_TITLE_NOT_RECOGNIZED
        else:
            rejection = self._hand_over(pending, proposal)
        if rejection is None:
            return
        self._warn(
            pending, f"{proposal.calling_ae_title} as {proposal.called_ae_title} rejected: {rejection.name}"
        )
        self._counters.association_rejected(rejection)
        if rejection.value[1] in _OF_THE_PROVIDER:
            self._on(pending, Event.A_ASSOCIATE_RQ_UNACCEPTABLE)
        else:
            self._on(pending, Event.A_ASSOCIATE_RQ)
            self._on(pending, Event.REJECT)
        self._send(pending, pdu.reject(rejection))

    def _hand_over(self, pending: _Pending, proposal: Proposal) -> Rejection | None:
        """Offer it to whoever accepts; when it is accepted it is ours no longer."""
        number = pending.number
        proposed = Proposed(
            number, pending.socket, pending.address, pending.port, pending.machine, pending.reader, proposal
        )
        self._selector.unregister(pending.socket)
        del self._pending[number]
        rejection = self._decide(proposed)
        if rejection is not None:
            pending.socket.setblocking(False)
            self._pending[number] = pending
            self._selector.register(pending.socket, EVENT_READ, pending)
        return rejection

    # --- what the table says ---

    def _on(self, pending: _Pending, event: Event) -> None:
        """PS3.8 Tables 9-6 to 9-9, of those actions that these states lead to."""
        match pending.machine.on(event):
            case Action.AA_1:
                self._counters.abort_sent("invalid PDU" if event is Event.INVALID_PDU else "unexpected PDU")
                self._send(pending, pdu.abort(AbortSource.SERVICE_USER, AbortReason.NOT_SPECIFIED))
                self._start_artim(pending, self._settings.closing_timeout_s)
            case Action.AA_7:
                self._send(pending, pdu.abort(AbortSource.SERVICE_PROVIDER, AbortReason.UNEXPECTED_PDU))
            case Action.AE_8 | Action.AE_6_REJECT:
                self._start_artim(
                    pending, self._settings.closing_timeout_s
                )  # the A-ASSOCIATE-RJ is sent by `_propose`, which has the reason
            case Action.AA_2 | Action.AA_5 | Action.AR_5:
                self._close(pending)
            case Action.AE_5 | Action.AE_6 | Action.AA_6:
                pass
            case action:
                raise RuntimeError(f"connection {pending.number}: {action} before an association")

    def _start_artim(self, pending: _Pending, timeout_s: float) -> None:
        pending.deadline = monotonic() + timeout_s
        self._look_at = min(self._look_at, pending.deadline)

    def _send(self, pending: _Pending, data: bytes) -> None:
        # Ten bytes are the first we send: there is room for them, unless the peer is gone.
        try:
            pending.socket.send(data)
        except OSError as error:
            _LOG.debug("connection %d from %s: %s", pending.number, pending.address, error)

    def _warn(self, pending: _Pending, what: str) -> None:
        now = monotonic()
        if now - self._warned_since >= 1:
            if self._warned > _MOST_WARNINGS_PER_S:
                _LOG.warning("%d more warnings in a second", self._warned - _MOST_WARNINGS_PER_S)
            self._warned, self._warned_since = 0, now
        self._warned += 1
        if self._warned <= _MOST_WARNINGS_PER_S:
            _LOG.warning("connection %d from %s: %s", pending.number, pending.address, what)

    def _close(self, pending: _Pending) -> None:
        if self._pending.pop(pending.number, None) is not None:
            self._selector.unregister(pending.socket)
        pending.socket.close()
