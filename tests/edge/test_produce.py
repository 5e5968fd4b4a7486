"""Result objects: made again with the same bytes, and one current result for a model and a series."""

from pathlib import Path

import pytest
from pydicom import dcmread

from edge.closing import Sign
from edge.records import Item
from edge.study import Outcome, Stage
from tests.edge.records_fixture import NOW, claimed
from tests.edge.stages_fixture import Stages
from tests.tiny import tiny_model, tiny_study


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny")


def reports(box: Stages) -> dict[str, str | None]:
    """Item key to the SOP Instance UID of the report that its report replaces."""
    found: dict[str, str | None] = {}
    for path in sorted((box.directory / "results").rglob("SR.dcm")):
        ds = dcmread(path)
        replaced = None
        if "PredecessorDocumentsSequence" in ds:
            series = ds.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0]
            replaced = str(series.ReferencedSOPSequence[0].ReferencedSOPInstanceUID)
        found[path.parent.name] = replaced
    return found


def report_uid(box: Stages, item_key: str) -> str:
    [uid] = [each.sop_instance_uid for each in box.journal.results(item_key) if each.kind == "SR"]
    return uid


def two_revisions(box: Stages, tmp_path: Path) -> tuple[Item, str]:
    """A study, then one image more; the first one's item, in work, and the key of the second's.

    What has not begun when more images come is replaced (`Journal.assembled`); what has, goes on.
    """
    files = tiny_study(tmp_path / "study")
    box.receive(files[:-1], "1-0")
    box.assembler.poll()
    box.step(Stage.ASSEMBLE)
    first = claimed(box.journal.claim((Stage.INFER,), NOW))
    box.receive(files[-1:], "1-1")
    box.assembler.poll()
    box.journal.close_study(first.study_key, Sign.QUIET, NOW)
    box.step(Stage.ASSEMBLE)
    [row] = box.journal.read("SELECT item_key FROM item WHERE model IS NOT NULL AND revision = 2")
    return first, row["item_key"]


def test_without_findings_the_item_goes_back_to_the_model_and_gives_the_same_bytes(
    tmp_path: Path, model: Path
) -> None:
    with Stages(tmp_path, [model]) as box:
        box.receive(tiny_study(tmp_path / "study"))
        box.assembler.poll()
        box.step(Stage.ASSEMBLE)
        box.step(Stage.INFER)
        [item] = [each for each in box.study().items if each.model]
        box.inferred.drop(item.item_key)
        assert box.lanes[Stage.PRODUCE].step()
        assert box.study().items[-1].stage == Stage.INFER
        box.step()
        results = box.results()
        with box.journal.transaction() as write:
            write.execute("DELETE FROM result")
            write.execute("DELETE FROM delivery")
            write.execute("UPDATE item SET stage = 'infer' WHERE model IS NOT NULL")
        for path in (tmp_path / "results").rglob("*.dcm"):
            path.unlink()
        box.step()
        assert len(results) == 3
        assert box.results() == results


def test_a_revision_that_overtakes_finds_the_report_that_it_replaces(tmp_path: Path, model: Path) -> None:
    with Stages(tmp_path, [model]) as box:
        slow, second = two_revisions(box, tmp_path)  # the second is entered before the first has a result
        first = slow.item_key
        box.journal.advance(slow, Outcome.RETRY, NOW, "the worker died")
        box.step()
        assert reports(box) == {first: None, second: report_uid(box, first)}
        shown = {item.item_key: item.superseded_by for item in box.study().items if item.model}
        assert shown == {first: second, second: ""}


def test_a_result_that_comes_too_late_is_not_made_and_the_later_one_stays_current(
    tmp_path: Path, model: Path
) -> None:
    with Stages(tmp_path, [model]) as box:
        slow, second = two_revisions(box, tmp_path)
        first = slow.item_key
        box.step()
        assert list(reports(box)) == [second]
        box.journal.advance(slow, Outcome.RETRY, NOW, "the worker died")
        box.step()
        assert list(reports(box)) == [second]
        stages = {item.item_key: (item.stage, item.reason) for item in box.study().items if item.model}
        assert stages[first] == (
            Stage.DECLINED,
            "superseded: the results of revision 2 were made before these",
        )
        assert stages[second][0] == Stage.DELIVER
