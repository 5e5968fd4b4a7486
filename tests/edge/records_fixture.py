"""Headers, arrivals and a journal for tests of the stages' bookkeeping."""

import hashlib
from datetime import UTC, datetime, timedelta

from dicom.header import InstanceHeader
from edge.records import Item, NewItem, Received

NOW = datetime(2026, 3, 1, 22, 0, tzinfo=UTC)


def later(seconds: float) -> datetime:
    """Some time after `NOW`."""
    return NOW + timedelta(seconds=seconds)


def key_of(uid: str) -> str:
    """A key as the instance store makes it."""
    return hashlib.sha256(uid.encode()).hexdigest()[:32]


def header(number: int, study: str = "1.2.3", series: str = "1.2.3.4") -> InstanceHeader:
    """The header of one MR slice."""
    return InstanceHeader(
        sop_class_uid="1.2.840.10008.5.1.4.1.1.4",
        sop_instance_uid=f"{series}.{number}",
        study_instance_uid=study,
        series_instance_uid=series,
        transfer_syntax_uid="1.2.840.10008.1.2.1",
        modality="MR",
        image_type=("ORIGINAL", "PRIMARY"),
        image_position_mm=(0.0, 0.0, float(number)),
    )


def received(number: int, study: str = "1.2.3", series: str = "1.2.3.4", at: datetime = NOW) -> Received:
    """One instance as it is entered."""
    facts = header(number, study, series)
    return Received(key_of(study), key_of(facts.sop_instance_uid), facts, 1000, at, "SCANNER")


def new_item(name: str, inputs: tuple[str, ...], digest: str = "d" * 64) -> NewItem:
    """A model's run on `inputs`."""
    return NewItem(name, "model", digest, "1.2.3.4", inputs)


def claimed(item: Item | None) -> Item:
    """The item that must have been claimed."""
    assert item is not None
    return item
