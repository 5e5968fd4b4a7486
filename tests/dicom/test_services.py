import pytest
from pydicom.uid import UID, AllTransferSyntaxes
from pynetdicom import AllStoragePresentationContexts
from pynetdicom.sop_class import _QR_CLASSES, _STORAGE_CLASSES, ModalityWorklistInformationFind

from dicom import services


@pytest.mark.parametrize("known", sorted({*_STORAGE_CLASSES.values()}))
def test_every_storage_sop_class_that_pynetdicom_knows_is_taken(known: str) -> None:
    assert services.is_storage(known, accept_unknown=False)


def test_the_presentation_contexts_for_storage_are_all_taken() -> None:
    offered = [str(context.abstract_syntax) for context in AllStoragePresentationContexts]
    assert [uid for uid in offered if not services.is_storage(uid, accept_unknown=False)] == []


@pytest.mark.parametrize(
    "uid",
    [
        "1.2.840.10008.1.1",  # Verification
        "1.2.840.10008.1.20.1",  # Storage Commitment Push Model
        "1.2.840.10008.1.3.10",  # Media Storage Directory
        ModalityWorklistInformationFind,
        *sorted(_QR_CLASSES.values()),
        "1.2.840.10008.5.1.4.1.2.9.9",  # of the Standard, but not in its storage root
        "1.2.840.10008.1.2.1",  # a transfer syntax
        "",
        "1.2..3",
        "../../etc/passwd",
    ],
)
def test_what_is_no_storage_is_not_taken_even_where_private_classes_are(uid: str) -> None:
    assert not services.is_storage(uid, accept_unknown=True)


def test_private_storage_is_a_choice_and_a_later_edition_is_not() -> None:
    assert services.is_storage("1.3.46.670589.5.0.1", accept_unknown=True)
    assert not services.is_storage("1.3.46.670589.5.0.1", accept_unknown=False)
    assert services.is_storage("1.2.840.10008.5.1.4.1.1.999.1", accept_unknown=False)


def test_every_transfer_syntax_that_pydicom_knows_is_taken_but_those_that_hold_no_instance() -> None:
    refused = {str(uid) for uid in AllTransferSyntaxes} - services.STORABLE_TRANSFER_SYNTAXES
    assert {UID(uid).name.split()[0] for uid in refused} <= {"JPIP", "SMPTE", "Papyrus", "RFC", "XML"}
    assert {
        "1.2.840.10008.1.2",
        "1.2.840.10008.1.2.1",
        "1.2.840.10008.1.2.4.70",
    } <= services.STORABLE_TRANSFER_SYNTAXES
    assert "1.2.840.10008.1.2.4.53" in services.STORABLE_TRANSFER_SYNTAXES  # retired, still in archives
