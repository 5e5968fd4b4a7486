import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pynetdicom import build_context, build_role
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    AsynchronousOperationsWindowNegotiation,
    ImplementationClassUIDNotification,
    ImplementationVersionNameNotification,
    MaximumLengthNotification,
)
from pynetdicom.presentation import negotiate_as_acceptor

from dicom import negotiation, uid
from dicom.negotiation import ContextResult
from dicom.pdu import AbortReason, PduError
from tests.fakes.peer import (
    CT_IMAGE_STORAGE,
    EXPLICIT,
    IMPLICIT,
    VERIFICATION,
    associate_rq,
    item,
    presentation_context,
)

JPEG = "1.2.840.10008.1.2.4.50"
OFFERED = {VERIFICATION: (IMPLICIT,), CT_IMAGE_STORAGE: (EXPLICIT, IMPLICIT, JPEG)}
APPLICATION_CONTEXT = item(0x10, b"1.2.840.10008.3.1.1.1")
USER = item(0x50, item(0x51, bytes(4)) + item(0x52, b"1.2"))
CONTEXT = presentation_context(1, CT_IMAGE_STORAGE, (EXPLICIT,))


def read(pdu: bytes) -> negotiation.Proposal:
    return negotiation.read(pdu[6:], 128)


def agreed(pdu: bytes) -> tuple[negotiation.Agreement, A_ASSOCIATE_AC]:
    agreement = negotiation.agree(read(pdu), OFFERED.get, 0)
    ac = A_ASSOCIATE_AC()
    ac.decode(agreement.pdu)
    return agreement, ac


def test_a_proposal_of_pynetdicom_is_read() -> None:
    primitive = A_ASSOCIATE()
    primitive.calling_ae_title = "MODALITY"
    primitive.called_ae_title = "INSITU"
    primitive.application_context_name = "1.2.840.10008.3.1.1.1"
    contexts = [build_context(CT_IMAGE_STORAGE, [JPEG, EXPLICIT]), build_context(VERIFICATION, IMPLICIT)]
    for number, context in enumerate(contexts):
        context.context_id = 2 * number + 1
    primitive.presentation_context_definition_list = contexts
    length, class_uid = MaximumLengthNotification(), ImplementationClassUIDNotification()
    version, window = ImplementationVersionNameNotification(), AsynchronousOperationsWindowNegotiation()
    length.maximum_length_received = 32768
    class_uid.implementation_class_uid = "1.2.3"
    version.implementation_version_name = "TEST_1"
    window.maximum_number_operations_invoked = window.maximum_number_operations_performed = 5
    role = build_role(CT_IMAGE_STORAGE, scu_role=True, scp_role=True)
    primitive.user_information = [length, class_uid, version, window, role]
    rq = A_ASSOCIATE_RQ()
    rq.from_primitive(primitive)
    proposal = read(rq.encode())
    assert (proposal.calling_ae_title, proposal.called_ae_title) == ("MODALITY", "INSITU")
    assert proposal.contexts == (
        negotiation.ProposedContext(1, CT_IMAGE_STORAGE, (JPEG, EXPLICIT)),
        negotiation.ProposedContext(3, VERIFICATION, (IMPLICIT,)),
    )
    assert proposal.max_length_bytes == 32768
    assert (proposal.implementation_class_uid, proposal.implementation_version_name) == ("1.2.3", "TEST_1")
    assert proposal.proposes_asynchronous_operations
    assert proposal.roles == {CT_IMAGE_STORAGE: (True, True)}
    assert proposal.supports_protocol_version_1


def test_the_answer_names_the_first_proposed_transfer_syntax_that_is_accepted() -> None:
    contexts = [
        (1, CT_IMAGE_STORAGE, ("1.2.3.4", JPEG, EXPLICIT)),
        (3, CT_IMAGE_STORAGE, (IMPLICIT, EXPLICIT)),
        (5, CT_IMAGE_STORAGE, ("1.2.3.4",)),
        (7, "1.2.3.5", (EXPLICIT,)),
    ]
    agreement, ac = agreed(associate_rq(contexts=contexts))
    assert agreement.results == {
        1: ContextResult.ACCEPTANCE,
        3: ContextResult.ACCEPTANCE,
        5: ContextResult.TRANSFER_SYNTAXES_NOT_SUPPORTED,
        7: ContextResult.ABSTRACT_SYNTAX_NOT_SUPPORTED,
    }
    assert {i: c.transfer_syntax_uid for i, c in agreement.contexts.items()} == {1: JPEG, 3: IMPLICIT}
    answered = {cx.presentation_context_id: (cx.result, cx.transfer_syntax) for cx in ac.presentation_context}
    assert (answered[1], answered[3]) == ((0, JPEG), (0, IMPLICIT))
    assert (answered[5][0], answered[7][0]) == (4, 3)  # their transfer syntax is not significant


def test_the_answer_says_who_we_are_and_what_we_receive() -> None:
    window = item(0x53, struct.pack(">HH", 10, 10))
    agreement, ac = agreed(associate_rq(user_items=window))
    primitive = ac.to_primitive()
    assert primitive.maximum_length_received == 0
    assert primitive.implementation_class_uid == uid.IMPLEMENTATION_CLASS_UID
    assert ac.user_information.implementation_version_name == uid.IMPLEMENTATION_VERSION_NAME
    assert (
        ac.user_information.async_ops_window.maximum_number_operations_invoked,
        ac.user_information.async_ops_window.maximum_number_operations_performed,
    ) == (1, 1)
    assert agreement.pdu[10:74] == associate_rq()[10:74]  # PS3.8 Table 9-17: sent back as received
    _, without = agreed(associate_rq())
    assert without.user_information.async_ops_window is None


@pytest.mark.parametrize(
    ("proposed", "result", "answered"),
    [
        (None, ContextResult.ACCEPTANCE, {}),
        ((1, 0), ContextResult.ACCEPTANCE, {CT_IMAGE_STORAGE: (1, 0)}),
        ((1, 1), ContextResult.ACCEPTANCE, {CT_IMAGE_STORAGE: (1, 0)}),
        ((0, 1), ContextResult.USER_REJECTION, {}),
        ((0, 0), ContextResult.USER_REJECTION, {}),
    ],
)
def test_we_are_scp_whatever_role_the_requestor_proposes(
    proposed: tuple[int, int] | None, result: ContextResult, answered: dict[str, tuple[int, int]]
) -> None:
    encoded = CT_IMAGE_STORAGE.encode()
    role = (
        b"" if proposed is None else item(0x54, struct.pack(">H", len(encoded)) + encoded + bytes(proposed))
    )
    contexts = [(1, CT_IMAGE_STORAGE, (EXPLICIT,))]
    agreement, ac = agreed(associate_rq(contexts=contexts, user_items=role))
    assert agreement.results == {1: result}
    assert {
        r.sop_class_uid: (r.scu_role, r.scp_role) for r in ac.user_information.role_selection.values()
    } == answered


SYNTAXES = st.lists(
    st.sampled_from([EXPLICIT, IMPLICIT, JPEG, "1.2.3.4"]), min_size=1, max_size=4, unique=True
)


@given(st.lists(st.tuples(st.sampled_from([*OFFERED, "1.2.3.5"]), SYNTAXES), min_size=1, max_size=20))
def test_the_results_are_those_of_pynetdicom(wanted: list[tuple[str, list[str]]]) -> None:
    contexts = [(2 * n + 1, abstract, tuple(syntaxes)) for n, (abstract, syntaxes) in enumerate(wanted)]
    agreement, ac = agreed(associate_rq(contexts=contexts))
    requested = []
    for number, abstract, syntaxes in contexts:
        requested.append(build_context(abstract, list(syntaxes)))
        requested[-1].context_id = number
    ours = [build_context(abstract, list(syntaxes)) for abstract, syntaxes in OFFERED.items()]
    expected, _ = negotiate_as_acceptor(requested, ours)
    assert agreement.results == {context.context_id: context.result for context in expected}
    assert {cx.presentation_context_id: cx.result for cx in ac.presentation_context} == agreement.results


def test_unrecognized_items_are_skipped_wherever_they_stand() -> None:
    unknown = item(0x77, b"what is this")
    context = item(0x20, b"\1\0\0\0" + unknown + item(0x30, b"1.2.3") + item(0x40, b"1.2.4") + unknown)
    user = item(0x50, unknown + item(0x51, bytes(4)) + item(0x58, b"\1\1\0\4name\0\0") + unknown)
    proposal = read(associate_rq(items=unknown + APPLICATION_CONTEXT + context + unknown + user))
    assert proposal.contexts == (negotiation.ProposedContext(1, "1.2.3", ("1.2.4",)),)


@pytest.mark.parametrize(
    ("called", "expected"),
    [(b"INSITU", "INSITU"), (b"  INSITU", "INSITU"), (b"INSITU\0\0\0\0\0\0\0\0\0\0", "INSITU")],
)
def test_padding_of_ae_titles_is_not_significant(called: bytes, expected: str) -> None:
    assert read(associate_rq(called=called)).called_ae_title == expected


def test_a_peer_that_leaves_out_its_maximum_length_is_sent_what_all_can_receive() -> None:
    user = item(0x50, item(0x52, b"1.2"))
    assert read(associate_rq(items=APPLICATION_CONTEXT + CONTEXT + user)).max_length_bytes == 16384


def too_many() -> bytes:
    items = b"".join(item(0x20, bytes((n % 256, 0, 0, 0))) for n in range(1, 3))
    return APPLICATION_CONTEXT + items + USER


def nested() -> bytes:
    value = b""
    while len(value) < 65000:
        value = item(0x50, value)
    return APPLICATION_CONTEXT + CONTEXT + value


MALFORMED = {
    "no application context": CONTEXT + USER,
    "two application contexts": APPLICATION_CONTEXT * 2 + CONTEXT + USER,
    "no user information": APPLICATION_CONTEXT + CONTEXT,
    "two user informations": APPLICATION_CONTEXT + CONTEXT + USER * 2,
    "no presentation context": APPLICATION_CONTEXT + USER,
    "an even ID": APPLICATION_CONTEXT + presentation_context(2, VERIFICATION, (IMPLICIT,)) + USER,
    "an ID of zero": APPLICATION_CONTEXT + presentation_context(0, VERIFICATION, (IMPLICIT,)) + USER,
    "an ID twice": APPLICATION_CONTEXT + CONTEXT * 2 + USER,
    "a context without transfer syntax": APPLICATION_CONTEXT
    + presentation_context(1, VERIFICATION, ())
    + USER,
    "a context without anything": too_many(),
    "a context shorter than its fields": APPLICATION_CONTEXT + item(0x20, b"\1\0") + USER,
    "a context with two abstract syntaxes": APPLICATION_CONTEXT
    + item(0x20, b"\1\0\0\0" + item(0x30, b"1.2") * 2 + item(0x40, b"1.2"))
    + USER,
    "a UID too long": APPLICATION_CONTEXT + presentation_context(1, "1" * 65, (IMPLICIT,)) + USER,
    "a UID that is not ASCII": APPLICATION_CONTEXT + item(0x20, b"\1\0\0\0" + item(0x30, b"\xff")) + USER,
    "an item beyond the end": APPLICATION_CONTEXT + CONTEXT + USER + b"\x77\0\xff\xff",
    "a rest that is no item": APPLICATION_CONTEXT + CONTEXT + USER + b"\0\0\0",
    "a sub-item beyond its item": APPLICATION_CONTEXT + CONTEXT + item(0x50, b"\x51\0\0\x04\0"),
    "a maximum length of three bytes": APPLICATION_CONTEXT + CONTEXT + item(0x50, item(0x51, bytes(3))),
    "a role that is cut": APPLICATION_CONTEXT
    + CONTEXT
    + item(0x50, item(0x54, b"\0\x09" + b"1.2.840.1" + b"\1")),
    "a role of one byte": APPLICATION_CONTEXT + CONTEXT + item(0x50, item(0x54, b"\0")),
    "a version name that is not ASCII": APPLICATION_CONTEXT + CONTEXT + item(0x50, item(0x55, b"\xff")),
}


@pytest.mark.parametrize("items", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_proposal_is_an_invalid_pdu(items: bytes) -> None:
    with pytest.raises(PduError) as caught:
        read(associate_rq(items=items))
    assert caught.value.reason is AbortReason.INVALID_PDU_PARAMETER_VALUE


@pytest.mark.parametrize("title", [b"", b"\0" * 16, b"A\nB", b"A\\B", b"\xc3\xa9", b"\x1b[31m"])
def test_an_ae_title_that_is_blank_or_would_spoil_a_log_is_an_invalid_pdu(title: bytes) -> None:
    for which in ({"called": title}, {"calling": title}):
        with pytest.raises(PduError):
            read(associate_rq(**which))  # type: ignore[arg-type]


def test_more_presentation_contexts_than_allowed_are_refused() -> None:
    contexts = [(n, VERIFICATION, (IMPLICIT,)) for n in range(1, 256, 2)]
    pdu = associate_rq(contexts=contexts)
    assert len(read(pdu).contexts) == 128
    with pytest.raises(PduError, match="more than 127"):
        negotiation.read(pdu[6:], 127)


def test_items_nested_in_items_are_not_descended_into() -> None:
    assert read(associate_rq(items=nested())).contexts[0].abstract_syntax_uid == CT_IMAGE_STORAGE


def test_a_proposal_cut_anywhere_is_refused() -> None:
    pdu = associate_rq()
    for cut in range(6, len(pdu)):
        with pytest.raises(PduError):
            read(pdu[:cut])


@given(st.binary(max_size=400))
def test_any_items_are_read_or_refused(items: bytes) -> None:
    try:
        proposal = read(associate_rq(items=items))
    except PduError:
        return
    assert proposal.contexts


@given(st.data())
def test_a_proposal_with_bytes_changed_is_answered_or_refused(data: st.DataObject) -> None:
    pdu = bytearray(associate_rq())
    for _ in range(data.draw(st.integers(1, 6))):
        pdu[data.draw(st.integers(6, len(pdu) - 1))] = data.draw(st.integers(0, 255))
    try:
        agreement, ac = agreed(bytes(pdu))
    except PduError:
        return
    assert {cx.presentation_context_id: cx.result for cx in ac.presentation_context} == agreement.results
