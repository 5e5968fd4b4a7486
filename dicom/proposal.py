"""What we ask of a peer and what it answers: the bytes of A-ASSOCIATE, as the requestor needs them.

Owns the encoding of A-ASSOCIATE-RQ, the reading of A-ASSOCIATE-AC, and the words for a rejection or
an abort (PS3.8 §9.3.2 to §9.3.4, §9.3.8). Bytes in, bytes out: no socket, no clock.
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from dicom.pdu import AbortSource, Pdu, PduType
from dicom.uid import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

Syntax = tuple[str, str]
"""What one presentation context is for: (SOP class UID, transfer syntax UID)."""

MAX_CONTEXTS: Final = 128
"""Context identifiers are the odd numbers of one byte (PS3.8 §9.3.2.2)."""

OUR_MAX_PDU_BYTES: Final = 16384
"""What we let the peer send: responses of a few hundred bytes are all that comes."""

_APPLICATION_CONTEXT: Final = b"1.2.840.10008.3.1.1.1"

# PS3.8 Table 9-21; (source, reason)
_REJECTIONS: Final[Mapping[tuple[int, int], str]] = MappingProxyType(
    {
        (1, 1): "no reason given",
        (1, 2): "application context not supported",
        (1, 3): "calling AE title not recognized",
        (1, 7): "called AE title not recognized",
        (2, 1): "no reason given",
        (2, 2): "protocol version not supported",
        (3, 1): "temporary congestion",
        (3, 2): "local limit exceeded",
    }
)
_REJECTION_SOURCES: Final = {
    1: "service user",
    2: "service provider (ACSE)",
    3: "service provider (presentation)",
}
# PS3.8 Table 9-26
_ABORT_REASONS: Final = {
    0: "no reason given",
    1: "unrecognized PDU",
    2: "unexpected PDU",
    4: "unrecognized PDU parameter",
    5: "unexpected PDU parameter",
    6: "invalid PDU parameter value",
}
# PS3.8 Table 9-18
_CONTEXT_RESULTS: Final = {
    1: "user rejection",
    2: "no reason given by the provider",
    3: "abstract syntax not supported",
    4: "transfer syntax not supported",
}


def associate_request(
    calling_ae_title: str, called_ae_title: str, syntaxes: Sequence[Syntax], as_scp: Sequence[str] = ()
) -> bytes:
    """A-ASSOCIATE-RQ (PS3.8 §9.3.2); of the SOP classes `as_scp` we propose to be the SCP (PS3.7 §D.3.3.4).

    Off-spec: the default transfer syntax is not proposed for every SOP class (PS3.5 §10.1),
    because files are sent as they are and a context in another syntax could not be used.

    Raises:
        ValueError: none or more than 128 contexts, or an AE title that is not 1 to 16 characters.
    """
    if not 1 <= len(syntaxes) <= MAX_CONTEXTS:
        raise ValueError(f"{len(syntaxes)} presentation contexts, allowed are 1 to {MAX_CONTEXTS}")
    items = [_item(0x10, _APPLICATION_CONTEXT)]
    for index, (abstract, transfer) in enumerate(syntaxes):
        names = _item(0x30, abstract.encode("ascii")) + _item(0x40, transfer.encode("ascii"))
        items.append(_item(0x20, struct.pack(">Bxxx", 2 * index + 1) + names))
    user = _item(0x51, struct.pack(">I", OUR_MAX_PDU_BYTES))
    user += _item(0x52, IMPLEMENTATION_CLASS_UID.encode("ascii"))
    for sop_class_uid in as_scp:
        name = sop_class_uid.encode("ascii")
        user += _item(0x54, struct.pack(">H", len(name)) + name + b"\x00\x01")
    user += _item(0x55, IMPLEMENTATION_VERSION_NAME.encode("ascii"))
    items.append(_item(0x50, user))
    body = struct.pack(">Hxx16s16s32x", 1, _padded(called_ae_title), _padded(calling_ae_title)) + b"".join(
        items
    )
    return struct.pack(">BxI", PduType.A_ASSOCIATE_RQ, len(body)) + body


@dataclass
class Accept:
    """What an A-ASSOCIATE-AC says."""

    results: dict[int, tuple[int, str]] = field(default_factory=dict)
    """Presentation context ID to (result, transfer syntax UID)."""
    max_pdu_bytes: int = 0
    """0: no limit (PS3.8 §D.1.1)."""

    def sort_out(self, syntaxes: Sequence[Syntax]) -> tuple[dict[Syntax, int], dict[Syntax, str]]:
        """Of what was proposed: the context ID of each accepted syntax, the reason for each other one."""
        accepted, refused = {}, {}
        for index, syntax in enumerate(syntaxes):
            result, transfer = self.results.get(2 * index + 1, (2, ""))
            if result == 0 and transfer == syntax[1]:
                accepted[syntax] = 2 * index + 1
            else:
                refused[syntax] = _CONTEXT_RESULTS.get(result, f"result {result}")
        return accepted, refused


def parse_accept(body: bytes) -> Accept:
    """What is in the body of an A-ASSOCIATE-AC (PS3.8 §9.3.3); what cannot be read counts as refused."""
    answer = Accept()
    for kind, data in _items(body[68:]):
        if kind == 0x21 and len(data) >= 4:
            names = [value for inner, value in _items(data[4:]) if inner == 0x40]
            transfer = names[0].rstrip(b"\0 ").decode("ascii", "replace") if names else ""
            answer.results[data[0]] = data[2], transfer
        elif kind == 0x50:
            for inner, value in _items(data):
                if inner == 0x51 and len(value) == 4:
                    answer.max_pdu_bytes = struct.unpack(">I", value)[0]
    return answer


def refusal(pdu: Pdu | None) -> str:
    """In words, what the peer says with `pdu`, which came instead of the answer (None: with data)."""
    if pdu is None:
        return "it sent data instead of an answer"
    if pdu.type is PduType.A_ASSOCIATE_RJ:
        result, source, reason = pdu.body[1:4]
        lasting = {1: "permanently", 2: "for now"}.get(result, f"(result {result})")
        by = _REJECTION_SOURCES.get(source, f"source {source}")
        return f"association rejected {lasting} by the {by}: " + _REJECTIONS.get(
            (source, reason), f"reason {reason}"
        )
    if pdu.type is PduType.A_ABORT:
        if pdu.body[2] == AbortSource.SERVICE_USER:
            return "association aborted by the service user"
        reason = pdu.body[3]
        return (
            f"association aborted by the service provider: {_ABORT_REASONS.get(reason, f'reason {reason}')}"
        )
    if pdu.type is PduType.A_RELEASE_RQ:
        return "it released the association instead of answering"
    return f"it sent {pdu.type.name} instead of an answer"


def _padded(title: str) -> bytes:
    if not 1 <= len(title) <= 16 or not title.strip() or not title.isascii() or not title.isprintable():
        raise ValueError(f"AE title {title!r} is not 1 to 16 printable ASCII characters")
    return title.encode("ascii").ljust(16)


def _item(kind: int, data: bytes) -> bytes:
    return struct.pack(">BxH", kind, len(data)) + data


def _items(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Items of an A-ASSOCIATE PDU; what is cut off ends them: its contexts then count as refused."""
    at = 0
    while at + 4 <= len(data):
        kind, length = struct.unpack_from(">BxH", data, at)
        yield kind, data[at + 4 : at + 4 + length]
        at += 4 + length
