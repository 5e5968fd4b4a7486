"""Open studies: what closes them, what begins before, and what a bad arrival does to the others."""

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from edge.arrivals import CommitmentAsked
from edge.closing import Sign
from edge.counting import Counter
from edge.instances import instance_key
from edge.study import Stage
from tests.edge.records_fixture import NOW
from tests.edge.stages_fixture import WAIT_S, Stages
from tests.material import MATERIAL, needs_material
from tests.packages import cxr_packages
from tests.tiny import tiny_model, tiny_study


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny")


def closed_by(box: Stages) -> str:
    return box.study().study.closed_by


def asked(box: Stages, files: list[Path], association: str, *more: str) -> CommitmentAsked:
    """A request for commitment that names these files, and more keys."""
    keys = [instance_key(box.store_file(path).sop_instance_uid) for path in files]
    return CommitmentAsked(association, "SCANNER", (*keys, *more), NOW)


def test_a_complete_volume_closes_when_its_association_is_released_and_it_says_when(
    tmp_path: Path, model: Path
) -> None:
    with Stages(tmp_path, [model]) as box:
        box.receive(tiny_study(tmp_path / "study"), ended=None)
        assert not box.assembler.poll()
        box.end()
        assert box.assembler.poll()
        assert closed_by(box) == Sign.COMPLETE_VOLUME
        assert box.study().study.closed == NOW.isoformat()


def test_half_of_a_volume_that_announces_more_is_not_complete(tmp_path: Path, model: Path) -> None:
    files = tiny_study(tmp_path / "study", ImagesInAcquisition=8)
    with Stages(tmp_path, [model]) as box:
        box.receive(files[:4])
        box.assembler.poll()
        assert box.study().study.state == "open"
        box.receive(files[4:], "1-2")
        assert box.assembler.poll()
        assert closed_by(box) == Sign.ACQUISITION  # in two associations, but all that were announced


def test_storage_commitment_for_all_images_closes_before_the_association_ends(
    tmp_path: Path, model: Path
) -> None:
    files = tiny_study(tmp_path / "study")
    with Stages(tmp_path, [model]) as box:
        box.receive(files, ended=None)
        box.log.append(asked(box, files[:5], "1-1"))
        assert not box.assembler.poll()  # three are here that it does not name
        box.log.append(asked(box, files[5:], "1-1"))
        assert box.assembler.poll()
        assert closed_by(box) == Sign.COMMITMENT


@pytest.mark.parametrize("what", ["names one that is not here", "another association is open"])
def test_storage_commitment_does_not_close_while_more_is_to_come(
    tmp_path: Path, model: Path, what: str
) -> None:
    files = tiny_study(tmp_path / "study")
    with Stages(tmp_path, [model], options={"close_on_complete_volume": False}) as box:
        if what == "another association is open":
            box.receive(files[:4], "1-1", ended=None)
            box.receive(files[4:], "1-2")
            box.log.append(asked(box, files, "1-3"))
            assert not box.assembler.poll()
            box.end("1-1")
        else:
            box.receive(files[:7])
            box.log.append(asked(box, files[:7], "1-3", instance_key("1.2.3.99")))
            assert not box.assembler.poll()
            box.log.append(asked(box, files[:7], "1-3"))
            assert not box.assembler.poll()  # what was promised once is still to come
            return
        assert box.assembler.poll()
        assert closed_by(box) == Sign.COMMITMENT


class Archive:
    """A PACS that has 8 images of every study."""

    def count(self, study_instance_uid: str) -> int | None:
        assert study_instance_uid
        return 8


def test_the_count_that_the_pacs_names_closes_a_study(tmp_path: Path, model: Path) -> None:
    answered = threading.Event()
    files = tiny_study(tmp_path / "study")
    with Stages(
        tmp_path,
        [model],
        options={"close_on_complete_volume": False},
        counter=lambda: Counter(Archive(), answered.set),
    ) as box:
        assert box.counter is not None
        box.counter.start()
        try:
            box.receive(files[:5])
            box.assembler.poll()
            assert answered.wait(WAIT_S)
            assert not box.assembler.poll()  # it has 8, we have 5
            answered.clear()
            box.receive(files[5:], "1-2")
            box.assembler.poll()
            assert answered.wait(WAIT_S)
            assert box.assembler.poll()
        finally:
            box.counter.stop()
            box.counter.join(WAIT_S)
        assert closed_by(box) == Sign.ASKED


def test_an_arrival_that_cannot_be_entered_stops_no_other_and_its_study_is_held(
    tmp_path: Path, model: Path
) -> None:
    bad = tiny_study(tmp_path / "bad", name="bad", slices=4)
    with Stages(tmp_path, [model], options={"quiet_s": 0.05}) as box:
        for number, path in enumerate(bad):
            arrival = box.arrival(box.store_file(path))
            if number == 1:  # no text that SQLite can hold
                broken = replace(arrival.header, series_instance_uid="\ud800")
                arrival = replace(arrival, header=broken)
            box.log.append(arrival)
        box.receive(tiny_study(tmp_path / "good", name="good"), "1-2")
        box.end("1-1")
        _poll_until(box, lambda: not box.journal.open_studies())
        box.step(Stage.ASSEMBLE)
        states = {
            row["study_instance_uid"]: box.journal.read(
                "SELECT stage, reason FROM item WHERE study_key = ? ORDER BY created", row["study_key"]
            )
            for row in box.journal.read("SELECT * FROM study")
        }
        [[held]] = [rows for rows in states.values() if rows[0]["stage"] == "held"]
        assert "1 instances could not be entered" in held["reason"]
        [served] = [rows for rows in states.values() if rows[0]["stage"] != "held"]
        assert {row["stage"] for row in served} == {"delivered", "infer"}
        events = box.journal.read("SELECT detail FROM event WHERE what = 'not entered'")
        assert ["UnicodeEncodeError" in row["detail"] for row in events] == [True]


def _poll_until(box: Stages, what: Callable[[], bool]) -> None:
    """Poll, as the ticker does, until `what`."""
    pause = threading.Event()
    for _ in range(400):
        box.assembler.poll()
        if what():
            return
        pause.wait(0.05)  # the quiet timer is the one thing that no event tells
    raise AssertionError("not reached")


def test_what_was_read_and_not_entered_is_read_again_after_a_crash(tmp_path: Path, model: Path) -> None:
    files = tiny_study(tmp_path / "study")
    with Stages(tmp_path, [model]) as box:
        box.receive(files, ended=None)
        box.assembler.poll()
        assert box.journal.read("SELECT * FROM study") == []  # gathered: nothing waits for them
    with Stages(tmp_path, []) as box:
        box.serving.refresh()
        box.end()
        assert box.assembler.poll()
        assert box.study().study.instances == len(files)
        assert closed_by(box) == Sign.COMPLETE_VOLUME


def test_a_journal_that_is_lost_is_made_again_from_the_files(tmp_path: Path, model: Path) -> None:
    files = tiny_study(tmp_path / "study")
    with Stages(tmp_path, [model]) as box:
        for path in files:
            box.store_file(path)
        box.assembler.reconcile()
        assert box.study().study.instances == len(files)
        box.instances.path(box.study().study.study_key, instance_key(_uid(box, files[0]))).unlink()
        box.assembler.reconcile()
        assert box.study().study.instances == len(files) - 1


def _uid(box: Stages, path: Path) -> str:
    return box.store_file(path).sop_instance_uid


def test_images_that_come_between_the_close_and_its_decision_are_decided_with_it_once(
    tmp_path: Path, model: Path
) -> None:
    files = tiny_study(tmp_path / "study")
    with Stages(tmp_path, [model]) as box:
        box.receive(files[:6])
        box.assembler.poll()
        box.receive(files[6:], "1-2", ended=None)
        box.end("1-2")
        box.assembler.poll()  # reopened as the second revision, and closed
        box.step()
        detail = box.study()
        assert detail.study.revision == 2
        models = [item for item in detail.items if item.model]
        assert [len(item.results) for item in models] == [3]


@needs_material
def test_a_model_that_judges_images_begins_with_each_when_it_arrives_and_runs_once(tmp_path: Path) -> None:
    [package, *_] = cxr_packages(tmp_path)
    with Stages(tmp_path, [package], options={"quiet_s": 0.05}) as box:
        box.receive([MATERIAL / "dicom" / "cxr" / "IM-0109-0001.dcm"], ended=None)
        assert box.assembler.poll()
        assert box.study().study.state == "open"
        box.step()
        [early] = box.study().items
        assert early.stage == Stage.DELIVER
        results = box.results()
        box.end()
        _poll_until(box, lambda: not box.journal.open_studies())
        box.step()
        detail = box.study()
        assert [item.item_key for item in detail.items if item.model] == [early.item_key]
        assert [each.accepted for each in detail.decisions] == [True]
        assert box.results() == results


@needs_material
def test_a_switch_of_the_model_does_not_touch_a_study_that_has_begun(tmp_path: Path) -> None:
    [old, new] = cxr_packages(tmp_path)
    manifest = (new / "manifest.json").read_text()
    (new / "manifest.json").write_text(manifest.replace('"cxr-pneumonia-squeezenet"', _name(old)))
    with Stages(tmp_path, [old], options={"quiet_s": 0.05}) as box:
        [first] = box.serving.active()
        box.receive([MATERIAL / "dicom" / "cxr" / "IM-0109-0001.dcm"], ended=None)
        box.assembler.poll()
        box.store.deactivate(first.manifest.name, who="test", now=NOW)
        box.serving.refresh()
        box.end()
        _poll_until(box, lambda: not box.journal.open_studies())
        box.step()
        [item] = [each for each in box.study().items if each.model]
        assert (item.model_digest, item.stage) == (first.digest, Stage.DELIVER)


def _name(package: Path) -> str:
    return json.dumps(json.loads((package / "manifest.json").read_text())["name"])


def test_more_studies_than_may_be_open_close_the_one_that_was_silent_longest(
    tmp_path: Path, model: Path
) -> None:
    with Stages(tmp_path, [model], options={"max_open_studies": 1}) as box:
        for name in ("one", "two"):
            files = tiny_study(tmp_path / name, name=name, slices=64)
            box.receive(files, name, ended=None)
            box.assembler.poll()
        [row] = box.journal.read("SELECT * FROM study WHERE state = 'closed'")
        assert row["closed_by"] == Sign.ROOM
        assert len(box.journal.open_studies()) == 1
