"""A `StoreHandler` that keeps instances in memory, and can be told to refuse or to fail."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from threading import Condition

from dicom.errors import StoreRefusedError
from dicom.receive import AssociationInfo, End, Incoming, Rejection, StoreRequest

DEADLINE_S = 30.0
"""How long a test waits for what must happen; generous, for the machine is shared."""


@dataclass
class FakeStoreHandler:
    """Admits the calling AE titles in `known` (None: all) and keeps what they send.

    `refuse_begin`, `refuse_write` and `refuse_commit` are statuses to refuse with; `fail` is
    raised by `write`; `before_commit` is called by `commit`, in the association's thread.
    """

    known: frozenset[str] | None = None
    refuse_begin: int | None = None
    refuse_write: int | None = None
    refuse_commit: int | None = None
    status: int = 0x0000
    fail: Exception | None = None
    before_commit: Callable[[], None] = lambda: None
    keep: bool = True
    stored: list[tuple[StoreRequest, bytes]] = field(default_factory=list)
    discarded: list[StoreRequest] = field(default_factory=list)
    open: int = 0
    ends: list[tuple[AssociationInfo, End]] = field(default_factory=list)
    admissions: list[tuple[str, str, str]] = field(default_factory=list)
    certificates: list[str | None] = field(default_factory=list)
    changed: Condition = field(default_factory=Condition)

    def admit(
        self, calling_ae_title: str, called_ae_title: str, address: str, certificate_sha256: str | None
    ) -> Rejection | None:
        with self.changed:
            self.certificates.append(certificate_sha256)
            self.admissions.append((calling_ae_title, called_ae_title, address))
        if self.known is None or calling_ae_title in self.known:
            return None
        return Rejection.CALLING_AE_TITLE_NOT_RECOGNIZED

    def begin(self, request: StoreRequest) -> Incoming:
        if self.refuse_begin is not None:
            raise StoreRefusedError(self.refuse_begin, "the test refuses at begin")
        with self.changed:
            self.open += 1
            self.changed.notify_all()
        return _FakeIncoming(self, request)

    def ended(self, association: AssociationInfo, how: End) -> None:
        with self.changed:
            self.ends.append((association, how))
            self.changed.notify_all()

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait until `condition` holds, which is looked at whenever something changes."""
        with self.changed:
            assert self.changed.wait_for(condition, DEADLINE_S)

    def wait_for_end(self, how: End, count: int = 1) -> None:
        """Wait until `count` associations have ended so."""
        self.wait_for(lambda: [end for _, end in self.ends].count(how) >= count)


class _FakeIncoming:
    def __init__(self, handler: FakeStoreHandler, request: StoreRequest) -> None:
        self._handler = handler
        self._request = request
        self._data = bytearray()

    def write(self, parts: Sequence[memoryview]) -> None:
        if self._handler.fail is not None:
            raise self._handler.fail
        if self._handler.refuse_write is not None:
            raise StoreRefusedError(self._handler.refuse_write, "the test refuses at write")
        if self._handler.keep:
            for part in parts:
                self._data += part
        with self._handler.changed:
            self._handler.changed.notify_all()

    def commit(self) -> int:
        self._handler.before_commit()
        if self._handler.refuse_commit is not None:
            raise StoreRefusedError(self._handler.refuse_commit, "the test refuses at commit")
        with self._handler.changed:
            self._handler.open -= 1
            self._handler.stored.append((self._request, bytes(self._data)))
            self._handler.changed.notify_all()
        return self._handler.status

    def discard(self) -> None:
        with self._handler.changed:
            self._handler.open -= 1
            self._handler.discarded.append(self._request)
            self._handler.changed.notify_all()
