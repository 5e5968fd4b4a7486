"""What a peer proposes in an A-ASSOCIATE-RQ, and what an acceptor answers. No IO.

Owns reading the body of an A-ASSOCIATE-RQ (PS3.8 §9.3.2, user information PS3.7 §D.3.3),
choosing a result for each presentation context, and writing the A-ASSOCIATE-AC
(PS3.8 §9.3.3). Who may associate is not decided here.

Items nest one level (sub-items in a presentation context or in the user information) and
are read by a loop, not by recursion; unrecognized ones are skipped (PS3.8 §9.3.1). Costs
are bounded by the PDU, which `dicom.pdu` bounds.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from typing import Final

from dicom import uid
from dicom.pdu import AbortReason, PduError, associate_ac

APPLICATION_CONTEXT_NAME: Final = "1.2.840.10008.3.1.1.1"  # PS3.7 §A.2.1
IMPLICIT_VR_LITTLE_ENDIAN: Final = "1.2.840.10008.1.2"
_PROTOCOL_VERSION: Final = 0x0001
_FIXED: Final = Struct(">H2x16s16s32x")  # protocol version, called, calling AE title, reserved
_ECHOED: Final = slice(4, 68)  # the AE titles and a reserved field go back as they came (PS3.8 Table 9-17)
_ITEM: Final = Struct(">BxH")
_UINT16: Final = Struct(">H")
_UINT32: Final = Struct(">I")
_MAX_UID: Final = 64
_MAX_VERSION_NAME: Final = 16
_DEFAULT_MAX_LENGTH: Final = (
    16384  # where a peer leaves out its mandatory Maximum Length: what all can receive
)

_APPLICATION_CONTEXT: Final = 0x10
_PRESENTATION_CONTEXT_RQ: Final = 0x20
_PRESENTATION_CONTEXT_AC: Final = 0x21
_ABSTRACT_SYNTAX: Final = 0x30
_TRANSFER_SYNTAX: Final = 0x40
_USER_INFORMATION: Final = 0x50
_MAXIMUM_LENGTH: Final = 0x51
_IMPLEMENTATION_CLASS_UID: Final = 0x52
_ASYNCHRONOUS_OPERATIONS_WINDOW: Final = 0x53
_ROLE_SELECTION: Final = 0x54
_IMPLEMENTATION_VERSION_NAME: Final = 0x55


class ContextResult(IntEnum):
    """Result of a presentation context (PS3.8 Table 9-18)."""

    ACCEPTANCE = 0
    USER_REJECTION = 1
    NO_REASON = 2
    ABSTRACT_SYNTAX_NOT_SUPPORTED = 3
    TRANSFER_SYNTAXES_NOT_SUPPORTED = 4


@dataclass(frozen=True, slots=True)
class ProposedContext:
    """A presentation context as proposed."""

    id: int
    abstract_syntax_uid: str
    transfer_syntax_uids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PresentationContext:
    """A presentation context as accepted."""

    id: int
    abstract_syntax_uid: str
    transfer_syntax_uid: str


@dataclass(frozen=True, slots=True)
class Proposal:
    """What an A-ASSOCIATE-RQ asks for.

    `roles` holds, by SOP Class UID, whether the requestor proposes to be (SCU, SCP)
    (PS3.7 §D.3.3.4). `max_length_bytes` is what the requestor can receive (0: any).
    """

    supports_protocol_version_1: bool
    called_ae_title: str
    calling_ae_title: str
    application_context_name: str
    contexts: tuple[ProposedContext, ...]
    max_length_bytes: int
    implementation_class_uid: str
    implementation_version_name: str
    proposes_asynchronous_operations: bool
    roles: dict[str, tuple[bool, bool]]
    echoed: bytes


@dataclass(frozen=True, slots=True)
class Agreement:
    """What was agreed: the contexts by their ID, the result of each, and the PDU that says so."""

    contexts: dict[int, PresentationContext]
    results: dict[int, ContextResult]
    pdu: bytes


Offer = Callable[[str], Collection[str] | None]
"""By abstract syntax UID: the transfer syntaxes we accept for it, or None when we do not support it."""


def read(body: bytes, max_presentation_contexts: int) -> Proposal:
    """Read the body of an A-ASSOCIATE-RQ.

    Raises:
        PduError: it is not what PS3.8 §9.3.2 says: cut short; an AE title that is blank or not
            printable ASCII; no or two application contexts or user informations; no
            presentation context or more than `max_presentation_contexts`; an ID that is even or
            used twice; a context without abstract or transfer syntax.
    """
    if len(body) < _FIXED.size:
        raise _invalid(f"{len(body)} bytes, must be at least {_FIXED.size}")
    version, called, calling = _FIXED.unpack_from(body)
    application_context: str | None = None
    user_information: bytes | None = None
    contexts: dict[int, ProposedContext] = {}
    for number, value in _items(body, _FIXED.size):
        if number == _APPLICATION_CONTEXT:
            if application_context is not None:
                raise _invalid("two application context items, must be one")
            application_context = _uid(value)
        elif number == _PRESENTATION_CONTEXT_RQ:
            if len(contexts) == max_presentation_contexts:
                raise _invalid(f"more than {max_presentation_contexts} presentation contexts")
            context = _proposed_context(value)
            if context.id in contexts:
                raise _invalid(f"presentation context ID {context.id} twice, must be once")
            contexts[context.id] = context
        elif number == _USER_INFORMATION:
            if user_information is not None:
                raise _invalid("two user information items, must be one")
            user_information = value
    if application_context is None or user_information is None or not contexts:
        raise _invalid(
            "the application context, the user information or every presentation context is missing"
        )
    max_length, class_uid, version_name, is_asynchronous = _DEFAULT_MAX_LENGTH, "", "", False
    roles: dict[str, tuple[bool, bool]] = {}
    for number, value in _items(user_information, 0):
        if number == _MAXIMUM_LENGTH:
            if len(value) != _UINT32.size:
                raise _invalid(f"Maximum Length has {len(value)} bytes, must be 4")
            (max_length,) = _UINT32.unpack(value)
        elif number == _IMPLEMENTATION_CLASS_UID:
            class_uid = _uid(value)
        elif number == _IMPLEMENTATION_VERSION_NAME:
            version_name = _printable(value[:_MAX_VERSION_NAME], "Implementation Version Name")
        elif number == _ASYNCHRONOUS_OPERATIONS_WINDOW:
            is_asynchronous = True
        elif number == _ROLE_SELECTION:
            sop_class_uid, role = _role(value)
            roles[sop_class_uid] = role
    return Proposal(
        supports_protocol_version_1=version & _PROTOCOL_VERSION
        != 0,  # only bit 0 is tested (PS3.8 Table 9-11)
        called_ae_title=_ae_title(called, "Called"),
        calling_ae_title=_ae_title(calling, "Calling"),
        application_context_name=application_context,
        contexts=tuple(contexts.values()),
        max_length_bytes=max_length,
        implementation_class_uid=class_uid,
        implementation_version_name=version_name,
        proposes_asynchronous_operations=is_asynchronous,
        roles=roles,
        echoed=body[_ECHOED],
    )


def agree(proposal: Proposal, offer: Offer, max_length_bytes: int) -> Agreement:
    """Choose a result for each presentation context and write the A-ASSOCIATE-AC.

    Of the transfer syntaxes of a context the first is taken that we accept: a sender puts the
    one first in which it holds its objects, and what need not be converted cannot be damaged.
    We are an SCP only: a requestor that proposes the SCP role alone gets a user-rejection.
    Asynchronous operations are answered with a window of 1 (PS3.7 §D.3.3.3). User identity
    and extended negotiation are not answered, which says that they were not used.

    Args:
        proposal: what the requestor asks for.
        offer: the transfer syntaxes that we accept for an abstract syntax, None for an
            abstract syntax that we do not support.
        max_length_bytes: the P-DATA-TF that we receive (0: any).
    """
    contexts: dict[int, PresentationContext] = {}
    results: dict[int, ContextResult] = {}
    role_items: dict[str, bytes] = {}
    items = bytearray(_item(_APPLICATION_CONTEXT, APPLICATION_CONTEXT_NAME.encode()))
    for context in proposal.contexts:
        accepted = offer(context.abstract_syntax_uid)
        role = proposal.roles.get(context.abstract_syntax_uid)
        chosen = next((uid for uid in context.transfer_syntax_uids if uid in (accepted or ())), None)
        if accepted is None:
            result = ContextResult.ABSTRACT_SYNTAX_NOT_SUPPORTED
        elif chosen is None:
            result = ContextResult.TRANSFER_SYNTAXES_NOT_SUPPORTED
        elif role is not None and not role[0]:
            result = ContextResult.USER_REJECTION
        else:
            result = ContextResult.ACCEPTANCE
            contexts[context.id] = PresentationContext(context.id, context.abstract_syntax_uid, chosen)
            if role is not None:
                role_items[context.abstract_syntax_uid] = _role_item(context.abstract_syntax_uid)
        results[context.id] = result
        # of a rejected context the transfer syntax is not significant; nothing of the peer's is repeated
        answered = chosen if result is ContextResult.ACCEPTANCE and chosen else IMPLICIT_VR_LITTLE_ENDIAN
        items += _item(
            _PRESENTATION_CONTEXT_AC,
            bytes((context.id, 0, result, 0)) + _item(_TRANSFER_SYNTAX, answered.encode()),
        )
    user_information = _item(_MAXIMUM_LENGTH, _UINT32.pack(max_length_bytes))
    user_information += _item(_IMPLEMENTATION_CLASS_UID, uid.IMPLEMENTATION_CLASS_UID.encode())
    if proposal.proposes_asynchronous_operations:
        user_information += _item(_ASYNCHRONOUS_OPERATIONS_WINDOW, _UINT16.pack(1) * 2)
    user_information += b"".join(role_items.values())
    user_information += _item(_IMPLEMENTATION_VERSION_NAME, uid.IMPLEMENTATION_VERSION_NAME.encode())
    items += _item(_USER_INFORMATION, user_information)
    body = _UINT16.pack(_PROTOCOL_VERSION) + bytes(2) + proposal.echoed + items
    return Agreement(contexts, results, associate_ac(body))


def _items(data: bytes, offset: int) -> Iterator[tuple[int, bytes]]:
    end = len(data)
    while offset < end:
        if end - offset < _ITEM.size:
            raise _invalid(f"{end - offset} bytes are left after its items, must be 0")
        number, length = _ITEM.unpack_from(data, offset)
        offset += _ITEM.size
        if length > end - offset:
            raise _invalid(f"item 0x{number:02X} has length {length}, must be at most {end - offset}")
        yield number, data[offset : offset + length]
        offset += length


def _proposed_context(value: bytes) -> ProposedContext:
    if len(value) < 4:
        raise _invalid(f"a presentation context item has {len(value)} bytes, must be at least 4")
    context_id = value[0]
    if context_id % 2 == 0:
        raise _invalid(f"presentation context ID is {context_id}, must be odd")
    abstract_syntax: str | None = None
    transfer_syntaxes: list[str] = []
    for number, sub_value in _items(value, 4):
        if number == _ABSTRACT_SYNTAX:
            if abstract_syntax is not None:
                raise _invalid(f"presentation context {context_id} has two abstract syntaxes, must be one")
            abstract_syntax = _uid(sub_value)
        elif number == _TRANSFER_SYNTAX:
            transfer_syntaxes.append(_uid(sub_value))
    if abstract_syntax is None or not transfer_syntaxes:
        raise _invalid(f"presentation context {context_id} has no abstract syntax or no transfer syntax")
    return ProposedContext(context_id, abstract_syntax, tuple(transfer_syntaxes))


def _role(value: bytes) -> tuple[str, tuple[bool, bool]]:
    length = _UINT16.unpack_from(value)[0] if len(value) >= _UINT16.size else -1
    if len(value) != length + 4:
        raise _invalid(f"a role selection has {len(value)} bytes, must be 4 more than its UID's {length}")
    return _uid(value[2:-2]), (value[-2] == 1, value[-1] == 1)


def _role_item(sop_class_uid: str) -> bytes:
    encoded = sop_class_uid.encode()
    return _item(_ROLE_SELECTION, _UINT16.pack(len(encoded)) + encoded + bytes((1, 0)))


def _item(number: int, value: bytes) -> bytes:
    return _ITEM.pack(number, len(value)) + value


def _uid(value: bytes) -> str:
    # A UID is not checked for its form here: one that is malformed is not supported, which is an
    # answer for its context alone. It is bounded, and never repeated to the peer or in a log.
    text = value.rstrip(b"\0 ")
    if len(text) > _MAX_UID or not text.isascii():
        raise _invalid(f"a UID of {len(text)} bytes, must be ASCII, at most {_MAX_UID}")
    return text.decode("ascii")


def _ae_title(value: bytes, which: str) -> str:
    title = _printable(value.rstrip(b"\0"), f"{which} AE title").strip(
        " "
    )  # some pad with NUL, not with spaces
    if not title or "\\" in title:
        raise _invalid(f"{which} AE title is blank or has a backslash (PS3.5 Table 6.2-1, AE)")
    return title


def _printable(value: bytes, what: str) -> str:
    if not all(0x20 <= character < 0x7F for character in value):
        raise _invalid(f"{what} has characters other than printable ASCII")
    return value.decode("ascii")


def _invalid(problem: str) -> PduError:
    return PduError(AbortReason.INVALID_PDU_PARAMETER_VALUE, f"A-ASSOCIATE-RQ: {problem}")
