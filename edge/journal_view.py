"""What people see of the journal: studies, one study, and how much waits. Reads only.

Nothing here names a patient: a study is known by its key and its Study Instance UID.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Final

from edge.journal import Journal

STATES: Final = ("open", "working", "delivered", "declined", "held", "deleted")
"""What a study as a whole can be; it is the least finished of its items."""


@dataclass(frozen=True, slots=True)
class StudyRow:
    """One study in a list."""

    study_key: str
    study_instance_uid: str
    state: str
    """One of `STATES`."""
    revision: int
    calling_ae_title: str
    modalities: tuple[str, ...]
    instances: int
    series: int
    first_received: str
    last_received: str
    closed_by: str
    """The sign that closed it; empty while it is open."""
    closed: str
    """When, UTC; empty while it is open."""
    reason: str


@dataclass(frozen=True, slots=True)
class DecisionRow:
    """Why a model did, or did not, run on a series."""

    series_instance_uid: str
    model: str
    accepted: bool
    reason: str


@dataclass(frozen=True, slots=True)
class DeliveryRow:
    """One item's results to one destination."""

    destination: str
    state: str
    attempt: int
    next_attempt: str
    reason: str


@dataclass(frozen=True, slots=True)
class ResultView:
    """One result object."""

    kind: str
    sop_instance_uid: str
    series_instance_uid: str
    file: str
    """Below the results directory."""


@dataclass(frozen=True, slots=True)
class ItemRow:
    """One work item."""

    item_key: str
    stage: str
    model: str
    model_digest: str
    series_instance_uid: str
    revision: int
    attempt: int
    next_attempt: str
    reason: str
    results: tuple[ResultView, ...]
    deliveries: tuple[DeliveryRow, ...]
    superseded_by: str = ""
    """Key of the item whose results replace these; empty: its results, if any, are the current ones."""


@dataclass(frozen=True, slots=True)
class EventRow:
    """One line of a study's history."""

    at: str
    what: str
    detail: str


@dataclass(frozen=True, slots=True)
class StudyDetail:
    """Everything about one study."""

    study: StudyRow
    decisions: tuple[DecisionRow, ...]
    items: tuple[ItemRow, ...]
    events: tuple[EventRow, ...]


_STATE: Final = """
    CASE
        WHEN study.state <> 'closed' THEN study.state
        WHEN EXISTS (SELECT 1 FROM item WHERE item.study_key = study.study_key AND stage = 'held') THEN 'held'
        WHEN EXISTS (SELECT 1 FROM item WHERE item.study_key = study.study_key
                     AND stage NOT IN ('delivered', 'declined')) THEN 'working'
        WHEN EXISTS (SELECT 1 FROM item WHERE item.study_key = study.study_key
                     AND stage = 'delivered' AND model IS NOT NULL) THEN 'delivered'
        ELSE 'declined'
    END
"""

_STUDY: Final = f"""
    SELECT study.*, {_STATE} AS shown,
        (SELECT count(*) FROM instance i WHERE i.study_key = study.study_key) AS instances,
        (SELECT count(DISTINCT series_instance_uid) FROM instance i WHERE i.study_key = study.study_key)
            AS series,
        (SELECT group_concat(DISTINCT json_extract(header, '$.modality')) FROM instance i
            WHERE i.study_key = study.study_key) AS modalities,
        (SELECT coalesce(nullif(reason, ''), (SELECT d.destination || ': ' || d.reason FROM delivery d
                WHERE d.item_key = item.item_key AND d.state = 'waiting' AND d.reason <> '' LIMIT 1)) AS why
            FROM item WHERE item.study_key = study.study_key
                AND stage = CASE WHEN {_STATE} = 'working' THEN stage ELSE {_STATE} END AND why <> ''
            ORDER BY revision DESC, updated DESC LIMIT 1) AS reason
    FROM study
"""


def studies(journal: Journal, limit: int = 50, state: str | None = None) -> list[StudyRow]:
    """The studies that came last first; `state` is one of `STATES`."""
    sql = f"SELECT * FROM ({_STUDY}) WHERE ? IS NULL OR shown = ? ORDER BY last_received DESC LIMIT ?"
    return [_study_row(dict(row)) for row in journal.read(sql, state, state, limit)]


def study(journal: Journal, name: str) -> StudyDetail | None:
    """The study whose key begins with `name`, or whose Study Instance UID is `name`.

    Raises:
        LookupError: more than one study begins so.
    """
    rows = journal.read(
        f"{_STUDY} WHERE study_instance_uid = ? OR substr(study.study_key, 1, ?) = ? LIMIT 2",
        name,
        len(name),
        name,
    )
    if not rows or not name:
        return None
    if len(rows) > 1:
        raise LookupError(f"more than one study's key begins with {name!r}: give more of it")
    row = _study_row(dict(rows[0]))
    key = row.study_key
    decisions = journal.read(
        "SELECT series_instance_uid, model, accepted, reason FROM decision WHERE study_key = ?"
        " AND revision = (SELECT max(revision) FROM decision WHERE study_key = ?) ORDER BY rowid",
        key,
        key,
    )
    items = journal.read("SELECT * FROM item WHERE study_key = ? ORDER BY created, item_key", key)
    shown = [_item_row(journal, dict(item)) for item in items]
    replaced = {
        json.loads(item["predecessor"])[3]: each.item_key
        for item, each in zip(items, shown, strict=True)
        if item["predecessor"] and each.results
    }
    events = journal.read("SELECT at, what, detail FROM event WHERE study_key = ? ORDER BY number", key)
    return StudyDetail(
        row,
        tuple(
            DecisionRow(d["series_instance_uid"], d["model"], bool(d["accepted"]), d["reason"])
            for d in decisions
        ),
        tuple(_marked(each, replaced) for each in shown),
        tuple(EventRow(event["at"], event["what"], event["detail"]) for event in events),
    )


def waiting(journal: Journal) -> dict[str, int]:
    """How many studies are in each of `STATES`."""
    counts = dict.fromkeys(STATES, 0)
    for row in journal.read(f"SELECT shown, count(*) AS n FROM ({_STUDY}) GROUP BY shown"):
        counts[row["shown"]] = row["n"]
    return counts


def _study_row(row: dict[str, str | int | None]) -> StudyRow:
    return StudyRow(
        study_key=str(row["study_key"]),
        study_instance_uid=str(row["study_instance_uid"]),
        state=str(row["shown"]),
        revision=int(row["revision"] or 0),
        calling_ae_title=str(row["calling_ae_title"]),
        modalities=tuple(sorted(filter(None, str(row["modalities"] or "").split(",")))),
        instances=int(row["instances"] or 0),
        series=int(row["series"] or 0),
        first_received=str(row["first_received"]),
        last_received=str(row["last_received"]),
        closed_by=str(row["closed_by"] or ""),
        closed=str(row["closed"] or ""),
        reason=str(row["reason"] or ""),
    )


def _marked(item: ItemRow, replaced: Mapping[str, str]) -> ItemRow:
    """The item, with the one that replaces its report."""
    later = [replaced[each.sop_instance_uid] for each in item.results if each.sop_instance_uid in replaced]
    return replace(item, superseded_by=later[0]) if later else item


def _item_row(journal: Journal, row: dict[str, str | int]) -> ItemRow:
    key = str(row["item_key"])
    results = [
        ResultView(
            each.kind,
            each.sop_instance_uid,
            each.series_instance_uid,
            f"{row['study_key']}/{key}/{each.kind}.dcm",
        )
        for each in journal.results(key)
    ]
    deliveries = journal.read("SELECT * FROM delivery WHERE item_key = ? ORDER BY destination", key)
    return ItemRow(
        item_key=key,
        stage=str(row["stage"]),
        model=str(row["model"] or ""),
        model_digest=str(row["model_digest"] or ""),
        series_instance_uid=str(row["series_instance_uid"] or ""),
        revision=int(row["revision"]),
        attempt=int(row["attempt"]),
        next_attempt=str(row["not_before"]),
        reason=str(row["reason"]),
        results=tuple(results),
        deliveries=tuple(
            DeliveryRow(d["destination"], d["state"], d["attempt"], d["not_before"], d["reason"])
            for d in deliveries
        ),
    )


def as_json(detail: StudyDetail | list[StudyRow]) -> str:
    """The same, as JSON (`insitu study … --json`)."""
    data = [asdict(row) for row in detail] if isinstance(detail, list) else asdict(detail)
    return json.dumps(data, indent=2)
