"""Retention: deletes what is finished and old, and nothing else.

A study goes when every work item of it ended as delivered or declined, and the last of
them longer ago than the configured days. What is open, waits, or is held stays, however
old and however full the disk. Its items and history stay in the journal, so that the
same images sent again give the same results.

In three steps, each of which can be cut off: the journal marks the study deleted; the
files go, one by one by name (an image of the study that arrives meanwhile is not among
them); the journal forgets the instances. `sweep` finishes what an earlier one began.
"""

import logging
import shutil
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path

from edge.database import add_event
from edge.journal import Journal

log = logging.getLogger(__name__)


def sweep(
    journal: Journal,
    delete_instances: Callable[[str, Sequence[str]], None],
    results: Path,
    keep_days: float,
    now: datetime,
) -> int:
    """Delete every study that is finished and older than `keep_days`; how many.

    Args:
        journal: the journal.
        delete_instances: removes the files of (study key, instance keys), durably.
        results: the directory of the result objects.
        keep_days: days since the last work item ended.
        now: aware, UTC.
    """
    for study_key in _expired(journal, now - timedelta(days=keep_days)):
        _mark(journal, study_key, now)
    begun = journal.read(
        "SELECT study_key, revision FROM study WHERE state = 'deleted' AND EXISTS"
        " (SELECT 1 FROM instance WHERE instance.study_key = study.study_key)"
    )
    for row in begun:
        study_key = row["study_key"]
        rows = journal.read("SELECT instance_key FROM instance WHERE study_key = ?", study_key)
        instance_keys = [each["instance_key"] for each in rows]
        delete_instances(study_key, instance_keys)
        shutil.rmtree(results / study_key, ignore_errors=True)
        _forget(journal, study_key, row["revision"])
    if begun:
        log.info("retention: %d studies older than %g days deleted", len(begun), keep_days)
    return len(begun)


def _expired(journal: Journal, before: datetime) -> list[str]:
    rows = journal.read(
        "SELECT study_key FROM study WHERE state = 'closed' AND closed < ? AND NOT EXISTS"
        " (SELECT 1 FROM item WHERE item.study_key = study.study_key"
        "  AND (stage NOT IN ('delivered', 'declined') OR updated >= ?))",
        before.isoformat(),
        before.isoformat(),
    )
    return [row["study_key"] for row in rows]


def _mark(journal: Journal, study_key: str, now: datetime) -> None:
    with journal.transaction() as write:
        done = write.execute(
            "UPDATE study SET state = 'deleted' WHERE study_key = ? AND state = 'closed'", (study_key,)
        )
        if done.rowcount:
            add_event(write, study_key, now.isoformat(), "deleted", "retention")


def _forget(journal: Journal, study_key: str, revision: int) -> None:
    items = "(SELECT item_key FROM item WHERE study_key = ?)"
    with journal.transaction() as write:
        # what arrived in the meantime is of the next revision
        write.execute("DELETE FROM instance WHERE study_key = ? AND revision <= ?", (study_key, revision))
        write.execute(f"DELETE FROM result WHERE item_key IN {items}", (study_key,))
        write.execute(f"DELETE FROM delivery WHERE item_key IN {items}", (study_key,))
