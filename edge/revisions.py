"""Results of one model on one series, revision after revision: which replaces which.

Rules of what is *current*, read from the journal: an item's results replace those of an earlier
revision of the same study, by the same model, on some of the same instances. There is one current
result for each model and series (for each image, where a model judges image by image).
"""

import json

from edge.journal import Journal
from edge.records import Item

Report = tuple[str, str, str, str]
"""(study, series, SOP class, SOP instance) of a report, for Predecessor Documents (PS3.3 §C.17.2)."""


def predecessor(journal: Journal, item: Item) -> Report | None:
    """The report that the results of `item` replace: the latest of an earlier revision."""
    rows = journal.read(
        "SELECT study_instance_uid, result.series_instance_uid AS series, sop_class_uid,"
        " sop_instance_uid, inputs FROM result JOIN item USING (item_key) JOIN study USING (study_key)"
        " WHERE study_key = ? AND model = ? AND item.series_instance_uid = ? AND kind = 'SR'"
        " AND item.revision < ? ORDER BY item.revision DESC, item.created DESC",
        item.study_key,
        item.model,
        item.series_instance_uid,
        item.revision,
    )
    for row in rows:
        if not set(item.inputs).isdisjoint(json.loads(row["inputs"])):
            return row[0], row[1], row[2], row[3]
    return None


def successor(journal: Journal, item: Item) -> int | None:
    """The later revision that has results already which replace those that `item` would make."""
    rows = journal.read(
        "SELECT revision, inputs FROM item WHERE study_key = ? AND model = ? AND series_instance_uid = ?"
        " AND revision > ? AND EXISTS (SELECT 1 FROM result WHERE result.item_key = item.item_key)",
        item.study_key,
        item.model,
        item.series_instance_uid,
        item.revision,
    )
    for row in rows:
        if not set(item.inputs).isdisjoint(json.loads(row["inputs"])):
            return int(row["revision"])
    return None
