"""Lanes: an attempt that fails is settled, whatever the journal does meanwhile."""

import sqlite3
import threading
from datetime import datetime
from pathlib import Path

import pytest

from dicom.errors import DecodeError
from edge.bell import Wake
from edge.errors import WorkerDiedError
from edge.journal import Journal
from edge.records import Item
from edge.runner import MAX_CRASHES, Busy, Lane
from edge.study import Outcome, Stage
from tests.edge.records_fixture import NOW, claimed, key_of, new_item, received

WAIT_S = 20.0


class Work:
    """A stage that raises what it is told to, and else is done."""

    def __init__(self, journal: Journal, *raises: Exception) -> None:
        self._journal = journal
        self._raises = list(raises)
        self.seen: list[str] = []

    def handle(self, item: Item) -> None:
        self.seen.append(item.item_key)
        if self._raises:
            raise self._raises.pop(0)
        self._journal.advance(item, Outcome.DONE, NOW)


class FullDisk(Journal):
    """A journal that cannot be written a few times."""

    failures = 0
    failed: threading.Event

    def advance(
        self,
        item: Item,
        outcome: Outcome,
        now: datetime,
        reason: str = "",
        not_before: datetime | None = None,
        detail: str = "",
        *,
        counted: bool = True,
    ) -> Stage:
        if self.failures:
            self.failures -= 1
            self.failed.set()
            raise sqlite3.OperationalError("database or disk is full")
        return super().advance(item, outcome, now, reason, not_before, detail, counted=counted)


@pytest.fixture
def journal(tmp_path: Path) -> FullDisk:
    journal = FullDisk.open(tmp_path / "journal.db")
    journal.failed = threading.Event()
    journal.enter([received(1)])
    journal.begin(key_of("1.2.3"), [new_item("a", ("k1",)), new_item("b", ("k2",), "e" * 64)], NOW)
    return journal


def lane(journal: Journal, work: Work, busy: Busy | None = None) -> Lane:
    return Lane(Stage.INFER, work, journal, Wake(), busy or Busy(), lambda: NOW)


def row(journal: Journal, key: str = "a") -> sqlite3.Row:
    return journal.read("SELECT * FROM item WHERE item_key = ?", key)[0]


@pytest.mark.parametrize(
    ("error", "stage", "said"),
    [
        (WorkerDiedError("model m: the worker died"), "infer", "tried once more"),
        (DecodeError("SOP Instance 1.2: cut"), "held", "under a new SOP Instance UID"),
        (KeyError("no such thing"), "held", "defect"),
    ],
)
def test_what_a_stage_raises_becomes_what_the_table_says(
    journal: FullDisk, error: Exception, stage: str, said: str
) -> None:
    assert lane(journal, Work(journal, error)).step()
    found = row(journal)
    assert (found["stage"], found["claimed"], found["attempt"]) == (stage, 0, 1)
    assert said in found["reason"]


def test_the_last_attempt_that_fails_is_held(journal: FullDisk) -> None:
    with journal.transaction() as write:
        write.execute("UPDATE item SET attempt = 1")
    lane(journal, Work(journal, WorkerDiedError("died"))).step()
    assert row(journal)["stage"] == "held"


def test_an_item_whose_attempts_never_ended_is_held_as_the_cause(journal: FullDisk) -> None:
    with journal.transaction() as write:
        write.execute("UPDATE item SET attempt = ?", (MAX_CRASHES,))
    work = Work(journal)
    lane(journal, work).step()
    assert work.seen == []
    assert row(journal)["stage"] == "held"
    assert "the process died in each" in row(journal)["reason"]


def test_an_item_is_settled_when_the_journal_can_be_written_again_and_not_left_claimed(
    journal: FullDisk,
) -> None:
    journal.failures = 3
    work = Work(journal, DecodeError("SOP Instance 1.2: cut"))
    stuck = lane(journal, work)
    thread = threading.Thread(target=stuck.step)
    thread.start()
    assert journal.failed.wait(WAIT_S)
    thread.join(WAIT_S)
    assert not thread.is_alive()
    assert (row(journal)["stage"], row(journal)["claimed"]) == ("held", 0)
    assert work.seen == ["a"]


def test_a_stop_ends_the_wait_for_a_journal_and_the_item_is_put_back_at_the_next_start(
    journal: FullDisk,
) -> None:
    journal.failures = 1_000_000
    stuck = lane(journal, Work(journal, DecodeError("cut")))
    stuck.start()
    assert journal.failed.wait(WAIT_S)
    stuck.stop()
    stuck.join(WAIT_S)
    assert not stuck.is_alive()
    journal.failures = 0
    assert journal.unclaim([Stage.INFER]) == 1


def test_a_model_runs_one_item_at_a_time_and_another_models_item_goes_first(journal: FullDisk) -> None:
    busy = Busy()
    journal.begin(key_of("1.2.3"), [new_item("a2", ("k3",))], NOW)
    with busy.claim(journal, Stage.INFER, NOW) as first, busy.claim(journal, Stage.INFER, NOW) as second:
        assert (claimed(first).item_key, claimed(second).item_key) == ("a", "b")
        with busy.claim(journal, Stage.INFER, NOW) as third:
            assert third is None
    with busy.claim(journal, Stage.INFER, NOW) as fourth:
        assert claimed(fourth).item_key == "a2"
