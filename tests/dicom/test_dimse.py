from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from dicom import command
from dicom.command import Command, CommandError, CommandField, Status
from dicom.dimse import DimseProvider, Message, MessageError, Service
from dicom.errors import ProtocolError
from dicom.negotiation import PresentationContext
from dicom.pdu import AbortReason, Fragment, PduError, PduReader
from dicom.services import storage, verification
from dicom.store_handler import AssociationInfo
from tests.fakes.peer import CT_IMAGE_STORAGE, EXPLICIT, IMPLICIT, VERIFICATION
from tests.fakes.store_handler import FakeStoreHandler

INFO = AssociationInfo(1, "PEER", "INSITU", "127.0.0.1", 1, datetime(2024, 1, 1, tzinfo=UTC))
CONTEXTS = {
    1: PresentationContext(1, VERIFICATION, IMPLICIT),
    3: PresentationContext(3, CT_IMAGE_STORAGE, EXPLICIT),
}
STORE = Command(
    field=CommandField.C_STORE_RQ,
    has_data_set=True,
    message_id=7,
    affected_sop_class_uid=CT_IMAGE_STORAGE,
    affected_sop_instance_uid="1.2.3",
)
ECHO = Command(field=CommandField.C_ECHO_RQ, message_id=1, affected_sop_class_uid=VERIFICATION)


class Exchange:
    """A provider, what it answered, and what the handler got."""

    def __init__(
        self, handler: FakeStoreHandler | None = None, max_object_bytes: int = 1000, **limits: int
    ) -> None:
        self.handler = handler or FakeStoreHandler()
        self.answered: list[tuple[int, int]] = []
        services = (
            verification(),
            storage(
                self.handler,
                accept_unknown=True,
                max_object_bytes=max_object_bytes,
                on_answered=lambda status, n: self.answered.append((status, n)),
            ),
        )
        self.provider = DimseProvider(
            INFO, CONTEXTS, services, max_length_bytes=0, max_objects=limits.get("max_objects", 100)
        )

    def give(self, context_id: int, *, is_command: bool, data: bytes, is_last: bool = True) -> Command | None:
        answer = self.provider.fragment(Fragment(context_id, is_command, is_last, memoryview(data)))
        self.provider.flush()
        return command.decode(answer[12:]) if answer else None

    def command(self, request: Command, context_id: int) -> Command | None:
        return self.give(context_id, is_command=True, data=command.encode(request))

    def store(self, data: bytes = b"data", **changes: object) -> Command | None:
        assert self.command(replace(STORE, **changes), 3) is None  # type: ignore[arg-type]
        return self.give(3, is_command=False, data=data)


def test_an_echo_is_answered() -> None:
    answer = Exchange().command(ECHO, 1)
    assert answer is not None
    assert (answer.field, answer.status, answer.message_id_being_responded_to) == (
        CommandField.C_ECHO_RSP,
        0,
        1,
    )


def test_a_store_in_fragments_of_one_byte_is_kept_whole() -> None:
    exchange = Exchange()
    encoded = command.encode(STORE)
    for i in range(len(encoded)):
        last = i == len(encoded) - 1
        assert exchange.give(3, is_command=True, data=encoded[i : i + 1], is_last=last) is None
        assert exchange.provider.in_message
    for i in range(10):
        assert exchange.give(3, is_command=False, data=b"%d" % i, is_last=False) is None
    answer = exchange.give(3, is_command=False, data=b"")
    assert answer is not None
    assert (answer.status, answer.affected_sop_instance_uid) == (0, "1.2.3")
    assert [(r.sop_instance_uid, r.transfer_syntax_uid, d) for r, d in exchange.handler.stored] == [
        ("1.2.3", EXPLICIT, b"0123456789")
    ]
    assert not exchange.provider.in_message
    assert exchange.answered == [(0, 10)]


def test_a_last_data_set_fragment_may_carry_data_and_a_store_may_be_empty() -> None:
    exchange = Exchange()
    for data in (b"abcd", b""):
        answer = exchange.store(data)
        assert answer is not None
        assert answer.status == 0
    assert [data for _, data in exchange.handler.stored] == [b"abcd", b""]


Step = tuple[int, bool, bytes, bool]
C, D = True, False
ENCODED = command.encode(STORE)
WRONG: dict[str, tuple[list[Step], type[ProtocolError]]] = {
    "a data set without command": ([(3, D, b"x", True)], MessageError),
    "an unknown context": ([(5, C, ENCODED, True)], PduError),
    "an unknown context for data": ([(5, D, b"x", True)], PduError),
    "a command within a data set": ([(3, C, ENCODED, True), (3, C, ENCODED, True)], MessageError),
    "a data set within a command": ([(3, C, ENCODED[:9], False), (3, D, b"x", True)], MessageError),
    "a command continued on another context": (
        [(3, C, ENCODED[:9], False), (1, C, ENCODED[9:], True)],
        MessageError,
    ),
    "a data set on another context": ([(3, C, ENCODED, True), (1, D, b"x", True)], MessageError),
    "a data set on an unknown context": ([(3, C, ENCODED, True), (9, D, b"x", True)], MessageError),
    "a data set after a command that has none": (
        [(1, C, command.encode(ECHO), True), (1, D, b"x", True)],
        MessageError,
    ),
    "a command that is garbage": ([(3, C, b"\x01" * 30, True)], CommandError),
    "an empty command": ([(3, C, b"", True)], CommandError),
    "a command of 65 KiB": ([(3, C, bytes(1024), False)] * 65, MessageError),
    "a C-STORE that announces no data set": (
        [
            (
                3,
                C,
                command.encode(
                    Command(
                        field=1, message_id=1, affected_sop_class_uid="1.2", affected_sop_instance_uid="1.3"
                    )
                ),
                True,
            )
        ],
        MessageError,
    ),
    "a C-STORE without instance": (
        [
            (
                3,
                C,
                command.encode(
                    Command(field=1, message_id=1, has_data_set=True, affected_sop_class_uid="1.2")
                ),
                True,
            )
        ],
        MessageError,
    ),
    "a C-ECHO with a data set": (
        [(1, C, command.encode(Command(field=0x30, message_id=1, has_data_set=True)), True)],
        MessageError,
    ),
    "a C-ECHO without Message ID": ([(1, C, command.encode(Command(field=0x30)), True)], MessageError),
    "a response to nothing": (
        [(3, C, command.encode(Command(field=0x8001, message_id_being_responded_to=1, status=0)), True)],
        MessageError,
    ),
    "an unknown request without Message ID": (
        [(3, C, command.encode(Command(field=0x20)), True)],
        MessageError,
    ),
}


@pytest.mark.parametrize(("steps", "error"), WRONG.values(), ids=WRONG.keys())
def test_what_is_no_message_ends_the_association_and_leaves_nothing(
    steps: list[Step], error: type[ProtocolError]
) -> None:
    exchange = Exchange()

    def play() -> None:
        for context_id, is_command, data, is_last in steps:
            exchange.give(context_id, is_command=is_command, data=data, is_last=is_last)

    with pytest.raises(error) as caught:
        play()
    if isinstance(caught.value, PduError):
        assert caught.value.reason is AbortReason.INVALID_PDU_PARAMETER_VALUE
    exchange.provider.discard()
    assert exchange.handler.open == 0
    assert exchange.handler.stored == []
    assert not exchange.provider.in_message


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"affected_sop_class_uid": "1.2.840.10008.5.1.4.1.1.4"}, Status.SOP_CLASS_NOT_SUPPORTED),
        ({"affected_sop_instance_uid": "1.2.03"}, Status.INVALID_SOP_INSTANCE),
        ({"affected_sop_instance_uid": "../etc"}, Status.INVALID_SOP_INSTANCE),
    ],
)
def test_a_store_that_can_be_answered_is_refused_and_its_data_set_dropped(
    changes: dict[str, object], status: int
) -> None:
    exchange = Exchange()
    answer = exchange.store(**changes)  # type: ignore[arg-type]
    assert answer is not None
    assert answer.status == status
    assert exchange.handler.open == 0
    assert (exchange.handler.stored, exchange.handler.discarded) == ([], [])
    assert exchange.store() is not None  # the association goes on
    assert len(exchange.handler.stored) == 1


@pytest.mark.parametrize("where", ["refuse_begin", "refuse_write", "refuse_commit"])
def test_what_the_handler_refuses_is_answered_with_its_status(where: str) -> None:
    exchange = Exchange(FakeStoreHandler(**{where: 0xA700}))  # type: ignore[arg-type]
    answer = exchange.store()
    assert answer is not None
    assert answer.status == 0xA700
    assert (exchange.handler.open, exchange.handler.stored) == (0, [])
    assert len(exchange.handler.discarded) == (where != "refuse_begin")
    assert exchange.answered == [(0xA700, 4)]


def test_a_warning_of_the_handler_is_answered() -> None:
    answer = Exchange(FakeStoreHandler(status=0xB000)).store()
    assert answer is not None
    assert answer.status == 0xB000


def test_an_object_over_the_limit_is_refused_and_one_without_end_is_not_read_on() -> None:
    exchange = Exchange(max_object_bytes=10)
    answer = exchange.store(b"0123456789")
    assert answer is not None
    assert answer.status == 0
    answer = exchange.store(b"0123456789a")
    assert answer is not None
    assert answer.status == Status.CANNOT_UNDERSTAND
    assert len(exchange.handler.discarded) == 1
    exchange.command(STORE, 3)
    exchange.give(3, is_command=False, data=bytes(20), is_last=False)
    with pytest.raises(MessageError, match="without end"):
        exchange.give(3, is_command=False, data=b"x", is_last=False)
    assert exchange.handler.open == 0


def test_more_objects_than_allowed_end_the_association() -> None:
    exchange = Exchange(max_objects=2)
    for _ in range(2):
        assert exchange.store() is not None
    with pytest.raises(MessageError, match="more than 2"):
        exchange.command(STORE, 3)
    assert len(exchange.handler.stored) == 2


@pytest.mark.parametrize("field", [0x0020, 0x0010, 0x0021, 0x0100, 0x0110, 0x0130, 0x0140, 0x0777])
@pytest.mark.parametrize("has_data_set", [False, True])
def test_a_request_that_no_service_performs_is_answered_as_unrecognized(
    field: int, has_data_set: bool
) -> None:
    exchange = Exchange()
    request = Command(
        field=field, message_id=3, has_data_set=has_data_set, affected_sop_class_uid=CT_IMAGE_STORAGE
    )
    answer = exchange.command(request, 3)
    if has_data_set:
        assert answer is None
        answer = exchange.give(3, is_command=False, data=b"identifier")
    assert answer is not None
    assert (answer.field, answer.status) == (field | 0x8000, Status.UNRECOGNIZED_OPERATION)
    assert not exchange.provider.in_message


def test_a_store_on_a_verification_context_is_unrecognized_and_an_echo_on_a_storage_context_too() -> None:
    exchange = Exchange()
    assert exchange.command(STORE, 1) is None
    answer = exchange.give(1, is_command=False, data=b"x")
    assert answer is not None
    assert answer.status == Status.UNRECOGNIZED_OPERATION
    answer = exchange.command(ECHO, 3)
    assert answer is not None
    assert answer.status == Status.UNRECOGNIZED_OPERATION


def test_a_cancel_is_not_answered() -> None:
    exchange = Exchange()
    cancel = Command(field=CommandField.C_CANCEL_RQ, message_id_being_responded_to=1)
    assert exchange.command(cancel, 3) is None
    assert not exchange.provider.in_message


def test_an_association_that_ends_in_a_data_set_discards_it_once() -> None:
    exchange = Exchange()
    exchange.command(STORE, 3)
    exchange.give(3, is_command=False, data=b"half", is_last=False)
    exchange.provider.discard()
    exchange.provider.discard()
    assert (exchange.handler.open, len(exchange.handler.discarded), exchange.handler.stored) == (0, 1, [])


COMMITMENT = "1.2.840.10008.1.20.1"


class Commit:
    """An N-ACTION that is answered, and followed by an N-EVENT-REPORT of ours."""

    def __init__(self, _info: AssociationInfo, _context: PresentationContext, request: Command) -> None:
        self._request = request
        self._data = b""

    def write(self, parts: Sequence[memoryview]) -> None:
        self._data += b"".join(parts)

    def complete(self) -> Sequence[Message]:
        report = Command(
            field=CommandField.N_EVENT_REPORT_RQ,
            has_data_set=True,
            message_id=1,
            affected_sop_class_uid=COMMITMENT,
            affected_sop_instance_uid="1.2.840.10008.1.20.1.1",
            event_type_id=1,
        )
        return [Message(command.response(self._request, 0)), Message(report, self._data)]

    def discard(self) -> None:
        pass


class Reported:
    def write(self, parts: Sequence[memoryview]) -> None:
        raise AssertionError("no data set was announced")

    def complete(self) -> Sequence[Message]:
        return []

    def discard(self) -> None:
        pass


def test_a_service_is_added_by_one_entry_and_may_ask_in_its_turn() -> None:
    statuses: list[tuple[int, int | None]] = []

    def reported(info: AssociationInfo, _context: PresentationContext, answer: Command) -> Reported:
        statuses.append((info.number, answer.status))
        return Reported()

    service = Service(
        name="Storage Commitment",
        offer=lambda uid: (IMPLICIT,) if uid == COMMITMENT else None,
        operations={CommandField.N_ACTION_RQ: Commit, CommandField.N_EVENT_REPORT_RSP: reported},
    )
    contexts = {5: PresentationContext(5, COMMITMENT, IMPLICIT)}
    provider = DimseProvider(INFO, contexts, (verification(), service), max_length_bytes=64, max_objects=1)
    action = Command(
        field=CommandField.N_ACTION_RQ,
        has_data_set=True,
        message_id=4,
        requested_sop_class_uid=COMMITMENT,
        requested_sop_instance_uid="1.2.840.10008.1.20.1.1",
        action_type_id=1,
    )
    assert provider.fragment(Fragment(5, True, True, memoryview(command.encode(action)))) == b""
    sent = provider.fragment(Fragment(5, False, True, memoryview(b"the instances")))

    reader = PduReader(1000)
    reader.establish(64, 4096)
    reader.space()[: len(sent)] = sent
    reader.received(len(sent))
    messages = [b""]
    while isinstance(got := reader.next(), Fragment):
        messages[-1] += got.data
        if got.is_last:
            messages.append(b"")
    response, report = command.decode(messages[0]), command.decode(messages[1])
    assert (response.field, response.status, response.action_type_id) == (CommandField.N_ACTION_RSP, 0, 1)
    assert (report.field, report.event_type_id) == (CommandField.N_EVENT_REPORT_RQ, 1)
    assert messages[2] == b"the instances"

    confirmed = Command(field=CommandField.N_EVENT_REPORT_RSP, message_id_being_responded_to=1, status=0)
    assert provider.fragment(Fragment(5, True, True, memoryview(command.encode(confirmed)))) == b""
    assert statuses == [(1, 0)]
