import dataclasses
import struct
from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pynetdicom.dimse_messages import C_ECHO_RQ, C_STORE_RQ, C_STORE_RSP, N_ACTION_RQ
from pynetdicom.dimse_primitives import C_ECHO, C_STORE, N_ACTION
from pynetdicom.dsutils import decode as pynetdicom_decode
from pynetdicom.dsutils import encode as pynetdicom_encode

from dicom import command
from dicom.command import Command, CommandError, CommandField, Status

UIDS = st.from_regex(r"[1-9][0-9]{0,8}(\.[1-9][0-9]{0,8}){0,5}", fullmatch=True)
NUMBERS = st.integers(0, 0xFFFF)
COMMANDS = st.builds(
    Command,
    field=st.sampled_from(list(CommandField)) | NUMBERS,
    has_data_set=st.booleans(),
    message_id=st.none() | NUMBERS,
    message_id_being_responded_to=st.none() | NUMBERS,
    affected_sop_class_uid=st.none() | UIDS,
    requested_sop_class_uid=st.none() | UIDS,
    affected_sop_instance_uid=st.none() | UIDS,
    requested_sop_instance_uid=st.none() | UIDS,
    priority=st.none() | st.integers(0, 2),
    status=st.none() | NUMBERS,
    error_comment=st.none() | st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9 ]{0,40}[A-Za-z0-9])?", fullmatch=True),
    event_type_id=st.none() | NUMBERS,
    action_type_id=st.none() | NUMBERS,
    move_originator_ae_title=st.none() | st.from_regex(r"[A-Z]{1,16}", fullmatch=True),
    move_originator_message_id=st.none() | NUMBERS,
)
STORE = Command(
    field=CommandField.C_STORE_RQ,
    has_data_set=True,
    message_id=7,
    priority=0,
    affected_sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
    affected_sop_instance_uid="1.2.3.4.5",
)


def element(number: int, value: bytes, group: int = 0) -> bytes:
    return struct.pack("<HHI", group, number, len(value)) + value


FIELD = element(0x0100, b"\x30\0")
NO_DATA_SET = element(0x0800, b"\x01\x01")


@given(COMMANDS)
def test_what_is_encoded_decodes_to_the_same(original: Command) -> None:
    assert command.decode(command.encode(original)) == original


@given(COMMANDS)
def test_the_group_length_counts_what_follows_it(original: Command) -> None:
    encoded = command.encode(original)
    assert struct.unpack("<HHII", encoded[:12]) == (0, 0, 4, len(encoded) - 12)
    assert len(encoded) % 2 == 0


def test_commands_of_pynetdicom_are_read() -> None:
    store = C_STORE()
    store.MessageID = 7
    store.AffectedSOPClassUID = STORE.affected_sop_class_uid
    store.AffectedSOPInstanceUID = STORE.affected_sop_instance_uid
    store.Priority = 0
    store.MoveOriginatorApplicationEntityTitle = "MOVER"
    store.MoveOriginatorMessageID = 3
    message = C_STORE_RQ()
    message.primitive_to_message(store)
    message.command_set.CommandDataSetType = 1
    decoded = command.decode(pynetdicom_encode(message.command_set, True, True))
    expected = Command(
        field=CommandField.C_STORE_RQ,
        has_data_set=True,
        message_id=7,
        priority=0,
        affected_sop_class_uid=STORE.affected_sop_class_uid,
        affected_sop_instance_uid=STORE.affected_sop_instance_uid,
        move_originator_ae_title="MOVER",
        move_originator_message_id=3,
    )
    assert decoded == expected

    echo, echo_message = C_ECHO(), C_ECHO_RQ()
    echo.MessageID = 9
    echo.AffectedSOPClassUID = "1.2.840.10008.1.1"
    echo_message.primitive_to_message(echo)
    assert command.decode(pynetdicom_encode(echo_message.command_set, True, True)) == Command(
        field=CommandField.C_ECHO_RQ, message_id=9, affected_sop_class_uid="1.2.840.10008.1.1"
    )

    action, action_message = N_ACTION(), N_ACTION_RQ()
    action.MessageID = 11
    action.RequestedSOPClassUID = "1.2.840.10008.1.20.1"
    action.RequestedSOPInstanceUID = "1.2.840.10008.1.20.1.1"
    action.ActionTypeID = 1
    action_message.primitive_to_message(action)
    decoded = command.decode(pynetdicom_encode(action_message.command_set, True, True))
    assert (decoded.field, decoded.action_type_id) == (CommandField.N_ACTION_RQ, 1)
    assert decoded.requested_sop_instance_uid == "1.2.840.10008.1.20.1.1"


def test_pynetdicom_reads_our_response() -> None:
    encoded = command.encode(command.response(STORE, 0xA700, error_comment="no space"))
    message = C_STORE_RSP()
    message.command_set = pynetdicom_decode(BytesIO(encoded), True, True)
    primitive = message.message_to_primitive()
    assert (primitive.Status, primitive.MessageIDBeingRespondedTo) == (0xA700, 7)
    assert primitive.AffectedSOPInstanceUID == "1.2.3.4.5"
    assert primitive.ErrorComment == "no space"


def test_a_response_names_what_an_n_request_named_and_an_answer_is_not_answered() -> None:
    request = Command(
        field=CommandField.N_ACTION_RQ,
        message_id=5,
        requested_sop_class_uid="1.2",
        requested_sop_instance_uid="1.3",
        action_type_id=1,
    )
    answer = command.response(request, Status.SUCCESS)
    assert answer == Command(
        field=CommandField.N_ACTION_RSP,
        message_id_being_responded_to=5,
        affected_sop_class_uid="1.2",
        affected_sop_instance_uid="1.3",
        action_type_id=1,
        status=0,
    )
    with pytest.raises(ValueError, match="must be a request"):
        command.response(answer, 0)
    with pytest.raises(ValueError, match="must be a request"):
        command.response(Command(field=CommandField.C_ECHO_RQ), 0)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "is missing"),
        (FIELD, "is missing"),
        (NO_DATA_SET, "is missing"),
        (element(0x0100, b"") + NO_DATA_SET, "is missing"),
        (FIELD + FIELD + NO_DATA_SET, "ascending"),
        (NO_DATA_SET + FIELD, "ascending"),
        (FIELD + element(0x0110, b"\1\0") * 2 + NO_DATA_SET, "ascending"),
        (FIELD + NO_DATA_SET + element(0x0010, b"Doe^Jane", group=0x0010), "group 0000"),
        (element(0x0100, b"\x30\0\0\0") + NO_DATA_SET, "must be 2"),
        (element(0x0100, b"\x30") + NO_DATA_SET, "must be 2"),
        (element(0x0002, b"1" * 65) + FIELD + NO_DATA_SET, "at most 64"),
        (element(0x0002, b"1.2\n3") + FIELD + NO_DATA_SET, "printable ASCII"),
        (element(0x0002, b"1.\xb2") + FIELD + NO_DATA_SET, "printable ASCII"),
        (FIELD + struct.pack("<HHI", 0, 0x0800, 0xFFFFFFFF) + b"\1\1", "at most 2"),
        (FIELD + NO_DATA_SET + b"\0\0\0", "3 bytes are left"),
    ],
)
def test_a_malformed_command_set_is_refused(data: bytes, problem: str) -> None:
    with pytest.raises(CommandError, match=problem):
        command.decode(data)


def test_a_message_of_refusal_does_not_repeat_what_the_peer_wrote() -> None:
    with pytest.raises(CommandError) as caught:
        command.decode(element(0x0002, b"Doe^Jane\n") + FIELD + NO_DATA_SET)
    assert "Doe" not in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [
        element(0x0000, struct.pack("<I", 99999)) + FIELD + NO_DATA_SET,  # a wrong group length
        FIELD + NO_DATA_SET,  # no group length
        element(0x0001, b"\0\0\0\0") + FIELD + element(0x0200, b"X ") + NO_DATA_SET,  # retired elements
        FIELD + element(0x0110, b"") + NO_DATA_SET,  # an element without a value
    ],
)
def test_what_old_senders_write_is_read(data: bytes) -> None:
    assert command.decode(data) == Command(field=CommandField.C_ECHO_RQ)


@pytest.mark.parametrize(
    ("value", "has_data_set"), [(0x0101, False), (0x0000, True), (0x0001, True), (0x0102, True)]
)
def test_any_data_set_type_but_0101_announces_a_data_set(value: int, has_data_set: bool) -> None:
    data = FIELD + element(0x0800, struct.pack("<H", value))
    assert command.decode(data).has_data_set is has_data_set


def test_a_command_set_cut_anywhere_is_refused_or_lacks_its_last_element() -> None:
    encoded = command.encode(STORE)
    whole = 0
    for cut in range(len(encoded)):
        try:
            decoded = command.decode(encoded[:cut])
        except CommandError:
            continue
        whole += 1
        assert decoded == dataclasses.replace(STORE, affected_sop_instance_uid=None)
    assert whole == 1  # cut just before it


@pytest.mark.parametrize(
    "wrong",
    [
        Command(field=-1),
        Command(field=1, message_id=65536),
        Command(field=1, affected_sop_class_uid="1" * 65),
        Command(field=1, error_comment="é"),
    ],
)
def test_what_has_no_encoding_is_not_encoded(wrong: Command) -> None:
    with pytest.raises(ValueError, match="command set"):
        command.encode(wrong)


@given(st.binary(max_size=200))
def test_any_bytes_decode_or_are_refused(data: bytes) -> None:
    try:
        decoded = command.decode(data)
    except CommandError:
        return
    assert 0 <= decoded.field <= 0xFFFF


@given(st.data())
def test_a_command_with_bytes_changed_decodes_or_is_refused(data: st.DataObject) -> None:
    encoded = bytearray(command.encode(STORE))
    for _ in range(data.draw(st.integers(1, 4))):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    try:
        command.decode(bytes(encoded))
    except CommandError as error:
        assert "command set" in str(error)
