import struct
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pynetdicom.pdu import A_ABORT_RQ, A_ASSOCIATE_RJ, A_RELEASE_RP, P_DATA_TF

from dicom import pdu
from dicom.pdu import AbortReason, AbortSource, Fragment, Pdu, PduError, PduReader, PduType, Rejection
from tests.fakes.peer import RELEASE_RQ, associate_rq, fragment

LIMIT = 65536
RQ = associate_rq()
ABORT = bytes.fromhex("07000000000400000201")
TWO_VALUES = (
    struct.pack(">BxI", 4, 22) + struct.pack(">IBB", 6, 3, 1) + b"abcd" + struct.pack(">IBB", 8, 3, 3)
)
TWO_VALUES += b"efghij"
DATA = fragment(5, 2, b"0123456789")
EMPTY_VALUE = fragment(5, 2, b"")

# name, bytes, what the reader makes of them once pieces are joined
STREAMS: list[tuple[str, bytes, list[tuple[object, ...]]]] = [
    ("associate", RQ, [(PduType.A_ASSOCIATE_RQ, RQ[6:])]),
    ("release", RELEASE_RQ, [(PduType.A_RELEASE_RQ, bytes(4))]),
    ("abort", ABORT, [(PduType.A_ABORT, b"\0\0\2\1")]),
    ("two data values in one PDU", TWO_VALUES, [(3, True, b"abcdefghij")]),
    ("a data set", DATA, [(5, False, b"0123456789")]),
    ("an empty last fragment", EMPTY_VALUE, [(5, False, b"")]),
    (
        "a whole association",
        RQ + TWO_VALUES + DATA + RELEASE_RQ,
        [
            (PduType.A_ASSOCIATE_RQ, RQ[6:]),
            (3, True, b"abcdefghij"),
            (5, False, b"0123456789"),
            (PduType.A_RELEASE_RQ, bytes(4)),
        ],
    ),
]
BY_NAME = pytest.mark.parametrize(
    ("stream", "expected"), [row[1:] for row in STREAMS], ids=[row[0] for row in STREAMS]
)


def read(
    chunks: list[bytes], max_p_data_bytes: int = 0, buffer_bytes: int = 4096
) -> list[tuple[object, ...]]:
    """Feed `chunks`, and join the fragments up to the last one as a message would."""
    reader = PduReader(LIMIT)
    reader.establish(max_p_data_bytes, buffer_bytes)
    found: list[tuple[object, ...]] = []
    begun = b""
    for chunk in chunks:
        rest = chunk
        while rest:
            space = reader.space()
            n = min(len(space), len(rest))
            assert n > 0
            space[:n] = rest[:n]
            reader.received(n)
            rest = rest[n:]
            while (thing := reader.next()) is not None:
                if isinstance(thing, Pdu):
                    found.append((thing.type, thing.body))
                    continue
                begun += thing.data
                if thing.is_last:
                    found.append((thing.context_id, thing.is_command, begun))
                    begun = b""
    return found


@BY_NAME
def test_a_stream_in_one_piece_is_read(stream: bytes, expected: list[tuple[object, ...]]) -> None:
    assert read([stream]) == expected


@BY_NAME
def test_a_stream_byte_by_byte_is_read_the_same(stream: bytes, expected: list[tuple[object, ...]]) -> None:
    assert read([stream[i : i + 1] for i in range(len(stream))]) == expected


@BY_NAME
def test_a_stream_cut_anywhere_is_read_the_same_and_its_beginning_gives_nothing_more(
    stream: bytes, expected: list[tuple[object, ...]]
) -> None:
    for cut in range(len(stream)):
        assert read([stream[:cut], stream[cut:]]) == expected
        begun = read([stream[:cut]])
        assert begun == expected[: len(begun)]
        assert len(begun) < len(expected)


@BY_NAME
def test_the_beginning_of_the_next_pdu_changes_nothing(
    stream: bytes, expected: list[tuple[object, ...]]
) -> None:
    assert read([stream + RELEASE_RQ[:7]]) == expected


def test_a_buffer_much_smaller_than_the_pdus_reads_them_all() -> None:
    stream = RQ + fragment(1, 2, bytes(range(256)) * 40) + RELEASE_RQ
    expected = [(PduType.A_ASSOCIATE_RQ, RQ[6:]), (1, False, bytes(range(256)) * 40)]
    assert read([stream], buffer_bytes=13) == [*expected, (PduType.A_RELEASE_RQ, bytes(4))]


def test_data_values_are_views_of_the_receive_buffer_and_no_copies() -> None:
    reader = PduReader(LIMIT)
    space = reader.space()
    space[: len(DATA)] = DATA
    reader.received(len(DATA))
    got = reader.next()
    assert isinstance(got, Fragment)
    space[12] = ord("X")
    assert bytes(got.data) == b"X123456789"


def test_what_was_received_before_establishment_is_kept_by_the_larger_buffer() -> None:
    reader = PduReader(LIMIT)
    reader.space()[: len(RQ) + 3] = RQ + DATA[:3]
    reader.received(len(RQ) + 3)
    assert isinstance(reader.next(), Pdu)
    reader.establish(0, 1 << 20)
    space = reader.space()
    assert len(space) > 1_000_000
    space[: len(DATA) - 3] = DATA[3:]
    reader.received(len(DATA) - 3)
    got = reader.next()
    assert isinstance(got, Fragment)
    assert bytes(got.data) == b"0123456789"


@pytest.mark.parametrize(
    ("stream", "reason"),
    [
        (struct.pack(">BxI", 1, 0xFFFFFFFF), AbortReason.INVALID_PDU_PARAMETER_VALUE),
        (struct.pack(">BxI", 1, LIMIT + 1), AbortReason.INVALID_PDU_PARAMETER_VALUE),
        (struct.pack(">BxI", 2, 0xFFFFFFFF), AbortReason.INVALID_PDU_PARAMETER_VALUE),
        (struct.pack(">BxI", 5, 5), AbortReason.INVALID_PDU_PARAMETER_VALUE),
        (struct.pack(">BxI", 6, 3), AbortReason.INVALID_PDU_PARAMETER_VALUE),
        (struct.pack(">BxI", 7, 0), AbortReason.INVALID_PDU_PARAMETER_VALUE),
        (struct.pack(">BxI", 3, 0xFFFFFFFF), AbortReason.INVALID_PDU_PARAMETER_VALUE),
        (struct.pack(">BxI", 0, 4), AbortReason.UNRECOGNIZED_PDU),
        (struct.pack(">BxI", 8, 4), AbortReason.UNRECOGNIZED_PDU),
        (b"GET / HTTP/1.1\r\n", AbortReason.UNRECOGNIZED_PDU),
        (b"\x16\x03\x01\x02\x00\x01", AbortReason.UNRECOGNIZED_PDU),  # a TLS ClientHello
        (struct.pack(">BxI", 4, 0), AbortReason.INVALID_PDU_PARAMETER_VALUE),
        (struct.pack(">BxI", 4, 5), AbortReason.INVALID_PDU_PARAMETER_VALUE),
        (struct.pack(">BxI", 4, 1001), AbortReason.INVALID_PDU_PARAMETER_VALUE),  # over what was offered
        (struct.pack(">BxIIBB", 4, 10, 1, 1, 2), AbortReason.INVALID_PDU_PARAMETER_VALUE),
        (struct.pack(">BxIIBB", 4, 10, 0, 1, 2), AbortReason.INVALID_PDU_PARAMETER_VALUE),
        (struct.pack(">BxIIBB", 4, 10, 7, 1, 2), AbortReason.INVALID_PDU_PARAMETER_VALUE),
        (struct.pack(">BxIIBB", 4, 10, 0xFFFFFFFF, 1, 2), AbortReason.INVALID_PDU_PARAMETER_VALUE),
        (struct.pack(">BxIIBB", 4, 9, 2, 1, 2), AbortReason.INVALID_PDU_PARAMETER_VALUE),  # 3 bytes left over
    ],
)
def test_what_is_no_pdu_is_refused_with_the_reason_an_abort_gives(stream: bytes, reason: AbortReason) -> None:
    for chunks in ([stream], [stream[i : i + 1] for i in range(len(stream))]):
        with pytest.raises(PduError) as caught:
            read(chunks, max_p_data_bytes=1000)
        assert caught.value.reason is reason


def test_the_longest_allowed_pdus_are_read() -> None:
    body = bytes(LIMIT)
    assert read([struct.pack(">BxI", 1, LIMIT) + body]) == [(PduType.A_ASSOCIATE_RQ, body)]
    assert read([fragment(1, 2, bytes(994))], max_p_data_bytes=1000) == [(1, False, bytes(994))]


def test_an_announced_length_of_gigabytes_allocates_nothing() -> None:
    announced = struct.pack(">BxI", 4, 0xFFFFFFFF) + struct.pack(">IBB", 0xFFFFFFFB, 1, 2)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        with pytest.raises(PduError):
            read([struct.pack(">BxI", 1, 0xFFFFFFFF)])
        assert read([announced + bytes(100)]) == []
        assert tracemalloc.get_traced_memory()[1] - before < 200_000
    finally:
        tracemalloc.stop()


@given(st.binary(max_size=300), st.lists(st.integers(1, 40), max_size=60))
def test_any_bytes_in_any_pieces_are_read_or_refused(stream: bytes, sizes: list[int]) -> None:
    chunks, rest = [], stream
    for size in sizes:
        chunks.append(rest[:size])
        rest = rest[size:]
    outcomes = []
    for way in ([stream], [*chunks, rest]):
        try:
            outcomes.append(read(way, max_p_data_bytes=1000))
        except PduError as error:
            outcomes.append([(error.reason,)])
    assert outcomes[0] == outcomes[1]


@given(st.binary(min_size=1, max_size=2000), st.integers(0, 300), st.integers(1, 255), st.booleans())
def test_data_of_any_length_survives_being_cut_into_pdus(
    data: bytes, limit: int, context_id: int, is_command: bool
) -> None:
    pdus = pdu.p_data(context_id, data, is_command=is_command, max_length_bytes=limit)
    assert read([pdus]) == [(context_id, is_command, data)]
    while pdus:
        length = int.from_bytes(pdus[2:6], "big")
        assert length <= max(limit, 8) or not limit  # 8: the least that can carry two bytes of a value
        pdus = pdus[6 + length :]


def test_pynetdicom_reads_what_is_written() -> None:
    abort = A_ABORT_RQ()
    abort.decode(pdu.abort(AbortSource.SERVICE_PROVIDER, AbortReason.UNEXPECTED_PDU))
    assert (abort.source, abort.reason_diagnostic) == (2, 2)
    for rejection in Rejection:
        rj = A_ASSOCIATE_RJ()
        rj.decode(pdu.reject(rejection))
        assert (rj.result, rj.source, rj.reason_diagnostic) == rejection.value
        assert rj.reason_str
    release = A_RELEASE_RP()
    release.decode(pdu.release_rp())
    assert release.encode() == pdu.release_rp()
    data = P_DATA_TF()
    data.decode(pdu.p_data(7, b"abcdef", is_command=True, max_length_bytes=0))
    (value,) = data.presentation_data_value_items
    assert (value.presentation_context_id, value.presentation_data_value) == (7, b"\x03abcdef")
