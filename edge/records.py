"""What the journal hands to the stages and takes from them: plain, frozen records."""

import json
import sqlite3
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from dicom.header import InstanceHeader
from edge.study import Stage


@dataclass(frozen=True, slots=True)
class Received:
    """One instance as the journal keeps it."""

    study_key: str
    instance_key: str
    header: InstanceHeader
    size_bytes: int
    received: datetime
    calling_ae_title: str


@dataclass(frozen=True, slots=True)
class Item:
    """One work item (see `edge.study`), as it was when it was claimed."""

    item_key: str
    study_key: str
    revision: int
    stage: Stage
    attempt: int
    created: datetime
    model: str = ""
    model_digest: str = ""
    series_instance_uid: str = ""
    inputs: tuple[str, ...] = ()
    """Instance keys, in slice order."""
    predecessor: tuple[str, str, str, str] | None = None
    """(study, series, SOP class, SOP instance) of the report that this item's replaces."""


@dataclass(frozen=True, slots=True)
class NewItem:
    """A model's run on one input, to be entered by `assembled`."""

    item_key: str
    model: str
    model_digest: str
    series_instance_uid: str
    inputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Decision:
    """Why a model did, or did not, run on a series."""

    series_instance_uid: str
    model: str
    model_digest: str
    inputs_digest: str
    accepted: bool
    reason: str


@dataclass(frozen=True, slots=True)
class ResultRow:
    """One result object of an item; its file is `<results>/<study_key>/<item_key>/<kind>.dcm`."""

    kind: str
    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Delivery:
    """One item's results to one destination, as it was when it was claimed."""

    item_key: str
    study_key: str
    destination: str
    attempt: int
    first_attempt: datetime


def header_from_json(text: str) -> InstanceHeader:
    """The inverse of `json.dumps(asdict(header))`: JSON lists become tuples again."""
    values: dict[str, Any] = json.loads(text)
    for name, value in values.items():
        if isinstance(value, list):
            values[name] = tuple(value)
    return InstanceHeader(**values)


def item_from_row(row: sqlite3.Row) -> Item:
    """An item as the stages see it."""
    predecessor = json.loads(row["predecessor"]) if row["predecessor"] else None
    return Item(
        item_key=row["item_key"],
        study_key=row["study_key"],
        revision=row["revision"],
        stage=Stage(row["stage"]),
        attempt=row["attempt"],
        created=datetime.fromisoformat(row["created"]),
        model=row["model"] or "",
        model_digest=row["model_digest"] or "",
        series_instance_uid=row["series_instance_uid"] or "",
        inputs=tuple(json.loads(row["inputs"])),
        predecessor=None if predecessor is None else tuple(predecessor),
    )
