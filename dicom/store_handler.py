"""The seam between the acceptor, which receives instances, and whoever keeps them.

Owns the words both sides use: who sends (`AssociationInfo`), what is announced
(`StoreRequest`), where its bytes go (`Incoming`), and who decides (`StoreHandler`). Each
association has a thread of its own; a handler is called from all of them at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from dicom.pdu import Rejection


class End(StrEnum):
    """How an association ended."""

    RELEASED = "released"  # A-RELEASE
    ABORTED = "aborted"  # A-ABORT, by either side
    LOST = "lost"  # the connection closed without either
    TIMED_OUT = "timed out"  # silent, or slower than the limit allows


@dataclass(frozen=True, slots=True)
class AssociationInfo:
    """An established association; `number` is unique in the life of its acceptor."""

    number: int
    calling_ae_title: str
    called_ae_title: str
    address: str
    port: int
    started: datetime


@dataclass(frozen=True, slots=True)
class StoreRequest:
    """A C-STORE request whose data set is about to come.

    The UIDs have the form of PS3.5 §9.1 and no more has been checked; the data set may hold
    others. They are no names for files.
    """

    association: AssociationInfo
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    study_instance_uid: str = ""
    """The only study that it may be of; empty: any. C-STORE names none, STOW-RS may (PS3.18 §10.5.1)."""


class Incoming(Protocol):
    """One instance being received. `write`* then either `commit` or `discard`; nothing after."""

    def write(self, parts: Sequence[memoryview]) -> None:
        """Take the next bytes of the data set, in order.

        The parts are views of the receive buffer: they are void when this returns. There may be
        more of them than one system call takes (IOV_MAX).

        Raises:
            StoreRefusedError: no more can be taken. `discard` follows, the rest of the data set
                is read and dropped, and the status is answered.
        """
        ...

    def commit(self) -> int:
        """The data set is complete: keep it, and return when it is durable.

        Returns:
            The status of the C-STORE response: 0x0000 success, or a warning.

        Raises:
            StoreRefusedError: it is not kept. `discard` follows.
        """
        ...

    def discard(self) -> None:
        """The instance will not be completed: leave nothing of it."""
        ...


class StoreHandler(Protocol):
    """Who may send, and where instances go."""

    def admit(
        self, calling_ae_title: str, called_ae_title: str, address: str, certificate_sha256: str | None
    ) -> Rejection | None:
        """Whether this peer may associate: None, or the reason it is rejected with. Must not block.

        Args:
            calling_ae_title: as the peer says.
            called_ae_title: as the peer says.
            address: the connection's.
            certificate_sha256: of the client certificate (DER) that the peer proved to have; None
                without TLS, or without a certificate.
        """
        ...

    def begin(self, request: StoreRequest) -> Incoming:
        """An instance is announced.

        Raises:
            StoreRefusedError: it is not taken. Its data set is read and dropped, and the status
                is answered.
        """
        ...

    def ended(self, association: AssociationInfo, how: End) -> None:
        """An association that was accepted is over; nothing more comes on it."""
        ...
