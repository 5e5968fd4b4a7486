"""The journal: what is entered once, counted before it begins, and never lost."""

import json
import sqlite3
import subprocess
import sys
import tempfile
import threading
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge import journal_view
from edge.database import JournalError
from edge.deliveries import Deliveries
from edge.journal import Journal
from edge.records import Decision, Item, NewItem, ResultRow, item_from_row
from edge.revisions import predecessor, successor
from edge.schema import MIGRATIONS
from edge.study import NEXT_STAGE, Outcome, Stage
from tests.edge.records_fixture import NOW, claimed, key_of, later, new_item, received

STUDY = key_of("1.2.3")
ACCEPTED = Decision("1.2.3.4", "model 1.0.0", "d" * 64, "i" * 64, True, "accepted")
SR = ResultRow("SR", "1.2.840.10008.5.1.4.1.1.88.34", "2.25.1", "2.25.2", 100)
SEG = ResultRow("SEG", "1.2.840.10008.5.1.4.1.1.66.4", "2.25.3", "2.25.4", 100)


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal.open(tmp_path / "journal.db")


def closed_study(journal: Journal, count: int = 3) -> Item:
    journal.enter([received(number) for number in range(count)], "1:0")
    journal.close_study(STUDY, "quiet timer", later(10))
    return claimed(journal.claim((Stage.ASSEMBLE,), later(10)))


def item_at(journal: Journal, stage: Stage) -> Item:
    item = closed_study(journal)
    journal.assembled(item, [ACCEPTED], [new_item("a", ("k1", "k2"))], later(11))
    item = claimed(journal.claim((Stage.INFER,), later(12)))
    if stage is Stage.INFER:
        return item
    journal.advance(item, Outcome.DONE, later(13))
    return claimed(journal.claim((Stage.PRODUCE,), later(14)))


def test_an_instance_is_entered_once_and_with_it_the_readers_position(journal: Journal) -> None:
    assert len(journal.enter([received(1), received(2)], "1:200")) == 2
    assert journal.enter([received(2), received(2)], "1:300") == ()
    assert journal.fact("arrivals") == "1:300"
    assert journal.known_instances() == {(STUDY, received(n).instance_key) for n in (1, 2)}


def test_the_same_instance_in_two_studies_is_entered_in_both(journal: Journal) -> None:
    one = received(1)
    other = replace(one, study_key=key_of("1.2.9"), header=replace(one.header, study_instance_uid="1.2.9"))
    assert len(journal.enter([one, other])) == 2
    assert len(journal.headers(one.study_key)) == len(journal.headers(other.study_key)) == 1


def test_a_header_comes_back_as_it_was_entered(journal: Journal) -> None:
    journal.enter([received(7)])
    assert journal.headers(STUDY) == {received(7).instance_key: received(7).header}


def test_a_closed_study_gives_one_assemble_item_and_closing_again_gives_none(journal: Journal) -> None:
    item = closed_study(journal)
    journal.close_study(STUDY, "quiet timer", later(20))
    assert (item.stage, item.attempt, item.revision) == (Stage.ASSEMBLE, 1, 1)
    assert journal.claim((Stage.ASSEMBLE,), later(30)) is None


def test_an_attempt_is_counted_before_it_begins_and_stays_counted_when_the_process_dies(
    journal: Journal, tmp_path: Path
) -> None:
    closed_study(journal)
    other = Journal.open(tmp_path / "journal.db")  # the process died: another one opens the same file
    assert other.claim((Stage.ASSEMBLE,), later(11)) is None
    assert other.unclaim([Stage.ASSEMBLE]) == 1
    assert claimed(other.claim((Stage.ASSEMBLE,), later(12))).attempt == 2


def test_a_late_image_reopens_a_closed_study_as_its_next_revision(journal: Journal) -> None:
    item = closed_study(journal)
    journal.assembled(item, [ACCEPTED], [], later(11))
    journal.enter([received(9, at=later(60))])
    row = journal_view.studies(journal)[0]
    assert (row.state, row.revision, row.instances) == ("open", 2, 4)
    journal.close_study(STUDY, "quiet timer", later(70))
    assert claimed(journal.claim((Stage.ASSEMBLE,), later(71))).revision == 2


def test_assembled_twice_enters_each_models_item_once(journal: Journal) -> None:
    item = closed_study(journal)
    journal.assembled(item, [ACCEPTED], [new_item("a", ("k",))], later(11))
    journal.enter([received(9, at=later(60))])
    journal.close_study(STUDY, "quiet timer", later(70))
    again = claimed(journal.claim((Stage.ASSEMBLE,), later(71)))
    journal.assembled(again, [ACCEPTED], [new_item("a", ("k",)), new_item("b", ("k", "l"))], later(72))
    detail = journal_view.study(journal, STUDY)
    assert detail is not None
    assert [each.item_key for each in detail.items if each.model] == ["a", "b"]


def test_what_an_earlier_revision_has_not_begun_ends_when_more_images_replace_it(journal: Journal) -> None:
    item = closed_study(journal)
    journal.assembled(item, [ACCEPTED], [new_item("a", ("k1", "k2")), new_item("b", ("x",))], later(11))
    journal.enter([received(9, at=later(60))])
    journal.close_study(STUDY, "quiet timer", later(70))
    again = claimed(journal.claim((Stage.ASSEMBLE,), later(71)))
    journal.assembled(again, [ACCEPTED], [new_item("c", ("k1", "k2", "k3"))], later(72))
    detail = journal_view.study(journal, STUDY)
    assert detail is not None
    found = {each.item_key: (each.stage, each.reason) for each in detail.items if each.model}
    assert found["a"] == ("declined", "replaced by revision 2 before it began: more images came")
    assert found["b"][0] == found["c"][0] == "infer"


def test_a_study_that_no_model_wants_is_declined_with_the_reason(journal: Journal) -> None:
    item = closed_study(journal)
    refused = Decision("1.2.3.4", "model 1.0.0", "d" * 64, "", False, "(0008,0060) Modality is CT")
    journal.assembled(item, [refused], [], later(11))
    detail = journal_view.study(journal, STUDY)
    assert detail is not None
    assert detail.study.state == "declined"
    assert detail.decisions[0].reason == "(0008,0060) Modality is CT"


@pytest.mark.parametrize(("stage", "outcome"), [pair for pair in NEXT_STAGE if pair[0] is Stage.INFER])
def test_an_item_moves_by_the_table_and_is_free_to_be_claimed_again(
    journal: Journal, stage: Stage, outcome: Outcome
) -> None:
    item = item_at(journal, stage)
    new = journal.advance(item, outcome, later(20), "why", later(25))
    assert new is NEXT_STAGE[stage, outcome]
    if new not in {Stage.DECLINED, Stage.HELD}:
        assert journal.claim((new,), later(24)) is None
        again = claimed(journal.claim((new,), later(25)))
        assert again.attempt == (2 if outcome is Outcome.RETRY else 1)


def test_an_item_whose_model_is_busy_is_left_for_later(journal: Journal) -> None:
    item = closed_study(journal)
    journal.assembled(item, [ACCEPTED], [new_item("a", ("k",)), new_item("b", ("l",), "e" * 64)], later(11))
    first = claimed(journal.claim((Stage.INFER,), later(12)))
    second = claimed(journal.claim((Stage.INFER,), later(12), (first.model_digest,)))
    assert {first.model_digest, second.model_digest} == {"d" * 64, "e" * 64}


def test_results_are_sent_segmentation_first_and_to_each_destination_once(journal: Journal) -> None:
    item = item_at(journal, Stage.PRODUCE)
    assert journal.produced(item, [SR, SEG], ["pacs", "archive"], later(15)) is Stage.DELIVER
    deliveries = Deliveries(journal)
    assert [each.kind for each in journal.results("a")] == ["SEG", "SR"]
    delivery = deliveries.claim("pacs", later(16))
    assert delivery is not None
    assert deliveries.claim("pacs", later(16)) is None
    deliveries.delivered(delivery, later(17))
    assert journal_view.studies(journal)[0].state == "working"
    delivery = deliveries.claim("archive", later(18))
    assert delivery is not None
    deliveries.delivered(delivery, later(19))
    assert journal_view.studies(journal)[0].state == "delivered"


def test_a_parked_delivery_holds_the_item_and_release_revives_just_that_destination(journal: Journal) -> None:
    item = item_at(journal, Stage.PRODUCE)
    journal.produced(item, [SR], ["pacs", "archive"], later(15))
    deliveries = Deliveries(journal)
    for name in ("pacs", "archive"):
        delivery = deliveries.claim(name, later(16))
        assert delivery is not None
        if name == "pacs":
            deliveries.delivered(delivery, later(17))
        else:
            deliveries.park(delivery, "archive does not answer", later(17))
    row = journal_view.studies(journal)[0]
    assert (row.state, row.reason) == ("held", "archive does not answer")
    assert journal.release(STUDY, "root", later(18)) == 1
    assert deliveries.claim("pacs", later(19)) is None
    revived = deliveries.claim("archive", later(19))
    assert revived is not None
    assert (revived.attempt, revived.first_attempt) == (1, later(19))
    deliveries.delivered(revived, later(20))
    assert journal_view.studies(journal)[0].state == "delivered"


def test_without_a_destination_results_are_held_and_delivered_once_one_is_configured(
    journal: Journal,
) -> None:
    journal.produced(item_at(journal, Stage.PRODUCE), [SR], [], later(15))
    row = journal_view.studies(journal)[0]
    assert row.state == "held"
    assert "no peer receives results" in row.reason
    journal.release(STUDY, "root", later(16))
    deliveries = Deliveries(journal)
    assert deliveries.enter_missing(["pacs"], later(17)) == 1
    assert deliveries.claim("pacs", later(18)) is not None


def test_retry_makes_a_waiting_delivery_due_now_and_release_does_not(journal: Journal) -> None:
    journal.produced(item_at(journal, Stage.PRODUCE), [SR], ["pacs"], later(15))
    deliveries = Deliveries(journal)
    delivery = deliveries.claim("pacs", later(16))
    assert delivery is not None
    deliveries.defer(delivery, "refused", later(1000), later(17))
    assert deliveries.next_due("pacs") == later(1000)
    assert journal.release(STUDY, "root", later(18)) == 0
    assert deliveries.claim("pacs", later(19)) is None
    assert journal.release(STUDY, "root", later(20), waiting_too=True) == 1
    assert deliveries.claim("pacs", later(21)) is not None


def second_revision(journal: Journal, *items: NewItem) -> dict[str, Item]:
    """The study again with one more image, and the items of its second revision."""
    journal.enter([received(9, at=later(60))])
    journal.close_study(STUDY, "quiet timer", later(70))
    item = claimed(journal.claim((Stage.ASSEMBLE,), later(71)))
    journal.assembled(item, [ACCEPTED], items, later(72))
    return {each.item_key: each for each in iter(lambda: journal.claim((Stage.INFER,), later(73)), None)}


def test_a_second_report_on_more_of_the_same_images_names_the_first_as_its_predecessor(
    journal: Journal,
) -> None:
    first = item_at(journal, Stage.PRODUCE)
    journal.produced(first, [SR], ["pacs"], later(15))
    items = second_revision(
        journal, new_item("b", ("k1", "k2", "k3")), new_item("c", ("x",)), new_item("d", ("k1",), "e" * 64)
    )
    replaced = ("1.2.3", "2.25.2", SR.sop_class_uid, "2.25.1")
    assert predecessor(journal, items["b"]) == replaced
    assert predecessor(journal, items["d"]) == replaced  # another version of the same model
    assert predecessor(journal, items["c"]) is None
    assert predecessor(journal, first) is None
    assert successor(journal, first) is None


def test_a_result_that_comes_after_that_of_a_later_revision_is_known_to_be_superseded(
    journal: Journal,
) -> None:
    first = item_at(journal, Stage.PRODUCE)
    later_item = second_revision(journal, new_item("b", ("k1", "k2", "k3")))["b"]
    assert successor(journal, first) is None  # it may still fail: then the first is the current one
    journal.advance(later_item, Outcome.DONE, later(74))
    made = claimed(journal.claim((Stage.PRODUCE,), later(75)))
    journal.produced(made, [SR], ["pacs"], later(76))
    assert successor(journal, first) == 2


def test_what_a_report_replaces_is_kept_so_that_it_is_made_again_with_the_same_bytes(
    journal: Journal,
) -> None:
    replaced = ("1.2.3", "2.25.2", SR.sop_class_uid, "2.25.1")
    item = item_at(journal, Stage.PRODUCE)
    journal.produced(item, [SR], ["pacs"], later(15), replaced)
    row = journal.read("SELECT * FROM item WHERE item_key = ?", item.item_key)[0]
    assert item_from_row(row).predecessor == replaced


def test_an_item_that_begins_before_the_close_is_entered_once(journal: Journal) -> None:
    journal.enter([received(1), received(2)])
    journal.begin(STUDY, [new_item("early", ("k1",))], later(1))
    assert journal.begun(STUDY, 1) == {"model": "d" * 64}
    assert journal.awaited_models() == {"d" * 64}
    early = claimed(journal.claim((Stage.INFER,), later(2)))
    journal.advance(early, Outcome.DECLINE, later(3), "out of scope")
    journal.close_study(STUDY, "quiet timer", later(4))
    item = claimed(journal.claim((Stage.ASSEMBLE,), later(5)))
    journal.assembled(item, [ACCEPTED], [new_item("early", ("k1",)), new_item("new", ("k2",))], later(6))
    assert claimed(journal.claim((Stage.INFER,), later(7))).item_key == "new"
    assert journal.claim((Stage.INFER,), later(8)) is None


def test_a_study_with_an_instance_that_could_not_be_entered_is_held_and_says_so(journal: Journal) -> None:
    journal.flaw(received(1), "OverflowError: too large")
    journal.close_study(STUDY, "quiet timer", later(1), "1 instances could not be entered")
    assert journal.claim((Stage.ASSEMBLE,), later(2)) is None
    detail = journal_view.study(journal, STUDY)
    assert detail is not None
    assert (detail.study.state, detail.study.reason) == ("held", "1 instances could not be entered")
    assert [event.what for event in detail.events][:1] == ["not entered"]
    assert journal.release(STUDY, "root", later(3)) == 1
    assert claimed(journal.claim((Stage.ASSEMBLE,), later(4))).stage is Stage.ASSEMBLE


def test_the_audit_is_chained_so_that_a_changed_row_shows(journal: Journal) -> None:
    journal.audit("root", "model activate", {"model": "m"}, NOW)
    journal.audit("root", "model rollback", {"model": "m"}, later(1))
    assert journal.broken_audit() is None
    with journal.transaction() as write:
        write.execute("UPDATE audit SET who = 'nobody' WHERE number = 1")
    assert journal.broken_audit() == 1


def test_a_journal_of_a_newer_version_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    Journal.open(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    with pytest.raises(JournalError, match="newer than this version"):
        Journal.open(path)
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA user_version").fetchone()[0] == len(MIGRATIONS) + 1


def test_a_damaged_journal_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    path.write_bytes(b"this is no database, " * 100)
    with pytest.raises(JournalError, match="move the file aside"):
        Journal.open(path)
    with pytest.raises(JournalError, match="there is no journal yet"):
        Journal.open(tmp_path / "none.db", readonly=True)


def test_two_processes_that_claim_at_once_never_get_the_same_item(journal: Journal, tmp_path: Path) -> None:
    item = closed_study(journal)
    journal.assembled(item, [ACCEPTED], [new_item(f"i{n}", (f"k{n}",)) for n in range(40)], later(11))
    code = (
        "import sys; from datetime import datetime; from pathlib import Path\n"
        "from edge.journal import Journal; from edge.study import Stage\n"
        "journal = Journal.open(Path(sys.argv[1])); now = datetime.fromisoformat(sys.argv[2])\n"
        "while item := journal.claim((Stage.INFER,), now): print(item.item_key)\n"
    )
    command = [sys.executable, "-I", "-c", code, str(tmp_path / "journal.db"), later(12).isoformat()]
    outputs: list[str] = []
    threads = [
        threading.Thread(target=lambda: outputs.append(subprocess.check_output(command, text=True)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    taken = "".join(outputs).split()
    assert len(taken) == 40
    assert len(set(taken)) == 40


def test_the_view_of_a_study_is_json_and_names_no_patient(journal: Journal) -> None:
    closed_study(journal)
    detail = journal_view.study(journal, STUDY[:8])
    assert detail is not None
    assert json.loads(journal_view.as_json(detail))["study"]["state"] == "working"
    assert journal_view.study(journal, "1.2.3") == detail
    assert journal_view.study(journal, "ffff") is None
    assert journal_view.waiting(journal)["working"] == 1


moves = st.lists(
    st.sampled_from(["enter", "close", "claim", "done", "retry", "hold", "die", "release"]), max_size=40
)


@given(moves)
@settings(max_examples=60, deadline=None)
def test_whatever_happens_no_item_is_lost_and_none_is_claimed_twice(steps: list[str]) -> None:
    with (
        tempfile.TemporaryDirectory() as directory,
        closing(Journal.open(Path(directory, "j.db"))) as journal,
    ):
        held: list[Item] = []
        entered, clock = 0, 0.0
        for step in steps:
            clock += 10
            if step == "enter":
                entered += 1
                journal.enter([received(entered, at=later(clock))])
            elif step == "close":
                journal.close_study(STUDY, "quiet timer", later(clock))
            elif step == "claim":
                item = journal.claim((Stage.ASSEMBLE,), later(clock))
                assert item is None or item.item_key not in {each.item_key for each in held}
                held += [item] if item else []
            elif step in {"done", "retry", "hold"} and held:
                item = held.pop()
                if step == "done":
                    journal.assembled(item, [ACCEPTED], [], later(clock))
                else:
                    outcome = Outcome.RETRY if step == "retry" else Outcome.HOLD
                    journal.advance(item, outcome, later(clock), "why")
            elif step == "die":
                journal.unclaim([Stage.ASSEMBLE])
                held.clear()
            elif step == "release":
                journal.release(STUDY, "root", later(clock))
        rows = journal.read("SELECT stage, claimed, revision FROM item")
        assert len(rows) == len({row["revision"] for row in rows})
        assert sum(row["claimed"] for row in rows) == len(held)
        assert {row["stage"] for row in rows} <= {"assemble", "held", "delivered"}
        assert len(journal.headers(STUDY)) == entered
