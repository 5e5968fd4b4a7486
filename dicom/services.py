"""The services that the acceptor is SCP of: Verification and Storage.

Owns what each accepts in negotiation and how each performs its one operation: C-ECHO
(PS3.4 Annex A, PS3.7 §9.3.5) and C-STORE (PS3.4 Annex B, PS3.7 §9.3.1). Where instances go
is the `StoreHandler`'s. A further service (Storage Commitment: N-ACTION) is one more
`Service` given to the acceptor.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from pydicom.uid import UID_dictionary  # type: ignore[attr-defined]  # the only list that has retired ones

from dicom import uid
from dicom.command import Command, CommandField, Status, response
from dicom.dimse import Message, MessageError, Operation, Service
from dicom.errors import StoreRefusedError
from dicom.negotiation import PresentationContext
from dicom.store_handler import AssociationInfo, Incoming, StoreHandler, StoreRequest

VERIFICATION: Final = "1.2.840.10008.1.1"
UNCOMPRESSED: Final = ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.2")

# Called storage, but no instances of it are sent by C-STORE: DICOMDIR, and Storage Commitment's two models.
_NOT_STORED: Final = frozenset({"1.2.840.10008.1.3.10", "1.2.840.10008.1.20.1", "1.2.840.10008.1.20.2"})
_STANDARD_ROOT: Final = "1.2.840.10008."
_STANDARD_STORAGE_ROOT: Final = "1.2.840.10008.5.1.4.1.1."  # of a later edition than our dictionary's
# Not encodings of an instance that is whole in itself: references to be fetched over JPIP, live video,
# MIME and XML wrappings that were retired before they were used, and Papyrus 3's own file format.
_NOT_STORABLE: Final = frozenset(
    {
        "1.2.840.10008.1.2.4.94",
        "1.2.840.10008.1.2.4.95",
        "1.2.840.10008.1.2.4.204",
        "1.2.840.10008.1.2.4.205",
        "1.2.840.10008.1.2.6.1",
        "1.2.840.10008.1.2.6.2",
        "1.2.840.10008.1.2.7.1",
        "1.2.840.10008.1.2.7.2",
        "1.2.840.10008.1.2.7.3",
        "1.2.840.10008.1.20",
    }
)

STORAGE_SOP_CLASSES: Final = frozenset(
    value
    for value, (name, kind, *_) in UID_dictionary.items()
    if kind == "SOP Class" and "Storage" in name and value not in _NOT_STORED
)
"""Every storage SOP class that the dictionary knows, retired ones included (PS3.4 §B.5, PS3.6 Annex A)."""

NEWER_TRANSFER_SYNTAXES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "1.2.840.10008.1.2.4.110": "JPEG XL Lossless",
        "1.2.840.10008.1.2.4.111": "JPEG XL JPEG Recompression",
        "1.2.840.10008.1.2.4.112": "JPEG XL",
        "1.2.840.10008.1.2.8.1": "Deflated Image Frame Compression",
    }
)
"""By UID, with their names: those that pydicom's dictionary lacks, unless pynetdicom was imported before."""
STORABLE_TRANSFER_SYNTAXES: Final = frozenset(NEWER_TRANSFER_SYNTAXES) | frozenset(
    value
    for value, (_, kind, *_) in UID_dictionary.items()
    if kind == "Transfer Syntax" and value not in _NOT_STORABLE
)
"""Every transfer syntax whose data sets can be kept as they come (PS3.5 Annex A). Whether we can decode
one is asked later: an archive that has the images is better than one that refused them."""


def is_storage(abstract_syntax_uid: str, *, accept_unknown: bool) -> bool:
    """Whether instances of this SOP class are taken.

    Args:
        abstract_syntax_uid: the SOP class.
        accept_unknown: take private SOP classes too. Of the Standard's own only those in the
            storage root (or in the dictionary) are, whatever is said here.
    """
    if abstract_syntax_uid in STORAGE_SOP_CLASSES:
        return True
    if not uid.is_valid(abstract_syntax_uid) or abstract_syntax_uid in UID_dictionary:
        return False
    if abstract_syntax_uid.startswith(_STANDARD_ROOT):
        return abstract_syntax_uid.startswith(_STANDARD_STORAGE_ROOT)
    return accept_unknown


def verification() -> Service:
    """Verification: C-ECHO."""
    return Service(
        name="Verification",
        offer=lambda abstract_syntax_uid: UNCOMPRESSED if abstract_syntax_uid == VERIFICATION else None,
        operations=MappingProxyType({CommandField.C_ECHO_RQ: _Echo}),
    )


def storage(
    handler: StoreHandler,
    *,
    accept_unknown: bool,
    max_object_bytes: int,
    on_answered: Callable[[int, int], None],
) -> Service:
    """Storage: C-STORE.

    Args:
        handler: keeps the instances.
        accept_unknown: take private SOP classes too (`is_storage`).
        max_object_bytes: a longer data set is refused (0xC000); of one twice as long not even
            the rest is read.
        on_answered: called with the status and the bytes of each instance that is answered.
    """

    def begin(association: AssociationInfo, context: PresentationContext, command: Command) -> Operation:
        return _Store(handler, association, context, command, max_object_bytes, on_answered)

    return Service(
        name="Storage",
        offer=lambda abstract_syntax_uid: (
            STORABLE_TRANSFER_SYNTAXES
            if is_storage(abstract_syntax_uid, accept_unknown=accept_unknown)
            else None
        ),
        operations=MappingProxyType({CommandField.C_STORE_RQ: begin}),
    )


class _Echo:
    """One C-ECHO."""

    def __init__(
        self, _association: AssociationInfo, _context: PresentationContext, command: Command
    ) -> None:
        if command.has_data_set or command.message_id is None:
            raise MessageError("C-ECHO-RQ: announces a data set or has no Message ID (PS3.7 §9.3.5.1)")
        self._command = command

    def write(self, parts: Sequence[memoryview]) -> None:
        raise RuntimeError(f"C-ECHO: {len(parts)} pieces of a data set that was not announced")

    def complete(self) -> Sequence[Message]:
        return [Message(response(self._command, Status.SUCCESS))]

    def discard(self) -> None:
        pass


class _Store:
    """One C-STORE. Once refused, the rest of its data set is counted and dropped."""

    def __init__(
        self,
        handler: StoreHandler,
        association: AssociationInfo,
        context: PresentationContext,
        command: Command,
        max_object_bytes: int,
        on_answered: Callable[[int, int], None],
    ) -> None:
        sop_class_uid, sop_instance_uid = command.affected_sop_class_uid, command.affected_sop_instance_uid
        if (
            not command.has_data_set
            or command.message_id is None
            or not sop_class_uid
            or not sop_instance_uid
        ):
            raise MessageError(
                "C-STORE-RQ: Message ID, Affected SOP Class UID, Affected SOP Instance UID or the data set "
                "is missing (PS3.7 §9.3.1.1)"
            )
        self._command = command
        self._max_object_bytes = max_object_bytes
        self._on_answered = on_answered
        self._bytes = 0
        self._incoming: Incoming | None = None
        self._status: int = Status.SUCCESS
        if sop_class_uid != context.abstract_syntax_uid:
            self._status = Status.SOP_CLASS_NOT_SUPPORTED
        elif not uid.is_valid(sop_instance_uid):
            self._status = Status.INVALID_SOP_INSTANCE
        else:
            try:
                self._incoming = handler.begin(
                    StoreRequest(association, sop_class_uid, sop_instance_uid, context.transfer_syntax_uid)
                )
            except StoreRefusedError as error:
                self._status = error.status

    def write(self, parts: Sequence[memoryview]) -> None:
        self._bytes += sum(map(len, parts))
        if self._bytes > self._max_object_bytes:
            if self._bytes > 2 * self._max_object_bytes:
                raise MessageError(
                    f"C-STORE-RQ: a data set without end, must be at most {self._max_object_bytes} bytes"
                )
            if self._incoming is not None:
                self._refuse(Status.CANNOT_UNDERSTAND)
        if self._incoming is not None:
            try:
                self._incoming.write(parts)
            except StoreRefusedError as error:
                self._refuse(error.status)

    def complete(self) -> Sequence[Message]:
        if self._incoming is not None:
            try:
                self._status = self._incoming.commit()
                self._incoming = None
            except StoreRefusedError as error:
                self._refuse(error.status)
        self._on_answered(self._status, self._bytes)
        return [Message(response(self._command, self._status))]

    def discard(self) -> None:
        incoming, self._incoming = self._incoming, None
        if incoming is not None:
            incoming.discard()

    def _refuse(self, status: int) -> None:
        self._status = status
        self.discard()
