"""Storage commitment data sets: pydicom's are read, ours pydicom reads, hostile ones are refused."""

import random
from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_dataset
from pydicom.sequence import Sequence

from dicom.commitment import (
    INVALID_ARGUMENT,
    RESOURCE_LIMITATION,
    CommitmentError,
    CommitmentReport,
    CommitmentRequest,
    FailureReason,
    Reference,
    read_request,
    write_report,
)

IMPLICIT, EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
BOTH = pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT])
CT = "1.2.840.10008.5.1.4.1.1.2"
ONE, TWO = Reference(CT, "1.2.3.4"), Reference(CT, "1.2.3.5")


def encoded(ds: Dataset, syntax: str) -> bytes:
    stream = DicomBytesIO()
    stream.is_little_endian, stream.is_implicit_VR = True, syntax == IMPLICIT
    write_dataset(stream, ds)
    return stream.getvalue()


def item(reference: Reference) -> Dataset:
    ds = Dataset()
    ds.ReferencedSOPClassUID = reference.sop_class_uid
    ds.ReferencedSOPInstanceUID = reference.sop_instance_uid
    return ds


def asked(*references: Reference, transaction: str = "1.2.9") -> Dataset:
    ds = Dataset()
    ds.TransactionUID = transaction
    ds.ReferencedSOPSequence = Sequence([item(each) for each in references])
    return ds


def decoded(data: bytes, syntax: str) -> Dataset:
    return read_dataset(BytesIO(data), is_implicit_VR=syntax == IMPLICIT, is_little_endian=True)


@BOTH
@pytest.mark.parametrize("is_undefined", [False, True])
def test_what_pydicom_writes_is_read_with_whatever_else_is_in_it(syntax: str, is_undefined: bool) -> None:
    ds = asked(ONE, TWO, ONE)
    step = Dataset()
    inner = Dataset()
    inner.PatientComments = "x"
    step.ReferencedSOPSequence = Sequence([item(TWO), inner])
    ds.ReferencedPerformedProcedureStepSequence = Sequence([step])
    ds.StorageMediaFileSetID = "DISK"
    ds.ReferencedSOPSequence[1].StorageMediaFileSetUID = "1.2.3"
    ds.ReferencedSOPSequence[1].PurposeOfReferenceCodeSequence = Sequence([inner])
    for element in (ds["ReferencedPerformedProcedureStepSequence"], ds["ReferencedSOPSequence"]):
        element.is_undefined_length = is_undefined
        for each in element.value:
            each.is_undefined_length_sequence_item = is_undefined
    assert read_request(encoded(ds, syntax), syntax, 10) == CommitmentRequest("1.2.9", (ONE, TWO))


@BOTH
def test_a_request_cut_at_any_byte_is_refused_and_never_read_short(syntax: str) -> None:
    ds = asked(ONE, TWO)
    ds["ReferencedSOPSequence"].is_undefined_length = True
    data = encoded(ds, syntax)
    for length in range(len(data)):
        with pytest.raises(CommitmentError) as error:
            read_request(data[:length], syntax, 10)
        assert error.value.status == INVALID_ARGUMENT


@BOTH
def test_more_instances_than_the_limit_are_a_resource_limitation(syntax: str) -> None:
    data = encoded(asked(*(Reference(CT, f"1.2.{n}") for n in range(11))), syntax)
    assert len(read_request(data, syntax, 11).references) == 11
    with pytest.raises(CommitmentError, match="more than 10 instances") as error:
        read_request(data, syntax, 10)
    assert error.value.status == RESOURCE_LIMITATION


NO_TRANSACTION, EMPTY, NO_CLASS = asked(ONE), asked(), asked(ONE)
del NO_TRANSACTION.TransactionUID
del NO_CLASS.ReferencedSOPSequence[0].ReferencedSOPClassUID


@BOTH
@pytest.mark.parametrize(
    ("ds", "was", "is_now", "problem"),
    [
        (NO_TRANSACTION, b"", b"", "is missing"),
        (EMPTY, b"", b"", "is missing"),
        (NO_CLASS, b"", b"", "lacks"),
        (asked(ONE), b"1.2.3.4\0", b"../../et", "digits and dots"),
        (asked(ONE), b"1.2.3.4\0", b"1.2\\1.33", "digits and dots"),
        (asked(ONE, transaction="1" * 64), b"1" * 64, b" " * 64, "digits and dots"),
        (
            asked(ONE),
            b"\x08\x00\x95\x11",
            b"\x08\x00\x99\x11",
            "something other than an item|cut short|beyond",
        ),
    ],
)
def test_what_names_no_transaction_or_instance_is_an_invalid_argument(
    syntax: str, ds: Dataset, was: bytes, is_now: bytes, problem: str
) -> None:
    data = encoded(ds, syntax)
    assert was in data
    with pytest.raises(CommitmentError, match=problem) as error:
        read_request(data.replace(was, is_now), syntax, 10)
    assert error.value.status == INVALID_ARGUMENT


def test_sequences_60_000_deep_cost_one_pass_and_no_recursion() -> None:
    nested = b"\x08\x00\x99\x11\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff" * 60_000
    with pytest.raises(CommitmentError, match="not closed"):
        read_request(nested, IMPLICIT, 10)


@given(st.binary(max_size=400), st.sampled_from([IMPLICIT, EXPLICIT]))
def test_noise_is_refused(data: bytes, syntax: str) -> None:
    with pytest.raises(CommitmentError):
        read_request(data, syntax, 10)


@given(st.integers(), st.sampled_from([IMPLICIT, EXPLICIT]))
def test_a_damaged_request_is_refused_or_read_within_the_limits(seed: int, syntax: str) -> None:
    rng = random.Random(seed)
    data = bytearray(encoded(asked(ONE, TWO), syntax))
    for _ in range(rng.randint(1, 4)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    try:
        request = read_request(bytes(data), syntax, 10)
    except CommitmentError:
        return
    assert 1 <= len(request.references) <= 10
    for each in request.references:
        assert set(each.sop_instance_uid) <= set("0123456789.")


@BOTH
def test_a_report_is_what_pydicom_reads(syntax: str) -> None:
    failed = ((TWO, FailureReason.NO_SUCH_OBJECT_INSTANCE),)
    report = CommitmentReport("1.2.9", (ONE,), failed)
    ds = decoded(write_report(report, syntax), syntax)
    assert (ds.TransactionUID, report.event_type_id) == ("1.2.9", 2)
    assert [each.ReferencedSOPInstanceUID for each in ds.ReferencedSOPSequence] == ["1.2.3.4"]
    assert ds.ReferencedSOPSequence[0].ReferencedSOPClassUID == CT
    (only,) = ds.FailedSOPSequence
    assert (only.ReferencedSOPInstanceUID, only.FailureReason) == ("1.2.3.5", 0x0112)
    assert list(ds.keys()) == sorted(ds.keys())


@BOTH
def test_a_report_of_success_has_no_failed_sequence(syntax: str) -> None:
    report = CommitmentReport("1.2.9", (ONE, TWO), ())
    ds = decoded(write_report(report, syntax), syntax)
    assert (report.event_type_id, "FailedSOPSequence" in ds, len(ds.ReferencedSOPSequence)) == (1, False, 2)
