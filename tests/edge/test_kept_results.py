"""Result objects that an earlier run left behind are entered, not made anew."""

from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.uid import UID

from tests.edge.stages_fixture import Stages
from tests.tiny import tiny_model, tiny_study


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny")


def lose_the_journal_of_results(box: Stages) -> None:
    with box.journal.transaction() as write:
        write.execute("DELETE FROM result")
        write.execute("DELETE FROM delivery")
        write.execute(
            "UPDATE item SET stage = 'infer', created = '2031-01-01T00:00:00+00:00' WHERE model IS NOT NULL"
        )


def produced(box: Stages, tmp_path: Path) -> dict[str, bytes]:
    """What one study gave, by file name."""
    box.receive(tiny_study(tmp_path / "study"))
    box.assembler.poll()
    box.step()
    return on_disk(tmp_path)


def on_disk(tmp_path: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (tmp_path / "results").rglob("*.dcm")}


def test_objects_of_an_earlier_run_are_entered_as_they_are(tmp_path: Path, model: Path) -> None:
    with Stages(tmp_path, [model]) as box:
        before = produced(box, tmp_path)
        [item] = [each for each in box.study().items if each.model]
        rows = box.journal.results(item.item_key)
        lose_the_journal_of_results(box)
        box.step()
        assert on_disk(tmp_path) == before
        assert set(before) == {"SEG.dcm", "SR.dcm", "SC.dcm"}
        assert box.journal.results(item.item_key) == rows


@pytest.mark.parametrize("kind", ["SEG", "SR", "SC"])
@pytest.mark.parametrize("fault", ["absent", "short", "another's", "no file of DICOM"])
def test_one_object_that_is_not_whole_or_not_of_this_item_and_all_are_made_anew(
    kind: str, fault: str, tmp_path: Path, model: Path
) -> None:
    with Stages(tmp_path, [model]) as box:
        before = produced(box, tmp_path)
        [path] = (tmp_path / "results").rglob(f"{kind}.dcm")
        if fault == "absent":
            path.unlink()
        elif fault == "another's":
            ds = dcmread(path)
            ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = UID("1.2.3")
            ds.save_as(path)
        else:
            path.write_bytes(before[path.name][:-2] if fault == "short" else b"nothing")
        lose_the_journal_of_results(box)
        box.step()
        after = on_disk(tmp_path)
        assert set(after) == set(before)
        assert all(after[name] != before[name] for name in before)  # they have the time of the new item
